//! The chaos run: random but reproducible sequences of what happens to a host, while streams, pings
//! and look-ups go on.
//!
//! A seed gives the sequence ([`sequence`]); each step is an [`Event`] and a pause. When the cause
//! of a step ends, every flow must be back within [`BACK`]; when p2pvm has stopped, the host must
//! be as it was before p2pvm started.

mod events;
mod stage;

pub use events::{Cause, EVENTS, Event};

use crate::{
    figures::{Figure, Recorder, command_line},
    lab::LabError,
    testbed,
};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use stage::Stage;
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long each flow may take to come back after the end of a cause before the step fails.
pub const BACK: Duration = Duration::from_secs(20);
/// The pause between the return of all flows and the next event, seconds.
const PAUSE: std::ops::RangeInclusive<f64> = 0.5..=4.0;

/// The options of a run.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Seed of the sequence of events
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Minutes for which events go on
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub minutes: u64,
    /// Only these steps of the sequence, as the run numbers them
    #[arg(long, value_delimiter = ',', value_name = "NUMBER")]
    pub only: Vec<usize>,
    /// These events in this order instead of a random sequence; `--list` shows their names
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME",
        conflicts_with = "only"
    )]
    pub events: Vec<String>,
    /// Show the sequence and do nothing
    #[arg(long)]
    pub list: bool,
    /// The guest's image; without one there is no guest
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Name of the testbed
    #[arg(long, default_value = "chaos")]
    pub name: String,
    /// Go on after a step that failed
    #[arg(long)]
    pub keep_going: bool,
    /// The p2pvm executable that is tried; by default this program
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// A step of the sequence.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub number: usize,
    /// The event.
    pub event: &'static Event,
    /// The pause before it.
    pub pause: Duration,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The network could not be built, or a command failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// No Debian tree for the host can be made here.
    #[error("no Debian tree can be made here: {0}")]
    NoTree(String),
    /// There is no such event.
    #[error("no event is named '{0}': see --list")]
    NoEvent(String),
}

impl From<testbed::Error> for ChaosError {
    fn from(error: testbed::Error) -> Self {
        Self::Lab(error.into())
    }
}

/// The result of one step.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its number.
    pub number: usize,
    /// Its event.
    pub event: &'static str,
    /// Seconds from the cause's end until each flow was back, by name.
    pub back: Vec<(String, f64)>,
    /// The flows that were not back in time, each with the reason.
    pub missing: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3}  {:<42}", self.number, self.event)?;
        self.back
            .iter()
            .try_for_each(|(name, seconds)| write!(f, "  {name} {seconds:.1}"))?;
        self.missing
            .iter()
            .try_for_each(|what| write!(f, "  FAILED: {what}"))
    }
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The seed that gave the sequence.
    pub seed: u64,
    /// Whether the events were named by an option instead.
    pub is_by_name: bool,
    /// The guest's image, where there was a guest.
    pub image: Option<PathBuf>,
    /// Each step.
    pub steps: Vec<Outcome>,
    /// Leftovers of p2pvm on the host.
    pub left: Vec<String>,
    /// How many lines the daemon logged as warnings or errors.
    pub warnings: usize,
}

impl Report {
    /// Whether every flow came back each time and p2pvm left nothing on the host.
    pub fn is_good(&self) -> bool {
        self.left.is_empty() && self.steps.iter().all(|step| step.missing.is_empty())
    }

    /// As docs/figures has it: for each event how long the slowest flow took each time.
    pub fn figures(&self) -> Vec<Figure> {
        let mut events: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
        for step in &self.steps {
            let times = step.back.iter().map(|(_, seconds)| *seconds);
            let slowest = times.fold(0.0, f64::max);
            let back = step.missing.is_empty().then_some(slowest);
            events.entry(step.event).or_default().push(back);
        }
        let what = "end of the event to the return of the slowest flow";
        let figure = |(event, rounds): (&str, Vec<Option<f64>>)| {
            let figure = Figure::new("back", what, "s", rounds).of(event);
            figure.digits(1).aim("≤ 20 s")
        };
        events.into_iter().map(figure).collect()
    }

    /// The command that repeats the steps that failed.
    pub fn again(&self) -> String {
        let failed = || self.steps.iter().filter(|s| !s.missing.is_empty());
        let numbers: Vec<String> = failed().map(|s| s.number.to_string()).collect();
        let names: Vec<&str> = failed().map(|s| s.event).collect();
        let steps = match (self.is_by_name, numbers.is_empty()) {
            (true, true) => {
                let all: Vec<&str> = self.steps.iter().map(|s| s.event).collect();
                format!("--events \"{}\"", all.join(","))
            }
            (true, false) => format!("--events \"{}\"", names.join(",")),
            (false, true) => format!("--seed {}", self.seed),
            (false, false) => format!("--seed {} --only {}", self.seed, numbers.join(",")),
        };
        let image = self
            .image
            .as_ref()
            .map_or_else(String::new, |image| format!(" --image {}", image.display()));
        format!("p2pvm testbed chaos {steps}{image}")
    }
}

