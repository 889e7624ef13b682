//! How well a VM is to outlive its host: how often its disk is replicated, and what becomes of it
//! when its host is gone. It is part of the VM's entry and goes with it; the words are Nomad's.
//!
//! This file says what is wished, and no more: replicas are made by `crate::replicas`.

use crate::{Error, framed, vault::Durability};
use p2pvm_overlay::{Epoch, MemberId, UnixTime};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long between two replicas of a protected VM's disk unless the VM says otherwise.
pub const REPLICATE_EVERY: Duration = Duration::from_secs(60);
/// How long between two replicas at most.
pub const MAX_REPLICATE_EVERY: Duration = Duration::from_secs(3600);
/// How many other members hold the newest replica unless the VM says otherwise.
pub const REPLICAS: usize = 2;
/// How many other members may hold a replica. Reason: they are named in the VM's record.
pub const MAX_REPLICAS: usize = 4;
/// How long a host is silent before it counts as lost unless the VM says otherwise.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// The least and the most that may be chosen for it. Reason: below, a loaded host counts as lost.
pub const MIN_LOST_AFTER: Duration = Duration::from_secs(5);
/// As [`MIN_LOST_AFTER`].
pub const MAX_LOST_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The name by which a restore means the newest replica, unless a snapshot has it.
pub const REPLICA: &str = "replica";

/// Whether a VM is protected against the loss of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protect {
    /// As far as the network can.
    #[default]
    Auto,
    /// Not.
    Off,
}

/// What a host does with a guest whose lease it cannot renew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPartition {
    /// It freezes the guest within the lease, and lets it go on if the VM is still this host's.
    #[default]
    Freeze,
    /// It lets the guest run as long as the lease allows, then freezes it.
    RunUntilLeaseEnds,
    /// It stops the guest.
    Stop,
}

/// Whether another member starts a VM whose host is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replace {
    /// By itself.
    #[default]
    Auto,
    /// When a person says so.
    Ask,
    /// Never.
    Never,
}

/// Whether a guest that ended is started again on its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Also one that powered itself off.
    Always,
    /// One that ended without its own or its user's will.
    #[default]
    OnFailure,
    /// None.
    Never,
}

/// How well a VM is to outlive its host. A VM of a previous release has the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Protection {
    /// Whether it is protected.
    pub protect: Protect,
    /// How long between the beginnings of two replicas of the running disk, in whole seconds;
    /// `None`: no replicas are made.
    #[serde(with = "optional_seconds")]
    pub replicate_every: Option<Duration>,
    /// How many other members are to hold the newest replica: 1 to [`MAX_REPLICAS`].
    pub replicas: usize,
    /// How long its host is silent before it counts as lost, in whole seconds.
    #[serde(with = "seconds")]
    pub lost_after: Duration,
    /// What its host does when it cannot renew the lease.
    pub on_partition: OnPartition,
    /// Whether another member starts it when its host is lost.
    pub replace: Replace,
    /// Whether its guest is started again when it has ended.
    pub restart: Restart,
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            protect: Protect::Auto,
            replicate_every: None,
            replicas: REPLICAS,
            lost_after: LOST_AFTER,
            on_partition: OnPartition::Freeze,
            replace: Replace::Auto,
            restart: Restart::OnFailure,
        }
    }
}

impl Protection {
    /// Whether it is what a VM of a previous release has.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses what this release cannot do.
    ///
    /// # Errors
    /// [`Error::Refused`], with the values that are possible.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |why: String| Err(Error::Refused(why));
        match self.replicate_every {
            Some(every) if every.is_zero() => {
                return refused(
                    "a replica on every flush of the guest (0 s) is not possible yet: choose 1 s \
                        or more"
                        .into(),
                );
            }
            Some(every) if every > MAX_REPLICATE_EVERY || every.subsec_nanos() != 0 => {
                return refused(format!(
                    "{every:?} between two replicas is not possible: choose whole seconds, at \
                        most {} s",
                    MAX_REPLICATE_EVERY.as_secs()
                ));
            }
            _ => {}
        }
        if self.lost_after < MIN_LOST_AFTER || self.lost_after > MAX_LOST_AFTER {
            return refused(format!(
                "a host counts as lost after {} s to {} s of silence, not {:?}",
                MIN_LOST_AFTER.as_secs(),
                MAX_LOST_AFTER.as_secs(),
                self.lost_after
            ));
        }
        if !(1..=MAX_REPLICAS).contains(&self.replicas) {
            return refused(format!(
                "{} replicas are not possible: choose 1 to {MAX_REPLICAS}",
                self.replicas
            ));
        }
        Ok(())
    }

    /// Its bytes in an optional field of a message: at most 255.
    pub fn to_field(&self) -> Vec<u8> {
        framed::to_bytes(&WireProtection {
            protect: self.protect,
            replicate_every: self.replicate_every.map(|every| every.as_secs()),
            replicas: self.replicas as u8,
            lost_after: self.lost_after.as_secs(),
            on_partition: self.on_partition,
            replace: self.replace,
            restart: self.restart,
        })
    }

    /// Reads the bytes of such a field; `None` for anything else. Later releases may append to it.
    pub fn from_field(bytes: &[u8]) -> Option<Self> {
        let wire: WireProtection = framed::from_bytes(bytes)?;
        let read = Self {
            protect: wire.protect,
            replicate_every: wire.replicate_every.map(Duration::from_secs),
            replicas: wire.replicas.into(),
            lost_after: Duration::from_secs(wire.lost_after),
            on_partition: wire.on_partition,
            replace: wire.replace,
            restart: wire.restart,
        };
        read.check().is_ok().then_some(read)
    }
}

