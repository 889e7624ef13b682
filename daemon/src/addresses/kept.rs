//! The lease that this host held last, so that a restart has its address at once and not only when
//! enough members are connected to claim it anew.
//!
//! As long as the lease lasts, the network's records name this member as the holder: nobody else is
//! given the address. The claim follows all the same and decides; what it finds takes the place of
//! what was kept. A lost file costs the wait.

use crate::layout::{read_if_there, write_atomically};
use p2pvm_dhcp::Lease;
use p2pvm_overlay::UnixTime;
use std::path::PathBuf;

/// How long a lease must still last to be used. Reason: clocks differ, and the claim takes time.
const MARGIN_SECONDS: u64 = 120;

/// Where the lease is kept.
pub struct Kept(PathBuf);

impl Kept {
    /// In this file.
    pub fn new(file: PathBuf) -> Self {
        Self(file)
    }

    /// The previous lease, if it lasts.
    pub fn read(&self) -> Option<Lease> {
        let bytes = read_if_there(&self.0).ok().flatten()?;
        let lease: Lease = postcard::from_bytes(&bytes).ok()?;
        (lease.expires > UnixTime::now().plus(MARGIN_SECONDS)).then_some(lease)
    }

    /// Remembers a lease that was claimed or renewed.
    pub async fn set(&self, lease: &Lease) {
        let Ok(bytes) = postcard::to_allocvec(lease) else {
            return;
        };
        let file = self.0.clone();
        let written =
            tokio::task::spawn_blocking(move || write_atomically(&file, &bytes, 0o600)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the lease is not remembered: the next start waits for its \
                claim");
        }
    }

    /// Forgets it, because it was given back or lost.
    pub fn forget(&self) {
        // One that is not there is forgotten already.
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
        let kept = Kept::new(dir.path().join("lease"));
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
