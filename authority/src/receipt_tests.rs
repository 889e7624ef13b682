//! What a receipt says, who signed it, and every reason for which it is refused.

use super::*;
use proptest::prelude::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const WEB: VmId = VmId([7; 32]);
const SIZE: Size = Size {
    cpus: 2,
    memory_mib: 512,
    disk_mib: 4096,
};

fn key(number: u8) -> KeyPair {
    KeyPair::from_seed(&[number; 32])
}

fn member(number: u8) -> MemberId {
    MemberId(key(number).public())
}

fn used() -> Usage {
    Usage {
        cpu_ms: 90_000,
        memory_mib_s: 512 * 3600,
        disk_mib_s: 4096 * 3600,
        kept_mib_s: 0,
        sent: 1000,
        received: 2000,
    }
}

/// What the host 1 says of the owner 2's VM.
fn terms() -> Terms {
    Terms {
        host: member(1),
        owner: member(2),
        seq: 5,
        from: UnixTime(NOW.0 - 3600),
        to: NOW,
        lines: vec![Line {
            vm: Some(WEB),
            used: used(),
        }],
    }
}

/// The owner's judgment.
fn judge(receipt: &Receipt) -> Result<Terms, ReceiptRefusal> {
    let terms = receipt.open(member(1), member(2))?;
    terms.check_period(NOW, UnixTime(NOW.0 - 3600))?;
    terms.check_amounts(|vm| (vm == WEB).then_some((SIZE, UnixTime(0))))?;
    Ok(terms)
}

#[test]
fn a_receipt_is_opened_by_its_owner_and_confirmed() {
    let receipt = Receipt::sign(&key(1), &terms());
    assert_eq!(judge(&receipt), Ok(terms()));
    let confirmed = receipt.confirm(&key(2));
    assert!(receipt.is_confirmed(member(2), &confirmed));
    assert!(!receipt.is_confirmed(member(1), &confirmed));
    let other = Receipt::sign(&key(1), &Terms { seq: 6, ..terms() });
    assert!(!other.is_confirmed(member(2), &confirmed));
    // A signature over the same bytes for the other purpose is none.
    assert!(!receipt.is_confirmed(member(1), &receipt.signature));
}

#[test]
fn each_lie_of_a_host_has_its_refusal() {
    type Spoil = fn(&mut Terms);
    use ReceiptRefusal::*;
    let absurd = |vm, what| Absurd { vm, what };
    let spoilt: [(ReceiptRefusal, Spoil); 11] = [
        (OtherHost, |t| t.host = member(3)),
        (OtherOwner, |t| t.owner = member(3)),
        (Period, |t| t.to = t.from.plus(59)),
        (Period, |t| t.to = UnixTime(t.from.0 - 1)),
        (Period, |t| t.to = NOW.plus(3600)),
        (Period, |t| t.from = UnixTime(0)),
        (Overlap, |t| t.from = UnixTime(t.from.0 - 1)),
        (NoVm(VmId([8; 32])), |t| t.lines[0].vm = Some(VmId([8; 32]))),
        (absurd(Some(WEB), "processor time"), |t| {
            t.lines[0].used.cpu_ms = 2 * 3_661_000;
        }),
        (absurd(Some(WEB), "stored replicas"), |t| {
            t.lines[0].used.kept_mib_s = 1;
        }),
        (absurd(None, "processor time"), |t| t.lines[0].vm = None),
    ];
    for (why, spoil) in spoilt {
        let mut lie = terms();
        spoil(&mut lie);
        assert_eq!(judge(&Receipt::sign(&key(1), &lie)), Err(why));
    }
    let forged = Receipt::sign(&key(3), &terms());
    assert_eq!(judge(&forged), Err(Forged));
}

#[test]
fn a_vm_uses_nothing_before_it_was_made() {
    let long = Terms {
        from: UnixTime(NOW.0 - 300 * 86_400),
        ..terms()
    };
    let made = |at: UnixTime| long.check_amounts(|_| Some((SIZE, at)));
    // It says to have used the memory for an hour.
    assert_eq!(made(UnixTime(NOW.0 - 3600)), Ok(()));
    assert_eq!(made(UnixTime(NOW.0 - 3600 + SKEW + SLACK)), Ok(()));
    for at in [
        UnixTime(NOW.0 - 3600 + SKEW + SLACK + 1),
        NOW.plus(86_400),
        UnixTime(u64::MAX),
    ] {
        let refused = made(at);
        assert!(
            matches!(refused, Err(ReceiptRefusal::Absurd { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_receipt_is_bounded_and_names_each_vm_once() {
    let line = |n: usize| Line {
        vm: Some(VmId([n as u8; 32])),
        used: Usage {
            cpu_ms: u64::MAX,
            memory_mib_s: u64::MAX,
            disk_mib_s: u64::MAX,
            kept_mib_s: u64::MAX,
            sent: u64::MAX,
            received: u64::MAX,
        },
    };
    let with = |lines: Vec<Line>| Receipt::sign(&key(1), &Terms { lines, ..terms() });
    let largest = with((0..MAX_LINES).map(line).collect());
    assert!(largest.terms().is_ok(), "{} bytes", largest.terms.len());
    assert_eq!(
        Receipt::from_bytes(&largest.to_bytes()),
        Ok(largest.clone())
    );
    for wrong in [
        with((0..=MAX_LINES).map(line).collect()),
        with(vec![line(1), line(1)]),
    ] {
        assert_eq!(wrong.terms(), Err(ReceiptRefusal::Unreadable));
    }
}

#[test]
fn what_a_later_version_adds_is_signed_and_not_read() {
    let mut later = Receipt::sign(&key(1), &terms());
    later.terms.push(9);
    assert_eq!(judge(&later), Err(ReceiptRefusal::Forged));
    later.signature = key(1).sign(DOMAIN, &later.terms);
    assert_eq!(judge(&later), Ok(terms()));
    later.terms[0] = 2;
    later.signature = key(1).sign(DOMAIN, &later.terms);
    assert_eq!(judge(&later), Err(ReceiptRefusal::Unreadable));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut with_version = Receipt::sign(&key(1), &terms());
        with_version.terms.truncate(1);
        with_version.terms.extend(&bytes);
        let _ = with_version.terms();
        let _ = Reply::from_bytes(&bytes);
        if let Ok(receipt) = Receipt::from_bytes(&bytes) {
            let _ = judge(&receipt);
        }
    }
}

mod golden_tests {
    use super::*;
    use crate::golden::{self, variants};

    #[test]
    fn members_of_the_previous_version_read_every_receipt() {
        let replicas = Line {
            vm: None,
            used: Usage {
                kept_mib_s: 7200,
                ..Usage::default()
            },
        };
        let lines = vec![replicas, terms().lines[0]];
        let receipt = Receipt::sign(&key(1), &terms());
        let confirmed = receipt.confirm(&key(2));
        golden::check("receipt", |golden| {
            golden.messages(
                vec![
                    ("receipt.of-a-vm", receipt),
                    (
                        "receipt.with-replicas",
                        Receipt::sign(&key(1), &Terms { lines, ..terms() }),
                    ),
                ],
                Receipt::to_bytes,
                |bytes| Receipt::from_bytes(bytes).ok(),
            );
            golden.messages(
                variants! {
                    Reply::Confirmed(_) => { "reply.confirmed": Reply::Confirmed(confirmed) }
                    Reply::Refused(_) => { "reply.refused": Reply::Refused("forged".into()) }
                    Reply::Later(_) => { "reply.later": Reply::Later("too soon".into()) }
                },
                Reply::to_bytes,
                Reply::from_bytes,
            );
        });
    }
}
