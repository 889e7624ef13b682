//! Writes the figures of a measurement into its file.

use crate::{
    Error, Figure, Run, Set, figure,
    machine::{self, Busy},
};
use std::path::{Path, PathBuf};

/// The environment variable that names the directory for figures.
pub const DIRECTORY: &str = "P2PVM_FIGURES";

/// Measures the machine's other load before a measurement, and writes the figures after it if a
/// directory was given.
pub struct Recorder {
    dir: Option<PathBuf>,
    before: Busy,
}

impl Recorder {
    /// Begins a measurement whose figures go into `dir`, or nowhere.
    pub fn begin(dir: Option<&Path>) -> Self {
        let before = dir.map(|_| machine::busy()).unwrap_or_default();
        Self {
            dir: dir.map(Path::to_owned),
            before,
        }
    }

    /// Begins one whose figures go into the directory that [`DIRECTORY`] names, or nowhere.
    pub fn from_environment() -> Self {
        let named = std::env::var_os(DIRECTORY).filter(|dir| !dir.is_empty());
        Self::begin(named.map(|dir| found(Path::new(&dir))).as_deref())
    }

    /// Writes the figures of a whole run into a set, if a directory was given. Figures of an
    /// earlier run of the same command that are not among them are removed. `command` measures them
    /// again.
    ///
    /// # Errors
    /// If the file cannot be written, or a figure has no rounds.
    pub fn record(&self, set: &str, command: &str, figures: &[Figure]) -> Result<(), Error> {
        self.write(set, command, figures, true)
    }

    /// As [`Self::record`] for one of several tests of a command: the figures of the others stay.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn record_part(&self, set: &str, command: &str, figures: &[Figure]) -> Result<(), Error> {
        self.write(set, command, figures, false)
    }

    fn write(
        &self,
        set: &str,
        command: &str,
        figures: &[Figure],
        is_whole: bool,
    ) -> Result<(), Error> {
        let Some(dir) = &self.dir else {
            return Ok(());
        };
        let mut beside = self.before.clone();
        for (name, share) in machine::busy() {
            let greatest = beside.entry(name).or_default();
            *greatest = greatest.max(share);
        }
        let run = Run {
            command: command.into(),
            date: machine::today(),
            commit: machine::commit(dir),
            machine: machine::description(),
            beside: machine::in_words(&beside),
            transcribed: false,
        };
        Set::take_into(dir, set, run, figures.to_vec(), is_whole)?;
        eprintln!(
            "figures: written to {}",
            dir.join(set).with_extension("json").display()
        );
        Ok(())
    }

    /// The figures for a terminal.
    pub fn overview(figures: &[Figure]) -> String {
        figure::overview(figures)
    }
}

/// A relative directory, looked for also above the current one: cargo runs tests and benches in
/// their crate's directory.
fn found(dir: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let above = here.ancestors().map(|above| above.join(dir));
    above
        .into_iter()
        .find(|path| path.is_dir())
        .unwrap_or_else(|| dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sets;

    #[test]
    fn a_recorded_set_says_where_and_when() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Recorder::begin(Some(dir.path()));
        let figures = [Figure::new("rate", "a rate", "Gbit/s", [1.0])];
        recorder.record("x", "make bench", &figures).unwrap();
        let sets = Sets::read(dir.path()).unwrap();
        let run = &sets.get("x").unwrap().runs[0];
        assert_eq!(run.command, "make bench");
        assert!(!run.transcribed && run.machine.contains("processors"));
    }

    #[test]
    fn without_a_directory_nothing_is_written() {
        let recorder = Recorder::begin(None);
        recorder.record("x", "make bench", &[]).unwrap();
    }
}
