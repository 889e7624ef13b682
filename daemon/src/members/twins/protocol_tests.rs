//! Instances and boards in virtual time: which one notices, which gives way, and that never all do.

use super::*;
use proptest::prelude::*;

fn member(keys: &KeyPair) -> MemberId {
    MemberId(keys.public())
}

/// An instance with a number for an id, that started at that second.
fn instance(keys: &KeyPair, number: u8, started: u64) -> Watch {
    Watch::new(
        member(keys),
        InstanceId([number; 16]),
        Rank {
            guests: false,
            started: UnixTime(started),
        },
    )
}

/// One exchange with a board; what the instance concludes.
fn meet(board: &mut Board, at: u64, watch: &mut Watch, keys: &KeyPair) -> Vec<Verdict> {
    let others = board.exchange(Duration::from_secs(at), member(keys), watch.statement(keys));
    others
        .into_iter()
        .filter_map(|other| watch.handle(other))
        .collect()
}

#[test]
fn of_two_twins_the_later_gives_way_the_other_keeps() {
    let keys = KeyPair::generate();
    let (mut board, mut first, mut second) = (
        Board::default(),
        instance(&keys, 9, 100),
        instance(&keys, 1, 200),
    );
    assert_eq!(meet(&mut board, 0, &mut first, &keys), []);
    // It hears of another, which may be its own earlier start.
    assert_eq!(meet(&mut board, 30, &mut second, &keys), []);
    assert_eq!((first.heard_of(), second.heard_of()), (0, 1));
    meet(&mut board, 31, &mut second, &keys);
    assert_eq!(
        meet(&mut board, 60, &mut first, &keys),
        [Verdict::Keep(second.instance)]
    );
    meet(&mut board, 61, &mut first, &keys);
    assert_eq!(
        meet(&mut board, 65, &mut second, &keys),
        [Verdict::GiveWay(first.instance)]
    );
}

#[test]
fn guests_that_run_outweigh_an_elder_start() {
    let keys = KeyPair::generate();
    let (mut board, mut first, mut second) = (
        Board::default(),
        instance(&keys, 1, 100),
        instance(&keys, 2, 200),
    );
    second.set_guests(true);
    let mut said = Vec::new();
    for round in 0..4 {
        said.extend(
            meet(&mut board, round, &mut first, &keys)
                .into_iter()
                .map(|v| (1, v)),
        );
        said.extend(
            meet(&mut board, round, &mut second, &keys)
                .into_iter()
                .map(|v| (2, v)),
        );
    }
    assert!(
        said.contains(&(1, Verdict::GiveWay(second.instance))),
        "{said:?}"
    );
    assert!(
        said.iter()
            .all(|(who, v)| *who == 1 || matches!(v, Verdict::Keep(_))),
        "{said:?}"
    );
}

#[test]
fn a_restarted_daemon_is_no_twin_of_what_it_left() {
    let keys = KeyPair::generate();
    let mut board = Board::default();
    // Again and again, each time beside the words of all the starts before, whose clocks were ahead
    // of its own.
    for start in 0..6u8 {
        let mut watch = instance(&keys, start, 1000 - u64::from(start));
        for round in 0..5 {
            assert_eq!(
                meet(&mut board, u64::from(start) * 10 + round, &mut watch, &keys),
                []
            );
        }
    }
}

#[test]
fn a_word_of_before_the_rank_changed_drives_nobody_out() {
    let keys = KeyPair::generate();
    let (mut a, mut b) = (instance(&keys, 1, 100), instance(&keys, 2, 200));
    assert_eq!(b.handle(a.statement(&keys)), None);
    assert_eq!(
        a.handle(b.statement(&keys)),
        Some(Verdict::Keep(b.instance))
    );
    // Its guests begin to run before it reads what would drive it out.
    let late = a.statement(&keys);
    b.set_guests(true);
    assert_eq!(b.handle(late.clone()), Some(Verdict::Keep(a.instance)));
    // The elder one has guests too, but has not heard of those of the other.
    a.set_guests(true);
    assert_eq!(b.handle(a.statement(&keys)), None);
    assert_eq!(
        a.handle(b.statement(&keys)),
        Some(Verdict::Keep(b.instance))
    );
    assert_eq!(b.handle(late), None, "an older word than the newest heard");
    assert_eq!(
        b.handle(a.statement(&keys)),
        Some(Verdict::GiveWay(a.instance))
    );
}

#[test]
fn beside_another_instance_a_rank_does_not_fall() {
    let keys = KeyPair::generate();
    let (mut a, b) = (instance(&keys, 1, 200), instance(&keys, 2, 100));
    a.set_guests(true);
    a.set_guests(false);
    assert!(!a.statement(&keys).rank.guests, "it is alone");
    a.set_guests(true);
    a.handle(b.statement(&keys));
    a.set_guests(false);
    assert!(a.statement(&keys).rank.guests);
}

#[test]
fn three_whose_guests_come_and_go_do_not_all_give_way() {
    use Step::{Arrive, Guests, Tell};
    let steps = [
        Tell(1, 0),
        Tell(2, 1),
        Arrive(0),
        Arrive(0),
        Tell(1, 1),
        Arrive(0),
        Tell(0, 1),
        Guests(1, true),
        Tell(2, 1),
        Tell(1, 0),
        Guests(1, false),
        Arrive(0),
        Arrive(0),
        Arrive(0),
        Tell(1, 1),
        Tell(0, 1),
        Tell(2, 0),
    ];
    World::run(3, &steps).unwrap();
}

