//! Measured figures, as files from which the pages of `docs/` are filled.
//!
//! A measurement writes its results into `docs/figures/NAME.json`: each [`Figure`] with all its
//! rounds, unit and aim, and the [`Run`] that it comes from. The program of this crate fills the
//! marked blocks of the pages from these files ([`page`]); its test fails where a page shows
//! anything else. No figure is written by hand: the files are read strictly, and every value must
//! follow from its rounds.
//!
//! This crate measures nothing itself and depends on no other crate of the workspace, so that the
//! tests and benches of each can use it.

mod figure;
mod machine;
pub mod page;
mod record;
mod set;
mod template;

pub use figure::{Amount, Figure, Summary};
pub use machine::command_line;
pub use record::{DIRECTORY, Recorder};
pub use set::{Run, Set, Sets};

use std::path::PathBuf;

/// The fault of a file of figures, or of a page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what a measurement writes.
    #[error("{} is no file of figures", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// A set contradicts itself, or has a value that was not measured.
    #[error("figures '{set}': {why}")]
    Set {
        /// The set.
        set: String,
        /// The fault.
        why: String,
    },
    /// A block of a page asks for something that is not there, or has no end.
    #[error("line {line}: {why}")]
    Block {
        /// Line of the page, from 1.
        line: usize,
        /// The fault.
        why: String,
    },
}
