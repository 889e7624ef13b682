//! The search for faults. A seed draws a network and a schedule of faults; after them and a time to
//! stabilize every invariant must hold, and continue to hold. Some must hold all the time. A
//! failing seed reproduces its run, as everything is drawn from it.

use super::{
    conditions::Conditions,
    engine::Sim,
    queue::{Micros, SECOND},
    survey::{Survey, walk},
};
use p2pvm_overlay::ring::{Mode, Position, RingOptions};
use rand::{Rng, seq::SliceRandom};
use serde::Serialize;
use std::{collections::HashSet, ops::Range};

/// The time in which members arrive.
const ARRIVALS: Micros = 20 * SECOND;
/// The earliest start of a fault.
const FIRST_FAULT: Micros = 5 * SECOND;
/// The latest end of a fault.
const LAST_FAULT: Micros = 180 * SECOND;
/// How long the ring may take to stabilize after the last fault.
/// Reason: a member asks for one of its address book every minute (every 15 s outside any ring), a
/// dead neighbour is noticed within about 15 s; this is a few rounds of both.
const STABILIZATION: Micros = 120 * SECOND;
/// How long the invariants must hold after that.
const QUIET: Micros = 60 * SECOND;
/// How many times the ring is checked in that time.
const LOOKS: u64 = 6;
/// How many random targets one check has.
const TARGETS: usize = 100;
/// How many links a member may hold before an invariant is broken.
/// Reason: near ones, far ones by its own and by others' choice, shortcuts, joiners.
const MAX_LINKS: usize = 96;

/// A fault, which lasts for a while.
#[derive(Clone, Debug, Serialize)]
pub enum Fault {
    /// This share of all datagrams is lost.
    Loss(f64),
    /// This share of all datagrams comes twice.
    Duplication(f64),
    /// This share of all datagrams is held up by at most so many milliseconds.
    Reordering(f64, u64),
    /// This share of the ways between two members is cut in one direction.
    OneWayCuts(f64),
    /// The network is partitioned into so many parts.
    Partition(u8),
    /// This share of the members dies; those that return do so when the fault ends.
    Crash(f64),
    /// This share of the members sleeps (a closed lid).
    Sleep(f64),
    /// So many new members arrive.
    Arrivals(usize),
}

/// A fault and its time.
#[derive(Clone, Debug, Serialize)]
pub struct Episode {
    /// Its start, in seconds.
    pub from: f64,
    /// Its end, in seconds.
    pub until: f64,
    /// The fault.
    pub fault: Fault,
}

/// The result of a seed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Members at the start.
    pub members: usize,
    /// The schedule of faults.
    pub episodes: Vec<Episode>,
    /// Invariants that did not hold; empty: all did.
    pub broken: Vec<String>,
    /// Seconds from the end of the faults until every near link was right.
    pub healed_after: Option<f64>,
    /// Events simulated.
    pub events: u64,
    /// Datagrams sent: with `events` a fingerprint of the run.
    pub datagrams: u64,
}

/// Draws and runs the network of a seed, of a size in `members`.
pub fn run(seed: u64, members: Range<usize>) -> Outcome {
    let mut sim = Sim::new(seed, RingOptions::default());
    let count = sim.rng().random_range(members);
    let bootstraps = populate(&mut sim, count);
    let episodes = draw(&mut sim);
    play(&mut sim, &episodes, &bootstraps);

    // All faults end; a bootstrap that died is restarted.
    sim.conditions = Conditions::default();
    for bootstrap in bootstraps {
        sim.restart(bootstrap, sim.now());
    }
    let over = sim.now();
    let mut healed_after = None;
    while sim.now() < over + STABILIZATION {
        let (right, all) = Survey::of(&sim).near_links(&sim);
        if right != all {
            healed_after = None;
        } else if healed_after.is_none() {
            healed_after = Some((sim.now() - over) as f64 / SECOND as f64);
        }
        sim.run(SECOND);
    }
    let mut deaf: Option<HashSet<(u32, u32)>> = None;
    for _ in 0..LOOKS {
        check(&mut sim);
        let now = deaf_ends(&sim);
        deaf = Some(deaf.map_or_else(
            || now.clone(),
            |before| before.intersection(&now).copied().collect(),
        ));
        sim.run(QUIET / LOOKS);
    }
    // A lost goodbye is noticed by the next keepalive: one end may be mistaken for some seconds,
    // but not all the time.
    let mut deaf: Vec<_> = deaf.into_iter().flatten().collect();
    deaf.sort_unstable();
    for (me, other) in deaf {
        sim.breach(format!(
            "member {me} routed over {other}, which does not hear it, all the time"
        ));
    }
    let datagrams = sim.total_sent().messages;
    Outcome {
        seed,
        members: count,
        episodes,
        broken: sim.broken.clone(),
        healed_after,
        events: sim.events(),
        datagrams,
    }
}

