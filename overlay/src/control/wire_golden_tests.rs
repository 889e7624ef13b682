//! Golden bytes of the messages on the control plane's streams.

use super::*;
use crate::{
    control::{
        book::Book,
        requests::{KIND_CALL, KIND_STREAM, header},
    },
    golden::{self, Golden, variants},
    id::RingAddr,
    membership::{
        DifferingRevocations, RevocationDigests,
        golden_tests::{
            certificate, delegate, invite, member_keys, network, plain, read_plain, refusals,
            revocation,
        },
    },
};
use futures::executor::block_on;
use std::path::Path;

fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    decode(body).ok()
}

fn contact() -> Contact {
    let addresses = vec!["/ip4/192.0.2.1/udp/4001/quic-v1".to_owned()];
    let (public, seq) = (true, 1_700_000_000_000);
    let signed = Contact::signed(&addresses, public, seq);
    Contact {
        certificate: certificate(),
        addresses,
        public,
        seq,
        signature: member_keys().sign(CONTACT_DOMAIN, &signed),
    }
}

fn presentation() -> Box<Presentation> {
    Box::new(Presentation {
        contact: contact(),
        revocations: [1; 32],
        contacts: [2; 32],
        known: 300,
    })
}

fn request() -> AdmitRequest {
    AdmitRequest {
        invite: invite(),
        name: "gamma".into(),
        link_key: LinkKey([3; 32]),
    }
}

fn signed() -> SignedAdmit {
    SignedAdmit::sign(&member_keys(), request())
}

fn statuses() -> Vec<(&'static str, Status)> {
    variants! {
        Status::Ok => { "status.ok": Status::Ok }
        Status::Refused => { "status.refused": Status::Refused }
        Status::NoSuchService => { "status.no-such-service": Status::NoSuchService }
    }
}

#[test]
fn members_of_the_previous_version_read_every_message_at_the_door() {
    golden::check("door", |golden| {
        golden.message("contact", &contact(), plain, read);
        assert_eq!(contact().verify(&Trust::new(network().id)), Ok(()));
        let hellos = variants! {
            Hello::Prove(_) => { "hello.prove": Hello::Prove(presentation()) }
            Hello::Admit(_) => { "hello.admit": Hello::Admit(Box::new(request())) }
            Hello::AdmitSigned(_) => {
                "hello.admit-signed": Hello::AdmitSigned(Box::new(signed()))
            }
        };
        golden.messages(hellos, plain, read);
        let replies = variants! {
            Reply::Welcome(_) => { "reply.welcome": Reply::Welcome(presentation()) }
            Reply::Admitted { .. } => {
                "reply.admitted": Reply::Admitted {
                    certificate: Box::new(certificate()),
                    presentation: presentation(),
                    revocations: vec![revocation()],
                    contacts: vec![contact()],
                },
            }
            Reply::Refused { .. } => {
                "reply.refused": Reply::Refused {
                    refusal: Refusal::Revoked,
                    proof: vec![revocation()],
                },
            }
        };
        golden.messages(replies, plain, read);
        let told = ByClock {
            unix_ms: 1_700_000_000_000,
        };
        golden.message("by-clock", &told, plain, read);
        let later = [plain(&told), vec![1, 2]].concat();
        assert_eq!(ByClock::read(&later), Some(UnixTime(1_700_000_000)));
    });
}

#[test]
fn members_of_the_previous_version_read_every_message_between_members() {
    golden::check("control", |golden| {
        let gossip = Gossip {
            contacts: vec![contact()],
            revocations: vec![revocation()],
        };
        golden.message("gossip", &gossip, plain, read);
        golden.message("admit", &(MemberId([4; 32]), request()), plain, read);
        golden.message("admit-signed", &(MemberId([4; 32]), signed()), plain, read);
        let decided: Result<Certificate, Refusal> = Ok(delegate());
        golden.message("admit.admitted", &decided, plain, read);
        for (name, refusal) in refusals() {
            let decided: Result<Certificate, Refusal> = Err(refusal);
            golden.message(&format!("admit.{name}"), &decided, plain, read);
        }
        golden.message("revocations", &RevocationDigests::sample(), plain, read);
        let differing = DifferingRevocations::sample();
        golden.message("revocations.answer", &differing, plain, read);
        golden.message("nearest", &RingAddr([5; 32]), plain, read_plain);
        let named = vec![(MemberId([4; 32]), 7_u64), (MemberId([5; 32]), 300)];
        golden.message("nearest.answer", &named, plain, read);
        golden.message("contacts", &vec![MemberId([4; 32])], plain, read_plain);
        golden.message("contacts.answer", &vec![contact()], plain, read);
        let trust = Trust::new(network().id);
        let mut book = Book::load(Path::new("/nowhere/book"), &trust, MemberId([0; 32]), 0);
        assert!(book.insert(contact(), &trust));
        golden.bytes("digest-of-contacts", &book.digest());
        streams(golden);
    });
}

/// The headers, frames and names of streams.
fn streams(golden: &mut Golden) {
    for (name, kind) in [("stream.call", KIND_CALL), ("stream.stream", KIND_STREAM)] {
        let sample = (kind, "~gossip".to_owned());
        golden.message(
            name,
            &sample,
            |(kind, service)| header(*kind, service),
            |mut bytes| block_on(read_header(&mut bytes)).ok(),
        );
    }
    let framed = |body: &Vec<u8>| {
        let mut out = futures::io::Cursor::new(Vec::new());
        block_on(write_bytes(&mut out, body)).expect("memory takes all");
        out.into_inner()
    };
    golden.message("stream.frame", &vec![1, 2, 3], framed, |mut bytes| {
        block_on(read_bytes(&mut bytes, 9)).ok()
    });
    golden.messages(
        statuses(),
        |status| vec![*status as u8],
        |bytes| Status::from_byte(*bytes.first()?).ok(),
    );
    let names = [
        ("protocol.member", MEMBER_PROTOCOL),
        ("protocol.member-signed", MEMBER_PROTOCOL_SIGNED),
        ("protocol.stream", STREAM_PROTOCOL),
        ("service.gossip", GOSSIP_SERVICE),
        ("service.admit", ADMIT_SERVICE),
        ("service.admit-signed", ADMIT_SIGNED_SERVICE),
        ("service.revocations", REVOCATIONS_SERVICE),
        ("service.nearest", NEAREST_SERVICE),
        ("service.contacts", CONTACTS_SERVICE),
        ("service.part", PART_SERVICE),
        ("service.probe", PROBE_SERVICE),
    ];
    for (name, text) in names {
        golden.bytes(name, text.as_bytes());
    }
}
