//! Votes: the epochs of other members' VMs, and more VMs than a voter decides over. The messages
//! are written out here, so that a test says what this version's code would not.

use super::{Attempt, Stage, member::Member};
use p2pvm_dht::VoterSet;
use p2pvm_overlay::{
    Epoch, MemberId,
    identity::{KeyPair, Signature},
};
use serde::{Deserialize, Serialize};

/// How many VMs of one member a voter decides over.
const MEMBER_VMS: usize = 4096;

#[derive(Clone, Copy, Serialize)]
#[allow(dead_code, reason = "the order of the variants is the wire form")]
enum Step {
    Promise,
    TakeBack,
    Confirm,
    Deleted,
}

#[derive(Clone, Copy, Serialize)]
struct Proposal {
    step: Step,
    epoch: Epoch,
    holder: MemberId,
}

#[derive(Serialize)]
enum Question {
    Change(Proposal, Signature),
}

#[derive(Debug, PartialEq, Deserialize)]
#[allow(dead_code, reason = "the order of the variants is the wire form")]
enum Reply {
    Promised(Signature),
    Confirmed,
    Newest(Option<Promise>),
    Refused(Promise),
    OtherVoters,
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
struct Promise {
    epoch: Epoch,
    holder: MemberId,
    confirmed: bool,
}

fn proposal(step: Step, epoch: u64, holder: MemberId) -> Proposal {
    Proposal {
        step,
        epoch: Epoch(epoch),
        holder,
    }
}

fn change(keys: &KeyPair, set: &VoterSet, proposal: Proposal) -> Vec<u8> {
    let signed = postcard::to_stdvec(&(set.vm, proposal)).unwrap();
    let signature = keys.sign("p2pvm vote request 1", &signed);
    let request = (set, Question::Change(proposal, signature));
    postcard::to_extend(&request, vec![1]).unwrap()
}

fn read(answer: &[u8]) -> Reply {
    postcard::from_bytes(&answer[1..]).expect("a voter's reply")
}

fn ask(by: &Member, voter: MemberId, body: Vec<u8>) -> Reply {
    read(&by.call(voter, "vote", body).unwrap())
}

/// A VM of the member's own with this daemon as its only voter.
fn own_vm(stage: &Stage, voter: &str) -> (KeyPair, VoterSet) {
    let keys = KeyPair::generate();
    let set = VoterSet::sign(&keys, &[stage.id(voter)]);
    (keys, set)
}

/// Requests for the first epochs of many new VMs.
pub fn new_vms(stage: &Stage, voter: &str, many: usize) -> Vec<Vec<u8>> {
    let first = proposal(Step::Promise, 1, stage.rogue.me());
    let request = |_| {
        let (keys, set) = own_vm(stage, voter);
        change(&keys, &set, first)
    };
    (0..many).map(request).collect()
}

pub const ATTEMPTS: &[Attempt] = &[
    ("a vote on another's VM", anothers_vm),
    ("a vote with a set of voters of its own", other_voters),
    ("one epoch for two holders", two_holders),
    ("the last epoch", last_epoch),
    (
        "a deletion by a member that is not the holder",
        deleted_by_another,
    ),
    ("more VMs than a voter decides over for one", too_many_vms),
];

fn anothers_vm(stage: &Stage) {
    let (keys, vm) = (KeyPair::generate(), stage.vm());
    let voters = stage.web.voters.len();
    assert!(voters > 0, "{:?}", stage.web);
    for host in super::DAEMONS {
        let own = VoterSet::sign(&keys, &[stage.id(host)]);
        let forged = VoterSet { vm, ..own };
        for step in [Step::Promise, Step::TakeBack, Step::Confirm, Step::Deleted] {
            let wanted = proposal(step, stage.web.epoch + 1, stage.rogue.me());
            let body = change(&keys, &forged, wanted);
            assert_eq!(ask(&stage.rogue, stage.id(host), body), Reply::Invalid);
        }
    }
}

fn other_voters(stage: &Stage) {
    let (keys, set) = own_vm(stage, "b");
    let first = proposal(Step::Promise, 1, stage.rogue.me());
    let promised = ask(&stage.rogue, stage.id("b"), change(&keys, &set, first));
    assert!(matches!(promised, Reply::Promised(_)), "{promised:?}");
    let more = VoterSet::sign(&keys, &[stage.id("b"), stage.rogue.me()]);
    let body = change(&keys, &more, proposal(Step::Promise, 2, stage.rogue.me()));
    assert_eq!(ask(&stage.rogue, stage.id("b"), body), Reply::OtherVoters);
}

fn two_holders(stage: &Stage) {
    let (keys, set) = own_vm(stage, "b");
    let (first, second) = (stage.rogue.me(), stage.honest.me());
    let to = |holder, epoch| change(&keys, &set, proposal(Step::Promise, epoch, holder));
    let promised = ask(&stage.rogue, stage.id("b"), to(first, 5));
    assert!(matches!(promised, Reply::Promised(_)), "{promised:?}");
    let newest = Promise {
        epoch: Epoch(5),
        holder: first,
        confirmed: false,
    };
    for epoch in [5, 4] {
        let answer = ask(&stage.rogue, stage.id("b"), to(second, epoch));
        assert_eq!(answer, Reply::Refused(newest));
    }
}

fn last_epoch(stage: &Stage) {
    let (keys, set) = own_vm(stage, "b");
    for epoch in [1 << 20, u64::from(u32::MAX), u64::MAX] {
        let body = change(
            &keys,
            &set,
            proposal(Step::Promise, epoch, stage.rogue.me()),
        );
        let why = stage.rogue.refused(stage.id("b"), "vote", body);
        assert!(why.contains("ask for the next epoch"), "{why}");
    }
}

fn deleted_by_another(stage: &Stage) {
    let (keys, set) = own_vm(stage, "b");
    let held = change(&keys, &set, proposal(Step::Promise, 1, stage.honest.me()));
    let promised = ask(&stage.honest, stage.id("b"), held);
    assert!(matches!(promised, Reply::Promised(_)), "{promised:?}");
    // With the VM's key, as a former host has it.
    let body = change(&keys, &set, proposal(Step::Deleted, 1, stage.honest.me()));
    let why = stage.rogue.refused(stage.id("b"), "vote", body);
    assert!(why.contains("only the member that holds"), "{why}");
}

fn too_many_vms(stage: &Stage) {
    let to = stage.id("c");
    // Fewer at a time than may wait: all of them are decided.
    let bodies = new_vms(stage, "c", MEMBER_VMS + 100);
    let tally = stage.rogue.flood(to, "vote", bodies, 24);
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let is_promised = |answer: &&Vec<u8>| matches!(read(answer), Reply::Promised(_));
    let promised = tally.answers.iter().filter(is_promised).count();
    assert!(
        promised <= MEMBER_VMS && promised > MEMBER_VMS / 2,
        "{promised}"
    );
    assert!(tally.says("as many as one may have"), "{:?}", tally.reasons);
    let (keys, set) = own_vm(stage, "c");
    let body = change(&keys, &set, proposal(Step::Promise, 1, stage.honest.me()));
    let other = ask(&stage.honest, to, body);
    assert!(matches!(other, Reply::Promised(_)), "{other:?}");
}
