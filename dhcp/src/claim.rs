//! Claims addresses: draw a free one of the subnet at random, `create` its record, and keep
//! renewing it. Of concurrent claimers of one address one wins and the others draw again. After a
//! partition two owners may hold records of one address; the replicas keep one of them by rule, and
//! the other owner learns from [`Addresses::check`] or [`Addresses::renew`] that it has to claim
//! again.
//!
//! A VM's records carry the version `epoch << 32 | seq`, so that the holder in a newer epoch always
//! wins over the previous holder, whatever either has written meanwhile.

mod lookup;
mod write;

use crate::{
    Error,
    cache::LeaseCache,
    entry::{Holder, NameKind, Subject, address_key, is_name, name_key},
    subnet::Subnet,
};
use p2pvm_dht::record::{Record, Records};
use p2pvm_host::lock;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, chain, identity::KeyPair};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use write::WriteMode;

/// How long a claim lasts without renewal.
pub const LEASE_TTL: Duration = Duration::from_secs(3600);

/// How long to wait before a lease is renewed.
/// Reason: after half the time one missed renewal costs nothing.
pub const RENEW_AFTER: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 2);

/// How many addresses one claim tries before the subnet counts as full.
/// Reason: with nine tenths of a large subnet taken, all 128 draws are taken with a chance of one
/// in a million.
const MAX_DRAWS: usize = 128;

/// Derives a subject's IPv6 address from its key.
pub type DeriveV6 = Arc<dyn Fn(Subject) -> Ipv6Addr + Send + Sync>;

/// A claimed address with its name and IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The claimed IPv4 address.
    pub v4: Ipv4Addr,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// The derived IPv6 address, if this network has them.
    pub v6: Option<Ipv6Addr>,
    /// The member that packets for it go to.
    pub holder: Holder,
    /// When it expires unless renewed.
    pub expires: UnixTime,
    /// The version of the address record when last written.
    pub version: u64,
}

/// The network's addresses and names, as records in the DHT.
pub struct Addresses {
    records: Arc<dyn Records>,
    subnet: Subnet,
    cache: Arc<LeaseCache>,
    derive_v6: Option<DeriveV6>,
    ttl: Duration,
    chance: Mutex<StdRng>,
}

impl Addresses {
    /// The addresses of `subnet`. The file `cache` keeps the last leases.
    pub fn new(records: Arc<dyn Records>, subnet: Subnet, cache: PathBuf) -> Self {
        let chance = Mutex::new(StdRng::from_os_rng());
        Self {
            records,
            subnet,
            cache: Arc::new(LeaseCache::open(cache)),
            derive_v6: None,
            ttl: LEASE_TTL,
            chance,
        }
    }

    /// Publishes and accepts IPv6 addresses too, but only those that `derive` gives.
    pub fn with_v6(mut self, derive: DeriveV6) -> Self {
        self.derive_v6 = Some(derive);
        self
    }

    /// Sets another lease time than [`LEASE_TTL`].
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Seeds the draws, for simulations.
    pub fn with_seed(self, seed: u64) -> Self {
        Self {
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            ..self
        }
    }

    /// The subnet that addresses are drawn from.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Claims an address and the name `name` for this member: its last address, if that is still
    /// free.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NameTaken`], [`Error::Exhausted`], or no quorum.
    pub async fn claim_host(
        &self,
        keys: &KeyPair,
        member: MemberId,
        name: &str,
    ) -> Result<Lease, Error> {
        self.claim(
            keys,
            Holder {
                member,
                epoch: Epoch(0),
                vm: None,
                name: name.to_owned(),
            },
        )
        .await
    }

    /// Claims an address and the name `name` for a VM, or renews them for the holder in this epoch.
    ///
    /// # Errors
    /// As [`Self::claim_host`], and [`Error::Superseded`] if a newer epoch holds the VM.
    pub async fn claim_vm(
        &self,
        vm_keys: &KeyPair,
        holder: MemberId,
        epoch: Epoch,
        name: &str,
    ) -> Result<Lease, Error> {
        self.claim(
            vm_keys,
            Holder {
                member: holder,
                epoch,
                vm: Some(vm_keys.vm_id()),
                name: name.to_owned(),
            },
        )
        .await
    }

