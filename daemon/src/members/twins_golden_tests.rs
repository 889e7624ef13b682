//! The bytes of every message about twins.

use super::*;
use crate::golden::{self, variants};

/// The statement of an instance that has heard of another.
fn statement(guests: bool) -> Statement {
    let keys = KeyPair::from_seed(&[1; 32]);
    let watch = |id, guests, started| {
        let rank = Rank {
            guests,
            started: UnixTime(started),
        };
        Watch::new(MemberId(keys.public()), InstanceId([id; 16]), rank)
    };
    let other = watch(3, true, 1_796_000_000).statement(&keys);
    let mut own = watch(2, guests, 1_796_000_100);
    own.handle(other);
    own.statement(&keys)
}

fn asks() -> Vec<(&'static str, Ask)> {
    variants! {
        Ask::Met(_) => {
            "ask.met": Ask::Met(statement(false)),
            "ask.met-with-guests": Ask::Met(statement(true)),
        }
        Ask::Successor => { "ask.successor": Ask::Successor }
    }
}

fn replies() -> Vec<(&'static str, Reply)> {
    variants! {
        Reply::Others(_) => {
            "reply.others": Reply::Others(vec![statement(false)]),
            "reply.others-none": Reply::Others(Vec::new()),
        }
        Reply::Invite(_) => { "reply.invite": Reply::Invite("p2pvm1abc".into()) }
        Reply::No(_) => { "reply.no": Reply::No("too many successors today".into()) }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_about_twins() {
    golden::check("twin", |golden| {
        golden.messages(
            asks(),
            |ask| postcard::to_allocvec(ask).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.messages(
            replies(),
            |reply| postcard::to_allocvec(reply).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.bytes("service", SERVICE.as_bytes());
    });
}
