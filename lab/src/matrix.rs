//! `p2pvm testbed nat-matrix`: every pair of NAT kinds, with real daemons on the emulated wide
//! area.
//!
//! Two sites of each kind and one public bootstrap make a network; then each member pings members
//! of every kind. The figures say which path each pair ended on and how long it took to be direct,
//! beside what theory allows: the rules of mapping and filtering (RFC 4787, RFC 5128), written down
//! here apart from the code under test.

mod report;

use crate::{
    figures::{Destination, Recorder, command_line},
    lab::{Lab, LabError, PingResult},
    sites::{Hosts, Ipv6, Nat, Properties, Site, Sites},
};
use clap::Args;
use p2pvm_api::MemberIdText;
use p2pvm_overlay::lock;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The founder, with IPv4 and IPv6.
const BOOTSTRAP: &str = "bootstrap";
/// Round trip between any two sites, milliseconds.
const RTT_MS: f64 = 40.0;
/// How many daemons start at a time, and how many pairs ping at a time.
/// Reason: the machine has few cores.
const AT_ONCE: usize = 3;
/// How long all members may take to learn their NAT and to connect before the pings begin without
/// that.
const SETTLED: Duration = Duration::from_secs(90);
/// How long a pair pings for the best path that theory allows before the last path counts.
const DIRECT_LIMIT: Duration = Duration::from_secs(20);

/// Arguments of the command.
#[derive(Args, Debug)]
pub struct Options {
    /// Kinds of sites, separated by commas: none, firewall, full-cone, restricted, port-restricted,
    /// symmetric-preserving, symmetric-sequential, symmetric, carrier, mapped, blocked, ipv6
    #[arg(long, value_delimiter = ',', value_parser = Kind::parse)]
    kinds: Vec<Kind>,
    /// How many rounds, each with a new network
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seed of the first round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    figures: Destination,
}

/// The NAT or firewall of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    None,
    Firewall,
    FullCone,
    Restricted,
    PortRestricted,
    Preserving,
    Sequential,
    Symmetric,
    Carrier,
    Mapped,
    Blocked,
    Ipv6,
}

const ALL: [Kind; 12] = [
    Kind::None,
    Kind::Firewall,
    Kind::FullCone,
    Kind::Restricted,
    Kind::PortRestricted,
    Kind::Preserving,
    Kind::Sequential,
    Kind::Symmetric,
    Kind::Carrier,
    Kind::Mapped,
    Kind::Blocked,
    Kind::Ipv6,
];

/// The default kinds: with two members of each the network is small enough for a full mesh.
fn usual() -> Vec<Kind> {
    ALL.into_iter()
        .filter(|kind| *kind != Kind::Firewall)
        .collect()
}

