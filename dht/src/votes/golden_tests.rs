//! Golden bytes of what callers and voters tell each other, and of the grants that they make. Keys
//! are fixed, and ed25519 signs the same bytes the same way: so these hold what is signed, too.

use super::{
    wire::{Promise, Proposal, Question, Reply, Request, Step, emit, is_proposal_of, parse},
    *,
};
use crate::golden::{self, variants};

fn vm() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

fn voter(n: u8) -> (MemberId, KeyPair) {
    let keys = KeyPair::from_seed(&[n; 32]);
    (MemberId(keys.public()), keys)
}

fn set() -> VoterSet {
    VoterSet::sign(&vm(), &[2, 3, 4].map(|n| voter(n).0))
}

fn proposal(step: Step) -> Proposal {
    Proposal {
        step,
        epoch: Epoch(300),
        holder: MemberId([9; 32]),
    }
}

fn promise(confirmed: bool) -> Promise {
    Promise {
        epoch: Epoch(300),
        holder: MemberId([9; 32]),
        confirmed,
    }
}

/// The promise of a voter, as it signs it.
fn signed(n: u8) -> (MemberId, Signature) {
    let (member, keys) = voter(n);
    let VoterSet { vm, voters, .. } = set();
    let Proposal { epoch, holder, .. } = proposal(Step::Promise);
    let message = promise_message(vm, epoch, holder, &voters);
    (member, keys.sign(PROMISE_DOMAIN, &message))
}

fn grant() -> Grant {
    Grant {
        vm: vm().vm_id(),
        epoch: Epoch(300),
        holder: MemberId([9; 32]),
        voters: set().voters,
        promises: vec![signed(2), signed(4)],
    }
}

#[test]
fn voters_of_the_previous_version_read_every_request_and_answer() {
    golden::check("votes", |golden| {
        let steps = variants! {
            Step::Promise => { "request.promise": Step::Promise }
            Step::TakeBack => { "request.take-back": Step::TakeBack }
            Step::Confirm => { "request.confirm": Step::Confirm }
            Step::Deleted => { "request.deleted": Step::Deleted }
            Step::TakeOver => { "request.take-over": Step::TakeOver }
            Step::Protect => { "request.protect": Step::Protect }
            Step::Unprotect => { "request.unprotect": Step::Unprotect }
            Step::Forced => { "request.forced": Step::Forced }
        };
        for (name, step) in steps {
            let request = Request::change(&vm(), &set(), proposal(step));
            golden.message(name, &request, emit, parse);
        }
        let questions = variants! {
            Question::Change(..) => {
                "question.change": Request::change(&vm(), &set(), proposal(Step::Promise)).question,
            }
            Question::Newest => { "question.newest": Question::Newest }
        };
        for (name, question) in questions {
            if let Question::Change(asked, signature) = &question {
                assert!(is_proposal_of(set().vm, asked, signature));
            }
            let set = set();
            golden.message(name, &Request { set, question }, emit, parse);
        }
        let replies = variants! {
            Reply::Promised(_) => { "reply.promised": Reply::Promised(signed(2).1) }
            Reply::Confirmed => { "reply.confirmed": Reply::Confirmed }
            Reply::Newest(_) => {
                "reply.newest": Reply::Newest(Some(promise(true))),
                "reply.newest-nothing": Reply::Newest(None),
            }
            Reply::Refused(_) => { "reply.refused": Reply::Refused(promise(false)) }
            Reply::OtherVoters => { "reply.other-voters": Reply::OtherVoters }
            Reply::Invalid => { "reply.invalid": Reply::Invalid }
            Reply::Leased(_) => { "reply.leased": Reply::Leased(29_300) }
            Reply::Unprotected => { "reply.unprotected": Reply::Unprotected }
        };
        golden.messages(replies, emit, parse);
        golden.message("grant", &grant(), emit, parse);
        assert!(grant().is_by(&set()));
        golden.bytes("service", SERVICE.as_bytes());
    });
}
