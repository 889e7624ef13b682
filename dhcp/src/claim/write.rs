//! How one record of ours is written: never over another owner's, never under a newer epoch's.

use super::{Addresses, lookup::believe_name};
use crate::{
    Error,
    entry::{Holder, NameEntry, NameKind, Subject, address_key, name_key},
};
use p2pvm_dht::record::{Record, RecordError};
use p2pvm_overlay::{Epoch, MemberId, RingAddr, VmId, chain, identity::KeyPair};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many times one write is tried, each with a higher sequence number.
/// Reason: a replica may know a newer one of ours.
const MAX_OVERTAKES: usize = 4;

/// How a record is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Only if nobody holds it: a new draw.
    Create,
    /// Over our own, or again if it has expired: a renewal, a restart.
    Keep,
    /// Without a read, over the record of an older epoch of ours: a move, where each round trip
    /// counts.
    Replace,
}

impl Addresses {
    /// Writes the name record and the IPv6 record. If the IPv6 record cannot be written, the lease
    /// has no IPv6 address.
    pub(super) async fn publish(
        &self,
        keys: &KeyPair,
        v4: Ipv4Addr,
        holder: &Holder,
        mode: WriteMode,
    ) -> Result<Option<Ipv6Addr>, Error> {
        let subject = holder.subject();
        let v6 = self.derive_v6.as_ref().map(|derive| derive(subject));
        let named = NameEntry { subject, v4, v6 };
        let name = self.write(
            keys,
            name_key(subject.kind(), &holder.name),
            holder.epoch,
            named.encode(),
            mode,
        );
        let v6 = async {
            let v6 = v6?;
            let written = self
                .write(
                    keys,
                    address_key(IpAddr::V6(v6)),
                    holder.epoch,
                    holder.encode(),
                    mode,
                )
                .await;
            written
                .inspect_err(|error| {
                    tracing::warn!(%v6, error = %chain(error), "the IPv6 \
                address is not published")
                })
                .ok()
                .map(|_| v6)
        };
        let (name, v6) = tokio::join!(name, v6);
        match name {
            Ok(_) => Ok(v6),
            Err(Error::Records(RecordError::Exists(other))) => {
                let by = believe_name(subject.kind(), &other)
                    .map_or(subject_of(subject.kind(), other.owner), |named| {
                        named.subject
                    });
                Err(Error::NameTaken {
                    name: holder.name.clone(),
                    by,
                })
            }
            Err(e) => Err(e),
        }
    }

    /// Writes one record of ours, but neither over another owner's ([`RecordError::Exists`]) nor
    /// over our own of a newer epoch.
    pub(super) async fn write(
        &self,
        keys: &KeyPair,
        key: RingAddr,
        epoch: Epoch,
        value: Vec<u8>,
        mode: WriteMode,
    ) -> Result<Record, Error> {
        let record = match mode {
            WriteMode::Replace => return self.overwrite(keys, key, epoch, 0, value).await,
            WriteMode::Create => {
                self.records
                    .create(keys, key, value.clone(), self.ttl)
                    .await?
            }
            WriteMode::Keep => match self.records.get(key).await? {
                Some(record) if record.owner != keys.public() => {
                    return Err(RecordError::Exists(Box::new(record)).into());
                }
                Some(record) => {
                    return self
                        .overwrite(keys, key, epoch, record.version.saturating_add(1), value)
                        .await;
                }
                None => {
                    self.records
                        .create(keys, key, value.clone(), self.ttl)
                        .await?
                }
            },
        };
        // `create` chooses the version: a VM's must carry the epoch, or an older holder could
        // overwrite it.
        if record.value.as_ref() == Some(&value) && epoch_of(record.version) >= epoch {
            return Ok(record);
        }
        self.overwrite(keys, key, epoch, record.version.saturating_add(1), value)
            .await
    }

    /// Writes our own record with a version of `epoch`, at least `version`, and again with a higher
    /// one if a replica knows a newer one of this epoch.
    async fn overwrite(
        &self,
        keys: &KeyPair,
        key: RingAddr,
        epoch: Epoch,
        version: u64,
        value: Vec<u8>,
    ) -> Result<Record, Error> {
        if epoch > Epoch::MAX {
            return Err(Error::Superseded { epoch });
        }
        let mut version = version.max(version_of(epoch));
        for _ in 0..MAX_OVERTAKES {
            if epoch_of(version) > epoch {
                return Err(Error::Superseded {
                    epoch: epoch_of(version),
                });
            }
            match self
                .records
                .put(keys, key, version, value.clone(), self.ttl)
                .await
            {
                Err(RecordError::Stale(known)) => version = known.saturating_add(1),
                other => return Ok(other?),
            }
        }
        Err(RecordError::Stale(version).into())
    }

    pub(super) async fn delete(&self, keys: &KeyPair, key: RingAddr) -> Result<(), Error> {
        match self.records.delete(keys, key).await {
            // Another owner's by now: nothing of ours is left there.
            Ok(()) | Err(RecordError::Exists(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn subject_of(kind: NameKind, owner: [u8; 32]) -> Subject {
    match kind {
        NameKind::Host => Subject::Member(MemberId(owner)),
        NameKind::Vm => Subject::Vm(VmId(owner)),
    }
}

/// The first version of an epoch's records.
pub(crate) fn version_of(epoch: Epoch) -> u64 {
    epoch.0.min(Epoch::MAX.0) << 32
}

fn epoch_of(version: u64) -> Epoch {
    Epoch(version >> 32)
}
