//! Shows the progress of work that takes longer than a second: a bar on a terminal, otherwise a
//! line at each new phase and every few seconds. It goes to standard error, so that `--json` stays
//! clean.

use indicatif::{ProgressBar, ProgressStyle};
use p2pvm_api::Step;
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// The time between two lines of one phase if the output is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// One operation's progress.
pub struct Progress {
    bar: Option<ProgressBar>,
    phase: String,
    last: Instant,
    what: String,
}

impl Progress {
    /// Begins to show `what`.
    pub fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.set_message(what.clone());
            bar
        });
        Self {
            bar,
            phase: String::new(),
            last: Instant::now(),
            what,
        }
    }

    /// Prints a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Shows one step.
    pub fn step(&mut self, step: &Step) {
        let new_phase = self.phase != step.phase;
        self.phase.clone_from(&step.phase);
        let text = format!("{}: {} {}", self.what, step.phase, step.note);
        if let Some(bar) = &self.bar {
            if step.total_bytes > 0 {
                bar.set_style(bytes());
                bar.set_length(step.total_bytes);
                bar.set_position(step.done_bytes.min(step.total_bytes));
            } else {
                bar.set_style(spinner());
            }
            bar.set_message(text);
        } else if new_phase || self.last.elapsed() >= PLAIN_EVERY {
            self.last = Instant::now();
            let done = match step.total_bytes {
                0 => String::new(),
                total => format!(
                    "{} of {}",
                    indicatif::HumanBytes(step.done_bytes),
                    indicatif::HumanBytes(total)
                ),
            };
            eprintln!("{} {done}", text.trim_end());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bytes() -> ProgressStyle {
    ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
