//! How long a member's start takes, by the round trip between the sites: until another member that
//! it has no link to answers a ping, and until the path between the two is direct.
//!
//! The hosts are those of the comparison: the member that starts and the one that it pings are
//! behind port-restricted NATs. The path is read from `p2pvm peers` every [`LOOK_EVERY`], so its
//! time is late by up to that interval and the duration of the command.

use super::{Common, HOSTS, NEVER, Overlay, SITES, first_answer, p2pvm::P2pvm};
use crate::{figures::Figure, keeper::Life, sites::Sites, testbed::Testbed};
use clap::Args;
use p2pvm_api::{PathKind, Peer};
use serde::Serialize;
use std::{
    ffi::OsStr,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// The time between two queries of the path.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the other members settle before the member starts.
const SETTLE: Duration = Duration::from_secs(10);

/// Arguments of `testbed joins`.
#[derive(Args, Debug)]
pub struct Options {
    /// Round trips between the sites, milliseconds, separated by commas
    #[
        arg(
            long, value_delimiter = ',', default_values_t = [1, 40, 100],
            value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "MS"
        )
    ]
    rtt: Vec<u32>,
    /// How many rounds each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    #[command(flatten)]
    common: Common,
}

/// Seconds since the start of the command that starts the member; `None` is never (within
/// [`NEVER`]).
#[derive(Debug, Serialize)]
struct Join {
    rtt_ms: u32,
    first_ping: Option<f64>,
    direct: Option<f64>,
}

/// Measures the starts at each round trip.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let program = &options.common.program()?;
    let recorder = options.common.figures.begin();
    let mut joins = Vec::new();
    for rtt_ms in &options.rtt {
        joins.extend(at(program, *rtt_ms, options.rounds)?);
    }
    let figures = figures(&joins, &options.rtt);
    options.common.report(&joins, &recorder, "joins", &figures)
}

fn at(program: &Path, rtt_ms: u32, rounds: u32) -> anyhow::Result<Vec<Join>> {
    let mut sites = Sites::parse(SITES)?;
    sites.default.rtt_ms = Some(f64::from(rtt_ms));
    let bed = Testbed::up_by(
        program,
        &[OsStr::new("testbed")],
        &sites,
        "joins",
        Life::Tied,
    )?;
    let mut overlay = P2pvm::new(program);
    overlay.prepare(&bed)?;
    for host in &HOSTS[..4] {
        overlay.start(&bed, host)?;
    }
    let b = overlay.address(&bed, "b")?;
    let joins = (1..=rounds).map(|round| {
        thread::sleep(SETTLE);
        let join = once(&bed, &mut overlay, rtt_ms, &b)?;
        eprintln!("{rtt_ms} ms, round {round} of {rounds}: {join:?}");
        Ok(join)
    });
    let joins = joins.collect::<anyhow::Result<_>>()?;
    for host in &HOSTS[..4] {
        overlay.stop(&bed, host)?;
    }
    bed.down()?;
    Ok(joins)
}

fn once(bed: &Testbed, overlay: &mut P2pvm, rtt_ms: u32, b: &str) -> anyhow::Result<Join> {
    let began = Instant::now();
    overlay.start(bed, "a")?;
    let overlay = &*overlay;
    let (direct, answered) = thread::scope(|scope| {
        let looking = scope.spawn(|| direct_to(bed, overlay, b, began));
        let answered = first_answer(bed, "a", b).map(|found| found.map(|_| began.elapsed()));
        let direct = looking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (direct, answered)
    });
    overlay.call(bed, "a", &["down"])?;
    Ok(Join {
        rtt_ms,
        first_ping: answered?.map(|d| d.as_secs_f64()),
        direct: direct?.map(|d| d.as_secs_f64()),
    })
}

/// When the path to the member with this address was first seen to be direct.
fn direct_to(
    bed: &Testbed,
    overlay: &P2pvm,
    address: &str,
    began: Instant,
) -> anyhow::Result<Option<Duration>> {
    while began.elapsed() < NEVER {
        let peers: Vec<Peer> = overlay.ask(bed, "a", &["peers"])?;
        let found = peers
            .iter()
            .find(|peer| peer.address.as_deref() == Some(address));
        if found.is_some_and(|peer| peer.path_kind == Some(PathKind::Direct)) {
            return Ok(Some(began.elapsed()));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(None)
}

/// The aim at a round trip, if there is one.
fn aim(name: &str, rtt_ms: u32) -> Option<&'static str> {
    match (name, rtt_ms) {
        ("first-ping", 1) => Some("≤ 0.3 s"),
        ("direct", 100) => Some("≤ 1 s"),
        _ => None,
    }
}

fn figures(joins: &[Join], rtts: &[u32]) -> Vec<Figure> {
    type Getter = fn(&Join) -> Option<f64>;
    let all: [(&str, &str, Getter); 2] = [
        ("first-ping", "start to first answered ping", |j| {
            j.first_ping
        }),
        ("direct", "start to direct path", |j| j.direct),
    ];
    let mut figures = Vec::new();
    for (name, what, of) in all {
        for rtt in rtts {
            let rounds = joins.iter().filter(|j| j.rtt_ms == *rtt).map(of);
            let figure = Figure::new(name, &format!("{what}, by round trip in ms"), "s", rounds)
                .of(rtt.to_string())
                .digits(2);
            figures.push(match aim(name, *rtt) {
                Some(aim) => figure.aim(aim),
                None => figure,
            });
        }
    }
    figures
}
