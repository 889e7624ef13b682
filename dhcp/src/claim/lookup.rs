//! What the records say: the holder of an address, the meaning of a name, and whether a record's
//! signer had the right to make it.

use super::{Addresses, Lease};
use crate::{
    Error,
    entry::{Holder, NameEntry, NameKind, address_key, name_key},
};
use p2pvm_dht::record::Record;
use p2pvm_overlay::Epoch;
use std::net::{IpAddr, Ipv4Addr};

impl Addresses {
    /// Whether the lease still holds: no other subject has the address, and no newer epoch the VM.
    /// An expired record of ours counts as ours.
    ///
    /// # Errors
    /// No quorum.
    pub async fn check(&self, lease: &Lease) -> Result<bool, Error> {
        let found = self.resolve(IpAddr::V4(lease.v4)).await?;
        Ok(found.is_none_or(|holder| {
            holder.subject() == lease.holder.subject() && holder.epoch <= lease.holder.epoch
        }))
    }

    /// The holder of `ip`; `None` if nobody holds it or its signer had no right to make the entry.
    ///
    /// # Errors
    /// No quorum.
    pub async fn resolve(&self, ip: IpAddr) -> Result<Option<Holder>, Error> {
        let Some(record) = self.records.get(address_key(ip)).await? else {
            return Ok(None);
        };
        Ok(self.believe(ip, &record))
    }

    /// What a name stands for; letter case does not count.
    ///
    /// # Errors
    /// No quorum.
    pub async fn resolve_name(
        &self,
        label: &str,
        kind: NameKind,
    ) -> Result<Option<NameEntry>, Error> {
        let Some(record) = self.records.get(name_key(kind, label)).await? else {
            return Ok(None);
        };
        Ok(believe_name(kind, &record))
    }

    /// The address in our name's record, for when the cache has none: a VM that comes to a new
    /// host, or a lost cache.
    pub(super) async fn address_of_name(&self, holder: &Holder) -> Result<Option<Ipv4Addr>, Error> {
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

    /// The holder in a record of `ip`, if its signer had the right to make it. The caller checks
    /// the signature.
    pub fn believe(&self, ip: IpAddr, record: &Record) -> Option<Holder> {
        let holder = Holder::decode(record.value.as_ref()?)?;
        let derived = match (ip, &self.derive_v6) {
            (IpAddr::V4(v4), _) => self.subnet.claimable(v4),
            (IpAddr::V6(v6), Some(derive)) => derive(holder.subject()) == v6,
            (IpAddr::V6(_), None) => false,
        };
        // A larger epoch fits neither the record's version nor a packet.
        let newest = if holder.vm.is_some() {
            Epoch::MAX
        } else {
            Epoch(0)
        };
        (holder.owner() == record.owner && derived && holder.epoch <= newest).then_some(holder)
    }
}

pub(super) fn believe_name(kind: NameKind, record: &Record) -> Option<NameEntry> {
    let named = NameEntry::decode(record.value.as_ref()?)?;
    (named.subject.owner() == record.owner && named.subject.kind() == kind).then_some(named)
}
