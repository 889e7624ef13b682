//! What a test measured, for docs/nat.md and docs/speed.md (docs/figures/README.md).

use p2pvm_figures::{Figure, Recorder};
use std::time::Duration;

/// What measures the figures again.
const COMMAND: &str = "cargo nextest run -p p2pvm-overlay --no-default-features --test plane";

/// The measurement of one test.
pub struct Measurement(Recorder);

impl Measurement {
    /// Looks at the machine before the test, if figures are to be written.
    pub fn begin() -> Self {
        Self(Recorder::from_environment())
    }

    /// Prints the figures, and writes them where `P2PVM_FIGURES` says.
    pub fn end(self, figures: &[Figure]) {
        eprintln!("{}", Recorder::overview(figures));
        self.0
            .record_part("links", COMMAND, figures)
            .expect("the figures are written");
    }
}

/// The longest time without an answer on a TCP connection through what happens.
pub fn silence(event: &str, longest: Duration) -> Figure {
    seconds("silence", "longest silence of a TCP stream", &[longest]).of(event)
}

/// The time from what happens until packets take another path.
pub fn other_path(event: &str, took: Duration) -> Figure {
    seconds("other-path", "until another path is used", &[took]).of(event)
}

pub fn seconds(name: &str, what: &str, rounds: &[Duration]) -> Figure {
    Figure::new(name, what, "s", rounds.iter().map(Duration::as_secs_f64)).digits(2)
}

/// The rate of a TCP or UDP stream over a path.
pub fn rate(path: &str, mbit: f64) -> Figure {
    Figure::new("rate", "rate of one stream", "Mbit/s", [mbit]).of(path)
}