    /// Renews address, name and IPv6 record for another [`LEASE_TTL`].
    ///
    /// # Errors
    /// [`Error::Lost`] if another owner has the address by now: the caller claims again.
    /// [`Error::Superseded`] if a newer epoch holds the VM.
    pub async fn renew(&self, keys: &KeyPair, lease: &Lease) -> Result<Lease, Error> {
        self.hold(keys, lease.v4, lease.holder.clone(), WriteMode::Keep)
            .await
    }

    /// Writes to the DHT that `holder` holds the VM `vm_keys` with address `v4` in `epoch` from now
    /// on.
    ///
    /// # Errors
    /// [`Error::Superseded`] if a newer epoch holds it, [`Error::Lost`] if another owner has the
    /// address.
    pub async fn move_vm(
        &self,
        vm_keys: &KeyPair,
        v4: Ipv4Addr,
        holder: MemberId,
        epoch: Epoch,
        name: &str,
    ) -> Result<Lease, Error> {
        let holder = Holder {
            member: holder,
            epoch,
            vm: Some(vm_keys.vm_id()),
            name: name.to_owned(),
        };
        self.hold(vm_keys, v4, holder, WriteMode::Replace).await
    }

    /// Releases address and name.
    ///
    /// # Errors
    /// No quorum; then they expire.
    pub async fn release(&self, keys: &KeyPair, lease: &Lease) -> Result<(), Error> {
        let kind = lease.holder.subject().kind();
        self.forget(lease.holder.subject()).await;
        let v4 = self.delete(keys, address_key(IpAddr::V4(lease.v4)));
        let name = self.delete(keys, name_key(kind, &lease.holder.name));
        let v6 = async {
            match lease.v6 {
                Some(v6) => self.delete(keys, address_key(IpAddr::V6(v6))).await,
                None => Ok(()),
            }
        };
        let (v4, name, v6) = tokio::join!(v4, name, v6);
        v4.and(name).and(v6)
    }

    /// Releases a name that its subject no longer uses. Another subject's name stays.
    ///
    /// # Errors
    /// No quorum; then it expires.
    pub async fn release_name(
        &self,
        keys: &KeyPair,
        kind: NameKind,
        name: &str,
    ) -> Result<(), Error> {
        self.delete(keys, name_key(kind, name)).await
    }

    /// Drops a subject from the lease cache, because it is held elsewhere now.
    pub async fn forget(&self, subject: Subject) {
        let cache = self.cache.clone();
        // The join fails only when the runtime ends; a stale cache does no harm.
        let _ = tokio::task::spawn_blocking(move || cache.remove(&subject.owner())).await;
    }

    async fn claim(&self, keys: &KeyPair, holder: Holder) -> Result<Lease, Error> {
        let subject = holder.subject();
        if !is_name(subject.kind(), &holder.name) {
            return Err(Error::InvalidName(holder.name));
        }
        let known = match self.cache.get(&subject.owner()) {
            Some(v4) => Some(v4),
            None => self.address_of_name(&holder).await?,
        };
        if let Some(v4) = known.filter(|v4| self.subnet.claimable(*v4)) {
            match self.hold(keys, v4, holder.clone(), WriteMode::Keep).await {
                Err(Error::Lost { .. }) => {}
                other => return other,
            }
        }
        let order: Vec<_> = {
            let mut chance = lock(&self.chance);
            self.subnet.draw(&mut *chance).take(MAX_DRAWS).collect()
        };
        for v4 in &order {
            match self.take(keys, *v4, &holder).await {
                Err(Error::Lost { .. }) => tracing::debug!(%v4, "drawn address is taken"),
                other => return other,
            }
        }
        Err(Error::Exhausted {
            subnet: self.subnet,
            tried: order.len(),
        })
    }

