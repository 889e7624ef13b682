//! What this crate writes into the DHT: the holder of an address, and what a name stands for. Each
//! entry is at a key derived from the address or the name, and signed by its owner: a member for
//! itself, a VM's key for a VM. An entry that its signer has no right to make is ignored
//! ([`Holder::owner`]).

use p2pvm_overlay::{Epoch, MemberId, RingAddr, VmId};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The member that answers at an address now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The member that packets for the address go to.
    pub member: MemberId,
    /// The generation of this holding; always 0 for a member's own address.
    pub epoch: Epoch,
    /// The VM whose address it is; `None` for a member's own.
    pub vm: Option<VmId>,
    /// The host's or VM's name, one DNS label.
    pub name: String,
}

/// The member or VM that an address or name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    /// A member's own.
    Member(MemberId),
    /// A VM's, wherever it runs.
    Vm(VmId),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member(member) => write!(f, "member {}", member.short()),
            Self::Vm(vm) => write!(f, "VM {}", vm.short()),
        }
    }
}

/// The two kinds of names: `<label>.<network>.p2p` and `<label>.vm.<network>.p2p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NameKind {
    /// A member.
    Host,
    /// A VM.
    Vm,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// The owner of the name.
    pub subject: Subject,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, if the network has them.
    pub v6: Option<Ipv6Addr>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Entry {
    Address(Holder),
    Name(NameEntry),
}

impl Subject {
    /// The public key that signs its entries.
    pub fn owner(&self) -> [u8; 32] {
        match self {
            Self::Member(member) => member.0,
            Self::Vm(vm) => vm.0,
        }
    }

    /// The kind of its name.
    pub fn kind(&self) -> NameKind {
        match self {
            Self::Member(_) => NameKind::Host,
            Self::Vm(_) => NameKind::Vm,
        }
    }
}

impl Holder {
    /// The member or VM that the address belongs to.
    pub fn subject(&self) -> Subject {
        self.vm.map_or(Subject::Member(self.member), Subject::Vm)
    }

    /// The public key that must have signed the entry.
    pub fn owner(&self) -> [u8; 32] {
        self.subject().owner()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(&Entry::Address(self.clone()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::from_bytes(bytes) {
            Ok(Entry::Address(holder)) if is_label(&holder.name) => Some(holder),
            _ => None,
        }
    }
}

impl NameEntry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(&Entry::Name(self.clone()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match postcard::from_bytes(bytes) {
            Ok(Entry::Name(named)) => Some(named),
            _ => None,
        }
    }
}

/// Whether the bytes are an entry, for the fuzzer.
#[cfg(fuzzing)]
pub fn parse(bytes: &[u8]) -> bool {
    let holder = Holder::decode(bytes);
    let named = NameEntry::decode(bytes);
    if let Some(holder) = &holder {
        assert_eq!(Holder::decode(&holder.encode()).as_ref(), Some(holder));
    }
    holder.is_some() || named.is_some()
}

fn encode(entry: &Entry) -> Vec<u8> {
    postcard::to_allocvec(entry).expect("plain fields always serialize")
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Vm => "vm",
        })
    }
}

/// The key of an address in the DHT.
pub fn address_key(ip: IpAddr) -> RingAddr {
    match ip {
        IpAddr::V4(v4) => RingAddr::of("p2pvm 2026 holder of an address", &v4.octets()),
        IpAddr::V6(v6) => RingAddr::of("p2pvm 2026 holder of an address", &v6.octets()),
    }
}

/// The key of a name in the DHT; letter case does not count.
pub fn name_key(kind: NameKind, label: &str) -> RingAddr {
    RingAddr::of(
        "p2pvm 2026 meaning of a name",
        format!("{kind}/{}", label.to_ascii_lowercase()).as_bytes(),
    )
}

/// Whether `label` can be a name: 1 to 63 lower-case letters, digits and inner hyphens (RFC 1123
/// §2.1).
pub fn is_label(label: &str) -> bool {
    p2pvm_overlay::membership::valid_name(label)
}

/// Whether `label` can name a subject of `kind`: `vm` is no host name, because it is the VMs' zone.
pub fn is_name(kind: NameKind, label: &str) -> bool {
    is_label(label) && !(kind == NameKind::Host && label == "vm")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_what_dns_allows() {
        assert!(is_label("web-1") && is_label("0") && is_label(&"a".repeat(63)));
        for bad in ["", "-a", "a-", "a.b", "A", "ä", "a_b", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
        assert!(!is_name(NameKind::Host, "vm") && is_name(NameKind::Vm, "vm"));
    }

    #[test]
    fn a_host_and_a_vm_share_a_label_in_any_case() {
        assert_ne!(
            name_key(NameKind::Host, "web"),
            name_key(NameKind::Vm, "web")
        );
        assert_eq!(name_key(NameKind::Vm, "WEB"), name_key(NameKind::Vm, "web"));
    }

    proptest! {
        #[test]
        fn entries_survive_the_wire(
            member: [u8; 32], vm: Option<[u8; 32]>, epoch: u64, v4: u32, v6: Option<u128>
        ) {
            let holder = Holder {
                member: MemberId(member), epoch: Epoch(epoch), vm: vm.map(VmId), name: "web".into()
            };
            prop_assert_eq!(Holder::decode(&holder.encode()), Some(holder.clone()));
            let named = NameEntry {
                subject: holder.subject(), v4: Ipv4Addr::from_bits(v4),
                v6: v6.map(Ipv6Addr::from_bits)
            };
            prop_assert_eq!(NameEntry::decode(&named.encode()), Some(named.clone()));
            prop_assert_eq!(NameEntry::decode(&holder.encode()), None);
        }

        #[test]
        fn rubbish_is_no_entry(bytes: Vec<u8>) {
            let _ = (Holder::decode(&bytes), NameEntry::decode(&bytes));
        }
    }
}
