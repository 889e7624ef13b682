//! What a VM is, apart from where it runs: the definition that travels with it, its secret key, and
//! the address that belongs to the VM and not to a host.

use crate::Error;
use p2pvm_authority::Principal;
use p2pvm_overlay::{MemberId, UnixTime, VmId, identity::KeyPair};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
};
use zeroize::Zeroize;

/// A guest's addresses; the same on every host that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddress {
    /// Its address in the network's subnet.
    pub v4: Ipv4Addr,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// Its address in the network's unique local prefix.
    pub v6: Ipv6Addr,
    /// Its Ethernet address, derived from the VM's id.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u16,
}

/// A VM as its users see it, on whichever host it runs. Nothing in it is secret; it is published in
/// the VM's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its public key, which owns its records.
    pub vm: VmId,
    /// Its name, unique in the network.
    pub name: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The disk's virtual size, bytes.
    pub disk_bytes: u64,
    /// The image its disk lies over.
    pub image: ManifestId,
    /// The members whose majority decides who may run it. Chosen when it is created, never changed.
    pub voters: Vec<MemberId>,
    /// Its address.
    pub address: GuestAddress,
    /// When it was made.
    pub created: UnixTime,
}

/// The image a new VM starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageSource {
    /// A qcow2 or raw file on this host; its content becomes an image of the network.
    File(PathBuf),
    /// The same, named by another member: only a file below one of these directories.
    Below {
        /// The directories.
        dirs: Vec<PathBuf>,
        /// The file.
        path: PathBuf,
    },
    /// An image that some member holds already.
    Stored(ManifestId),
}

/// How many members may vote on a VM. Reason: every question goes to all of them, and the VM's
/// record lists them.
const MAX_VOTERS: usize = 15;
/// The MTUs that a guest may be told: from what IPv6 requires (RFC 8200 §5) to jumbo frames.
const MTUS: RangeInclusive<u16> = 1280..=9216;

/// The largest disk that a VM may have. Reason: no file is larger on most file systems, and a slip
/// of the hand shows at once.
const MAX_DISK_BYTES: u64 = 16 << 40;

/// A user's request for a new VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVm {
    /// Its name: a DNS label.
    pub name: String,
    /// The content of its disk.
    pub image: ImageSource,
    /// Virtual processors, at least one.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The disk's size if larger than the image's, bytes.
    pub disk_bytes: Option<u64>,
    /// How much it may send, and how much receive, while it stays on the host that makes it, bits
    /// a second: what the token allows by which it is made. `None` for no limit.
    pub bits_per_second: Option<u64>,
    /// The user that it is for, by the user's key.
    pub user: Option<Principal>,
}

/// The seed of a VM's key. It never enters a record or a log; it is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSecret([u8; 32]);

impl VmSecret {
    /// The secret half of `keys`.
    pub fn of(keys: &KeyPair) -> Self {
        Self(*keys.seed())
    }

    /// The VM's key pair.
    pub fn keys(&self) -> KeyPair {
        KeyPair::from_seed(&self.0)
    }
}

impl fmt::Debug for VmSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VmSecret(..)")
    }
}

impl Drop for VmSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Whether `name` can be a VM's: a DNS label of lower-case letters, digits and inner hyphens.
///
/// # Errors
/// [`Error::Refused`] saying what a name looks like.
pub fn check_name(name: &str) -> Result<(), Error> {
    if !p2pvm_overlay::membership::valid_name(name) {
        return Err(Error::Refused(format!(
            "'{name}' cannot be a name: use 1 to 63 lower-case letters, digits and hyphens, no \
                hyphen first or last"
        )));
    }
    Ok(())
}

impl NewVm {
    /// Whether it can be made at all.
    ///
    /// # Errors
    /// [`Error::Refused`] naming what is out of range.
    pub fn check(&self) -> Result<(), Error> {
        let size = (self.cpus, self.memory_mib, self.disk_bytes.unwrap_or(0));
        check_name(&self.name).and_then(|()| check_size(size))
    }
}

