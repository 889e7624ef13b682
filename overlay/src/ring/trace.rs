//! The content of a trace packet: each hop adds its id and the round trip to the previous hop (as
//! Brunet's trace did).
//!
//! The body is the asker's 8-byte id, then 12 bytes a hop: the first 8 of the member's id and the
//! round trip of the incoming edge in microseconds, 0 if not measured. The member where the path
//! ends, at its destination or not, sends it back as an answer with one byte in between.

use super::{
    Ring,
    wire::{HOP_LIMIT, Kind, Packet},
};
use crate::id::MemberId;
use std::time::Duration;

const ID_LEN: usize = 8;
const HOP_LEN: usize = 12;
/// How many hops a path has at most: the first and those that the limit allows.
const MAX_HOPS: usize = HOP_LIMIT as usize + 1;

/// One member on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The first bytes of its id.
    pub member: [u8; 8],
    /// The round trip between it and the previous member, if measured.
    pub rtt: Option<Duration>,
}

/// A trace that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The id given to [`request`].
    pub id: u64,
    /// Whether the last hop is the destination; otherwise the path ended there.
    pub reached: bool,
    /// The members on the way, without the asker.
    pub hops: Vec<Hop>,
}

/// The body of a trace packet as its asker sends it.
pub fn request(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// Adds a hop to a trace's body; a body that is no trace's stays as it is.
pub fn stamp(body: &mut Vec<u8>, member: &MemberId, rtt: Option<Duration>) {
    if body.len() >= ID_LEN
        && (body.len() - ID_LEN).is_multiple_of(HOP_LEN)
        && (body.len() - ID_LEN) / HOP_LEN < MAX_HOPS
    {
        body.extend_from_slice(&member.0[..8]);
        let micros = rtt.map_or(0, |rtt| {
            u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).max(1)
        });
        body.extend_from_slice(&micros.to_be_bytes());
    }
}

/// The body of the answer to a trace that ends here.
pub(super) fn answer_to(body: &[u8], reached: bool) -> Option<Vec<u8>> {
    let (id, hops) = body.split_first_chunk::<ID_LEN>()?;
    Some([&id[..], &[u8::from(reached)], hops].concat())
}

/// Parses the body of the answer to a trace; `None` if it is something else. Never panics.
pub fn parse_report(body: &[u8]) -> Option<Report> {
    let (id, rest) = body.split_first_chunk::<ID_LEN>()?;
    let (&reached, hops) = rest.split_first()?;
    if reached > 1 || !hops.len().is_multiple_of(HOP_LEN) || hops.len() / HOP_LEN > MAX_HOPS {
        return None;
    }
    let hop = |bytes: &[u8]| {
        let (member, micros) = bytes.split_first_chunk::<8>()?;
        let micros = u32::from_be_bytes(micros.try_into().ok()?);
        Some(Hop {
            member: *member,
            rtt: (micros > 0).then(|| Duration::from_micros(micros.into())),
        })
    };
    let hops = hops
        .chunks_exact(HOP_LEN)
        .map(hop)
        .collect::<Option<Vec<Hop>>>()?;
    Some(Report {
        id: u64::from_be_bytes(*id),
        reached: reached == 1,
        hops,
    })
}

impl Ring {
    /// Sends a trace that ends here back to its asker.
    pub(super) fn answer_trace(&mut self, packet: &Packet, reached: bool) {
        if let Some(body) = answer_to(&packet.body, reached) {
            self.reply(&packet.header, Kind::Answer, body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_trace_names_its_hops_and_stops_growing() {
        let mut body = request(7);
        for n in 0..=255 {
            stamp(
                &mut body,
                &MemberId([n; 32]),
                (n > 0).then(|| Duration::from_micros(n.into())),
            );
        }
        body.insert(ID_LEN, 1);
        let report = parse_report(&body).expect("a report");
        assert_eq!(
            (report.id, report.reached, report.hops.len()),
            (7, true, MAX_HOPS)
        );
        assert_eq!(
            report.hops[0],
            Hop {
                member: [0; 8],
                rtt: None
            }
        );
        assert_eq!(
            report.hops[1],
            Hop {
                member: [1; 8],
                rtt: Some(Duration::from_micros(1))
            }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse_report(&bytes);
            let mut bytes = bytes;
            stamp(&mut bytes, &MemberId([1; 32]), None);
        }
    }
}