    /// Creates the records of a freshly drawn address, all at once to save round trips.
    async fn take(&self, keys: &KeyPair, v4: Ipv4Addr, holder: &Holder) -> Result<Lease, Error> {
        let address = self.write(
            keys,
            address_key(IpAddr::V4(v4)),
            holder.epoch,
            holder.encode(),
            WriteMode::Create,
        );
        let (address, rest) =
            tokio::join!(address, self.publish(keys, v4, holder, WriteMode::Create));
        match (address.map_err(|e| e.lost_if_exists(v4)), rest) {
            (Ok(record), Ok(v6)) => Ok(self.keep(v4, v6, holder.clone(), record).await),
            (Ok(_), Err(e)) => {
                if let Err(error) = self.delete(keys, address_key(IpAddr::V4(v4))).await {
                    tracing::debug!(%v4, error = %chain(&error), "the drawn address is not \
                        released: it expires by itself");
                }
                Err(e)
            }
            (Err(_), Err(e @ Error::NameTaken { .. })) => Err(e),
            (Err(e), _) => Err(e),
        }
    }

    /// Holds an address of an earlier claim.
    async fn hold(
        &self,
        keys: &KeyPair,
        v4: Ipv4Addr,
        holder: Holder,
        mode: WriteMode,
    ) -> Result<Lease, Error> {
        let address = self.write(
            keys,
            address_key(IpAddr::V4(v4)),
            holder.epoch,
            holder.encode(),
            mode,
        );
        let (address, rest) = tokio::join!(address, self.publish(keys, v4, &holder, mode));
        let record = address.map_err(|e| e.lost_if_exists(v4))?;
        Ok(self.keep(v4, rest?, holder, record).await)
    }

    async fn keep(
        &self,
        v4: Ipv4Addr,
        v6: Option<Ipv6Addr>,
        holder: Holder,
        record: Record,
    ) -> Lease {
        let (cache, owner) = (self.cache.clone(), holder.owner());
        // As in `forget`: a cache that misses an entry costs a fresh draw.
        let _ = tokio::task::spawn_blocking(move || cache.set(owner, v4, UnixTime::now())).await;
        Lease {
            v4,
            prefix: self.subnet.prefix,
            v6,
            holder,
            expires: record.expires,
            version: record.version,
        }
    }

    /// The signed records that `holder` holds a VM's addresses in `epoch`, as [`Self::move_vm`]
    /// writes them, for sending to members directly. A member verifies them as it verifies the
    /// DHT's own.
    pub fn records_of(
        &self,
        vm_keys: &KeyPair,
        ips: &[IpAddr],
        holder: MemberId,
        epoch: Epoch,
        name: &str,
    ) -> Vec<(IpAddr, Record)> {
        let holder = Holder {
            member: holder,
            epoch,
            vm: Some(vm_keys.vm_id()),
            name: name.to_owned(),
        };
        let expires = UnixTime::now().plus(self.ttl.as_secs());
        let sign = |ip: &IpAddr| {
            (
                *ip,
                Record::sign(
                    vm_keys,
                    address_key(*ip),
                    epoch.first_version(),
                    expires,
                    Some(holder.encode()),
                ),
            )
        };
        ips.iter().map(sign).collect()
    }

    /// The lease to release when a VM is deleted.
    pub fn lease_of(
        &self,
        vm_keys: &KeyPair,
        v4: Ipv4Addr,
        holder: MemberId,
        epoch: Epoch,
        name: &str,
    ) -> Lease {
        let holder = Holder {
            member: holder,
            epoch,
            vm: Some(vm_keys.vm_id()),
            name: name.to_owned(),
        };
        let v6 = self
            .derive_v6
            .as_ref()
            .map(|derive| derive(holder.subject()));
        Lease {
            v4,
            prefix: self.subnet.prefix,
            v6,
            holder,
            expires: UnixTime::now(),
            version: epoch.first_version(),
        }
    }
}
