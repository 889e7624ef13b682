//! Everything that the plane reads in a packet of a guest or a member, for the fuzzer.

use super::{
    access,
    guest::multicast,
    shape::{packet, pieces, too_big},
};
use std::{net::IpAddr, time::Instant};

/// Reads `bytes` in every way that the plane reads a packet.
pub fn look_at(bytes: &[u8]) {
    let room = usize::from(bytes.first().copied().unwrap_or_default()) * 8;
    for router in [
        IpAddr::from([10, 0, 0, 1]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
    ] {
        let answer = too_big::refusal(bytes, room, router);
        assert!(
            answer
                .is_none_or(|answer| answer.len() <= 1280 && packet::addresses(&answer).is_some())
        );
    }
    let _ = multicast::group_mac(bytes);
    let _ = access::look_at(bytes);
    if let [id, index, count, rest @ ..] = bytes {
        let mut pieces = pieces::Pieces::default();
        let now = Instant::now();
        for at in [*index, 0, 1, 2, 3] {
            let _ = pieces.take(now, u32::from(*id), at, *count, rest);
        }
    }
}
