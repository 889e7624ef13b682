//! Lookups in virtual time among hundreds of members who know what an address book keeps, a third
//! of them liars.

use super::*;
use p2pvm_figures::{Figure, Recorder};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{cmp::Reverse, collections::BTreeSet};

/// What liars do when asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Name only liars.
    Omit,
    /// Name dead members near the place.
    Dead,
    /// Name the farthest members.
    Far,
    /// Say nothing.
    Silent,
    /// Name only liars, just before the time is over.
    Delay,
}

impl Lie {
    /// As docs/dht.md calls it.
    fn name(self) -> &'static str {
        match self {
            Lie::Omit => "name only liars",
            Lie::Dead => "name dead members",
            Lie::Far => "name the farthest",
            Lie::Silent => "say nothing",
            Lie::Delay => "name only liars, late",
        }
    }
}

struct World {
    places: Places,
    members: Vec<MemberId>,
    dead: Vec<MemberId>,
    knows: Vec<Vec<MemberId>>,
    liars: BTreeSet<MemberId>,
    lie: Lie,
    rng: StdRng,
}

/// Everyone's place: hashing it anew for each comparison would take most of the time.
struct Places(HashMap<MemberId, RingAddr>);

impl Places {
    fn nearest(
        &self,
        members: impl IntoIterator<Item = MemberId>,
        place: &RingAddr,
        n: usize,
    ) -> Vec<MemberId> {
        let mut members: Vec<MemberId> = members.into_iter().collect();
        members.sort_by_cached_key(|m| self.0[m].distance(place));
        members.truncate(n);
        members
    }

    fn bucket(&self, a: &MemberId, b: &MemberId) -> usize {
        let d = self.0[a].distance(&self.0[b]);
        u64::from_be_bytes(d[..8].try_into().unwrap()).leading_zeros() as usize
    }
}

impl World {
    /// `n` members, each with the 24 nearest in its book, four of each doubling of the distance and
    /// a few others.
    fn new(seed: u64, n: usize, lie: Lie) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let members: Vec<MemberId> = (0..n).map(|_| MemberId(rng.random())).collect();
        let dead: Vec<MemberId> = (0..n / 2).map(|_| MemberId(rng.random())).collect();
        let places = Places(
            members
                .iter()
                .chain(&dead)
                .map(|m| (*m, m.ring_addr()))
                .collect(),
        );
        let book = |me: &MemberId, rng: &mut StdRng| {
            let mut book = places.nearest(
                members.iter().copied().filter(|m| m != me),
                &places.0[me],
                24,
            );
            let mut buckets: Vec<Vec<MemberId>> = vec![Vec::new(); 65];
            members
                .iter()
                .filter(|m| *m != me)
                .for_each(|m| buckets[places.bucket(me, m)].push(*m));
            for there in buckets.iter().take(16) {
                book.extend(there.choose_multiple(rng, 4));
            }
            book.extend(members.choose_multiple(rng, 8).filter(|m| *m != me));
            book.sort_unstable();
            book.dedup();
            book
        };
        let knows = members.iter().map(|me| book(me, &mut rng)).collect();
        let liars = members.choose_multiple(&mut rng, n / 3).copied().collect();
        Self {
            places,
            members,
            dead,
            knows,
            liars,
            lie,
            rng,
        }
    }

    /// What `member` answers, and after how long.
    fn answer(&mut self, member: MemberId, place: &RingAddr) -> Option<(Duration, Vec<MemberId>)> {
        let rtt = Duration::from_millis(self.rng.random_range(20..200));
        let at = self.members.iter().position(|m| *m == member)?;
        if !self.liars.contains(&member) {
            return Some((
                rtt,
                self.places
                    .nearest(self.knows[at].iter().copied(), place, NAMED),
            ));
        }
        match self.lie {
            Lie::Omit => Some((
                rtt,
                self.places
                    .nearest(self.liars.iter().copied(), place, NAMED),
            )),
            Lie::Dead => Some((
                rtt,
                self.places.nearest(self.dead.iter().copied(), place, NAMED),
            )),
            Lie::Far => Some((
                rtt,
                self.places.nearest(
                    self.members.iter().copied(),
                    &RingAddr(place.0.map(|b| !b)),
                    NAMED,
                ),
            )),
            Lie::Silent => None,
            Lie::Delay => Some((
                Duration::from_millis(2800),
                self.places
                    .nearest(self.liars.iter().copied(), place, NAMED),
            )),
        }
    }

    /// Runs one lookup from member `at`; how long it took and how many it asked.
    fn lookup(
        &mut self,
        at: usize,
        place: RingAddr,
        density: &mut Density,
    ) -> (Result<Vec<MemberId>, LookupError>, Duration, usize) {
        let began = Instant::now();
        let mut now = began;
        let seeds = self
            .places
            .nearest(self.knows[at].iter().copied(), &place, 24);
        let mut lookup = Lookup::new(
            self.members[at],
            place,
            &seeds,
            LookupOptions::default(),
            now,
        );
        let mut arriving: BTreeSet<Reverse<(Instant, MemberId)>> = BTreeSet::new();
        let mut answers: HashMap<MemberId, Vec<MemberId>> = HashMap::new();
        loop {
            while let Some(member) = lookup.poll(now) {
                if let Some((after, named)) = self.answer(member, &place) {
                    arriving.insert(Reverse((now + after, member)));
                    answers.insert(member, named);
                }
            }
            if let Some(outcome) = lookup.outcome(now, density) {
                lookup.spread().iter().for_each(|s| density.learn(*s));
                assert!(
                    now - began <= LookupOptions::default().give_up_after,
                    "it is bounded in time"
                );
                return (outcome, now - began, lookup.questions());
            }
            let wake = lookup.wake_at(now);
            match arriving
                .last()
                .filter(|Reverse((t, _))| *t <= wake)
                .copied()
            {
                Some(next) => {
                    arriving.remove(&next);
                    let Reverse((at, member)) = next;
                    now = at.max(now);
                    lookup.answered(member, &answers[&member]);
                }
                None => now = wake,
            }
        }
    }

    /// The members nearest to the place that answer at all.
    fn truth(&self, me: MemberId, place: &RingAddr) -> Vec<MemberId> {
        let answers =
            |m: &MemberId| *m != me && !(self.lie == Lie::Silent && self.liars.contains(m));
        self.places.nearest(
            self.members.iter().copied().filter(answers),
            place,
            LookupOptions::default().wanted,
        )
    }
}

