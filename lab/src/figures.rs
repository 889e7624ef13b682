//! Where the figures of a measurement go: into the directory that `--figures` names, if it is given
//! (the files: `p2pvm_figures`; from there to a page: docs/figures/README.md).

use clap::Args;
pub use p2pvm_figures::{Amount, Figure, Recorder, command_line};
use std::path::PathBuf;

/// The directory, for the command line.
#[derive(Args, Clone, Debug, Default)]
pub struct Destination {
    /// Write the figures with all rounds into this directory; 'make figures' then fills the pages
    #[arg(
        id = "figures_dir",
        long = "figures",
        env = p2pvm_figures::DIRECTORY,
        value_name = "DIR"
    )]
    dir: Option<PathBuf>,
}

impl Destination {
    /// Begins a measurement.
    pub fn begin(&self) -> Recorder {
        Recorder::begin(self.dir.as_deref())
    }
}