/// The filtering of a site's border (RFC 4787 §5).
#[derive(Clone, Copy, PartialEq)]
enum Filtering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// The path that theory allows a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theory {
    Direct,
    /// Direct if a port is guessed.
    Guess,
    /// Through a member that both reach.
    Relay,
    /// No UDP: over the control plane's TCP.
    Stream,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Firewall => "firewall",
            Kind::FullCone => "full-cone",
            Kind::Restricted => "restricted",
            Kind::PortRestricted => "port-restricted",
            Kind::Preserving => "symmetric-preserving",
            Kind::Sequential => "symmetric-sequential",
            Kind::Symmetric => "symmetric",
            Kind::Carrier => "carrier",
            Kind::Mapped => "mapped",
            Kind::Blocked => "blocked",
            Kind::Ipv6 => "ipv6",
        }
    }

    fn parse(text: &str) -> Result<Kind, String> {
        let known = ALL.iter().find(|kind| kind.name() == text).copied();
        known.ok_or_else(|| format!("'{text}' is none of {}", ALL.map(Kind::name).join(", ")))
    }

    fn site(self, name: String) -> Site {
        let nat = match self {
            Kind::FullCone => Nat::FullCone,
            Kind::Restricted => Nat::Restricted,
            Kind::PortRestricted | Kind::Carrier => Nat::PortRestricted,
            Kind::Preserving => Nat::SymmetricPreserving,
            Kind::Sequential => Nat::SymmetricSequential,
            Kind::Symmetric | Kind::Mapped => Nat::Symmetric,
            Kind::None | Kind::Firewall | Kind::Blocked | Kind::Ipv6 => Nat::None,
        };
        Site {
            name,
            nat,
            carrier: if self == Kind::Carrier {
                Nat::PortRestricted
            } else {
                Nat::None
            },
            udp: self != Kind::Blocked,
            ipv6: if self == Kind::Ipv6 {
                Ipv6::Only
            } else {
                Ipv6::None
            },
            firewall: matches!(self, Kind::Firewall | Kind::Ipv6),
            upnp: self == Kind::Mapped,
            mtu: None,
            hosts: Hosts::Count(1),
        }
    }

    /// Whether its mapping is the same for all destinations, whether its next port can be guessed,
    /// and its filtering.
    fn border(self) -> (bool, bool, Filtering) {
        use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        match self {
            Kind::None | Kind::FullCone | Kind::Mapped => (true, false, EndpointIndependent),
            Kind::Restricted => (true, false, AddressDependent),
            Kind::Firewall
            | Kind::PortRestricted
            | Kind::Preserving
            | Kind::Carrier
            | Kind::Ipv6 => (true, false, AddressAndPortDependent),
            Kind::Sequential => (false, true, AddressAndPortDependent),
            Kind::Symmetric | Kind::Blocked => (false, false, AddressAndPortDependent),
        }
    }
}

fn theory(a: Kind, b: Kind) -> Theory {
    if [a, b].contains(&Kind::Blocked) {
        return Theory::Stream;
    }
    if (a == Kind::Ipv6) != (b == Kind::Ipv6) {
        return Theory::Relay;
    }
    let ((a_kept, a_guessed, a_filter), (b_kept, b_guessed, b_filter)) = (a.border(), b.border());
    let strict = Filtering::AddressAndPortDependent;
    match (a_kept, b_kept) {
        (true, true) => Theory::Direct,
        (true, false) if a_filter != strict => Theory::Direct,
        (false, true) if b_filter != strict => Theory::Direct,
        (true, false) if b_guessed => Theory::Guess,
        (false, true) if a_guessed => Theory::Guess,
        (false, false) if a_guessed && b_guessed => Theory::Guess,
        _ => Theory::Relay,
    }
}

/// The result of one pair.
#[derive(Clone, Debug)]
struct Outcome {
    kinds: (Kind, Kind),
    from: String,
    to: String,
    /// The path of the last answer, empty if there was none.
    path: String,
    rtt_ms: f64,
    /// From the command to the first answer, over any path.
    first_answer_ms: f64,
    /// The number of punches and the time to the direct path, as the pinging daemon reports them.
    punch: Option<(u32, Option<f64>)>,
}

impl Outcome {
    fn is_direct(&self) -> bool {
        self.path.starts_with("direct")
    }
}

/// Runs the command.
pub fn run(options: &Options, program: &Path) -> anyhow::Result<()> {
    let kinds = if options.kinds.is_empty() {
        usual()
    } else {
        options.kinds.clone()
    };
    let recorder = options.figures.begin();
    let mut rounds = Vec::new();
    let mut seen = BTreeMap::new();
    for round in 0..options.rounds {
        eprintln!(
            "round {} of {}: {} daemons",
            round + 1,
            options.rounds,
            kinds.len() * 2 + 1
        );
        let (found, natures) = play(&kinds, options.seed + u64::from(round), program)?;
        rounds.push(found);
        seen.extend(natures);
    }
    let figures = report::figures(&kinds, &rounds, &seen);
    println!("{}", Recorder::overview(&figures));
    recorder.record("nat", &command_line(), &figures)?;
    let unconnected = rounds.iter().flatten().filter(|o| o.path.is_empty());
    let (unconnected, all) = (unconnected.count(), rounds.iter().flatten().count());
    anyhow::ensure!(
        unconnected == 0,
        "{unconnected} of {all} pairs are not connected: see the figures"
    );
    Ok(())
}

