//! The error of the command line and the control API: a sentence that says what to do, and a kind,
//! which decides the exit code and the HTTP status code.

use p2pvm_host::chain;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a failure. Its number is the command line's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The operation was tried and failed.
    Failed = 1,
    /// The command line or request is invalid.
    Usage = 2,
    /// A named thing does not exist.
    NotFound = 3,
    /// No answer in time.
    TimedOut = 4,
    /// Refused for safety, although it would have worked.
    Refused = 5,
    /// Neither done nor refused for good, because the members that decide it cannot be asked now.
    /// The same request may work later.
    NotNow = 6,
}

impl Kind {
    /// The kind for an exit code of `p2pvm`.
    pub fn of_exit_code(code: i32) -> Option<Self> {
        let all = [
            Self::Failed,
            Self::Usage,
            Self::NotFound,
            Self::TimedOut,
            Self::Refused,
            Self::NotNow,
        ];
        all.into_iter().find(|kind| *kind as i32 == code)
    }
}

/// A failure with its kind and the sentence that the user reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failure {
    /// The kind.
    pub kind: Kind,
    /// What happened and what to do.
    pub message: String,
    /// Whether the operation was cancelled on request. Omitted when false, so that members of a
    /// previous version can parse it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            cancelled: false,
        }
    }

    /// The failure of an operation that was cancelled on request.
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self {
            cancelled: true,
            ..Self::new(Kind::Failed, message)
        }
    }

    /// The failure for a named thing that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// The failure of an operation refused for safety.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// No answer in time.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(Kind::TimedOut, message)
    }

    /// The failure for an invalid command or argument.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(feature = "server")]
impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        use axum::http::StatusCode;
        let status = match self.kind {
            Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Kind::Refused => StatusCode::CONFLICT,
            Kind::NotNow => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, axum::Json(self)).into_response()
    }
}

/// An error without a kind becomes [`Kind::Failed`]; its chain of causes becomes one sentence.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(other) => Self::new(Kind::Failed, chain(other.as_ref())),
        }
    }
}

/// The result of an operation of the command line or the API.
pub type Outcome<T> = Result<T, Failure>;

/// Puts the step before its cause: `read(path).doing("reading the certificate")?`.
pub trait Doing<T> {
    /// Turns the error into a [`Failure`] of kind [`Kind::Failed`] that begins with `what` and
    /// names every cause.
    fn doing(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: std::error::Error + 'static> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|cause| Failure::new(Kind::Failed, format!("{what}: {}", chain(&cause))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn each_part_of_a_chain_of_three_is_in_the_sentence_once() {
        let refused = p2pvm_host::run::RunError::Io {
            program: "nft",
            cause: io::Error::from_raw_os_error(13),
        };
        let step = p2pvm_host::error::Error::Program("load the rules".into(), refused);
        let failure = Err::<(), _>(step)
            .doing("setting up the firewall")
            .unwrap_err();
        let said = "setting up the firewall: cannot load the rules: cannot run nft: Permission \
            denied (os error 13)";
        assert_eq!(failure.message, said);
    }
}
