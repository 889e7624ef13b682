//! One network of a given size, measured from its first member to the death of half of them.
//!
//! Members arrive at a steady rate through three bootstraps. When every near link is right the
//! paths are measured, then nothing happens for some minutes but upkeep, then 1 %, 10 % and 50 % of
//! the living die, each time at once, and the ring repairs itself.

use super::{
    engine::Sim,
    member::{SentCounts, Tally},
    plot::distribution,
    queue::{Micros, SECOND},
    survey::{Survey, walk},
};
use p2pvm_overlay::ring::{Mode, RingOptions};
use rand::{Rng, seq::SliceRandom};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How many bootstraps all joiners are configured with.
const BOOTSTRAPS: usize = 3;
/// The time between two joiners, or less if all would not arrive within [`LONGEST_ARRIVAL`].
const BETWEEN_ARRIVALS: Micros = SECOND / 2;
/// How long all arrivals together take at most.
const LONGEST_ARRIVAL: Micros = 300 * SECOND;
/// How long the ring may take to be right after the last arrival or a disaster before it counts as
/// never right.
const LIMIT: Micros = 600 * SECOND;
/// How long far links may take after the near ones are right.
const FAR_LINKS: Micros = 120 * SECOND;
/// How many paths are measured.
const PATHS: usize = 20_000;
/// How many members a member's average round trip is taken over.
const OTHERS: usize = 50;
/// The time between two checks of an idle ring.
const LOOK: Micros = 10 * SECOND;
/// How many lookups one check has.
const LOOKUPS: usize = 1_000;
/// How long the ring is checked every second after a disaster.
const WATCH: Micros = 120 * SECOND;
/// The shares of the living that die at once, one disaster after the other.
const DISASTERS: [f64; 3] = [0.01, 0.1, 0.5];

/// Average and spread of a measured quantity.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    /// Average.
    pub mean: f64,
    /// Half are below.
    pub median: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some values.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            values
                .get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self {
            mean,
            median: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// A curve: values by rising x.
pub type Curve = Vec<(f64, f64)>;

/// The repair after a part of the members died.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disaster {
    /// Share that died.
    pub share: f64,
    /// How many survived.
    pub left: usize,
    /// Seconds until every near link was right again; `None` if not within the limit.
    pub repaired_s: Option<f64>,
    /// Seconds until 99.9 % of lookups between the living arrived again, for good.
    pub lookups_s: Option<f64>,
    /// Share of near links that are right, by seconds since the death.
    pub near: Curve,
    /// Share of lookups that arrive, by seconds since the death.
    pub lookups: Curve,
    /// The mean bytes a second of a survivor until the ring was repaired.
    pub repair_bytes_per_s: f64,
}

/// Messages and bytes sent by a member in a second, by purpose.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct IdleTraffic {
    /// Messages by member.
    pub messages: Spread,
    /// Bytes by member.
    pub bytes: Spread,
    /// Bytes by member without those that it passed on as a relay.
    pub own_bytes: Spread,
    /// Of the average: keepalives and lists between neighbours.
    pub upkeep_bytes: f64,
    /// Of the average: packets routed over others.
    pub routed_bytes: f64,
    /// Of the average: links in the making.
    pub linking_bytes: f64,
    /// Of the average: passed on for two members without a direct path.
    pub relayed_bytes: f64,
}

/// The figures of one network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Members that joined.
    pub members: usize,
    /// The seed.
    pub seed: u64,
    /// From start to having a place in the ring, in milliseconds.
    pub join_ms: Spread,
    /// The same in round trips of the joiner: of its average to the others.
    pub join_round_trips: Spread,
    /// Distribution of that.
    pub join_curve: Curve,
    /// Seconds from the last arrival until every near link was right.
    pub settled_s: Option<f64>,
    /// Members after the first on a path between two random members.
    pub hops: Spread,
    /// Share of paths that arrived.
    pub arrived: f64,
    /// Round trip along the path over the direct one.
    pub stretch: Spread,
    /// Distribution of that.
    pub stretch_curve: Curve,
    /// Links of a member.
    pub links: Spread,
    /// Share of links over a relay.
    pub relayed_links: f64,
    /// The traffic of the quiet minutes.
    pub idle: IdleTraffic,
    /// The least share of near links that were right in those minutes, checked every ten seconds.
    pub idle_near: f64,
    /// The least share of lookups that arrived meanwhile.
    pub idle_lookups: f64,
    /// The least share of lookups of a random place that ended at the member closest to it.
    pub idle_consistent: f64,
    /// Relative error of the round trip that coordinates predict, over random pairs.
    pub coordinates: Spread,
    /// log2 of the size of the network that members estimate, over log2 of the true size.
    pub size_estimate: Spread,
    /// The repair after each disaster.
    pub disasters: Vec<Disaster>,
    /// Loops, packets without hops left, runaway state machines, a ring at rest that was wrong for
    /// a moment: there must be none.
    pub broken: Vec<String>,
    /// Virtual seconds simulated.
    pub virtual_s: f64,
    /// Real seconds that it took.
    pub real_s: f64,
    /// Seconds of one processor that it took.
    pub cpu_s: f64,
    /// The most memory that the whole process had until then, in MiB.
    pub memory_mib: u64,
    /// Events simulated.
    pub events: u64,
}

