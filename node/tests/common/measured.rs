//! What a test measured, for docs/figures (see its README).

use p2pvm_lab::figures::{Figure, Recorder};
use std::time::Duration;

/// The measurement of one of the tests that fill a set together.
pub struct Measurement {
    recorder: Recorder,
    set: &'static str,
    command: &'static str,
}

impl Measurement {
    /// Looks at the machine before the test, if figures are to be written. `command` measures them
    /// again.
    pub fn begin(set: &'static str, command: &'static str) -> Self {
        Self {
            recorder: Recorder::from_environment(),
            set,
            command,
        }
    }

    /// Prints the figures, and writes them where `P2PVM_FIGURES` says; those of other tests stay in
    /// the set.
    pub fn end(self, figures: &[Figure]) {
        println!("{}", Recorder::overview(figures));
        self.recorder
            .record_part(self.set, self.command, figures)
            .expect("the figures are written");
    }
}

/// A figure in seconds; it shows whole ones unless told otherwise.
pub fn seconds(name: &str, what: &str, rounds: &[Duration]) -> Figure {
    Figure::new(name, what, "s", rounds.iter().map(Duration::as_secs_f64))
}
