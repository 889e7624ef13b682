//! Why something on the machine could not be changed.

use crate::run::RunError;
use std::io;

/// One step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {0}")]
    Kernel(String, #[source] io::Error),
    /// Another program refused.
    #[error("cannot {0}")]
    Program(String, #[source] RunError),
    /// The change could not be written down, so it was not made.
    #[error("cannot write down what is to be undone")]
    Journal(#[source] io::Error),
}
