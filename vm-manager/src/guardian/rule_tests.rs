use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const VM: VmId = VmId([1; 32]);
const PROCESS: (i32, u64) = (7, 70);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn arm(epoch: u64, deadline: u64, process: (i32, u64)) -> Ask {
    Ask::Arm {
        vm: VM,
        epoch: Epoch(epoch),
        deadline: at(deadline),
        pid: process.0,
        started: process.1,
    }
}

fn renew(epoch: u64, deadline: u64) -> Ask {
    Ask::Renew {
        vm: VM,
        epoch: Epoch(epoch),
        deadline: at(deadline),
    }
}

fn thaw(epoch: u64, deadline: u64) -> Ask {
    Ask::Thaw {
        vm: VM,
        epoch: Epoch(epoch),
        deadline: at(deadline),
    }
}

/// Rules without a driver: the hold is nothing.
fn ask(rule: &mut Rule<()>, now: u64, ask: Ask) -> Reply {
    let offer = Offer {
        hold: (),
        stands: false,
    };
    rule.ask(at(now), ask, Some(offer)).reply
}

fn armed() -> Rule<()> {
    let mut rule = Rule::new();
    assert_eq!(
        ask(&mut rule, 100, arm(1, 110, PROCESS)),
        Reply::Armed { vm: VM }
    );
    rule
}

#[test]
fn a_renewal_read_together_with_a_deadline_is_late() {
    let mut rule = armed();
    assert_eq!(
        ask(&mut rule, 110, renew(1, 120)),
        Reply::Frozen { vm: VM },
        "before the driver froze it, too"
    );
    let due = rule.due(at(110)).unwrap();
    assert_eq!((due.vm, due.deadline), (VM, at(110)));
    assert!(rule.due(at(110)).is_none());
}

#[test]
fn a_renewal_never_thaws_and_a_thaw_needs_the_future() {
    let mut rule = armed();
    rule.due(at(111)).unwrap();
    assert_eq!(ask(&mut rule, 112, renew(1, 130)), Reply::Frozen { vm: VM });
    let past = Reply::Refused { why: Refusal::Past };
    assert_eq!(ask(&mut rule, 112, thaw(1, 112)), past);
    let ruling = rule.ask(at(112), thaw(1, 113), None);
    assert!(matches!(ruling.deed, Deed::Thaw(())));
    assert_eq!(rule.next(), Some(at(113)));
    assert!(rule.due(at(113)).is_some());
}

#[test]
fn a_deadline_only_moves_on_and_not_too_far() {
    let mut rule = armed();
    ask(&mut rule, 101, renew(1, 105));
    assert_eq!(rule.next(), Some(at(110)));
    let far = Reply::Refused {
        why: Refusal::TooFar,
    };
    for wild in [renew(1, 132), thaw(1, 132), arm(1, 132, PROCESS)] {
        assert_eq!(ask(&mut rule, 101, wild), far);
    }
    ask(&mut rule, 101, renew(1, 131));
    assert_eq!(rule.next(), Some(at(131)));
}

#[test]
fn an_older_epoch_changes_nothing() {
    let mut rule = armed();
    ask(&mut rule, 101, renew(3, 112));
    let stale = Reply::Refused {
        why: Refusal::Stale,
    };
    for old in [renew(2, 120), thaw(2, 120), arm(2, 120, PROCESS)] {
        assert_eq!(ask(&mut rule, 102, old), stale);
    }
    assert_eq!(rule.next(), Some(at(112)));
}

#[test]
fn another_process_of_a_held_vm_is_refused_until_the_first_ended() {
    let mut rule = armed();
    let busy = Reply::Refused { why: Refusal::Busy };
    assert_eq!(ask(&mut rule, 101, arm(1, 120, (8, 80))), busy);
    assert!(rule.ended(VM).is_some());
    assert_eq!(
        ask(&mut rule, 101, arm(1, 120, (8, 80))),
        Reply::Armed { vm: VM }
    );
}

#[test]
fn a_process_that_stands_is_held_frozen_whatever_the_deadline() {
    let mut rule = Rule::new();
    let offer = Offer {
        hold: (),
        stands: true,
    };
    let reply = rule.ask(at(100), arm(1, 90, PROCESS), Some(offer)).reply;
    assert_eq!(reply, Reply::Frozen { vm: VM });
    assert_eq!(rule.next(), None);
    assert_eq!(ask(&mut rule, 101, thaw(1, 110)), Reply::Armed { vm: VM });
}

#[test]
fn an_alarm_ends_every_deadline() {
    let mut rule = armed();
    rule.alarm(at(103));
    assert_eq!(ask(&mut rule, 103, renew(1, 120)), Reply::Frozen { vm: VM });
    assert!(rule.due(at(103)).is_some());
}

