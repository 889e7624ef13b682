//! The interface between the demo or the bench and the program that runs it.
//!
//! Both drive p2pvm by its command line alone. The executable, the form of the output and the
//! progress bar belong to the program around them and are passed in. That program prints the
//! failure they end with, whose kind is its exit code.

use anyhow::Context;
use p2pvm_api::{Failure, Outcome};
use std::{
    any::Any,
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

/// Fails without the rights that an emulated wide area and QEMU need.
pub(crate) fn require_root(what: &str) -> Outcome<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "the {what} builds network namespaces and runs QEMU: run it as root (sudo make {what})"
    )))
}

/// The guest image's absolute path: each command on an emulated host starts in a directory of its
/// own.
pub(crate) fn find_image(image: &Path) -> Outcome<PathBuf> {
    std::fs::canonicalize(image).map_err(|e| {
        Failure::not_found(format!(
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
