//! The bytes of every message between managers.

use super::*;
use crate::golden::{self, variants};
use p2pvm_overlay::{MemberId, coordinates::Coordinate};

fn load(place: Option<Coordinate>) -> LoadVector {
    LoadVector {
        member: MemberId([1; 32]),
        seq: 300,
        cpu: 0.5,
        cpus: 8,
        memory_used_mib: 1024,
        memory_total_mib: 16_384,
        vms: 3,
        place,
    }
}

fn reports() -> Vec<LoadReport> {
    let place = postcard::to_allocvec(&([-300i32, 0, 70_000], 500u32, 250u16)).expect("numbers");
    let place = postcard::from_bytes(&place).expect("a coordinate");
    vec![
        LoadReport {
            load: load(None),
            age_ms: 0,
        },
        LoadReport {
            load: load(Some(place)),
            age_ms: 1500,
        },
    ]
}

fn messages() -> Vec<(&'static str, Message)> {
    let reject = |why| Message::Reject {
        id: 300,
        why,
        load: load(None),
    };
    use OfferRefusal as No;
    variants! {
        Message::Shuffle(_) => { "shuffle": Message::Shuffle(reports()) }
        Message::ShuffleReply(_) => { "shuffle-reply": Message::ShuffleReply(reports()) }
        Message::Offer(_) => {
            "offer": Message::Offer(Offer {
                id: 300,
                vm: VmId([2; 32]),
                cpu: 1.5,
                memory_mib: 512,
                source_cpu: 0.75,
            })
        }
        Message::Accept { .. } => { "accept": Message::Accept { id: 300, predicted: 0.25 } }
        Message::Reject { why: No::Busy, .. } => { "reject.busy": reject(No::Busy) }
        Message::Reject { why: No::Memory, .. } => { "reject.memory": reject(No::Memory) }
        Message::Reject { why: No::LittleGain, .. } => {
            "reject.little-gain": reject(No::LittleGain)
        }
        Message::Reject { why: No::Occupied, .. } => { "reject.occupied": reject(No::Occupied) }
        Message::Reject { why: No::Unavailable, .. } => {
            "reject.unavailable": reject(No::Unavailable)
        }
        Message::Release { .. } => { "release": Message::Release { id: 300 } }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_of_a_manager() {
    golden::check("manager", |golden| {
        golden.messages(messages(), Message::encode, |bytes| {
            Message::decode(bytes).ok()
        });
    });
}