/// Adds bootstraps and members that arrive one after the other, in half of all seeds with clocks
/// that are off by up to a twentieth. Returns the bootstraps.
fn populate(sim: &mut Sim, count: usize) -> Vec<u32> {
    let skew = if sim.rng().random_bool(0.5) {
        0.05
    } else {
        0.0001
    };
    let rate = |sim: &mut Sim| 1.0 + sim.rng().random_range(-skew..skew);
    let bootstraps: Vec<u32> = (0..2.min(count as u32)).collect();
    for i in 0..count {
        let public = i < bootstraps.len();
        let home = sim.home(public);
        let (rate, at) = (
            rate(sim),
            if public {
                0
            } else {
                sim.rng().random_range(0..ARRIVALS)
            },
        );
        sim.add(home, rate, &bootstraps, at);
    }
    bootstraps
}

fn draw(sim: &mut Sim) -> Vec<Episode> {
    let rng = sim.rng();
    let mut episodes: Vec<Episode> = (0..rng.random_range(2..=7))
        .map(|_| {
            let from = rng.random_range(FIRST_FAULT..LAST_FAULT - 20 * SECOND);
            let until = rng.random_range(from + 5 * SECOND..=LAST_FAULT);
            let fault = match rng.random_range(0..10) {
                0 => Fault::Loss(rng.random_range(0.02..0.5)),
                1 => Fault::Duplication(rng.random_range(0.05..0.8)),
                2 => Fault::Reordering(rng.random_range(0.05..0.8), rng.random_range(50..3000)),
                3 | 4 => Fault::OneWayCuts(rng.random_range(0.01..0.3)),
                5 => Fault::Partition(rng.random_range(2..=4)),
                6 | 7 => Fault::Crash(rng.random_range(0.05..0.7)),
                8 => Fault::Sleep(rng.random_range(0.05..0.5)),
                _ => Fault::Arrivals(rng.random_range(1..10)),
            };
            Episode {
                from: from as f64 / SECOND as f64,
                until: until as f64 / SECOND as f64,
                fault,
            }
        })
        .collect();
    episodes.sort_by(|a, b| a.from.total_cmp(&b.from));
    episodes
}

/// Plays the schedule: starts and ends each fault at its time.
fn play(sim: &mut Sim, episodes: &[Episode], bootstraps: &[u32]) {
    let micros = |seconds: f64| (seconds * SECOND as f64) as Micros;
    let mut edges: Vec<(Micros, bool, usize)> = Vec::new();
    for (i, episode) in episodes.iter().enumerate() {
        edges.push((micros(episode.from), true, i));
        edges.push((micros(episode.until), false, i));
    }
    edges.sort_unstable();
    for (at, begins, i) in edges {
        let wait = at.saturating_sub(sim.now());
        sim.run(wait);
        if begins {
            begin(sim, &episodes[i], bootstraps);
        } else {
            end(sim, &episodes[i].fault);
        }
    }
    let rest = LAST_FAULT.saturating_sub(sim.now());
    sim.run(rest);
}