#[derive(Default, Debug)]
struct Tally {
    right: usize,
    refused: usize,
    wrong: usize,
    questions: usize,
    slowest: Duration,
}

fn tally(n: usize, lie: Lie, seeds: std::ops::Range<u64>, lookups: usize) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut world = World::new(seed, n, lie);
        let honest: Vec<usize> = (0..n)
            .filter(|i| !world.liars.contains(&world.members[*i]))
            .collect();
        let at = honest[0];
        let mut density = Density::default();
        for i in 0..lookups {
            let place = RingAddr(world.rng.random());
            let (found, took, questions) = world.lookup(at, place, &mut density);
            tally.slowest = tally.slowest.max(took);
            tally.questions += questions;
            match found {
                Ok(found) if found == world.truth(world.members[at], &place) => tally.right += 1,
                // Until the density is known there is nothing to compare a sparse place with.
                Ok(_) if i >= ENOUGH_DENSITIES => tally.wrong += 1,
                Ok(_) | Err(_) => tally.refused += 1,
            }
        }
    }
    tally
}

#[test]
fn among_honest_members_every_lookup_finds_the_nearest() {
    for n in [2, 5, 30, 120, 1000] {
        let mut world = World::new(7, n, Lie::Omit);
        world.liars.clear();
        let mut density = Density::default();
        for _ in 0..60 {
            let place = RingAddr(world.rng.random());
            let (found, took, _) = world.lookup(0, place, &mut density);
            assert_eq!(found, Ok(world.truth(world.members[0], &place)), "n {n}");
            assert!(took < Duration::from_secs(2), "n {n}: {took:?}");
        }
        if let Some(members) = density.members().filter(|_| n >= 100) {
            assert!(
                (members / n as f64 - 1.0).abs() < 0.3,
                "{members} members estimated of {n}"
            );
        }
    }
}

