//! The last lease of this host, kept in a file: after a restart the host has its address at once,
//! not only when enough members are connected to claim it again.
//!
//! While the lease lasts, the network's records name this member as the holder, so that no other
//! member gets the address. The host still claims it, and the result of the claim replaces the
//! saved lease. If the file is lost, a restart waits for the claim.

use crate::layout::{read_if_there, write_atomically};
use p2pvm_dhcp::Lease;
use p2pvm_overlay::UnixTime;
use std::path::PathBuf;

/// How long a lease must still last to be used. Reason: clocks differ, and the claim takes time.
const MARGIN_SECONDS: u64 = 120;

/// The file with the last lease.
pub struct SavedLease(PathBuf);

impl SavedLease {
    pub fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// The saved lease, if it lasts long enough.
    pub fn read(&self) -> Option<Lease> {
        let bytes = read_if_there(&self.0).ok().flatten()?;
        let lease: Lease = postcard::from_bytes(&bytes).ok()?;
        (lease.expires > UnixTime::now().plus(MARGIN_SECONDS)).then_some(lease)
    }

    /// Saves a lease that was claimed or renewed.
    pub async fn set(&self, lease: &Lease) {
        let Ok(bytes) = postcard::to_allocvec(lease) else {
            return;
        };
        let file = self.0.clone();
        let written =
            tokio::task::spawn_blocking(move || write_atomically(&file, &bytes, 0o600)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(
                error = %p2pvm_host::chain(&error),
                "the lease is not remembered: the next start waits for its claim"
            );
        }
    }

    /// Deletes the file, because the lease was released or lost.
    pub fn forget(&self) {
        // A missing file is no failure.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_dhcp::Holder;
    use p2pvm_overlay::{Epoch, MemberId};

    fn lease(expires: UnixTime) -> Lease {
        let holder = Holder {
            member: MemberId([7; 32]),
            epoch: Epoch(0),
            vm: None,
            name: "a".into(),
        };
        Lease {
            v4: [10, 1, 2, 3].into(),
            prefix: 16,
            v6: None,
            holder,
            expires,
            version: 4,
        }
    }

    #[tokio::test]
    async fn a_lease_is_taken_up_again_as_long_as_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let kept = SavedLease::new(dir.path().join("lease"));
        assert_eq!(kept.read(), None);
        let lasting = lease(UnixTime::now().plus(1800));
        kept.set(&lasting).await;
        assert_eq!(kept.read(), Some(lasting));
        kept.set(&lease(UnixTime::now().plus(MARGIN_SECONDS / 2)))
            .await;
        assert_eq!(kept.read(), None, "another may have it soon");
        std::fs::write(dir.path().join("lease"), b"nonsense").unwrap();
        assert_eq!(kept.read(), None);
        kept.forget();
        kept.forget();
    }
}

#[cfg(test)]
#[path = "kept_golden_tests.rs"]
mod golden_tests;