/// [`Protection`] in a field, times in seconds. Its parts stay as they are: new ones follow it.
#[derive(Serialize, Deserialize)]
struct WireProtection {
    protect: Protect,
    replicate_every: Option<u64>,
    replicas: u8,
    lost_after: u64,
    on_partition: OnPartition,
    replace: Replace,
    restart: Restart,
}

/// The newest replica of a VM's disk that all its holders have: a checkpoint of the disk alone,
/// of one instant while the guest ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The checkpoint document.
    pub checkpoint: ManifestId,
    /// The VM's epoch when it was taken.
    pub epoch: Epoch,
    /// Which replica of that epoch it is. Of two replicas the one with the greater epoch, then the
    /// greater count is newer, whatever the clocks say.
    pub seq: u64,
    /// When its round began, by the host's clock: all that the guest had written by then is in it.
    pub taken: UnixTime,
    /// The members that hold all of it, the host that took it among them: at most
    /// [`MAX_REPLICAS`] and that host.
    pub providers: Vec<MemberId>,
    /// How well it is kept.
    pub durability: Durability,
}

impl Replica {
    /// What decides which of two replicas is newer.
    pub fn order(&self) -> (Epoch, u64) {
        (self.epoch, self.seq)
    }

    /// How many members other than the host that took it hold it.
    pub fn copies(&self) -> u32 {
        self.providers.len().saturating_sub(1) as u32
    }

    /// How old the disk is that it would bring back.
    pub fn age(&self, now: UnixTime) -> Duration {
        Duration::from_secs(now.0.saturating_sub(self.taken.0))
    }

    /// Its bytes in an optional field of a message: at most 255.
    pub fn to_field(&self) -> Vec<u8> {
        let mut bounded = self.clone();
        bounded.providers.truncate(MAX_REPLICAS + 1);
        framed::to_bytes(&bounded)
    }

    /// Reads the bytes of such a field; `None` for anything else. Later releases may append to it.
    pub fn from_field(bytes: &[u8]) -> Option<Self> {
        framed::from_bytes(bytes)
    }
}

mod seconds {
    use super::{Deserialize, Duration};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(time.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

mod optional_seconds {
    use super::{Deserialize, Duration, Serialize};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_secs))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use p2pvm_snapshot_sync::ChunkId;
    use proptest::prelude::*;

    pub(crate) fn chosen() -> Protection {
        Protection {
            protect: Protect::Off,
            replicate_every: Some(Duration::from_secs(5)),
            replicas: 3,
            lost_after: Duration::from_secs(90),
            on_partition: OnPartition::RunUntilLeaseEnds,
            replace: Replace::Ask,
            restart: Restart::Always,
        }
    }

    pub(crate) fn replica(providers: usize) -> Replica {
        Replica {
            checkpoint: ManifestId(ChunkId([7; 32])),
            epoch: Epoch(u64::MAX),
            seq: u64::MAX,
            taken: UnixTime(u64::MAX),
            providers: vec![MemberId([8; 32]); providers],
            durability: Durability::Replicating { done: 1, wanted: 2 },
        }
    }

    #[test]
    fn an_entry_without_a_part_has_that_parts_default() {
        let read: Protection = serde_json::from_str("{}").unwrap();
        assert!(read.is_default());
        let text = serde_json::to_string(&chosen()).unwrap();
        assert!(text.contains("\"replicate_every\":5,"), "{text}");
        assert_eq!(serde_json::from_str::<Protection>(&text).unwrap(), chosen());
    }

    #[test]
    fn the_fields_bytes_never_change() {
        let bytes = [1, 1, 1, 5, 3, 90, 1, 1, 0];
        assert_eq!(chosen().to_field(), bytes);
        assert_eq!(Protection::from_field(&bytes), Some(chosen()));
        // What a later release appends is not read.
        let later = [&bytes[..], &[9, 9]].concat();
        assert_eq!(Protection::from_field(&later), Some(chosen()));
    }

    #[test]
    fn times_and_counts_that_cannot_be_are_refused() {
        for (every, replicas) in [(0, 2), (3601, 2), (60, 0), (60, MAX_REPLICAS + 1)] {
            let wrong = Protection {
                replicate_every: Some(Duration::from_secs(every)),
                replicas,
                ..Protection::default()
            };
            wrong.check().unwrap_err();
            assert_eq!(Protection::from_field(&wrong.to_field()), None);
        }
        chosen().check().unwrap();
    }

    #[test]
    fn a_replica_always_fits_into_its_field() {
        let most = replica(MAX_REPLICAS + 1);
        assert!(most.to_field().len() <= 255, "{}", most.to_field().len());
        assert_eq!(Replica::from_field(&most.to_field()), Some(most.clone()));
        assert_eq!(replica(9).to_field(), most.to_field());
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_peer_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Protection::from_field(&bytes);
            let _ = Replica::from_field(&bytes);
        }
    }
}
