//! What a network and a machine may be called.

use crate::shown;
use p2pvm_api::{Failure, Outcome};
use p2pvm_dhcp::{NameKind, is_name};
use p2pvm_overlay::membership::valid_name;

/// The allowed form of a name, in words.
const LABEL: &str = "up to 63 lower-case letters, digits and inner hyphens";

/// Rejects a network's name that is not a DNS label.
pub fn check_network(name: &str) -> Outcome<()> {
    if valid_name(name) {
        return Ok(());
    }
    let name = shown::word(name);
    Err(Failure::usage(format!(
        "'{name}' cannot be a network's name: give it another with --network, of {LABEL}, such as \
            'home'"
    )))
}

/// Whether a machine may have this name.
pub fn is_host(name: &str) -> bool {
    valid_name(name) && is_name(NameKind::Host, name)
}

/// Rejects an invalid machine name. `vm` is one, because the names of VMs are NAME.vm.
pub fn check_host(name: &str) -> Outcome<()> {
    if is_host(name) {
        return Ok(());
    }
    let why = if valid_name(name) {
        "the names of VMs end in 'vm'".to_owned()
    } else {
        format!("a name is {LABEL}")
    };
    let name = shown::word(name);
    Err(Failure::usage(format!(
        "'{name}' cannot be this machine's name, because {why}: give it another with --name"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Kind;

    #[test]
    fn a_machine_named_as_the_vms_zone_must_take_another_name() {
        assert!(check_host("attic").is_ok() && check_network("vm").is_ok());
        let failure = check_host("vm").unwrap_err();
        assert!(
            failure.kind == Kind::Usage && failure.message.contains("--name"),
            "{failure:?}"
        );
        assert!(check_host("At tic").is_err());
    }

    #[test]
    fn an_invalid_name_is_shown_as_typed_with_its_option() {
        for name in ["a b", "ÄÖ", "Lab", "-x", ""] {
            let failure = check_network(name).unwrap_err();
            assert!(
                failure.kind == Kind::Usage && failure.message.contains(&format!("'{name}'")),
                "{failure}"
            );
            assert!(
                failure.message.contains("--network") && !failure.message.contains("--name "),
                "{failure}"
            );
            assert!(check_host(name).unwrap_err().message.contains("--name"));
        }
    }
}
