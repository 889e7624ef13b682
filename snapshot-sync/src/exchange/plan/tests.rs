//! The plan under any order of events: it asks no provider for what that provider lacks, loses no
//! want, and ends.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn id(n: u16) -> ChunkId {
    ChunkId::of(&n.to_le_bytes())
}

fn member(n: usize) -> MemberId {
    MemberId([n as u8 + 1; 32])
}

impl Plan {
    /// What must hold between any two events.
    fn check(&self) {
        for (index, provider) in self.providers.iter().enumerate() {
            let asked = self
                .wants
                .values()
                .filter(|want| matches!(want.state, State::Asked(who, _) if who == index));
            let owed: u64 = asked.clone().map(WantedChunk::weight).sum();
            assert_eq!(
                provider.owed, owed,
                "provider {index} owes what it was asked for"
            );
            assert!(provider.up || owed == 0, "a lost provider owes nothing");
            assert!(
                asked.into_iter().all(|want| want.lacking >> index & 1 == 0),
                "no provider is asked for what it lacks"
            );
        }
        let queued: BTreeSet<_> = self.queue.iter().copied().collect();
        for (id, want) in &self.wants {
            assert!(
                want.state != State::Queued || queued.contains(id),
                "{id:?} is forgotten"
            );
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Answer(usize, usize),
    Lie(usize),
    Break(usize),
    Restore(usize),
    Wait(u16),
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0usize..3, 1usize..20).prop_map(|(p, n)| Act::Answer(p, n)),
        1 => (0usize..3).prop_map(Act::Lie),
        1 => (0usize..3).prop_map(Act::Break),
        2 => (0usize..3).prop_map(Act::Restore),
        2 => (0u16..5000).prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn every_want_is_met_or_known_to_be_nowhere(
        holdings in proptest::collection::vec(0u8..8, 1..80),
        acts in proptest::collection::vec(acts(), 0..200),
    ) {
        let providers: Vec<_> = (0..3).map(member).collect();
        let mut plan = Plan::new(&providers, 1 << 20);
        for n in 0..holdings.len() as u16 {
            let role = if n % 7 == 0 { Role::File } else { Role::Data { bytes: 65536 } };
            assert!(plan.want(role, id(n)) && !plan.want(role, id(n)));
        }
        let number = |chunk: ChunkId| (0..holdings.len() as u16).find(|n| id(*n) == chunk).unwrap();
        let mut now = Duration::ZERO;
        let mut owed: Vec<VecDeque<ChunkId>> = vec![VecDeque::new(); 3];
        let mut up = [false; 3];
        let mut liars = BTreeSet::new();
        // After the chosen acts, all live providers answer until nothing more happens.
        let ending = (0..400usize).flat_map(
            |_| (0..3).flat_map(|p| [Act::Restore(p), Act::Answer(p, 20)])
        );
        for act in acts.into_iter().chain(ending) {
            match act {
                Act::Restore(p) if !up[p] && !liars.contains(&p) => {
                    up[p] = true;
                    plan.up(now, member(p));
                }
                Act::Restore(_) => {}
                Act::Break(p) => {
                    up[p] = false;
                    owed[p].clear();
                    plan.down(member(p));
                }
                Act::Lie(p) => {
                    if let Some(chunk) = owed[p].pop_front()
                        && plan.arrived(now, member(p), chunk).is_some()
                    {
                        plan.refused(chunk);
                        plan.ban(member(p));
                        liars.insert(p);
                        up[p] = false;
                        owed[p].clear();
                    }
                }
                Act::Wait(ms) => now += Duration::from_millis(ms.into()),
                Act::Answer(p, n) => {
                    for _ in 0..n {
                        let Some(chunk) = owed[p].pop_front() else { break };
                        if holdings[number(chunk) as usize] >> p & 1 == 0 {
                            plan.lacks(now, member(p), chunk);
                        } else if plan.arrived(now, member(p), chunk).is_some() {
                            plan.stored(chunk);
                        }
                    }
                }
            }
            for (p, owed) in owed.iter_mut().enumerate() {
                owed.extend(plan.next(now, member(p), 50));
            }
            plan.check();
        }
        for n in 0..holdings.len() as u16 {
            let somewhere = (0..3).any(
                |p| holdings[n as usize] >> p & 1 == 1 && !liars.contains(&p)
            );
            if somewhere {
                prop_assert!(!plan.wants.contains_key(&id(n)), "{n} was not fetched");
            }
        }
        prop_assert_eq!(plan.missing() > 0, plan.nowhere().is_some());
    }
}

fn plan_of(chunks: u16, providers: usize) -> Plan {
    let members: Vec<_> = (0..providers).map(member).collect();
    let mut plan = Plan::new(&members, 16 << 20);
    for n in 0..chunks {
        plan.want(Role::Data { bytes: 65536 }, id(n));
    }
    plan
}

#[test]
fn a_fast_provider_is_asked_for_more_than_a_slow_one() {
    for (each, expected) in [
        (Duration::from_millis(1), 16 << 20..=16 << 20),
        (Duration::from_millis(200), 256 << 10..=512 << 10),
    ] {
        let mut plan = plan_of(4000, 1);
        plan.up(Duration::ZERO, member(0));
        let (mut now, mut owed) = (Duration::ZERO, VecDeque::new());
        for _ in 0..1500 {
            owed.extend(plan.next(now, member(0), 4096));
            now += each;
            let Some(chunk) = owed.pop_front() else { break };
            plan.arrived(now, member(0), chunk);
            plan.stored(chunk);
        }
        let window = plan.providers[0].window;
        assert!(expected.contains(&window), "one each {each:?}: {window}");
    }
}

#[test]
fn an_idle_provider_takes_over_what_another_has_owed_for_long() {
    let mut plan = plan_of(10, 2);
    plan.up(Duration::ZERO, member(0));
    assert_eq!(plan.next(Duration::ZERO, member(0), 100).len(), 10);
    plan.up(Duration::from_secs(1), member(1));
    assert!(
        plan.next(Duration::from_secs(1), member(1), 100).is_empty(),
        "not yet"
    );
    assert_eq!(plan.next(Duration::from_secs(4), member(1), 100).len(), 10);
    assert_eq!(
        plan.arrived(Duration::from_secs(4), member(0), id(3)),
        Some(Role::Data { bytes: 65536 }),
        "the first to arrive wins"
    );
    assert_eq!(plan.arrived(Duration::from_secs(4), member(1), id(3)), None);
    plan.check();
}

#[test]
fn a_provider_that_owes_and_is_silent_has_stalled() {
    let mut plan = plan_of(10, 1);
    plan.up(Duration::ZERO, member(0));
    let stall = Duration::from_secs(8);
    assert_eq!(
        plan.stalled(Duration::from_secs(20), stall),
        None,
        "it owes nothing"
    );
    plan.next(Duration::from_secs(20), member(0), 5);
    assert_eq!(plan.stalled(Duration::from_secs(27), stall), None);
    assert_eq!(
        plan.stalled(Duration::from_secs(28), stall),
        Some(member(0))
    );
}
