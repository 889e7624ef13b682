//! A VM that another member brings here, by a move or by its record for a restore: this host
//! accepts of that member only what it can check.
//!
//! The member that made a VM has its key and may write anything into its definition. So its name
//! and its address count if the network's records, which each have one owner, say that they are
//! this VM's, and if no VM here has them.

use super::{Entry, Host, Slot, lock};
use crate::{Definition, Error};
use std::sync::Arc;

/// Why a VM here keeps another one away, if it does: two VMs would have one name or address.
fn clash(here: &Entry, new: &Definition) -> Option<String> {
    let (old, name) = (&here.definition, here.listed_name());
    if old.vm == new.vm || here.is_branch() {
        // A branch has no port, and is listed under another name.
        return (old.vm != new.vm && name == new.name).then(|| name_clash(&name));
    }
    if name == new.name || old.name == new.name {
        return Some(name_clash(&new.name));
    }
    let (ours, theirs) = (&old.address, &new.address);
    let is_same = ours.v4 == theirs.v4 || ours.v6 == theirs.v6 || ours.mac == theirs.mac;
    (ours.prefix != 0 && is_same).then(|| format!("its address is that of '{name}' here"))
}

fn name_clash(name: &str) -> String {
    format!("this host has another VM named '{name}'")
}

/// A refusal of a VM that comes from elsewhere.
fn refused(name: &str, why: &str) -> Error {
    Error::Refused(format!("'{name}' cannot come to this host: {why}"))
}

/// Refuses a new VM whose name or address a VM here has.
pub(super) fn refuse_clash<'s>(
    here: impl IntoIterator<Item = &'s Arc<Slot>>,
    vm: &Definition,
) -> Result<(), Error> {
    let mut clashes = here
        .into_iter()
        .filter_map(|slot| clash(&lock(&slot.entry), vm));
    clashes
        .next()
        .map_or(Ok(()), |why| Err(refused(&vm.name, &why)))
}

impl Host {
    /// Checks the definition, the name and the addresses of a VM that is to come to this host.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; [`Error::Agreement`] if too few members answer.
    pub(crate) async fn may_come(&self, vm: &Definition) -> Result<(), Error> {
        vm.check()?;
        refuse_clash(&self.slots(), vm)?;
        let owns_name = async {
            match self.directory.resolve(&vm.name).await? {
                Some(owner) if owner == vm.vm => Ok(()),
                Some(_) => Err(refused(&vm.name, "that name is another VM's")),
                None => Err(refused(
                    &vm.name,
                    "no VM has that name by the network's records",
                )),
            }
        };
        tokio::try_join!(owns_name, self.parts.port.owns(vm)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::registry::tests::entry;
    use p2pvm_overlay::{Epoch, MemberId};

    fn other(here: &Entry) -> Definition {
        let mut new = entry("new").definition;
        assert_ne!(new.vm, here.definition.vm);
        new.address.v4 = [10, 1, 9, 9].into();
        new.address.v6 = "fd00::9".parse().unwrap();
        new.address.mac = [6; 6];
        new
    }

    #[test]
    fn a_newcomer_with_a_name_or_address_in_use_here_clashes() {
        let here = entry("web");
        let new = other(&here);
        assert_eq!(clash(&here, &new), None);
        let mut same = new.clone();
        same.name = "web".into();
        assert!(clash(&here, &same).unwrap().contains("named 'web'"));
        let ours = &here.definition.address;
        let takes: [fn(&mut Definition, &crate::GuestAddress); 3] = [
            |vm, ours| vm.address.v4 = ours.v4,
            |vm, ours| vm.address.v6 = ours.v6,
            |vm, ours| vm.address.mac = ours.mac,
        ];
        for take in takes {
            let mut same = new.clone();
            take(&mut same, ours);
            assert!(clash(&here, &same).unwrap().contains("that of 'web'"));
        }
    }

    #[test]
    fn a_branch_hinders_only_what_would_be_listed_under_its_name() {
        let mut here = entry("web");
        let mut new = other(&here);
        here.make_branch(MemberId([9; 32]), Epoch(2), String::new());
        new.name = "web".into();
        new.address = here.definition.address.clone();
        assert_eq!(clash(&here, &new), None);
        new.name = here.listed_name();
        assert!(clash(&here, &new).is_some());
        let again = Entry { ..here.clone() }.definition;
        assert_eq!(clash(&here, &again), None, "it comes back");
    }
}
