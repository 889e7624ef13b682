//! What an event says, who signed it, its place in a chain, and files of events cut anywhere.

use super::*;
use p2pvm_overlay::{
    UnixTime,
    identity::Identity,
    membership::{Ipv4Subnet, Issuer, NetworkConfig, Rights},
};
use proptest::prelude::*;

const WEB: VmId = VmId([7; 32]);
const AT: u64 = 1_800_000_000_000;

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&[number; 32])
}

fn member(number: u8) -> MemberId {
    MemberId(key(number).public())
}

fn of_host() -> Event {
    Event {
        seq: 1,
        at_ms: AT,
        subject: Subject::Host,
        kind: "daemon-started".into(),
        fields: vec![("version".into(), "0.1.0".into())],
        sentence: "The daemon started.".into(),
        link: None,
    }
}

fn of_vm(seq: u64, link: EventLink) -> Event {
    Event {
        seq,
        at_ms: AT,
        subject: Subject::Vm(WEB, "web".into()),
        kind: "guest-crashed".into(),
        fields: Vec::new(),
        sentence: "It crashed.".into(),
        link: Some(link),
    }
}

/// A chain of `n` events of one VM.
fn chain(host: &KeyPair, n: u64) -> Vec<KeptEvent> {
    let mut chains = EventChains::default();
    let write = |seq| {
        let event = of_vm(seq, chains.next(WEB));
        let kept = KeptEvent::seal(host, &event);
        chains.note(&event, &kept);
        kept
    };
    (1..=n).map(write).collect()
}

#[test]
fn an_event_keeps_its_bytes() {
    let kept = KeptEvent::seal(&key(1), &of_host());
    assert_eq!(
        hex(&kept.to_bytes()),
        concat!(
            "3c010180a0f1c2b134000e6461656d6f6e2d73746172746564010776657273696f6e05302e312e30",
            "13546865206461656d6f6e20737461727465642e0000",
        )
    );
    assert_eq!(KeptEvent::from_bytes(&kept.to_bytes()), Ok(kept.clone()));
    assert_eq!(kept.event(), Ok(of_host()));
    let first = of_vm(2, EventChains::default().next(WEB));
    let kept = KeptEvent::seal(&key(1), &first);
    assert_eq!(
        hex(&kept.bytes),
        concat!(
            "010280a0f1c2b1340207070707070707070707070707070707070707070707070707070707070707",
            "07037765620d67756573742d63726173686564000b497420637261736865642e0100000000000000",
            "0000000000000000000000000000000000000000000000000000",
        )
    );
}

