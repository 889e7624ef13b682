//! The owner of each address, for the access rules: from the signed address records, the members'
//! certificates, and the records of the VM names that rules mention.
//!
//! An address record carries a name that its signer wrote. For a member the certificate's name and
//! groups are used instead. A VM may write any name, so its name counts only if the DHT's record of
//! that name, which has one owner, belongs to it. Names that no rule mentions are not looked up.

use p2pvm_dhcp::{Addresses, Holder, NameKind, Subject};
use p2pvm_host::{read_lock, write_lock};
use p2pvm_overlay::{
    MemberId, VmId, control::Control, membership::policy::AddressOwner, plane::Directory,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, RwLock},
};
use tokio::sync::Notify;

/// How many addresses are remembered. Reason: networks of this program are smaller; further
/// addresses are unknown and fit no name.
const MAX_ADDRESSES: usize = 1 << 18;

/// The owner of each address.
pub struct Book {
    control: Arc<Control>,
    owners: RwLock<HashMap<IpAddr, Subject>>,
    /// VMs that were found to own a name that a rule mentions.
    names: RwLock<HashMap<VmId, String>>,
    mentioned: RwLock<BTreeSet<String>>,
    doubt: Notify,
}

impl Book {
    /// An empty book; `control` has the certificates.
    pub fn new(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self {
            control,
            owners: RwLock::default(),
            names: RwLock::default(),
            mentioned: RwLock::default(),
            doubt: Notify::new(),
        })
    }

    /// Stores the holder in a signed record of an address.
    pub fn learn(&self, ip: IpAddr, holder: &Holder) {
        self.note(ip, holder.subject());
        if let Some(vm) = holder.vm
            && read_lock(&self.mentioned).contains(&holder.name)
            && read_lock(&self.names).get(&vm) != Some(&holder.name)
        {
            self.doubt.notify_one();
        }
    }

    /// Stores the owner of an address.
    pub fn note(&self, ip: IpAddr, owner: Subject) {
        let mut owners = write_lock(&self.owners);
        if owners.len() < MAX_ADDRESSES || owners.contains_key(&ip) {
            owners.insert(ip, owner);
        }
    }

    /// Notified when a VM appeared under a name that a rule mentions and that it is not known to
    /// own.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// Looks up which VMs own the names that the rules mention. A name that cannot be looked up now
    /// keeps its VM.
    pub async fn find_names(&self, mentioned: BTreeSet<String>, addresses: &Addresses) {
        *write_lock(&self.mentioned) = mentioned.clone();
        let mut found = HashMap::new();
        for name in mentioned {
            match addresses.resolve_name(&name, NameKind::Vm).await {
                Ok(Some(named)) => {
                    if let Subject::Vm(vm) = named.subject {
                        found.insert(vm, name);
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(vm = %name, error = %p2pvm_host::chain(&error), "not found \
                        out whose name it is");
                    let names = read_lock(&self.names);
                    found.extend(
                        names
                            .iter()
                            .filter(|(_, known)| **known == name)
                            .map(|(vm, known)| (*vm, known.clone())),
                    );
                }
            }
        }
        *write_lock(&self.names) = found;
    }

    /// A member as its certificate says, if that has been seen.
    pub fn member(&self, id: MemberId) -> AddressOwner {
        match self.control.certificate(id) {
            Some(certificate) => AddressOwner::Member {
                id,
                name: certificate.name().to_owned(),
                groups: certificate.groups().clone(),
            },
            None => AddressOwner::Unknown,
        }
    }

    /// A VM with its name, if it holds one that a rule mentions.
    pub fn vm(&self, id: VmId) -> AddressOwner {
        let name = read_lock(&self.names).get(&id).cloned();
        AddressOwner::Vm { id, name }
    }

    /// Whose an address is.
    pub fn owner(&self, addr: &IpAddr) -> Option<Subject> {
        read_lock(&self.owners).get(addr).copied()
    }
}

impl Directory for Book {
    fn owner_of(&self, addr: &IpAddr) -> AddressOwner {
        match self.owner(addr) {
            Some(Subject::Member(id)) => self.member(id),
            Some(Subject::Vm(id)) => self.vm(id),
            None => AddressOwner::Unknown,
        }
    }
}