#[test]
fn what_another_key_signed_or_somebody_changed_is_neither_believed_nor_kept() {
    let (keys, stranger) = (KeyPair::generate(), KeyPair::generate());
    let mut watch = instance(&keys, 1, 1);
    assert_eq!(
        watch.handle(instance(&stranger, 2, 0).statement(&stranger)),
        None
    );
    let mut changed = instance(&keys, 2, 50).statement(&keys);
    changed.rank.guests = true;
    assert_eq!(watch.handle(changed.clone()), None);
    assert_eq!(watch.heard_of(), 0);
    let mut board = Board::default();
    assert!(
        board
            .exchange(Duration::ZERO, member(&keys), changed)
            .is_empty()
    );
    assert!(
        board
            .exchange(Duration::ZERO, member(&keys), watch.statement(&keys))
            .is_empty(),
        "it was not kept"
    );
}

#[test]
fn a_board_is_bounded_and_forgets_who_is_gone() {
    let keys = KeyPair::generate();
    let mut board = Board::default();
    for number in 0..100 {
        let others = board.exchange(
            Duration::ZERO,
            member(&keys),
            instance(&keys, number, 0).statement(&keys),
        );
        assert!(others.len() < MAX_INSTANCES);
    }
    let late = board.exchange(
        KEPT_FOR,
        member(&keys),
        instance(&keys, 200, 0).statement(&keys),
    );
    assert_eq!(late, []);
}

/// What may happen to a set of instances and boards.
#[derive(Clone, Debug)]
enum Step {
    /// An instance tells a board, if none of its questions is open; the answer is on its way.
    Tell(usize, usize),
    /// An answer, not always the oldest, arrives.
    Arrive(usize),
    /// An answer is lost.
    Lose(usize),
    /// Guests begin or end to run.
    Guests(usize, bool),
    /// A daemon crashes and starts again: a new instance of the same machine.
    Restart(usize),
}

fn steps(machines: usize, boards: usize, restarts: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..machines, 0..boards).prop_map(|(m, b)| Step::Tell(m, b)),
        4 => (0..64usize).prop_map(Step::Arrive),
        1 => (0..64usize).prop_map(Step::Lose),
        1 => (0..machines, any::<bool>()).prop_map(|(m, g)| Step::Guests(m, g)),
        u32::from(restarts) => (0..machines).prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 0..150)
}

struct World {
    keys: KeyPair,
    /// `None` has given way.
    machines: Vec<Option<Watch>>,
    boards: [Board; 2],
    under_way: Vec<(InstanceId, Vec<Statement>)>,
    starts: u8,
}

impl World {
    fn new(machines: usize) -> Self {
        let keys = KeyPair::from_seed(&[7; 32]);
        let mut world = Self {
            keys,
            machines: Vec::new(),
            boards: Default::default(),
            under_way: Vec::new(),
            starts: 0,
        };
        for _ in 0..machines {
            let watch = world.start();
            world.machines.push(Some(watch));
        }
        world
    }

    fn start(&mut self) -> Watch {
        self.starts += 1;
        // Clocks say nothing that can be relied on.
        instance(
            &self.keys,
            self.starts,
            u64::from(self.starts.wrapping_mul(37) % 11),
        )
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Tell(machine, board) => {
                let Some(watch) = &self.machines[machine] else {
                    return;
                };
                if self
                    .under_way
                    .iter()
                    .any(|(instance, _)| *instance == watch.instance)
                {
                    return;
                }
                let others = self.boards[board].exchange(
                    Duration::ZERO,
                    member(&self.keys),
                    watch.statement(&self.keys),
                );
                self.under_way.push((watch.instance, others));
            }
            Step::Arrive(which) if !self.under_way.is_empty() => {
                let (to, others) = self.under_way.remove(which % self.under_way.len());
                let Some(place) = self
                    .machines
                    .iter_mut()
                    .find(|m| m.as_ref().is_some_and(|w| w.instance == to))
                else {
                    return;
                };
                for other in others {
                    let gives_way = place
                        .as_mut()
                        .is_some_and(|w| matches!(w.handle(other), Some(Verdict::GiveWay(_))));
                    if gives_way {
                        *place = None;
                    }
                }
            }
            Step::Lose(which) if !self.under_way.is_empty() => {
                drop(self.under_way.remove(which % self.under_way.len()))
            }
            Step::Guests(machine, guests) => self.machines[machine]
                .iter_mut()
                .for_each(|w| w.set_guests(guests)),
            Step::Restart(machine) if self.machines[machine].is_some() && self.starts < 8 => {
                let watch = self.start();
                self.machines[machine] = Some(watch);
            }
            _ => {}
        }
    }

    /// Every machine is heard in turn, until nothing changes any more.
    fn calm(&mut self) {
        for machine in (0..self.machines.len())
            .cycle()
            .take(12 * self.machines.len())
        {
            self.step(&Step::Tell(machine, 0));
            while !self.under_way.is_empty() {
                self.step(&Step::Arrive(0));
            }
        }
    }

    fn living(&self) -> usize {
        self.machines.iter().flatten().count()
    }

    /// Takes the steps; someone is left after each, and one when all is calm.
    fn run(machines: usize, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut world = Self::new(machines);
        for step in steps {
            world.step(step);
            prop_assert!(world.living() >= 1, "nobody is left after {:?}", step);
        }
        world.calm();
        prop_assert_eq!(world.living(), 1);
        Ok(())
    }
}

proptest! {
    #[test]
    fn twins_never_all_give_way_and_one_is_left_at_last(
        (n, steps) in (1..4usize).prop_flat_map(|n| (Just(n), steps(n, 2, false)))
    ) {
        World::run(n, &steps)?;
    }

    #[test]
    fn nor_when_daemons_crash_and_start_again_meanwhile(
        (n, steps) in (1..4usize).prop_flat_map(|n| (Just(n), steps(n, 1, true)))
    ) {
        World::run(n, &steps)?;
    }
}
