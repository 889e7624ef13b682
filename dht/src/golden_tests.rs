//! Golden bytes of what coordinators and replicas tell each other. Keys are fixed, and ed25519
//! signs the same bytes the same way: so these hold what is signed, too.

use crate::{
    Record, Refusal, SERVICE,
    cell::{Cell, prefers},
    golden::{self, variants},
    wire::{Reply, Request, emit, parse},
};
use p2pvm_overlay::{RingAddr, UnixTime, identity::KeyPair};

const KEY: RingAddr = RingAddr([9; 32]);

fn record(owner: u8, value: Option<Vec<u8>>) -> Record {
    let owner = KeyPair::from_seed(&[owner; 32]);
    Record::sign(&owner, KEY, 300, UnixTime(1_800_000_000), value)
}

fn live() -> Record {
    record(1, Some(b"value".to_vec()))
}

fn cell() -> Cell {
    Cell {
        record: Some(live()),
        settled: Some(300),
        graves: vec![record(2, None)],
    }
}

fn refusals() -> Vec<(&'static str, Refusal)> {
    variants! {
        Refusal::NotAuthentic => { "reply.refused.not-authentic": Refusal::NotAuthentic }
        Refusal::Expired => { "reply.refused.expired": Refusal::Expired }
        Refusal::TooLong => { "reply.refused.too-long": Refusal::TooLong }
        Refusal::TooLarge => { "reply.refused.too-large": Refusal::TooLarge }
        Refusal::OwnerLimit => { "reply.refused.owner-limit": Refusal::OwnerLimit }
        Refusal::MemberLimit => { "reply.refused.member-limit": Refusal::MemberLimit }
        Refusal::TooFast => { "reply.refused.too-fast": Refusal::TooFast }
        Refusal::Full => { "reply.refused.full": Refusal::Full }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_about_records() {
    golden::check("records", |golden| {
        let writes = |record| Request::Write { record, attempt: 7 };
        let requests = variants! {
            Request::Write { .. } => {
                "request.write": writes(live()),
                "request.write-tombstone": writes(record(2, None)),
            }
            Request::Withdraw { .. } => {
                "request.withdraw": Request::Withdraw { key: KEY, attempt: 7 },
            }
            Request::Merge(..) => { "request.merge": Request::Merge(KEY, cell()) }
            Request::Read(_) => { "request.read": Request::Read(KEY) }
            Request::Compare(_) => { "request.compare": Request::Compare(vec![(KEY, 1 << 40)]) }
        };
        golden.messages(requests, emit, parse);
        let replies = variants! {
            Reply::Written { .. } => {
                "reply.written": Reply::Written { accepted: true, cell: Cell::default() },
                "reply.not-written": Reply::Written { accepted: false, cell: cell() },
            }
            Reply::Holds(_) => { "reply.holds": Reply::Holds(cell()) }
            Reply::Done => { "reply.done": Reply::Done }
            Reply::Differs(_) => { "reply.differs": Reply::Differs(vec![0, 300]) }
            Reply::Refused(_) => { "reply.refused": Reply::Refused(Refusal::Full) }
        };
        golden.messages(replies, emit, parse);
        for (name, refusal) in refusals() {
            golden.message(name, &Reply::Refused(refusal), emit, parse);
        }
        assert!(cell().is_authentic(&KEY));
        golden.bytes("digest-of-a-cell", &cell().digest().to_be_bytes());
        let coin = |n: u8| u8::from(prefers(&RingAddr([n; 32]), &[1; 32], &[2; 32]));
        golden.bytes("preferred-owner", &(0..32).map(coin).collect::<Vec<u8>>());
        golden.bytes("service", SERVICE.as_bytes());
    });
}
