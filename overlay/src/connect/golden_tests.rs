//! Golden bytes of what two connectors tell each other, and of datagrams over a stream.

use super::{
    SERVICE, STREAM_SERVICE,
    message::{
        Answer, Candidate, CandidateKind, Introduction, NatKind, Reachability, Request, RingAnswer,
        RingRequest, decode, encode,
    },
    stream,
};
use crate::{
    coordinates::golden_tests::coordinate,
    golden::{self, variants},
    id::MemberId,
    membership::golden_tests::certificate,
};
use futures::executor::block_on;
use tokio::sync::mpsc;

fn candidates() -> Vec<(&'static str, Candidate)> {
    let kinds = variants! {
        CandidateKind::Local => { "candidate.local": CandidateKind::Local }
        CandidateKind::Reflexive => { "candidate.reflexive": CandidateKind::Reflexive }
        CandidateKind::Mapped => { "candidate.mapped": CandidateKind::Mapped }
        CandidateKind::Predicted => { "candidate.predicted": CandidateKind::Predicted }
    };
    let addr = ([192, 0, 2, 1], 4001).into();
    let mut candidates: Vec<_> = kinds
        .into_iter()
        .map(|(name, kind)| (name, Candidate { kind, addr }))
        .collect();
    let v6 = Candidate {
        kind: CandidateKind::Local,
        addr: "[2001:db8::7]:4001".parse().expect("an address"),
    };
    candidates.push(("candidate.v6", v6));
    candidates
}

fn nats() -> Vec<(&'static str, NatKind)> {
    variants! {
        NatKind::Unknown => { "nat.unknown": NatKind::Unknown }
        NatKind::Open => { "nat.open": NatKind::Open }
        NatKind::Cone => { "nat.cone": NatKind::Cone }
        NatKind::Symmetric => { "nat.symmetric": NatKind::Symmetric }
        NatKind::Blocked => { "nat.blocked": NatKind::Blocked }
        NatKind::FullCone => { "nat.full-cone": NatKind::FullCone }
        NatKind::AddressCone => { "nat.address-cone": NatKind::AddressCone }
        NatKind::Firewalled => { "nat.firewalled": NatKind::Firewalled }
        NatKind::Counting => { "nat.counting": NatKind::Counting }
    }
}

fn here() -> Reachability {
    Reachability {
        candidates: candidates().into_iter().map(|(_, c)| c).collect(),
        nat: NatKind::Cone,
        neighbours: vec![(MemberId([3; 32]), Some(300)), (MemberId([4; 32]), None)],
        relay: true,
        coordinate: Some(coordinate()),
    }
}

#[test]
fn members_of_the_previous_version_read_what_connectors_say() {
    golden::check("connect", |golden| {
        golden.messages(candidates(), encode, decode);
        golden.messages(nats(), encode, decode);
        golden.message("reachability", &here(), encode, decode);
        golden.message(
            "reachability.nothing",
            &Reachability::default(),
            encode,
            decode,
        );
        let (at, id) = (([192, 0, 2, 1], 4001).into(), [6; 12]);
        let requests = variants! {
            Request::Where => { "request.where": Request::Where }
            Request::Link(..) => { "request.link": Request::Link(here(), vec![1, 2, 3]) }
            Request::Knock(..) => { "request.knock": Request::Knock(at, id) }
            Request::KnockElsewhere(..) => {
                "request.knock-elsewhere": Request::KnockElsewhere(at, id),
            }
            Request::Relay(_) => { "request.relay": Request::Relay(MemberId([4; 32])) }
        };
        golden.messages(requests, encode, decode);
        let answers = variants! {
            Answer::Here(_) => { "answer.here": Answer::Here(here()) }
            Answer::Linked(..) => { "answer.linked": Answer::Linked(here(), vec![1, 2, 3]) }
            Answer::Knocked => { "answer.knocked": Answer::Knocked }
            Answer::KnockedFrom(_) => { "answer.knocked-from": Answer::KnockedFrom(4001) }
            Answer::Relaying(_) => { "answer.relaying": Answer::Relaying(300) }
        };
        golden.messages(answers, encode, decode);
        golden.bytes("service", SERVICE.as_bytes());
    });
}

#[test]
fn members_of_the_previous_version_read_what_connectors_say_over_the_ring() {
    golden::check("connect-over-ring", |golden| {
        let requests = variants! {
            RingRequest::Alive => { "request.alive": RingRequest::Alive }
            RingRequest::Who => { "request.who": RingRequest::Who }
            RingRequest::Link(_) => { "request.link": RingRequest::Link(vec![1, 2, 3]) }
        };
        golden.messages(requests, encode, decode);
        let answers = variants! {
            RingAnswer::Alive => { "answer.alive": RingAnswer::Alive }
            RingAnswer::Me(_) => { "answer.me": RingAnswer::Me(Box::new(certificate())) }
            RingAnswer::Linked(_) => { "answer.linked": RingAnswer::Linked(vec![1, 2, 3]) }
            RingAnswer::Refused => { "answer.refused": RingAnswer::Refused }
        };
        golden.messages(answers, encode, decode);
        let introduction = Introduction {
            certificate: certificate(),
            reachability: here(),
        };
        golden.message("introduction", &introduction, encode, decode);
    });
}

#[test]
fn members_of_the_previous_version_read_datagrams_of_a_stream() {
    golden::check("connect-stream", |golden| {
        let encode = |datagram: &Vec<u8>| {
            let (sender, receiver) = mpsc::channel(1);
            sender.try_send(datagram.clone()).expect("there is room");
            drop(sender);
            let mut stream = Vec::new();
            block_on(stream::send(&mut stream, receiver)).expect("memory takes all");
            stream
        };
        golden.message("datagram", &vec![1, 2, 3], encode, |mut stream| {
            let length = block_on(stream::length(&mut stream)).ok()??;
            (stream.len() == length).then(|| stream.to_vec())
        });
        golden.bytes("service", STREAM_SERVICE.as_bytes());
    });
}
