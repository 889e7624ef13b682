//! `p2pvm simulate`: measures the ring at scale, or searches for faults in it.

use super::{
    faults::{self, Outcome},
    queue::SECOND,
    report,
    scale::{self, Report},
};
use crate::figures::{Destination, Recorder, command_line};
use anyhow::{Context, bail};
use clap::Args;
use p2pvm_overlay::lock;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Numbers of members in the report by default.
const SIZES: &str = "10,100,1000,10000";
/// Numbers of members from which the fault search draws by default.
const FAULTY_SIZES: Range<usize> = 8..48;
/// How many seeds the fault search runs between two lines of progress.
const PROGRESS: usize = 100;

/// The ring in virtual time: thousands of members in one process, everything drawn from a seed.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  p2pvm simulate --members 10,100,1000,10000 --seed 1 --out docs/plots --figures docs/figures
  p2pvm simulate --members 1000 --json >1000.json
  p2pvm simulate --members 10,100 --with 1000.json --out plots
  p2pvm simulate --faults --seeds 0..1000 --figures docs/figures
  p2pvm simulate --faults --seeds 417..418 --json")]
pub struct Simulate {
    /// Numbers of members, separated by commas; with --faults a range like 8..48 to draw from
    #[arg(long, value_name = "N,N|N..N")]
    members: Option<String>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds for which the idle network is watched
    #[arg(long, default_value_t = 600, value_name = "S")]
    idle: u64,
    /// Files that runs with --json wrote: show their results beside those measured now, as a large
    /// network takes long
    #[arg(
        long,
        value_name = "FILE",
        value_delimiter = ',',
        conflicts_with = "faults"
    )]
    with: Vec<PathBuf>,
    /// Write the plots (SVG) to this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    figures: Destination,
    /// Search for schedules of faults that break the ring, instead of measuring
    #[arg(long, conflicts_with = "out")]
    faults: bool,
    /// Seeds to search
    #[arg(long, default_value = "0..100", value_name = "A..B")]
    seeds: String,
    /// How many threads
    #[arg(long, default_value_t = 2, value_name = "N")]
    threads: usize,
}

/// Runs the command; `json` prints the results as JSON.
///
/// # Errors
/// An error of the arguments, or the file that could not be written.
pub fn run(args: &Simulate, json: bool) -> anyhow::Result<ExitCode> {
    if args.faults {
        search(args, json)
    } else {
        measure(args, json)
    }
}

fn measure(args: &Simulate, json: bool) -> anyhow::Result<ExitCode> {
    let mut sizes = parse_sizes(args.members.as_deref().unwrap_or(SIZES))?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let mut reports = earlier(&args.with)?;
    if let Some(other) = reports.iter().find(|r| r.seed != args.seed) {
        bail!(
            "the report of {} members in --with is of seed {}: give --seed {} for all",
            other.members,
            other.seed,
            other.seed
        );
    }
    sizes.retain(|n| reports.iter().all(|r| r.members != *n));
    let recorder = args.figures.begin();
    // The largest takes the longest and goes first.
    let order: Vec<usize> = sizes.iter().rev().copied().collect();
    let quiet = args.idle.max(10) * SECOND;
    reports.extend(in_parallel(args.threads, &order, |n| {
        let note = |what: &str| eprintln!("{n}: {what}");
        scale::run(*n, args.seed, quiet, &note)
    }));
    reports.sort_by_key(|r| r.members);
    if let Some(out) = &args.out {
        write_plots(out, &reports)?;
    }
    let figures = report::figures(&reports);
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        print!("{}", Recorder::overview(&figures));
    }
    recorder.record("scale", &command_line(), &figures)?;
    for report in reports.iter().filter(|r| !r.broken.is_empty()) {
        eprintln!(
            "broken with {} members: {}",
            report.members,
            report.broken.join("\n  ")
        );
    }
    Ok(exit_code(reports.iter().all(|r| r.broken.is_empty())))
}

