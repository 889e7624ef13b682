//! Founding a network on this machine.

use super::{encode, refuse_member, refused};
use crate::{
    clock,
    layout::{Layout, read_if_there, write_atomically},
    preflight,
};
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_dhcp::Subnet;
use p2pvm_overlay::{
    NetworkId, UnixTime,
    identity::{Identity, KeyPair},
    membership::{Groups, Ipv4Subnet, Issuer, NetworkConfig, Rights},
};
use std::net::Ipv4Addr;

/// The life of a founder's certificate. Reason: it outlives any machine; others live shorter.
const FOUNDER_CERTIFICATE_SECONDS: u64 = 20 * 365 * 24 * 3600;

/// The result of `init`, as text.
pub struct NewNetwork {
    /// The network's id.
    pub network: NetworkId,
    /// This member's id.
    pub member: String,
    /// The subnet.
    pub subnet: Ipv4Subnet,
}

/// Founds a network on this machine.
pub fn found(
    layout: &Layout,
    (name, subnet): (&str, Option<&str>),
    (host, groups): (&str, &[String]),
    force: bool,
) -> Outcome<NewNetwork> {
    let groups = Groups::new(groups.iter().map(String::as_str))
        .map_err(|e| Failure::usage(e.to_string()))?;
    refuse_member(layout)?;
    if let Some(impossible) = clock::impossible(UnixTime::wall()) {
        return Err(Failure::refused(format!(
            "{impossible}; certificates signed now would be invalid for members with correct clocks"
        )));
    }
    let subnet = choose_subnet(subnet, force)?;
    layout.create()?;
    let identity =
        Identity::load_or_create(&layout.identity()).doing("making this node's identity")?;
    let root = match read_if_there(&layout.root_key())? {
        // After an interrupted founding, the next one uses its key.
        Some(seed) => KeyPair::from_seed(&seed.try_into().map_err(|_| {
            Failure::refused(format!("{} is damaged", layout.root_key().display()))
        })?),
        None => {
            let root = KeyPair::generate();
            write_atomically(&layout.root_key(), &root.seed()[..], 0o600)?;
            root
        }
    };
    let now = UnixTime::now();
    let network = NetworkConfig::found(&root, name, subnet, now).map_err(refused)?;
    let certificate = Issuer::root(&root)
        .certify_in(
            &network,
            (identity.member_id(), identity.link_key()),
            host,
            (Rights { admit: true }, groups),
            (now, now.plus(FOUNDER_CERTIFICATE_SECONDS)),
        )
        .map_err(refused)?;
    write_atomically(&layout.network(), &encode(&network)?, 0o644)?;
    // The certificate is written last: with it the machine is a member.
    write_atomically(&layout.certificate(), &encode(&certificate)?, 0o644)?;
    Ok(NewNetwork {
        network: network.id,
        member: identity.member_id().to_string(),
        subnet,
    })
}

fn choose_subnet(given: Option<&str>, force: bool) -> Outcome<Ipv4Subnet> {
    let routes = p2pvm_dhcp::subnet::local_routes().doing("reading this machine's routes")?;
    let Some(text) = given else {
        let chosen = Subnet::choose(&routes, &mut rand::rng()).ok_or_else(|| {
            Failure::refused("local routes cover every subnet tried; choose one with --subnet")
        })?;
        return Ipv4Subnet::new(chosen.addr, chosen.prefix).ok_or_else(|| {
            Failure::refused("no subnet could be chosen; choose one with --subnet")
        });
    };
    let parsed = text
        .split_once('/')
        .and_then(|(addr, prefix)| Ipv4Subnet::new(addr.parse().ok()?, prefix.parse().ok()?));
    let subnet = parsed.ok_or_else(|| {
        Failure::usage(format!(
            "'{text}' is not a subnet: write it as 10.83.0.0/16, with a prefix of 8 to 28"
        ))
    })?;
    if let Some(use_) = other_use(subnet) {
        return Err(Failure::usage(format!(
            "'{text}' cannot be a network's subnet: it holds {use_}; choose another --subnet"
        )));
    }
    if !force {
        preflight::subnet(subnet, "choose another --subnet (or insist with --force)")?;
    }
    Ok(subnet)
}

/// The reserved use (RFC 6890) of some of the subnet's addresses; `None` if they are free.
fn other_use(subnet: Ipv4Subnet) -> Option<&'static str> {
    let (first, last) = (
        subnet.addr.octets(),
        u32::from(subnet.addr) | (u32::MAX >> subnet.prefix),
    );
    let link_local =
        u32::from(Ipv4Addr::new(169, 254, 0, 0))..=u32::from(Ipv4Addr::new(169, 254, 255, 255));
    match first[0] {
        0 => Some("addresses that stand for 'this machine' (0.0.0.0/8)"),
        127 => Some("loopback addresses (127.0.0.0/8)"),
        224..=239 => Some("multicast addresses (224.0.0.0/4)"),
        _ if *link_local.start() <= last && u32::from(subnet.addr) <= *link_local.end() => {
            Some("link-local addresses (169.254.0.0/16)")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Kind;

    #[test]
    fn a_subnet_that_every_machine_uses_otherwise_is_refused_with_the_use() {
        for (text, holds) in [
            ("127.0.0.0/8", "loopback"),
            ("0.0.0.0/8", "this machine"),
            ("224.7.0.0/16", "multicast"),
            ("169.254.7.0/24", "link-local"),
            ("169.0.0.0/8", "link-local"),
        ] {
            let failure = choose_subnet(Some(text), true).unwrap_err();
            assert!(
                failure.kind == Kind::Usage && failure.message.contains(holds),
                "{text}: {failure}"
            );
        }
        for text in ["100.64.0.0/10", "169.253.0.0/16", "10.83.0.0/16"] {
            assert!(choose_subnet(Some(text), true).is_ok(), "{text}");
        }
    }
}
