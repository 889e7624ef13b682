//! Why something on the machine could not be changed.

use crate::run::RunError;
use std::{error::Error as _, io};

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

impl Error {
    /// The step and all its causes in one sentence.
    pub fn sentence(&self) -> String {
        let (mut text, mut cause) = (self.to_string(), self.source());
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        text
    }
}
