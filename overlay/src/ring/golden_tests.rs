//! Golden bytes of the ring's packets and of the messages in them.

use super::{
    message::{Hello, Message, Purpose, Roles},
    trace, wire, *,
};
use crate::{
    coordinates::golden_tests::coordinate,
    golden::{self, variants},
};
use std::time::Duration;

const TO: Position = Position(0x1122_3344_5566_7788);
const FROM: Position = Position(0x99aa_bbcc_ddee_ff00);

fn kinds() -> Vec<(&'static str, Kind)> {
    variants! {
        Kind::Datagram => { "datagram": Kind::Datagram }
        Kind::Control => { "control": Kind::Control }
        Kind::ControlClosest => { "control-closest": Kind::ControlClosest }
        Kind::Call => { "call": Kind::Call }
        Kind::Answer => { "answer": Kind::Answer }
        Kind::Trace => { "trace": Kind::Trace }
    }
}

fn packets() -> Vec<(String, Packet)> {
    let of_kind = |(name, kind): (&str, Kind)| {
        let header = Header {
            kind,
            hops_left: 31,
            to: TO,
            from: FROM,
            agent: None,
            leaf: None,
        };
        let body = vec![1, 2, 3];
        (format!("packet.{name}"), Packet { header, body })
    };
    let mut packets: Vec<_> = kinds().into_iter().map(of_kind).collect();
    let (agent, leaf) = (Some(Position(7)), Some(Position(8)));
    for (name, agent, leaf) in [
        ("agent", agent, None),
        ("leaf", None, leaf),
        ("agent-leaf", agent, leaf),
    ] {
        let header = Header {
            agent,
            leaf,
            ..Header::new(Kind::Call, FROM, TO)
        };
        let body = Vec::new();
        packets.push((format!("packet.{name}"), Packet { header, body }));
    }
    packets
}

fn hello(answers: Option<u32>) -> Message {
    Message::Hello(Hello {
        seq: 300,
        answers,
        joined: true,
        roles: Roles(Roles::NEAR.0 | Roles::SEED.0),
        digest: 70_000,
        size: 40,
        coordinate: coordinate(),
    })
}

fn locate(purpose: Purpose) -> Message {
    Message::Locate {
        nonce: 9,
        origin: MemberId([2; 32]),
        purpose,
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let id = |n| MemberId([n; 32]);
    let declines = |instead| Message::Decline {
        role: Roles::SHORTCUT,
        instead,
    };
    variants! {
        Message::Hello(_) => { "hello": hello(None), "hello.answer": hello(Some(299)) }
        Message::List { .. } => {
            "list": Message::List {
                digest: 70_000,
                direct: vec![id(1), id(2)],
                heard: vec![id(3)],
                gone: vec![id(4)],
            },
        }
        Message::AskList => { "ask-list": Message::AskList }
        Message::Locate { .. } => { "locate": locate(Purpose::Near) }
        Message::Found { .. } => {
            "found": Message::Found {
                nonce: 9,
                members: vec![(id(1), None), (id(2), Some(coordinate()))],
            },
        }
        Message::Decline { .. } => {
            "decline": declines(None),
            "decline.instead": declines(Some(id(5))),
        }
        Message::Bye => { "bye": Message::Bye }
    }
}

#[test]
fn members_of_the_previous_version_read_every_packet_of_the_ring() {
    golden::check("ring", |golden| {
        for (name, packet) in packets() {
            golden.message(&name, &packet, Packet::to_bytes, |b| wire::parse(b).ok());
        }
        golden.messages(messages(), Message::encode, Message::decode);
        let purposes = variants! {
            Purpose::Near => { "purpose.near": Purpose::Near }
            Purpose::Far => { "purpose.far": Purpose::Far }
        };
        for (name, purpose) in purposes {
            golden.message(name, &locate(purpose), Message::encode, Message::decode);
        }
        for (name, role) in [
            ("role.near", Roles::NEAR),
            ("role.far", Roles::FAR),
            ("role.shortcut", Roles::SHORTCUT),
            ("role.seed", Roles::SEED),
        ] {
            golden.bytes(name, &[role.0]);
        }
        let place = Position::of(&MemberId([4; 32]));
        golden.bytes("position", &place.0.to_be_bytes());
    });
}

#[test]
fn members_of_the_previous_version_read_traces() {
    golden::check("trace", |golden| {
        let mut body = trace::request(0x0102_0304_0506_0708);
        golden.bytes("request", &body);
        let rtt = Some(Duration::from_millis(20));
        trace::stamp(&mut body, &MemberId([1; 32]), None);
        trace::stamp(&mut body, &MemberId([2; 32]), rtt);
        golden.bytes("passed-on", &body);
        let hop = |n, rtt| trace::Hop {
            member: [n; 8],
            rtt,
        };
        for (name, reached) in [("answer", true), ("answer.not-reached", false)] {
            let report = trace::Report {
                id: 0x0102_0304_0506_0708,
                reached,
                hops: vec![hop(1, None), hop(2, rtt)],
            };
            let encode = |_: &_| trace::answer_to(&body, reached).expect("a trace's body");
            golden.message(name, &report, encode, trace::parse_report);
        }
    });
}