fn begin(sim: &mut Sim, episode: &Episode, bootstraps: &[u32]) {
    let count = sim.members.len() as u32;
    let until = (episode.until * SECOND as f64) as Micros;
    match &episode.fault {
        Fault::Loss(share) => sim.conditions.loss = *share,
        Fault::Duplication(share) => sim.conditions.duplicate = *share,
        Fault::Reordering(share, ms) => {
            (sim.conditions.reorder, sim.conditions.hold_up) = (*share, ms * 1000)
        }
        Fault::OneWayCuts(share) => {
            let pairs = (0..count)
                .flat_map(|a| (0..count).map(move |b| (a, b)))
                .filter(|(a, b)| a != b);
            let cuts: Vec<_> = pairs.filter(|_| sim.rng().random_bool(*share)).collect();
            sim.conditions.cuts.extend(cuts);
        }
        Fault::Partition(parts) => {
            sim.conditions.parts = (0..count)
                .map(|_| sim.rng().random_range(0..*parts))
                .collect()
        }
        Fault::Crash(share) => {
            for member in drawn(sim, *share) {
                sim.crash(member);
                if sim.rng().random_bool(0.6) {
                    let now = sim.now();
                    let at = sim.rng().random_range(now..=until);
                    sim.restart(member, at);
                }
            }
        }
        Fault::Sleep(share) => {
            for member in drawn(sim, *share) {
                sim.members[member as usize].asleep_until = until;
            }
        }
        Fault::Arrivals(new) => {
            for _ in 0..*new {
                let home = sim.home(false);
                let now = sim.now();
                let at = sim.rng().random_range(now..=until);
                sim.add(home, 1.0, bootstraps, at);
            }
        }
    }
}

fn end(sim: &mut Sim, fault: &Fault) {
    let quiet = Conditions::default();
    match fault {
        Fault::Loss(_) => sim.conditions.loss = quiet.loss,
        Fault::Duplication(_) => sim.conditions.duplicate = quiet.duplicate,
        Fault::Reordering(..) => sim.conditions.reorder = quiet.reorder,
        Fault::OneWayCuts(_) => sim.conditions.cuts.clear(),
        Fault::Partition(_) => sim.conditions.parts.clear(),
        Fault::Crash(_) | Fault::Sleep(_) | Fault::Arrivals(_) => {}
    }
}

fn drawn(sim: &mut Sim, share: f64) -> Vec<u32> {
    let mut living: Vec<u32> = Survey::of(sim).living.into_iter().map(|l| l.1).collect();
    living.shuffle(sim.rng());
    living.truncate((living.len() as f64 * share).ceil() as usize);
    living
}

/// Records each invariant that does not hold at this moment.
fn check(sim: &mut Sim) {
    let survey = Survey::of(sim);
    let (right, all) = survey.near_links(sim);
    if right != all {
        let wrong = survey.wrong_links(sim);
        sim.breach(format!(
            "{right} of {all} near links are right; wrong: {wrong}"
        ));
    }
    for i in 0..survey.living.len() {
        check_member(sim, survey.living[i].1);
    }
    for _ in 0..TARGETS {
        let (from, to) = survey.pair(sim);
        let place = Position(sim.rng().random());
        for (to, mode, due) in [
            (sim.position(to), Mode::Exact, Some(to)),
            (place, Mode::Closest, survey.closest(place)),
        ] {
            let walk = walk(sim, from, to, mode);
            if walk.end != due || walk.looped {
                sim.breach(format!(
                    "from member {from}, {to} ({mode:?}) is {:?} after {} hops instead of {due:?}",
                    walk.end, walk.hops
                ));
            }
        }
    }
}

/// Links that are in the table of one end while the other cannot open what is sent, or is dead.
fn deaf_ends(sim: &Sim) -> HashSet<(u32, u32)> {
    let living = Survey::of(sim).living.into_iter().map(|l| l.1);
    let tables = living.flat_map(|me| {
        sim.members[me as usize]
            .table
            .members()
            .iter()
            .map(move |n| (me, n.member))
    });
    let ends = tables.filter_map(|(me, member)| Some((me, sim.number(&member)?)));
    ends.filter(|(me, other)| !sim.usable(*me, *other))
        .collect()
}

/// Records whether a member's table is out of order, or a member holds too many links.
fn check_member(sim: &mut Sim, me: u32) {
    let m = &sim.members[me as usize];
    let table = m.table.clone();
    let mut wrong = Vec::new();
    if !table.joined() && sim.members.iter().filter(|m| m.alive()).count() > 1 {
        wrong.push("is not in the ring".to_owned());
    }
    for nodes in [table.members(), table.leaves()] {
        if nodes.windows(2).any(|w| w[0].position >= w[1].position)
            || nodes.iter().any(|n| n.position == table.me().position)
        {
            wrong.push("has a table out of order or with itself in it".to_owned());
        }
    }
    if m.link_count() > MAX_LINKS {
        wrong.push(format!("has {} links", m.link_count()));
    }
    for what in wrong {
        sim.breach(format!("member {me} {what}"));
    }
}
