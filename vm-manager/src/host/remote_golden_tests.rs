//! The bytes of every question about VMs and of its answer.

use super::*;
use crate::{
    definition::golden_tests::definition,
    directory::{RunGoal, golden_tests::snapshots},
    golden::{self, variants},
    hypervisor::Halt,
};
use p2pvm_overlay::Epoch;

const VM: VmId = VmId([0x41; 32]);

fn requests() -> Vec<(&'static str, VmRequest)> {
    variants! {
        VmRequest::List => { "request.list": VmRequest::List }
        VmRequest::Runs(_) => { "request.runs": VmRequest::Runs(VM) }
        VmRequest::GiveWay(_) => { "request.give-way": VmRequest::GiveWay(VM) }
        VmRequest::Took(_) => { "request.took": VmRequest::Took(VM) }
        VmRequest::Share { .. } => {
            "request.share": VmRequest::Share { envelope: vec![1, 2], proofs: vec![vec![3]] },
        }
        VmRequest::Heir(_) => { "request.heir": VmRequest::Heir(set()) }
        VmRequest::ShareForHeir { .. } => {
            "request.share-for-heir": VmRequest::ShareForHeir {
                envelope: vec![1, 2],
                set: set(),
            },
        }
        VmRequest::Guards(_) => { "request.guards": VmRequest::Guards(VM) }
    }
}

fn answers() -> Vec<(&'static str, VmAnswer)> {
    let both = vec![
        status(VmState::Running, None),
        status(VmState::Paused, Some(standstill(Halt::DiskFull))),
    ];
    variants! {
        VmAnswer::Vms(_) => {
            "answer.vms": VmAnswer::Vms(both),
            "answer.vms-none": VmAnswer::Vms(Vec::new()),
        }
        VmAnswer::Runs(None) => { "answer.runs-unknown": VmAnswer::Runs(None) }
        VmAnswer::Runs(Some(_)) => {
            "answer.runs": VmAnswer::Runs(Some(true)),
            "answer.runs-not": VmAnswer::Runs(Some(false)),
        }
        VmAnswer::GivesWay(_) => {
            "answer.gives-way": VmAnswer::GivesWay(true),
            "answer.gives-no-way": VmAnswer::GivesWay(false),
        }
        VmAnswer::Heard => { "answer.heard": VmAnswer::Heard }
        VmAnswer::Share(Ok(_)) => { "answer.share": VmAnswer::Share(Ok(share())) }
        VmAnswer::Share(Err(_)) => { "answer.no-share": VmAnswer::Share(Err("why".into())) }
        VmAnswer::Heir(Ok(())) => { "answer.heir": VmAnswer::Heir(Ok(())) }
        VmAnswer::Heir(Err(_)) => { "answer.no-heir": VmAnswer::Heir(Err("why".into())) }
        VmAnswer::Guards(None) => { "answer.guards": VmAnswer::Guards(None) }
        VmAnswer::Guards(Some(_)) => {
            "answer.no-guard": VmAnswer::Guards(Some("why".into())),
        }
    }
}

/// Signed by nobody: only its bytes are looked at here.
fn set() -> VoterSet {
    VoterSet {
        vm: VM,
        voters: vec![MemberId([0x42; 32])],
        signature: postcard::from_bytes(&[0x44; 64]).expect("two halves"),
    }
}

fn share() -> KeyShare {
    KeyShare {
        number: 1,
        value: [0x43; 32],
    }
}

fn states() -> Vec<(&'static str, VmState)> {
    variants! {
        VmState::Running => { "vm.running": VmState::Running }
        VmState::Paused => { "vm.paused": VmState::Paused }
        VmState::Stopped => { "vm.stopped": VmState::Stopped }
        VmState::Leaving => { "vm.leaving": VmState::Leaving }
        VmState::Arriving => { "vm.arriving": VmState::Arriving }
        VmState::Doubtful => { "vm.doubtful": VmState::Doubtful }
        VmState::Branch => { "vm.branch": VmState::Branch }
        VmState::Remote => { "vm.remote": VmState::Remote }
    }
}

fn halts() -> Vec<(&'static str, Halt)> {
    variants! {
        Halt::DiskFull => { "vm.disk-full": Halt::DiskFull }
        Halt::DiskError => { "vm.disk-error": Halt::DiskError }
        Halt::PoweredOff => { "vm.powered-off": Halt::PoweredOff }
        Halt::Panicked => { "vm.panicked": Halt::Panicked }
    }
}

fn standstill(why: Halt) -> Standstill {
    Standstill {
        why,
        path: "/var/lib/p2pvm".into(),
        free_bytes: 3 << 20,
        needed_bytes: 64 << 20,
    }
}

fn status(state: VmState, still: Option<Standstill>) -> VmStatus {
    VmStatus {
        name: "web".into(),
        state,
        holder: MemberId([0x42; 32]),
        epoch: Epoch(300),
        wanted: RunGoal::Running,
        activity: Some(Activity::Migrating),
        definition: definition(),
        snapshots: snapshots().into_iter().map(|(_, one)| one).collect(),
        note: Some("held".into()),
        still,
        replication: None,
        owner: None,
        restart: None,
        user: None,
        backups: Default::default(),
    }
}

#[test]
fn members_of_the_previous_version_read_every_vm_message() {
    golden::check("vm", |golden| {
        golden.messages(
            requests(),
            |request| postcard::to_allocvec(request).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        let states = states()
            .into_iter()
            .map(|(name, state)| (name, VmAnswer::Vms(vec![status(state, None)])));
        let halts = halts().into_iter().map(|(name, why)| {
            let still = Some(standstill(why));
            (name, VmAnswer::Vms(vec![status(VmState::Paused, still)]))
        });
        golden.messages(
            answers().into_iter().chain(states).chain(halts).collect(),
            |answer| encode(answer).expect("plain fields"),
            |bytes| decode(bytes).ok(),
        );
        // Without the reasons behind the list.
        let first = VmAnswer::Vms(vec![status(VmState::Running, None)]);
        golden.previous("answer.vms-first", &first, |bytes| decode(bytes).ok());
        golden.bytes("service", SERVICE.as_bytes());
    });
}