fn host(kind: Kind, side: char) -> String {
    format!("{}-{side}", kind.name())
}

/// One round: its outcomes, and how the members of each kind classify their NAT.
fn play(
    kinds: &[Kind],
    seed: u64,
    program: &Path,
) -> Result<(Vec<Outcome>, BTreeMap<Kind, String>), LabError> {
    let mut sites = vec![Site {
        ipv6: Ipv6::Dual,
        ..Kind::None.site(BOOTSTRAP.into())
    }];
    sites.extend(
        kinds
            .iter()
            .flat_map(|kind| ['a', 'b'].map(|side| kind.site(host(*kind, side)))),
    );
    let default = Properties {
        rtt_ms: Some(RTT_MS),
        jitter_ms: Some(0.5),
        mbit: Some(200.0),
        ..Properties::default()
    };
    let sites = Sites {
        seed,
        default,
        sites,
        links: Vec::new(),
    };
    let lab = Lab::up(&sites, &format!("natm-{}", std::process::id()), program)?;
    let members: Vec<String> = kinds
        .iter()
        .flat_map(|kind| ['a', 'b'].map(|side| host(*kind, side)))
        .collect();
    for name in members.iter().map(String::as_str).chain([BOOTSTRAP]) {
        lab.configure(name, "cpus = 1\nautonomic = false\n")?;
    }
    lab.found(BOOTSTRAP, "matrix")?;
    let invite = lab.invite(BOOTSTRAP, members.len() as u32)?;
    let ids = join_all(&lab, &members, &invite)?;
    eprintln!("all have joined");
    settle(&lab, &members);
    let mut natures = BTreeMap::new();
    for kind in kinds {
        natures.insert(*kind, lab.status(&host(*kind, 'a'))?.nat);
    }
    let mut pairs = Vec::new();
    for (i, a) in kinds.iter().enumerate() {
        for b in &kinds[i..] {
            pairs.push((*a, *b, host(*a, 'a'), host(*b, 'b')));
            if a != b {
                pairs.push((*a, *b, host(*b, 'a'), host(*a, 'b')));
            }
        }
    }
    let outcomes = ping_all(&lab, pairs, &ids)?;
    lab.down()?;
    Ok((outcomes, natures))
}