#[test]
fn a_deleted_vm_leaves_no_end_of_a_chain() {
    let mut chains = EventChains::default();
    for kind in ["guest-crashed", "vm-deleted"] {
        let mut event = of_vm(1, chains.next(WEB));
        event.kind = kind.into();
        chains.note(&event, &KeptEvent::seal(&key(1), &event));
        assert_eq!(chains == EventChains::default(), kind == "vm-deleted");
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[test]
fn only_its_host_signs_a_vms_event() {
    let kept = KeptEvent::seal(&key(1), &of_vm(1, EventChains::default().next(WEB)));
    assert!(kept.open(member(1)).is_ok());
    assert_eq!(kept.open(member(2)), Err(EventError::Forged));
    let host = KeptEvent::seal(&key(1), &of_host());
    assert_eq!(
        host.open(member(1)),
        Err(EventError::Forged),
        "it is not signed"
    );
    let unlinked = Event {
        link: None,
        ..of_vm(1, EventChains::default().next(WEB))
    };
    let kept = KeptEvent::seal(&key(1), &unlinked);
    assert_eq!(kept.event(), Err(EventError::Unreadable));
}

#[test]
fn texts_beyond_the_bounds_are_cut() {
    let long = Event {
        sentence: "\u{e9}".repeat(2000),
        fields: vec![("k".repeat(500), "v".repeat(500)); 40],
        ..of_host()
    };
    let bounded = long.within_bounds();
    assert_eq!(bounded.sentence.chars().count(), MAX_SENTENCE);
    assert_eq!(bounded.fields.len(), MAX_FIELDS);
    let kept = KeptEvent::seal(&key(1), &bounded);
    assert_eq!(kept.event(), Ok(bounded));
}

fn proof() -> EventProof {
    let root = key(9);
    let subnet = Ipv4Subnet::new([10, 83, 0, 0].into(), 16);
    let network = NetworkConfig::found(&root, "lab", subnet.unwrap(), UnixTime(1)).unwrap();
    let identity = Identity::generate();
    let certificate = Issuer::root(&root).certify(
        &network,
        (identity.member_id(), identity.link_key()),
        "attic",
        Rights::default(),
        (UnixTime(1), UnixTime(2)),
    );
    let certificate = certificate.unwrap();
    EventProof {
        vm: WEB,
        chains: vec![HostChain {
            certificate,
            events: chain(identity.keys(), 3),
        }],
    }
}

#[test]
fn a_proof_holds_after_its_certificate_has_expired() {
    let proof = proof();
    let read = EventProof::from_bytes(&proof.to_bytes()).unwrap();
    assert_eq!(read, proof);
    let proved = read.check().unwrap();
    assert_eq!((proved[0].name.as_str(), proved[0].before), ("attic", 0));
    assert_eq!(proved[0].events.len(), 3);
}

#[test]
fn a_chain_without_one_of_its_events_is_broken() {
    let mut shortened = proof();
    shortened.chains[0].events.remove(1);
    let refused = shortened.check().unwrap_err();
    assert!(
        matches!(refused, ProofRefusal::Broken { at: 2, .. }),
        "{refused}"
    );
    let mut later = proof();
    later.chains[0].events.remove(0);
    assert_eq!(
        later.check().unwrap()[0].before,
        1,
        "it was deleted with age"
    );
    let mut swapped = proof();
    swapped.chains[0].events.swap(0, 1);
    assert!(swapped.check().is_err());
    let other = EventProof {
        vm: VmId([8; 32]),
        ..proof()
    };
    assert!(other.check().is_err(), "it is another VM's");
    let empty = EventProof {
        vm: WEB,
        chains: Vec::new(),
    };
    assert_eq!(empty.check(), Err(ProofRefusal::Empty));
}

#[test]
fn no_byte_of_a_proof_can_be_changed() {
    let whole = proof().to_bytes();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        let held = EventProof::from_bytes(&changed).and_then(|proof| proof.check());
        assert!(held.is_err(), "byte {at} of {}", whole.len());
    }
}

proptest! {
    #[test]
    fn a_file_cut_anywhere_keeps_its_whole_events(cut in 0usize..4000, damage in any::<bool>()) {
        let events = chain(&key(1), 6);
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        write_frame(&mut bytes, &Frame::Chains(EventChains::default()));
        for event in &events {
            write_frame(&mut bytes, &Frame::Event(event.clone()));
            ends.push(bytes.len());
        }
        let cut = cut % bytes.len();
        match damage {
            true => bytes[cut] ^= 0x10,
            false => bytes.truncate(cut),
        }
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (found, good) = frames(&bytes);
        let found: Vec<_> = found
            .into_iter()
            .filter_map(|frame| match frame {
                Frame::Event(event) => Some(event),
                Frame::Chains(_) => None,
            })
            .collect();
        prop_assert_eq!(&found[..], &events[..whole]);
        prop_assert!(good <= cut);
    }

    #[test]
    fn arbitrary_bytes_are_read_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let (_, good) = frames(&bytes);
        prop_assert!(good <= bytes.len());
        let _ = KeptEvent::from_bytes(&bytes).map(|kept| kept.event());
        let _ = EventProof::from_bytes(&bytes).map(|proof| proof.check());
    }
}