impl Definition {
    /// Checks a definition that another member sent: whether a host can have made such a VM.
    ///
    /// # Errors
    /// [`Error::Refused`] naming what is out of range.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        check_size((self.cpus, self.memory_mib, self.disk_bytes))?;
        let wrong = |what: String| Err(Error::Refused(format!("'{}' has {what}", self.name)));
        if self.voters.is_empty() || self.voters.len() > MAX_VOTERS {
            return wrong(format!(
                "{} voters: a VM has 1 to {MAX_VOTERS}",
                self.voters.len()
            ));
        }
        if !MTUS.contains(&self.address.mtu) {
            return wrong(format!("an impossible MTU, {}", self.address.mtu));
        }
        Ok(())
    }
}

fn check_size((cpus, memory_mib, disk_bytes): (u32, u64, u64)) -> Result<(), Error> {
    if cpus == 0 || cpus > 256 {
        return Err(Error::Refused(format!(
            "{cpus} processors: choose 1 to 256"
        )));
    }
    if memory_mib < 16 {
        return Err(Error::Refused(format!(
            "{memory_mib} MiB of memory: no guest starts with less than 16"
        )));
    }
    if disk_bytes > MAX_DISK_BYTES {
        let (asked, most) = (disk_bytes >> 40, MAX_DISK_BYTES >> 40);
        return Err(Error::Refused(format!(
            "a disk of {asked} TiB: choose at most {most} TiB"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_host_can_run_is_refused_with_the_limit() {
        let image = ImageSource::File("/image".into());
        let vm = NewVm {
            name: "web".into(),
            image,
            cpus: 1,
            memory_mib: 64,
            disk_bytes: None,
            bits_per_second: None,
            user: None,
        };
        assert!(vm.check().is_ok());
        let said = |vm: NewVm| vm.check().unwrap_err().to_string();
        assert!(
            said(NewVm {
                cpus: 9999,
                ..vm.clone()
            })
            .contains("1 to 256")
        );
        let disk = said(NewVm {
            disk_bytes: Some(9_999_999 << 40),
            ..vm.clone()
        });
        assert!(disk.contains("at most 16 TiB"), "{disk}");
        assert!(
            NewVm {
                disk_bytes: Some(MAX_DISK_BYTES),
                ..vm
            }
            .check()
            .is_ok()
        );
    }

    #[test]
    fn a_definition_that_no_host_makes_is_refused() {
        let good = crate::host::registry::tests::entry("web").definition;
        assert!(good.check().is_ok());
        type Spoil = fn(&mut Definition);
        let spoilt: [(&str, Spoil); 7] = [
            ("cannot be a name", |vm| vm.name = "../web".into()),
            ("processors", |vm| vm.cpus = 0),
            ("MiB of memory", |vm| vm.memory_mib = 1),
            ("at most 16 TiB", |vm| vm.disk_bytes = u64::MAX),
            ("0 voters", |vm| vm.voters.clear()),
            ("16 voters", |vm| vm.voters = vec![MemberId([1; 32]); 16]),
            ("MTU", |vm| vm.address.mtu = 0),
        ];
        for (why, spoil) in spoilt {
            let mut vm = good.clone();
            spoil(&mut vm);
            let said = vm.check().unwrap_err().to_string();
            assert!(said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["web", "web-1", "0", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-web",
            "web-",
            "Web",
            "a.b",
            "a b",
            "../x",
            &"a".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_and_gives_the_same_key() {
        let keys = KeyPair::generate();
        let secret = VmSecret::of(&keys);
        assert_eq!(secret.keys().vm_id(), keys.vm_id());
        assert_eq!(format!("{secret:?}"), "VmSecret(..)");
    }
}

#[cfg(test)]
#[path = "definition_golden_tests.rs"]
pub(crate) mod golden_tests;