/// Lets all hosts join, a few at a time; returns the member ids by host.
fn join_all(
    lab: &Lab,
    members: &[String],
    invite: &str,
) -> Result<BTreeMap<String, MemberIdText>, LabError> {
    let ids = Mutex::new(BTreeMap::new());
    let queue = Mutex::new(members.iter().collect::<VecDeque<_>>());
    let join = || -> Result<(), LabError> {
        loop {
            let Some(name) = lock(&queue).pop_front() else {
                return Ok(());
            };
            let id = lab.join(name, invite)?.status.member;
            lock(&ids).insert(name.clone(), id);
        }
    };
    thread::scope(|scope| {
        let joining: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(join)).collect();
        joining.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(ids.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Waits until all members are connected and have had time to examine their NAT.
fn settle(lab: &Lab, members: &[String]) {
    let began = Instant::now();
    for name in members {
        while began.elapsed() < SETTLED {
            let Ok(status) = lab.status(name) else {
                break;
            };
            if status.nat != "not known yet" && status.connected >= members.len() {
                break;
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
    // The examination of the NAT and the search for a router follow within seconds.
    thread::sleep(Duration::from_secs(8));
    eprintln!("settled after {:.0} s", began.elapsed().as_secs_f64());
}

type Pair = (Kind, Kind, String, String);

/// Pings every pair, several at a time but never two with the same host: a host's punches would
/// disturb each other.
fn ping_all(
    lab: &Lab,
    pairs: Vec<Pair>,
    ids: &BTreeMap<String, MemberIdText>,
) -> Result<Vec<Outcome>, LabError> {
    let total = pairs.len();
    let queue = Mutex::new((pairs, BTreeSet::<String>::new()));
    let (freed, outcomes) = (Condvar::new(), Mutex::new(Vec::new()));
    let work = || -> Result<(), LabError> {
        loop {
            let (a, b, from, to) = {
                let mut state = lock(&queue);
                loop {
                    if state.0.is_empty() {
                        return Ok(());
                    }
                    let free = state.0.iter().position(|(_, _, from, to)| {
                        !state.1.contains(from) && !state.1.contains(to)
                    });
                    if let Some(at) = free {
                        let pair = state.0.remove(at);
                        state.1.extend([pair.2.clone(), pair.3.clone()]);
                        break pair;
                    }
                    state = freed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let outcome = pair(lab, (a, b), &from, &to, ids);
            {
                let mut state = lock(&queue);
                state.1.remove(&from);
                state.1.remove(&to);
            }
            freed.notify_all();
            let outcome = outcome?;
            let mut outcomes = lock(&outcomes);
            let path = if outcome.path.is_empty() {
                "NOT CONNECTED"
            } else {
                &outcome.path
            };
            eprintln!(
                "{}/{total} {from} to {to}: {path} {:.1} ms",
                outcomes.len() + 1,
                outcome.rtt_ms
            );
            outcomes.push(outcome);
        }
    };
    thread::scope(|scope| {
        let working: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        working.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

/// Pings one pair until an answer comes, over a direct path if theory allows one.
fn pair(
    lab: &Lab,
    kinds: (Kind, Kind),
    from: &str,
    to: &str,
    ids: &BTreeMap<String, MemberIdText>,
) -> Result<Outcome, LabError> {
    let possible = matches!(theory(kinds.0, kinds.1), Theory::Direct | Theory::Guess);
    let began = Instant::now();
    let (mut last, mut first_answer_ms) = (PingResult::default(), f64::NAN);
    loop {
        let pinged = match lab.ping(from, to, 3, "200ms") {
            Ok(pinged) => pinged,
            // A missing answer is a result, not a failure of the run.
            Err(LabError::Command { .. }) => PingResult::default(),
            Err(error) => return Err(error),
        };
        if let (true, Some(rtt)) = (first_answer_ms.is_nan(), pinged.rtts_ms.first()) {
            // The first of three probes was sent two intervals before the last.
            first_answer_ms = (began.elapsed().as_secs_f64() * 1e3 - 400.0).max(*rtt);
        }
        if !pinged.path.is_empty() {
            last = pinged;
        }
        let enough = if possible {
            last.path.starts_with("direct")
        } else {
            !last.path.is_empty()
        };
        if enough || began.elapsed() > DIRECT_LIMIT {
            break;
        }
    }
    // The daemon counts punches once a second: the newest may be missing.
    let status = lab.status(from)?;
    let punches = &status.punches.list;
    let punch = ids
        .get(to)
        .and_then(|id| punches.iter().rfind(|punch| punch.member == *id))
        .map(|punch| (punch.tries, punch.direct_ms));
    let rtt_ms = last.rtts_ms.last().copied().unwrap_or(f64::NAN);
    Ok(Outcome {
        kinds,
        from: from.into(),
        to: to.into(),
        path: last.path,
        rtt_ms,
        first_answer_ms,
        punch,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn theory_gives_the_textbook_verdict_for_each_pair() {
        use Kind::*;
        for (a, b, verdict) in [
            (PortRestricted, PortRestricted, Theory::Direct),
            (FullCone, Symmetric, Theory::Direct),
            (Restricted, Symmetric, Theory::Direct),
            (PortRestricted, Symmetric, Theory::Relay),
            (Symmetric, Symmetric, Theory::Relay),
            (PortRestricted, Sequential, Theory::Guess),
            (Sequential, Sequential, Theory::Guess),
            (Sequential, Symmetric, Theory::Relay),
            (Mapped, Symmetric, Theory::Direct),
            (Carrier, Carrier, Theory::Direct),
            (Blocked, None, Theory::Stream),
            (Ipv6, None, Theory::Relay),
            (Ipv6, Ipv6, Theory::Direct),
        ] {
            assert_eq!([theory(a, b), theory(b, a)], [verdict; 2], "{a:?} {b:?}");
        }
        assert!(ALL.iter().all(|kind| Kind::parse(kind.name()) == Ok(*kind)));
    }
}