/// Runs a network of `members`; `quiet` is how long it is watched idle. `note` gets lines of
/// progress.
pub fn run(members: usize, seed: u64, quiet: Micros, note: &dyn Fn(&str)) -> Report {
    let (began, cpu) = (Instant::now(), cpu_s());
    let mut sim = Sim::new(seed, RingOptions::default());
    arrive(&mut sim, members);
    note(&format!(
        "{members} members started, {} joined, {:.0} s",
        sim.joins.len(),
        began.elapsed().as_secs_f64()
    ));
    let settled = sim.until_right(LIMIT);
    sim.run(FAR_LINKS);
    note(&format!(
        "settled after {:?} s, {:.0} s",
        settled.map(|s| s / SECOND),
        began.elapsed().as_secs_f64()
    ));

    let (hops, stretch, arrived) = paths(&mut sim);
    let links = sim.members.iter().map(|m| m.link_count() as f64).collect();
    let size_estimate = sim
        .members
        .iter()
        .filter_map(|m| Some(m.ring.as_ref()?.status().size.log2() / (members as f64).log2()));
    let size_estimate = Spread::of(size_estimate.collect());
    let coordinates = coordinates(&mut sim);
    let (idle, [idle_near, idle_lookups, idle_consistent]) = idle(&mut sim, quiet);
    note(&format!(
        "idle watched, {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    let relayed_links = sim.linked.1 as f64 / sim.linked.0.max(1) as f64;
    let disasters = DISASTERS
        .iter()
        .map_while(|share| disaster(&mut sim, *share))
        .collect();
    note(&format!(
        "disasters over, {:.0} s",
        began.elapsed().as_secs_f64()
    ));

    let round_trips = round_trips(&mut sim);
    Report {
        members,
        seed,
        join_ms: Spread::of(sim.joins.iter().map(|j| j.1 as f64 / 1e3).collect()),
        join_curve: distribution(&round_trips),
        join_round_trips: Spread::of(round_trips),
        settled_s: settled.map(|s| s as f64 / SECOND as f64),
        hops: Spread::of(hops),
        arrived,
        stretch_curve: distribution(&stretch),
        stretch: Spread::of(stretch),
        links: Spread::of(links),
        relayed_links,
        idle,
        idle_near,
        idle_lookups,
        idle_consistent,
        coordinates,
        size_estimate,
        disasters,
        broken: sim.broken.clone(),
        virtual_s: sim.now() as f64 / SECOND as f64,
        real_s: began.elapsed().as_secs_f64(),
        cpu_s: cpu_s() - cpu,
        memory_mib: memory_mib(),
        events: sim.events(),
    }
}

fn arrive(sim: &mut Sim, members: usize) {
    let bootstraps: Vec<u32> = (0..BOOTSTRAPS.min(members) as u32).collect();
    let span = (BETWEEN_ARRIVALS * members as u64).min(LONGEST_ARRIVAL);
    for i in 0..members {
        let public = i < bootstraps.len();
        let home = sim.home(public);
        // Each asks the bootstraps in an order of its own, so that their load is shared.
        let mut known = bootstraps.clone();
        known.shuffle(sim.rng());
        sim.add(home, 1.0, &known, span * i as u64 / members as u64);
    }
    sim.run(span);
}

/// Hops and stretch of paths between random members, and the share that arrived.
fn paths(sim: &mut Sim) -> (Vec<f64>, Vec<f64>, f64) {
    let survey = Survey::of(sim);
    let (mut hops, mut stretch) = (Vec::new(), Vec::new());
    for _ in 0..PATHS {
        let (from, to) = survey.pair(sim);
        let walk = walk(sim, from, sim.position(to), Mode::Exact);
        if walk.end == Some(to) {
            let direct = sim.world.rtt_us(
                &sim.members[from as usize].home,
                &sim.members[to as usize].home,
            );
            hops.push(f64::from(walk.hops));
            stretch.push(walk.rtt as f64 / direct as f64);
        }
    }
    let arrived = hops.len() as f64 / PATHS as f64;
    (hops, stretch, arrived)
}

/// How long the joiners took, each in round trips of its own average length.
fn round_trips(sim: &mut Sim) -> Vec<f64> {
    let joins = sim.joins.clone();
    let count = sim.members.len();
    let of = |(member, took): (u32, Micros)| {
        let home = sim.members[member as usize].home;
        let others: Vec<usize> = (0..OTHERS)
            .map(|_| sim.rng().random_range(0..count))
            .collect();
        let sum: Micros = others
            .into_iter()
            .map(|o| sim.world.rtt_us(&home, &sim.members[o].home))
            .sum();
        took as f64 * OTHERS as f64 / sum as f64
    };
    joins.into_iter().map(of).collect()
}

/// The error of the coordinates of random pairs.
fn coordinates(sim: &mut Sim) -> Spread {
    let survey = Survey::of(sim);
    let known: Vec<_> = sim
        .members
        .iter()
        .map(|m| m.ring.as_ref().map(|r| r.status().coordinate))
        .collect();
    let errors = (0..PATHS).filter_map(|_| {
        let (a, b) = survey.pair(sim);
        let real = sim
            .world
            .rtt(&sim.members[a as usize].home, &sim.members[b as usize].home)
            .as_secs_f64();
        let (here, there) = (known[a as usize]?, known[b as usize]?);
        Some((here.estimate(&there).as_secs_f64() - real).abs() / real)
    });
    Spread::of(errors.collect())
}

/// Processor seconds of this thread.
fn cpu_s() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0.0, |t| Duration::from(t).as_secs_f64())
}