/// The endless sequence of a seed: each round has every event once, in an order of its own.
pub fn sequence(seed: u64) -> impl Iterator<Item = Step> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut round: Vec<&'static Event> = Vec::new();
    (1..).map(move |number| {
        if round.is_empty() {
            round = EVENTS.iter().collect();
            round.shuffle(&mut rng);
        }
        let event = round.pop().expect("a round has events");
        Step {
            number,
            event,
            pause: Duration::from_secs_f64(rng.random_range(PAUSE)),
        }
    })
}

/// The steps that the options ask for; without a list of steps they are endless.
fn chosen(options: &Options) -> Result<Box<dyn Iterator<Item = Step>>, ChaosError> {
    if !options.events.is_empty() {
        let named = |name: &String| {
            Event::named(name.trim()).ok_or_else(|| ChaosError::NoEvent(name.clone()))
        };
        let events: Vec<&'static Event> =
            options.events.iter().map(named).collect::<Result<_, _>>()?;
        let step = |(at, event)| Step {
            number: at + 1,
            event,
            pause: Duration::from_secs(1),
        };
        return Ok(Box::new(events.into_iter().enumerate().map(step)));
    }
    let (only, last) = (options.only.clone(), options.only.iter().max().copied());
    let wanted = move |step: &Step| only.is_empty() || only.contains(&step.number);
    Ok(Box::new(
        sequence(options.seed)
            .take_while(move |step| last.is_none_or(|last| step.number <= last))
            .filter(wanted),
    ))
}

/// Runs the steps; `say` gets each line of the report at once.
///
/// # Errors
/// If the network cannot be built. A flow that does not come back is in the report.
pub fn run(
    options: &Options,
    program: &Path,
    name: &str,
    mut say: impl FnMut(&str),
) -> Result<Report, ChaosError> {
    let limit = Duration::from_secs(options.minutes * 60);
    let mut stage = Stage::raise(program, name, options.image.as_deref())?;
    say(&format!(
        "seed {}: {}",
        options.seed,
        stage
            .flows()
            .iter()
            .map(|f| f.name().to_owned())
            .collect::<Vec<_>>()
            .join(", ")
    ));
    let mut steps = Vec::new();
    let began = Instant::now();
    for step in chosen(options)? {
        if began.elapsed() > limit {
            break;
        }
        std::thread::sleep(step.pause);
        let outcome = stage.play(&step)?;
        say(&outcome.to_string());
        let is_bad = !outcome.missing.is_empty();
        if is_bad {
            say(&stage.report());
        }
        steps.push(outcome);
        if is_bad && !options.keep_going {
            break;
        }
    }
    let warnings = stage.warnings();
    let left = stage.end()?;
    Ok(Report {
        seed: options.seed,
        is_by_name: !options.events.is_empty(),
        image: options.image.clone(),
        steps,
        left,
        warnings,
    })
}

/// `p2pvm testbed chaos`.
///
/// # Errors
/// If the network cannot be built.
pub fn main(options: &Options, program: &Path) -> anyhow::Result<std::process::ExitCode> {
    if options.list {
        for step in chosen(options)?.take(EVENTS.len()) {
            println!(
                "{:>3}  {:<42} after {:.1} s",
                step.number,
                step.event.name,
                step.pause.as_secs_f64()
            );
        }
        return Ok(std::process::ExitCode::SUCCESS);
    }
    let recorder = Recorder::from_environment();
    let report = run(options, program, &options.name, |line| println!("{line}"))?;
    recorder.record("chaos", &command_line(), &report.figures())?;
    report
        .left
        .iter()
        .for_each(|line| println!("left behind: {line}"));
    println!(
        "{} events, {} warnings in the daemon's log",
        report.steps.len(),
        report.warnings
    );
    if report.is_good() {
        println!(
            "everything came back within {} s each time, and the host is as it was before",
            BACK.as_secs()
        );
        return Ok(std::process::ExitCode::SUCCESS);
    }
    println!("FAILED; repeat with: {}", report.again());
    Ok(std::process::ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_sequence_and_a_round_has_each_event_once() {
        let names = |seed| {
            sequence(seed)
                .take(EVENTS.len() * 2)
                .map(|s| (s.number, s.event.name, s.pause))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(7), names(7));
        assert_ne!(names(7), names(8));
        let round: std::collections::BTreeSet<_> = names(7)[..EVENTS.len()]
            .iter()
            .map(|(_, name, _)| *name)
            .collect();
        assert_eq!(round.len(), EVENTS.len());
    }

    #[test]
    fn the_command_that_repeats_a_failure_names_its_steps() {
        let step = |number, event, missing: &[&str]| Outcome {
            number,
            event,
            back: Vec::new(),
            missing: missing.iter().map(|why| (*why).to_owned()).collect(),
        };
        let mut report = Report {
            seed: 7,
            is_by_name: false,
            image: None,
            steps: vec![
                step(1, "device down", &[]),
                step(2, "guest's tap down", &["guest"]),
            ],
            left: Vec::new(),
            warnings: 0,
        };
        assert_eq!(report.again(), "p2pvm testbed chaos --seed 7 --only 2");
        report.is_by_name = true;
        let named = "p2pvm testbed chaos --events \"guest's tap down\"";
        assert_eq!(report.again(), named);
    }
}
