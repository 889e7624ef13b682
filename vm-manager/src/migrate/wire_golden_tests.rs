//! The bytes of every request of a migration, with each optional field, and of every answer.

use super::*;
use crate::{
    definition::golden_tests::{definition, keys},
    directory::golden_tests::{revoked, snapshots},
    golden::{self, variants},
};

const VM: VmId = VmId([0x61; 32]);
const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn prepare() -> Request {
    Request::Prepare(Box::new(Offer {
        id: 0x0102_0304_0506_0708,
        definition: definition(),
        secret: VmSecret::of(&keys()),
        epoch: Epoch(301),
        snapshots: snapshots().into_iter().map(|(_, one)| one).collect(),
    }))
}

fn requests() -> Vec<(&'static str, Request)> {
    let (id, vm) = (300, VM);
    let reason = "cancelled".to_owned();
    variants! {
        Request::Prepare(_) => { "request.prepare": prepare() }
        Request::Progress { .. } => { "request.progress": Request::Progress { id } }
        Request::Arm { .. } => { "request.arm": Request::Arm { id, serial: 2 } }
        Request::Settle { .. } => {
            "request.settle": Request::Settle { id, vm, running: false },
            "request.settle-running": Request::Settle { id, vm, running: true },
        }
        Request::Abort { .. } => { "request.abort": Request::Abort { id, vm, reason } }
    }
}

/// An offer with each of the fields behind it, and with all.
fn with_fields() -> Vec<(&'static str, Extras)> {
    let within = from_traceparent(CONTEXT).expect("a context");
    let need = Some(DiskNeed {
        disk: 7 << 30,
        image: 9 << 20,
    });
    let owner = Some(MemberId([0x62; 32]));
    vec![
        (
            "prepare.traced",
            Extras {
                within: within.clone(),
                need: None,
                owner: None,
                ..Extras::none()
            },
        ),
        (
            "prepare.disk-need",
            Extras {
                within: SpanContext::NONE,
                need,
                owner: None,
                ..Extras::none()
            },
        ),
        (
            "prepare.owner",
            Extras {
                within: SpanContext::NONE,
                need: None,
                owner,
                ..Extras::none()
            },
        ),
        (
            "prepare.user",
            Extras {
                within: SpanContext::NONE,
                need: None,
                owner,
                user: Some([0x63; 32]),
                ..Extras::none()
            },
        ),
        (
            "prepare.all",
            Extras {
                within: within.clone(),
                need,
                owner,
                ..Extras::none()
            },
        ),
        (
            "prepare.revoked",
            Extras {
                within,
                need,
                owner,
                user: None,
                revoked: revoked(),
                ..Extras::none()
            },
        ),
    ]
}

fn answers() -> Vec<(&'static str, Answer)> {
    let progress = Progress {
        phase: "ram".into(),
        done_bytes: 1 << 20,
        total_bytes: 1 << 30,
        dirty_rate: 4096,
        expected_downtime_ms: 300,
        rounds: 0,
        post_copy: false,
    };
    let (export, reason) = ("disk".to_owned(), "no room".to_owned());
    variants! {
        Answer::Preparing(_) => { "answer.preparing": Answer::Preparing(progress) }
        Answer::Ready { .. } => { "answer.ready": Answer::Ready { export } }
        Answer::Armed => { "answer.armed": Answer::Armed }
        Answer::Waiting => { "answer.waiting": Answer::Waiting }
        Answer::Running => { "answer.running": Answer::Running }
        Answer::Confirmed { .. } => { "answer.confirmed": Answer::Confirmed { epoch: Epoch(301) } }
        Answer::Doubtful => { "answer.doubtful": Answer::Doubtful }
        Answer::Unknown => { "answer.unknown": Answer::Unknown }
        Answer::Gone { .. } => { "answer.gone": Answer::Gone { reason } }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_of_a_migration() {
    golden::check("migrate", |golden| {
        let plain = requests()
            .into_iter()
            .map(|(name, request)| (name, (request, Extras::none())));
        let offers = with_fields()
            .into_iter()
            .map(|(name, extras)| (name, (prepare(), extras)));
        golden.messages(
            plain.chain(offers).collect(),
            |(request, extras)| encode(request, extras),
            |bytes| decode(bytes).ok(),
        );
        golden.messages(
            answers(),
            |answer| postcard::to_allocvec(answer).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.bytes("service", SERVICE.as_bytes());
    });
}
