//! The bytes of every message about addresses.

use super::*;
use crate::golden::{self, variants};
use p2pvm_overlay::{RingAddr, UnixTime, identity::KeyPair};

fn records() -> Vec<(IpAddr, Record)> {
    let record = |value| {
        let keys = KeyPair::from_seed(&[1; 32]);
        let expires = UnixTime(1_796_000_000);
        Record::sign(&keys, RingAddr([2; 32]), 7, expires, value)
    };
    vec![
        (IpAddr::from([10, 1, 2, 3]), record(Some(vec![1, 2, 3]))),
        (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]), record(None)),
    ]
}

fn told() -> Vec<(&'static str, ReachMessage)> {
    let talkers = vec![MemberId([3; 32]), MemberId([4; 32])];
    let address = IpAddr::from([10, 1, 2, 3]);
    variants! {
        ReachMessage::Here(_) => {
            "here": ReachMessage::Here(records()),
            "here.none": ReachMessage::Here(Vec::new()),
        }
        ReachMessage::Stale(_, _) => { "stale": ReachMessage::Stale(address, Epoch(300)) }
        ReachMessage::Talkers(_) => { "talkers": ReachMessage::Talkers(talkers) }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_about_addresses() {
    golden::check("route", |golden| {
        golden.messages(
            told(),
            |told| postcard::to_allocvec(told).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.bytes("service", SERVICE.as_bytes());
    });
}