fn exit_code(is_success: bool) -> ExitCode {
    if is_success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The numbers of members, ascending, each once.
fn parse_sizes(text: &str) -> anyhow::Result<Vec<usize>> {
    let parse = |n: &str| {
        let size = n.trim().parse().ok();
        size.filter(|n| (2..=1_000_000).contains(n))
    };
    let sizes = text.split(',').map(parse).collect::<Option<Vec<usize>>>();
    let mut sizes = sizes.with_context(|| {
        format!("--members '{text}': give numbers from 2 to 1000000, with commas between")
    })?;
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

fn write_plots(out: &Path, reports: &[Report]) -> anyhow::Result<()> {
    for (file, svg) in report::plots(reports) {
        let path = out.join(file);
        std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The reports that earlier runs wrote with `--json`.
fn earlier(files: &[PathBuf]) -> anyhow::Result<Vec<Report>> {
    let mut reports = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let more: Vec<Report> = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not what `p2pvm simulate --json` of this version prints",
                file.display()
            )
        })?;
        reports.extend(more);
    }
    Ok(reports)
}

fn search(args: &Simulate, json: bool) -> anyhow::Result<ExitCode> {
    let seeds = range(&args.seeds)
        .with_context(|| format!("--seeds '{}': give a range like 0..1000", args.seeds))?;
    let members = parse_faulty_sizes(args.members.as_deref())?;
    let recorder = args.figures.begin();
    let began = Instant::now();
    let outcomes = run_seeds(args.threads, &seeds.collect::<Vec<_>>(), &members);
    let figures = report::faults(&outcomes, began.elapsed().as_secs_f64());
    if json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        print!("{}", Recorder::overview(&figures));
    }
    recorder.record("faults", &command_line(), &figures)?;
    Ok(exit_code(outcomes.iter().all(|o| o.broken.is_empty())))
}

fn parse_faulty_sizes(text: Option<&str>) -> anyhow::Result<Range<usize>> {
    let members = match text {
        None => FAULTY_SIZES,
        Some(text) => {
            let range = range(text)
                .with_context(|| format!("--members '{text}': give a range like 8..48"))?;
            range.start as usize..range.end as usize
        }
    };
    if members.start < 2 || members.end > 100_000 {
        bail!(
            "--members {}..{}: a network has from 2 to 100000 members here",
            members.start,
            members.end
        );
    }
    Ok(members)
}

/// Runs each seed; a seed that breaks the ring is reported at once.
fn run_seeds(threads: usize, seeds: &[u64], members: &Range<usize>) -> Vec<Outcome> {
    let began = Instant::now();
    let (done, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    in_parallel(threads, seeds, |seed| {
        let outcome = faults::run(*seed, members.clone());
        if !outcome.broken.is_empty() {
            broken.fetch_add(1, Ordering::Relaxed);
            eprintln!("{}", said(&outcome, members));
        }
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(PROGRESS) {
            let (failed, took) = (broken.load(Ordering::Relaxed), began.elapsed().as_secs());
            eprintln!(
                "{done} of {} seeds in {took} s, {failed} failed",
                seeds.len()
            );
        }
        outcome
    })
}

/// The message on a seed that broke the ring, with the command that reproduces it.
pub fn said(outcome: &Outcome, members: &Range<usize>) -> String {
    format!(
        "seed {} broke the ring ({} members):\n  {}\n  reproduce: p2pvm simulate --faults --seeds \
            {}..{} --members {}..{}",
        outcome.seed,
        outcome.members,
        outcome.broken.join("\n  "),
        outcome.seed,
        outcome.seed + 1,
        members.start,
        members.end
    )
}

fn range(text: &str) -> Option<Range<u64>> {
    let (from, to) = text.split_once("..")?;
    let range = from.trim().parse().ok()?..to.trim().parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// Calls `work` on each of `items`, on some threads; returns the results in the order of the items.
fn in_parallel<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, 64) {
            scope.spawn(|| {
                while let Some((i, item)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| Some((i, items.get(i)?)))
                {
                    let result = work(item);
                    lock(&results).push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|r| r.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..50).collect();
        assert_eq!(
            in_parallel(3, &items, |i| i * 2),
            items.iter().map(|i| i * 2).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        assert_eq!(range("3..7"), Some(3..7));
        for bad in ["7..3", "3", "a..b", "..", "3..3", "-1..2"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