#[test]
fn a_full_list_refuses_and_gives_the_process_back() {
    let mut rule = Rule::new();
    let numbered = |n: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(n as u64).to_le_bytes());
        Ask::Arm {
            vm: VmId(id),
            epoch: Epoch(1),
            deadline: at(10),
            pid: n as i32,
            started: 0,
        }
    };
    for n in 0..MOST {
        ask(&mut rule, 0, numbered(n));
    }
    let offer = Offer {
        hold: (),
        stands: false,
    };
    let ruling = rule.ask(at(0), numbered(MOST), Some(offer));
    assert_eq!(ruling.reply, Reply::Refused { why: Refusal::Full });
    assert!(matches!(ruling.deed, Deed::Release(())));
}

/// What the world does to a guardian.
#[derive(Clone, Debug)]
enum Event {
    /// This long passes, milliseconds.
    Pass(u64),
    /// The driver gets a processor.
    Wake,
    /// A request about a VM, its epoch, and its deadline from now, milliseconds.
    Ask(u8, u8, u64, i64),
    Alarm,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = prop_oneof![
        (0u64..20_000).prop_map(Event::Pass),
        Just(Event::Wake),
        (0u8..5, 0u8..3, 0u64..4, -5_000i64..40_000)
            .prop_map(|(what, vm, epoch, ahead)| Event::Ask(what, vm, epoch, ahead)),
        Just(Event::Alarm),
    ];
    prop::collection::vec(one, 0..60)
}

/// What a VM's guest may do by the answers so far: the latest deadline that was granted.
type Granted = BTreeMap<VmId, (Duration, bool)>;

fn request(what: u8, vm: VmId, epoch: Epoch, deadline: Duration) -> Ask {
    match what {
        0 => Ask::Arm {
            vm,
            epoch,
            deadline,
            pid: 1,
            started: 1,
        },
        1 => Ask::Renew {
            vm,
            epoch,
            deadline,
        },
        2 => Ask::Thaw {
            vm,
            epoch,
            deadline,
        },
        3 => Ask::Drop { vm },
        _ => Ask::Look { vm },
    }
}

proptest! {
    /// Each guest that counts as running has a deadline that somebody granted, in the future when
    /// it was granted and at most `LONGEST` away; and nothing but a thaw lets a frozen one run.
    #[test]
    fn no_guest_runs_without_a_granted_deadline(events in events()) {
        let mut rule: Rule<()> = Rule::new();
        let mut granted = Granted::new();
        let mut now = at(1000);
        for event in events {
            match event {
                Event::Pass(time) => now += Duration::from_millis(time),
                Event::Alarm => {
                    rule.alarm(now);
                    for (deadline, _) in granted.values_mut() {
                        *deadline = (*deadline).min(now);
                    }
                }
                Event::Wake => {
                    while let Some(due) = rule.due(now) {
                        let (deadline, is_frozen) = granted.get_mut(&due.vm).unwrap();
                        prop_assert!(*deadline <= now && !*is_frozen);
                        *is_frozen = true;
                    }
                    prop_assert!(rule.next().is_none_or(|next| next > now));
                }
                Event::Ask(what, vm, epoch, ahead) => {
                    let vm = VmId([vm; 32]);
                    let deadline = match u64::try_from(ahead) {
                        Ok(ahead) => now + Duration::from_millis(ahead),
                        Err(_) => now - Duration::from_millis(ahead.unsigned_abs()),
                    };
                    let asked = request(what, vm, Epoch(epoch), deadline);
                    let offer = Offer { hold: (), stands: false };
                    let ruling = rule.ask(now, asked, Some(offer));
                    if let Deed::Thaw(()) = ruling.deed {
                        prop_assert!(what == 2 && granted[&vm].1);
                    }
                    if ruling.reply == (Reply::Armed { vm }) && what < 3 {
                        prop_assert!(deadline <= now + LONGEST);
                        let entry = granted.entry(vm).or_insert((deadline, false));
                        // A late guest that was not yet frozen may only be granted by a thaw.
                        prop_assert!(what == 2 || (!entry.1 && entry.0 > now));
                        let is_new = entry.1 || entry.0 <= now;
                        entry.0 = if is_new { deadline } else { entry.0.max(deadline) };
                        entry.1 = false;
                    }
                    if ruling.reply == (Reply::Dropped { vm }) {
                        granted.remove(&vm);
                    }
                }
            }
            let running = granted.values().filter(|(_, is_frozen)| !is_frozen);
            prop_assert_eq!(rule.next(), running.map(|(deadline, _)| *deadline).min());
        }
    }
}