#[test]
fn a_third_of_lying_members_never_has_a_wrong_answer_believed() {
    let recorder = Recorder::from_environment();
    let mut figures = Vec::new();
    for lie in [Lie::Omit, Lie::Dead, Lie::Far, Lie::Silent, Lie::Delay] {
        let mut slowest = Duration::ZERO;
        for (n, seeds) in [(120, 0..12), (600, 20..24)] {
            let t = tally(n, lie, seeds.clone(), 60);
            let all = t.right + t.refused + t.wrong;
            figures.extend(as_figures(lie, n, &t));
            slowest = slowest.max(t.slowest);
            println!(
                "{n} members, a third {lie:?}: of {all} lookups {} right, {} refused, {} wrong; \
                    {:.1} questions each, slowest {:?}",
                t.right,
                t.refused,
                t.wrong,
                t.questions as f64 / all as f64,
                t.slowest
            );
            assert_eq!(t.wrong, 0, "{n} members, {lie:?}, seeds {seeds:?}: {t:?}");
            assert!(
                t.right * 100 >= all * 95,
                "{n} members, {lie:?}: it still works: {t:?}"
            );
        }
        let slowest = Figure::new("slowest", "slowest lookup", "s", [slowest.as_secs_f64()]);
        figures.push(slowest.of(lie.name()).digits(1));
    }
    recorder
        .record_part("lookups", COMMAND, &figures)
        .expect("the figures are written");
}

/// What measures the figures again.
const COMMAND: &str = "cargo test -p p2pvm-overlay --no-default-features lookup";

/// For docs/dht.md.
fn as_figures(lie: Lie, members: usize, tally: &Tally) -> Vec<Figure> {
    let all = tally.right + tally.refused + tally.wrong;
    let figure = |name: &str, what: &str, value: f64| {
        Figure::new(&format!("{name}-{members}"), what, "", [value]).of(lie.name())
    };
    vec![
        figure("right", "right answers", tally.right as f64),
        figure("refused", "refused answers", tally.refused as f64),
        figure("wrong", "wrong answers believed", tally.wrong as f64),
        figure(
            "questions",
            "questions of a lookup",
            tally.questions as f64 / all as f64,
        ),
    ]
}

#[test]
fn whoever_is_shown_only_liars_is_told_so_and_not_led_astray() {
    // Its whole book but for what it learned before is liars: no path can find an honest member.
    let recorder = Recorder::from_environment();
    let (mut refused, mut believed) = (0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed, 300, Lie::Omit);
        let mut density = Density::default();
        for _ in 0..20 {
            let place = RingAddr(world.rng.random());
            let _ = world.lookup(0, place, &mut density);
        }
        let place = RingAddr(world.rng.random());
        world.knows[0] = world
            .places
            .nearest(world.liars.iter().copied(), &place, 30);
        match world.lookup(0, place, &mut density).0 {
            Err(_) => refused += 1,
            Ok(_) => believed += 1,
        }
    }
    println!("shown only liars: {refused} refused, {believed} believed");
    let figure = |name: &str, what: &str, count: i32| {
        Figure::new(name, what, "", [f64::from(count)]).of("shown only liars")
    };
    let figures = [
        figure("filled-refused", "seeds in which it detects this", refused),
        figure("filled-believed", "seeds in which it is misled", believed),
    ];
    recorder
        .record_part("lookups", COMMAND, &figures)
        .expect("the figures are written");
    assert!(
        refused >= 34,
        "the share that the density tells: {refused} of 40"
    );
}

#[test]
fn nobody_known_and_nobody_answering_are_errors() {
    let (me, now) = (MemberId([1; 32]), Instant::now());
    let options = LookupOptions::default();
    let alone = Lookup::new(me, RingAddr([0; 32]), &[me], options, now);
    assert_eq!(
        alone.outcome(now, &Density::default()),
        Some(Err(LookupError::Alone))
    );
    let seeds: Vec<MemberId> = (2..30).map(|i| MemberId([i; 32])).collect();
    let mut silent = Lookup::new(me, RingAddr([0; 32]), &seeds, options, now);
    let mut at = now;
    let outcome = loop {
        while silent.poll(at).is_some() {}
        if let Some(outcome) = silent.outcome(at, &Density::default()) {
            break outcome;
        }
        at = silent.wake_at(at);
    };
    assert_eq!(outcome, Err(LookupError::Unfinished { ended: 0, paths: 3 }));
    assert!(at - now <= options.give_up_after);
}
