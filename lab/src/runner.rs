//! The program that runs the demo or the bench, as these see it, and how they end.
//!
//! Both drive p2pvm by its command line alone. The executable, the form of the output and the
//! progress bar belong to the program around them and are passed in. That program also chooses the
//! exit code: a [`RunError`] says what sort of failure it was.

use anyhow::Context;
use std::{
    any::Any,
    error::Error,
    fmt::Display,
    path::{Path, PathBuf},
};

/// What the demo and the bench get from the program that runs them.
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    /// The p2pvm executable that every emulated host runs.
    pub program: &'a Path,
    /// Whether the results are printed as JSON, and all other lines on standard error.
    pub json: bool,
    /// Shows on standard error that a long step is under way, until the returned value is dropped.
    pub show_progress: &'a dyn Fn(&str) -> Box<dyn Any>,
}

/// Why the demo or the bench ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This user may not run it.
    #[error("{0}")]
    Refused(String),
    /// A file or a figure is missing.
    #[error("{0}")]
    NotFound(String),
    /// No answer came in time.
    #[error("{0}")]
    TimedOut(String),
    /// An answer came, and it was wrong.
    #[error("{0}")]
    Failed(String),
    /// One step failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: String,
        /// Why it failed.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// Names the step that failed: `lab.join(host, &invite).step("joining")?`.
pub(crate) trait Step<T> {
    fn step(self, step: impl Display) -> Result<T, RunError>;
}

impl<T, E: Error + Send + Sync + 'static> Step<T> for Result<T, E> {
    fn step(self, step: impl Display) -> Result<T, RunError> {
        self.map_err(|cause| RunError::Step {
            step: step.to_string(),
            cause: cause.into(),
        })
    }
}

/// Refuses to go on without the rights that an emulated wide area and QEMU need.
pub(crate) fn require_root(what: &str) -> Result<(), RunError> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "the {what} builds network namespaces and runs QEMU: run it as root (sudo make {what})"
    )))
}

/// The guest image's absolute path: each command on an emulated host starts in a directory of its
/// own.
pub(crate) fn find_image(image: &Path) -> Result<PathBuf, RunError> {
    std::fs::canonicalize(image).map_err(|e| {
        RunError::NotFound(format!(
            "there is no guest image at {}: {e}; make one with guest-image/build.sh",
            image.display()
        ))
    })
}

/// The executable that was named, or this one.
pub(crate) fn program_or_this(program: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    program.map_or_else(this_program, Ok)
}

pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::LabError;

    #[test]
    fn a_failed_step_and_its_causes_are_named_once() {
        let timed_out = LabError::TimedOut {
            what: "the move".into(),
            seconds: 60,
        };
        let error = Err::<(), _>(timed_out).step("waiting").unwrap_err();
        assert_eq!(
            p2pvm_overlay::chain(&error),
            "waiting: the move did not happen within 60 s"
        );
    }
}
