//! Golden bytes of what callers and voters tell each other, and of the grants that they make. Keys
//! are fixed, and ed25519 signs the same bytes the same way: so these hold what is signed, too.

use super::{
    lease::wire::{self as second, LeaseReply, LeaseRequest, RenewAnswer, VoterView},
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

#[test]
fn voters_read_every_question_and_answer_about_leases() {
    golden::check("leases", |golden| {
        let vms = vec![(vm().vm_id(), Epoch(300)), (VmId([7; 32]), Epoch(1))];
        let requests = variants! {
            LeaseRequest::Renew(_) => {
                "request.renew": LeaseRequest::Renew(vms.clone()),
                "request.renew-nothing": LeaseRequest::Renew(Vec::new()),
            }
            LeaseRequest::View(_) => { "request.view": LeaseRequest::View(set()) }
        };
        golden.messages(requests, second::emit, second::parse_request);
        let answers = variants! {
            RenewAnswer::Ours => { "ours": RenewAnswer::Ours }
            RenewAnswer::Newer(_) => { "newer": RenewAnswer::Newer(promise(true)) }
            RenewAnswer::Unknown => { "unknown": RenewAnswer::Unknown }
        };
        let view = |promise: Option<Promise>, free_in_ms| {
            LeaseReply::View(VoterView {
                promise,
                is_protected: promise.is_some(),
                free_in_ms,
            })
        };
        let replies = variants! {
            LeaseReply::Renewed { .. } => {
                "reply.renewed": LeaseReply::Renewed {
                    clock_ms: 86_400_000,
                    answers: answers.iter().map(|(_, answer)| *answer).collect(),
                },
            }
            LeaseReply::View(_) => {
                "reply.view": view(Some(promise(true)), 29_300),
                "reply.view-nothing": view(None, 0),
            }
            LeaseReply::OtherVoters => { "reply.other-voters": LeaseReply::OtherVoters }
            LeaseReply::Invalid => { "reply.invalid": LeaseReply::Invalid }
        };
        golden.messages(replies, second::emit, second::parse_reply);
    });
}

#[test]
fn a_renewal_is_bounded_and_of_its_version_alone() {
    let most = lease::MAX_RENEWED;
    let renew = |n| {
        second::emit(&LeaseRequest::Renew(vec![
            (vm().vm_id(), Epoch(u64::MAX));
            n
        ]))
    };
    assert!(second::parse_request(&renew(most)).is_some());
    assert!(second::parse_request(&renew(most + 1)).is_none());
    assert!(
        parse::<Request>(&renew(1)).is_none(),
        "the previous release refuses it"
    );
    let answers = vec![RenewAnswer::Newer(promise(true)); most];
    let reply = LeaseReply::Renewed {
        clock_ms: u64::MAX,
        answers,
    };
    assert_eq!(second::parse_reply(&second::emit(&reply)), Some(reply));
    let mut longer = renew(1);
    longer.push(0);
    assert!(second::parse_request(&longer).is_none(), "bytes are left");
}
