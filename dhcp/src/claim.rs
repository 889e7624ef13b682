//! Claims addresses: draw a free one of the subnet at random, `create` its record, and keep
//! renewing it. Of concurrent claimers of one address one wins and the others draw again. After a
//! partition heals two owners may hold records of one address; the replicas keep one of them by
//! rule, and the other owner learns from [`Addresses::check`] or [`Addresses::renew`] that it has
//! to claim anew.
//!
//! A VM's records carry the version `epoch << 32 | seq`, so that whoever holds a newer epoch always
//! wins over whoever held the VM before, whatever either has written meanwhile.

use crate::{
    Error,
    cache::LeaseCache,
    entry::{Holder, NameKind, Named, Subject, address_key, is_name, name_key},
    subnet::Subnet,
};
use p2pvm_dht::record::{Record, RecordError, Records};
use p2pvm_overlay::{Epoch, MemberId, RingAddr, UnixTime, VmId, chain, identity::KeyPair};
use rand::{SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long a claim lasts without renewal.
pub const LEASE_TTL: Duration = Duration::from_secs(3600);

/// When to renew: half the time, so that one missed renewal costs nothing.
pub const RENEW_AFTER: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 2);

/// How many addresses one claim tries before it says that the subnet is full. With nine tenths of a
/// large subnet taken, all 128 draws are taken with a chance of one in a million.
const MAX_DRAWS: usize = 128;

/// How often one write is repeated with a higher sequence number when a replica knows a newer one
/// of ours.
const MAX_OVERTAKES: usize = 4;

/// The IPv6 address that a subject has by derivation from its key.
pub type DeriveV6 = Arc<dyn Fn(Subject) -> Ipv6Addr + Send + Sync>;

/// A claimed address and all that goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The claimed IPv4 address.
    pub v4: Ipv4Addr,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// The derived IPv6 address, if this network has them.
    pub v6: Option<Ipv6Addr>,
    /// Who answers there.
    pub holder: Holder,
    /// When it runs out unless renewed.
    pub expires: UnixTime,
    /// The version of the address record when last written.
    pub version: u64,
}