/// The peak memory of this process; 0 if the kernel does not report it.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    peak.unwrap_or(0) / 1024
}

/// Runs the idle network, counts what is sent, and checks the invariant: the least share of near
/// links, of paths and of lookups that are right.
fn idle(sim: &mut Sim, quiet: Micros) -> (IdleTraffic, [f64; 3]) {
    let before = sim.sent();
    let mut least = [1.0f64; 3];
    let end = sim.now() + quiet;
    while sim.now() < end {
        sim.run(LOOK);
        let survey = Survey::of(sim);
        let now = [
            share(survey.near_links(sim)),
            survey.reachable(sim, LOOKUPS),
            survey.consistent(sim, LOOKUPS),
        ];
        if now != [1.0; 3] {
            sim.breach(format!(
                "of near links, paths and lookups these shares are right: {now:?}; wrong: {}",
                survey.wrong_links(sim)
            ));
        }
        for (least, now) in least.iter_mut().zip(now) {
            *least = least.min(now);
        }
    }
    let seconds = quiet as f64 / SECOND as f64;
    let after = sim.sent();
    let each = |of: fn(&SentCounts) -> u64| -> Vec<f64> {
        after
            .iter()
            .zip(&before)
            .map(|(a, b)| (of(a) - of(b)) as f64 / seconds)
            .collect()
    };
    let mean = |of: fn(&SentCounts) -> u64| Spread::of(each(of)).mean;
    let idle = IdleTraffic {
        messages: Spread::of(each(|s| s.total().messages)),
        bytes: Spread::of(each(|s| s.total().bytes)),
        own_bytes: Spread::of(each(|s| s.total().bytes - s.relayed.bytes)),
        upkeep_bytes: mean(|s| s.upkeep.bytes),
        routed_bytes: mean(|s| s.routed.bytes),
        linking_bytes: mean(|s| s.linking.bytes),
        relayed_bytes: mean(|s| s.relayed.bytes),
    };
    (idle, least)
}

/// Kills a share of the living at once, at least one, and checks the rest; `None` if no member
/// would be left.
fn disaster(sim: &mut Sim, dead: f64) -> Option<Disaster> {
    let mut living: Vec<u32> = Survey::of(sim).living.into_iter().map(|l| l.1).collect();
    if living.len() < 2 {
        return None;
    }
    living.shuffle(sim.rng());
    let count = ((living.len() as f64 * dead).round() as usize).clamp(1, living.len() - 1);
    for member in living.drain(..count) {
        sim.crash(member);
    }
    let (start, sent) = (sim.now(), sim.total_sent());
    let (mut near, mut lookups) = (Vec::new(), Vec::new());
    let mut repaired: Option<(f64, Tally)> = None;
    loop {
        let seconds = (sim.now() - start) as f64 / SECOND as f64;
        let survey = Survey::of(sim);
        let right = share(survey.near_links(sim));
        near.push((seconds, right));
        lookups.push((seconds, survey.reachable(sim, LOOKUPS)));
        if right < 1.0 {
            repaired = None;
        } else if repaired.is_none() {
            repaired = Some((seconds, sim.total_sent()));
        }
        if sim.now() - start >= if repaired.is_some() { WATCH } else { LIMIT } {
            break;
        }
        sim.run(SECOND);
    }
    let failing = lookups.iter().rposition(|l: &(f64, f64)| l.1 < 0.999);
    let lookups_s = failing.map_or(Some(0.0), |last| lookups.get(last + 1).map(|l| l.0));
    let (until, total) =
        repaired.unwrap_or_else(|| (LIMIT as f64 / SECOND as f64, sim.total_sent()));
    let repair_bytes_per_s =
        (total.bytes - sent.bytes) as f64 / living.len() as f64 / until.max(1.0);
    Some(Disaster {
        share: dead,
        left: living.len(),
        repaired_s: repaired.map(|r| r.0),
        lookups_s,
        near,
        lookups,
        repair_bytes_per_s,
    })
}

fn share((right, all): (u64, u64)) -> f64 {
    if all == 0 {
        1.0
    } else {
        right as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_members_are_simulated_until_one_is_left() {
        let report = run(2, 1, LOOK, &|_| ());
        let left: Vec<usize> = report.disasters.iter().map(|d| d.left).collect();
        assert_eq!(left, [1]);
        assert_eq!(report.arrived, 1.0);
    }
}
