//! Figures that were measured, as files that the pages of `docs/` are made of.
//!
//! A measurement ends by writing what it found into `docs/figures/NAME.json`: each [`Figure`] with
//! all its rounds, unit and aim, and the [`Run`] that it comes from. The program of this crate
//! fills the marked blocks of the pages from these files ([`page`]); its test fails where a page
//! shows anything else. Nobody writes a figure by hand: the file of a run is read strictly, and its
//! values must follow from its rounds.
//!
//! This crate measures nothing and knows no measurement, so that tests and benches of every crate
//! can use it.

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
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what a measurement writes.
    #[error("{} is no file of figures", path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// A set contradicts itself, or claims what was not measured.
    #[error("figures '{set}': {why}")]
    Set {
        /// Which.
        set: String,
        /// How.
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