/// How a record is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// Only if nobody has it: a fresh draw.
    Create,
    /// Over our own, or anew if it has run out: a renewal, a restart.
    Keep,
    /// At once, over whatever an older epoch of ours wrote: a move, where each round trip counts.
    Replace,
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
    /// The addresses of `subnet`; what was claimed last is remembered in the file `cache`.
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

    /// Publishes and believes IPv6 addresses too: those that `derive` gives, and no others.
    pub fn with_v6(mut self, derive: DeriveV6) -> Self {
        self.derive_v6 = Some(derive);
        self
    }

    /// Another lease time than [`LEASE_TTL`].
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Draws that can be repeated, for simulations.
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

    /// Claims an address and the name `name` for this member; the address it had last, if still
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

    /// Claims an address and the name `name` for a VM, or renews what it has for the holder in this
    /// epoch.
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
    /// [`Error::Lost`] if another owner has the address by now: claim anew. [`Error::Superseded`]
    /// if a newer epoch holds the VM.
    pub async fn renew(&self, keys: &KeyPair, lease: &Lease) -> Result<Lease, Error> {
        self.hold(keys, lease.v4, lease.holder.clone(), Write::Keep)
            .await
    }

    /// Says in the DHT that the VM `vm_keys` with address `v4` is held by `holder` in `epoch` from
    /// now on.
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
        self.hold(vm_keys, v4, holder, Write::Replace).await
    }

    /// Whether nobody else holds the lease's address or has taken the VM over. An expired record of
    /// ours counts as ours.
    ///
    /// # Errors
    /// No quorum.
    pub async fn check(&self, lease: &Lease) -> Result<bool, Error> {
        let found = self.resolve(IpAddr::V4(lease.v4)).await?;
        Ok(found.is_none_or(|holder| {
            holder.subject() == lease.holder.subject() && holder.epoch <= lease.holder.epoch
        }))
    }

    /// Who answers at `ip`; `None` for an address that nobody holds or whose entry its signer had
    /// no right to make.
    ///
    /// # Errors
    /// No quorum.
    pub async fn resolve(&self, ip: IpAddr) -> Result<Option<Holder>, Error> {
        let Some(record) = self.records.get(address_key(ip)).await? else {
            return Ok(None);
        };
        Ok(self.believe(ip, &record))
    }

    /// What a name stands for, whatever its letter case.
    ///
    /// # Errors
    /// No quorum.
    pub async fn resolve_name(&self, label: &str, kind: NameKind) -> Result<Option<Named>, Error> {
        let Some(record) = self.records.get(name_key(kind, label)).await? else {
            return Ok(None);
        };
        Ok(believe_name(kind, &record))
    }

    /// Gives address and name back.
    ///
    /// # Errors
    /// No quorum; then they run out by themselves.
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

    /// Gives a name back that its subject does not use any more. Another's is left alone.
    ///
    /// # Errors
    /// No quorum; then it runs out by itself.
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
        // A failed join means that the runtime is going down: then the cache is stale, which it may
        // be.
        let _ = tokio::task::spawn_blocking(move || cache.remove(&subject.owner())).await;
    }

    async fn claim(&self, keys: &KeyPair, holder: Holder) -> Result<Lease, Error> {
        let subject = holder.subject();
        if !is_name(subject.kind(), &holder.name) {
            return Err(Error::InvalidName(holder.name));
        }
        let known = match self.cache.get(&subject.owner()) {
            Some(v4) => Some(v4),
            None => self.named_before(&holder).await?,
        };
        if let Some(v4) = known.filter(|v4| self.subnet.claimable(*v4)) {
            match self.hold(keys, v4, holder.clone(), Write::Keep).await {
                Err(Error::Lost { .. }) => {}
                other => return other,
            }
        }
        let order: Vec<_> = {
            let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// The address that our name stood for before, when the cache does not know (a VM that comes to
    /// a new host, a lost cache).
    async fn named_before(&self, holder: &Holder) -> Result<Option<Ipv4Addr>, Error> {
        match self
            .resolve_name(&holder.name, holder.subject().kind())
            .await?
        {
            Some(named) if named.subject == holder.subject() => Ok(Some(named.v4)),
            Some(named) => Err(Error::NameTaken {
                name: holder.name.clone(),
                by: named.subject,
            }),
            None => Ok(None),
        }
    }

    /// Creates the records of a freshly drawn address, all at once to save round trips.
    async fn take(&self, keys: &KeyPair, v4: Ipv4Addr, holder: &Holder) -> Result<Lease, Error> {
        let address = self.write(
            keys,
            address_key(IpAddr::V4(v4)),
            holder.epoch,
            holder.encode(),
            Write::Create,
        );
        let (address, rest) = tokio::join!(address, self.publish(keys, v4, holder, Write::Create));
        match (address.map_err(|e| e.lost_if_exists(v4)), rest) {
            (Ok(record), Ok(v6)) => Ok(self.keep(v4, v6, holder.clone(), record).await),
            (Ok(_), Err(e)) => {
                if let Err(error) = self.delete(keys, address_key(IpAddr::V4(v4))).await {
                    tracing::debug!(%v4, error = %chain(&error), "the address drawn in vain is \
                        not given back: it runs out by itself");
                }
                Err(e)
            }
            (Err(_), Err(e @ Error::NameTaken { .. })) => Err(e),
            (Err(e), _) => Err(e),
        }
    }

    /// Keeps holding an address that is ours by an earlier claim.
    async fn hold(
        &self,
        keys: &KeyPair,
        v4: Ipv4Addr,
        holder: Holder,
        how: Write,
    ) -> Result<Lease, Error> {
        let address = self.write(
            keys,
            address_key(IpAddr::V4(v4)),
            holder.epoch,
            holder.encode(),
            how,
        );
        let (address, rest) = tokio::join!(address, self.publish(keys, v4, &holder, how));
        let record = address.map_err(|e| e.lost_if_exists(v4))?;
        Ok(self.keep(v4, rest?, holder, record).await)
    }

    /// Writes the name record and the IPv6 record. An IPv6 address that cannot be published costs
    /// only itself.
    async fn publish(
        &self,
        keys: &KeyPair,
        v4: Ipv4Addr,
        holder: &Holder,
        how: Write,
    ) -> Result<Option<Ipv6Addr>, Error> {
        let subject = holder.subject();
        let v6 = self.derive_v6.as_ref().map(|derive| derive(subject));
        let named = Named { subject, v4, v6 };
        let name = self.write(
            keys,
            name_key(subject.kind(), &holder.name),
            holder.epoch,
            named.encode(),
            how,
        );
        let v6 = async {
            let v6 = v6?;
            let written = self
                .write(
                    keys,
                    address_key(IpAddr::V6(v6)),
                    holder.epoch,
                    holder.encode(),
                    how,
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

    /// Writes one record of ours, never touching another owner's ([`RecordError::Exists`]) nor our
    /// own of a newer epoch.
    async fn write(
        &self,
        keys: &KeyPair,
        key: RingAddr,
        epoch: Epoch,
        value: Vec<u8>,
        how: Write,
    ) -> Result<Record, Error> {
        let record = match how {
            Write::Replace => return self.overwrite(keys, key, epoch, 0, value).await,
            Write::Create => {
                self.records
                    .create(keys, key, value.clone(), self.ttl)
                    .await?
            }
            Write::Keep => match self.records.get(key).await? {
                Some(record) if record.owner != keys.public() => {
                    return Err(RecordError::Exists(Box::new(record)).into());
                }
                Some(record) => {
                    return self
                        .overwrite(keys, key, epoch, record.version + 1, value)
                        .await;
                }
                None => {
                    self.records
                        .create(keys, key, value.clone(), self.ttl)
                        .await?
                }
            },
        };
        // `create` chooses the version itself: a VM's must carry the epoch, or an older holder
        // could overwrite it.
        if record.value.as_ref() == Some(&value) && epoch_of(record.version) >= epoch {
            return Ok(record);
        }
        self.overwrite(keys, key, epoch, record.version + 1, value)
            .await
    }

    /// Writes our own record with a version of `epoch`, at least `version`; repeats above what a
    /// replica knows of this epoch.
    async fn overwrite(
        &self,
        keys: &KeyPair,
        key: RingAddr,
        epoch: Epoch,
        version: u64,
        value: Vec<u8>,
    ) -> Result<Record, Error> {
        let mut version = version.max(epoch.0 << 32);
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

    async fn delete(&self, keys: &KeyPair, key: RingAddr) -> Result<(), Error> {
        match self.records.delete(keys, key).await {
            // Another's by now: nothing of ours is left there.
            Ok(()) | Err(RecordError::Exists(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The signed records that say a VM's addresses are held by `holder` in `epoch`: what
    /// [`Self::move_vm`] writes, for telling members directly. They are as good as the DHT's own.
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
                    epoch.0 << 32,
                    expires,
                    Some(holder.encode()),
                ),
            )
        };
        ips.iter().map(sign).collect()
    }

    /// What is to be given back when a VM goes for good.
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
            version: epoch.0 << 32,
        }
    }

    /// Whom a record of `ip` names, if its signer had the right to make it. The signature is the
    /// caller's to check.
    pub fn believe(&self, ip: IpAddr, record: &Record) -> Option<Holder> {
        let holder = Holder::decode(record.value.as_ref()?)?;
        let derived = match (ip, &self.derive_v6) {
            (IpAddr::V4(v4), _) => self.subnet.claimable(v4),
            (IpAddr::V6(v6), Some(derive)) => derive(holder.subject()) == v6,
            (IpAddr::V6(_), None) => false,
        };
        (holder.owner() == record.owner && derived).then_some(holder)
    }
}

fn believe_name(kind: NameKind, record: &Record) -> Option<Named> {
    let named = Named::decode(record.value.as_ref()?)?;
    (named.subject.owner() == record.owner && named.subject.kind() == kind).then_some(named)
}

fn subject_of(kind: NameKind, owner: [u8; 32]) -> Subject {
    match kind {
        NameKind::Host => Subject::Member(MemberId(owner)),
        NameKind::Vm => Subject::Vm(VmId(owner)),
    }
}

fn epoch_of(version: u64) -> Epoch {
    Epoch(version >> 32)
}
