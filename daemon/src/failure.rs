//! The errors of the daemon's parts as the failures that a user reads, each with its kind.

use p2pvm_api::{Failure, Kind, Outcome};
use p2pvm_host::chain;
use p2pvm_overlay::FabricError;
use p2pvm_vm_manager::Error as VmError;

/// The failure of a question to another member.
pub(crate) fn fabric(error: FabricError) -> Failure {
    let kind = match error {
        FabricError::TimedOut(..) => Kind::TimedOut,
        FabricError::Refused(..) => Kind::Refused,
        _ => Kind::Failed,
    };
    Failure::new(kind, chain(&error))
}

/// The failure of an operation on a VM.
pub(crate) fn vm(error: VmError) -> Failure {
    let kind = match &error {
        VmError::NotFound(_) => Kind::NotFound,
        VmError::Refused(_) => Kind::Refused,
        VmError::TimedOut { .. } => Kind::TimedOut,
        VmError::Peer {
            source: FabricError::TimedOut(..),
            ..
        } => Kind::TimedOut,
        _ => Kind::Failed,
    };
    Failure::new(kind, chain(&error))
}

/// Lets `?` pass the error of a part on as a failure.
pub trait OrFailure<T> {
    /// The value, or the failure of the error's kind.
    fn or_failure(self) -> Outcome<T>;
}

impl<T> OrFailure<T> for Result<T, FabricError> {
    fn or_failure(self) -> Outcome<T> {
        self.map_err(fabric)
    }
}

impl<T> OrFailure<T> for Result<T, VmError> {
    fn or_failure(self) -> Outcome<T> {
        self.map_err(vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Doing;
    use std::io;

    #[test]
    fn what_the_system_said_is_in_the_sentence() {
        let cause = io::Error::from_raw_os_error(98);
        let busy = p2pvm_overlay::plane::Error::Bind { port: 4002, cause };
        let failure = Err::<(), _>(busy)
            .doing("starting the packet plane")
            .unwrap_err();
        assert_eq!(
            failure.message,
            "starting the packet plane: cannot bind UDP port 4002: Address already in use (os \
                error 98)"
        );
        let wrapped = anyhow::Error::from(io::Error::from_raw_os_error(13)).context("reading x");
        assert_eq!(
            Failure::from(wrapped).message,
            "reading x: Permission denied (os error 13)"
        );
    }

    #[test]
    fn a_vms_failure_says_its_cause_once_however_it_comes() {
        use p2pvm_vm_manager::Error;
        let error = || Error::Io {
            step: "start QEMU",
            path: "qemu".into(),
            source: io::Error::from_raw_os_error(12),
        };
        let said = "start QEMU: qemu: Cannot allocate memory (os error 12)";
        assert_eq!(vm(error()).message, said);
        assert_eq!(Failure::from(anyhow::Error::from(error())).message, said);
        assert_eq!(
            Err::<(), _>(error())
                .doing("restoring")
                .unwrap_err()
                .message,
            format!("restoring: {said}")
        );
    }
}
