//! What a machine knows of its own membership, on disk: founding a network, joining one, forgetting it.

use crate::{
    failure::{Doing, Failure, Kind, Outcome},
    layout::{Layout, read_if_there, write_atomically},
};
use p2pvm_dhcp::{NameKind, Subnet, is_name};
use p2pvm_overlay::{
    NetworkId, UnixTime,
    control::{self, JoinError},
    identity::{Identity, KeyPair},
    membership::{Certificate, Groups, Invite, Ipv4Subnet, Issuer, NetworkConfig, Refusal, Rights, Trust, valid_name},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, path::Path};

/// How every invite begins.
pub const INVITE_PREFIX: &str = "p2pvm1";

/// A founder's certificate outlives any machine; others get theirs from it with shorter lives.
const FOUNDER_CERTIFICATE_SECONDS: u64 = 20 * 365 * 24 * 3600;

/// The membership of this machine.
pub struct Membership {
    /// The network.
    pub network: NetworkConfig,
    /// This member's certificate.
    pub certificate: Certificate,
    /// Its keys.
    pub identity: Identity,
    /// The root key, on the machine that founded the network.
    pub root: Option<KeyPair>,
    /// Where to knock first.
    pub bootstrap: Vec<String>,
}

/// What `init` made, as text.
pub struct Founded {
    /// The network's id.
    pub network: NetworkId,
    /// This member's id.
    pub member: String,
    /// The subnet.
    pub subnet: Ipv4Subnet,
}

/// Refuses a name that cannot be a DNS label.
pub fn check_label(name: &str) -> Outcome<()> {
    if valid_name(name) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "'{name}' cannot be a name: use up to 63 lower-case letters, digits and inner hyphens (for this machine: --name)"
    )))
}

/// Refuses what cannot be a machine's name: VMs are called NAME.vm, so that none can be called `vm`.
pub fn check_host(name: &str) -> Outcome<()> {
    check_label(name)?;
    if is_name(NameKind::Host, name) {
        return Ok(());
    }
    Err(Failure::usage(format!("'{name}' cannot be this machine's name, as the names of VMs end in it: give it another with --name")))
}

fn encode(value: &impl Serialize) -> Outcome<Vec<u8>> {
    postcard::to_allocvec(value).doing("encoding")
}

fn decode<T: DeserializeOwned>(path: &Path) -> Outcome<Option<T>> {
    let Some(bytes) = read_if_there(path)? else { return Ok(None) };
    postcard::from_bytes(&bytes)
        .doing(format_args!("{} is damaged: restore it from a backup, or leave and join again", path.display()))
        .map(Some)
}

/// Refuses to go on without a membership.
pub fn require_member(layout: &Layout) -> Outcome<()> {
    if layout.is_member() {
        return Ok(());
    }
    Err(Failure::not_found(format!(
        "{} holds no membership: found a network with 'p2pvm init --network NAME' or join one with 'p2pvm join INVITE'",
        layout.dir().display()
    )))
}

/// Founds a network on this machine.
pub fn found(layout: &Layout, (name, subnet): (&str, Option<&str>), (host, groups): (&str, &[String]), force: bool) -> Outcome<Founded> {
    let groups = Groups::new(groups.iter().map(String::as_str)).map_err(|e| Failure::usage(e.to_string()))?;
    if layout.is_member() {
        let known = network(layout)?.map_or_else(String::new, |n| n.name);
        return Err(Failure::refused(format!("this machine is a member of {known} already; 'p2pvm leave' first, or use another --dir")));
    }
    let subnet = choose_subnet(subnet, force)?;
    layout.create()?;
    let identity = Identity::load_or_create(&layout.identity()).doing("making this node's identity")?;
    let root = match read_if_there(&layout.root_key())? {
        // A founding that was interrupted goes on with its key.
        Some(seed) => {
            KeyPair::from_seed(&seed.try_into().map_err(|_| Failure::refused(format!("{} is damaged", layout.root_key().display())))?)
        }
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
    Ok(Founded { network: network.id, member: identity.member_id().to_string(), subnet })
}

fn choose_subnet(given: Option<&str>, force: bool) -> Outcome<Ipv4Subnet> {
    let routes = p2pvm_dhcp::subnet::local_routes().doing("reading this machine's routes")?;
    let Some(text) = given else {
        let chosen = Subnet::choose(&routes, &mut rand::rng())
            .ok_or_else(|| Failure::refused("every subnet tried is covered by a local route; choose one with --subnet"))?;
        return Ipv4Subnet::new(chosen.addr, chosen.prefix)
            .ok_or_else(|| Failure::refused("no subnet could be chosen; choose one with --subnet"));
    };
    let parsed = text.split_once('/').and_then(|(addr, prefix)| Ipv4Subnet::new(addr.parse().ok()?, prefix.parse().ok()?));
    let subnet =
        parsed.ok_or_else(|| Failure::usage(format!("'{text}' is no subnet: write it as 10.83.0.0/16, with a prefix of 8 to 28")))?;
    if !force && let Some(route) = Subnet::new(subnet.addr, subnet.prefix).overlapped_route(&routes) {
        return Err(Failure::refused(format!(
            "{subnet} overlaps this machine's route to {route}: choose another --subnet (or insist with --force)"
        )));
    }
    Ok(subnet)
}

/// Says a refusal in a sentence that says what to do.
pub fn refused(refusal: Refusal) -> Failure {
    let kind = match refusal {
        // The one is waiting for others to answer, the other reaches none: not a word about this machine.
        Refusal::Undecided(_) | Refusal::CannotAdmit => Kind::NotNow,
        _ => Kind::Refused,
    };
    let message = match refusal {
        Refusal::Expired => "the invite has expired: ask for a new one ('p2pvm invite')".to_owned(),
        Refusal::UsedUp => "the invite is used up: ask for a new one ('p2pvm invite --uses N')".to_owned(),
        Refusal::Tampered => "the invite was changed on the way (its signature does not fit): ask for it again".to_owned(),
        Refusal::NotAnInvite => {
            format!("this is no invite: one begins with {INVITE_PREFIX} and is a single line; it may have been cut off when it was copied")
        }
        other => other.to_string(),
    };
    Failure::new(kind, message)
}

/// The name of the network that an invite leads into, if it is one, whole and still valid.
pub fn checked_invite(text: &str) -> Outcome<String> {
    let invite = Invite::parse(text).map_err(refused)?;
    invite.check(UnixTime::now()).map_err(refused)?;
    Ok(invite.network().name.clone())
}

/// Joins the network that an invite leads into. Joining again with the membership already there is no error.
pub async fn join(layout: &Layout, text: &str, address: Option<String>, name: &str) -> Outcome<()> {
    let invite = Invite::parse(text).map_err(refused)?;
    if layout.is_member() {
        return match network(layout)? {
            Some(network) if network.id == invite.network().id => Ok(()),
            Some(network) => Err(Failure::refused(format!(
                "this machine is a member of {} already and the invite is for {}; 'p2pvm leave' first, or use another --dir",
                network.name,
                invite.network().name
            ))),
            None => Err(Failure::refused("this machine's membership is damaged; 'p2pvm leave --force' forgets it")),
        };
    }
    invite.check(UnixTime::now()).map_err(refused)?;
    layout.create()?;
    let identity = Identity::load_or_create(&layout.identity()).doing("making this node's identity")?;
    let extra: Vec<String> = address.into_iter().collect();
    let joined = control::join(&identity, &invite, name, &extra).await.map_err(|e| match e {
        JoinError::Refused(Refusal::Revoked) => Failure::refused(format!(
            "the invite has been revoked, or this machine has been expelled: ask for a new invite; if that is refused too, remove {}, so that it joins as a new member",
            layout.identity().display()
        )),
        JoinError::Refused(refusal) => refused(refusal),
        inside @ JoinError::Inside(_) => Failure::refused(inside.to_string()),
        other => Failure::new(Kind::TimedOut, format!("{other}; is the inviting machine up and reachable? (another member's address works too: p2pvm join MULTIADDR --invite FILE)")),
    })?;
    let trust = Trust::load(joined.network.id, &layout.revocations()).doing("reading revocations")?;
    for revocation in joined.revocations {
        // What does not verify concerns no member of this network.
        if let Err(refusal) = trust.add_revocation(revocation) {
            tracing::debug!(%refusal, "a revocation that came with the certificate is not believed");
        }
    }
    write_atomically(&layout.network(), &encode(&joined.network)?, 0o644)?;
    write_atomically(&layout.bootstrap(), joined.peers.join("\n").as_bytes(), 0o644)?;
    write_atomically(&layout.certificate(), &encode(&joined.certificate)?, 0o644)
}

/// The network that this machine is in, if it is in one.
pub fn network(layout: &Layout) -> Outcome<Option<NetworkConfig>> {
    decode(&layout.network())
}

/// Reads this machine's membership.
pub fn load(layout: &Layout) -> Outcome<Membership> {
    require_member(layout)?;
    let missing = || Failure::not_found("this machine's membership is incomplete; leave with 'p2pvm leave --force' and join again");
    let network = network(layout)?.ok_or_else(missing)?;
    let certificate: Certificate = decode(&layout.certificate())?.ok_or_else(missing)?;
    let identity = Identity::load_or_create(&layout.identity()).doing("reading this node's identity")?;
    if certificate.member() != identity.member_id() {
        return Err(Failure::refused("the certificate here is for another identity; leave with 'p2pvm leave --force' and join again"));
    }
    let root = read_if_there(&layout.root_key())?.and_then(|seed| <[u8; 32]>::try_from(seed).ok()).map(|seed| KeyPair::from_seed(&seed));
    let bootstrap = read_if_there(&layout.bootstrap())?.unwrap_or_default();
    let bootstrap = String::from_utf8_lossy(&bootstrap).lines().map(str::to_owned).collect();
    Ok(Membership { network, certificate, identity, root, bootstrap })
}

/// Forgets the membership and all that hangs on it. The identity and the root key stay: they are this
/// machine's and the network's, not the membership's.
pub fn forget(layout: &Layout) -> Outcome<()> {
    // The certificate goes first: without it an interrupted forgetting is still one.
    for file in [
        layout.certificate(),
        layout.network(),
        layout.bootstrap(),
        layout.leases(),
        layout.admissions(),
        layout.dir().join("peers.json"),
        layout.revocations(),
        layout.notices(),
        layout.routes(),
        layout.succession(),
    ] {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).doing(format_args!("removing {}", file.display())),
            _ => {}
        }
    }
    // A voter's promises stay: forgetting one could let a VM run twice.
    for dir in [layout.tables(), layout.vms(), layout.successor()] {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).doing(format_args!("removing {}", dir.display())),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_called_as_the_zone_of_vms_is_told_to_take_another_name() {
        assert!(check_host("attic").is_ok() && check_label("vm").is_ok());
        let failure = check_host("vm").unwrap_err();
        assert!(failure.kind == Kind::Usage && failure.message.contains("--name"), "{failure:?}");
        assert!(check_host("At tic").is_err());
    }

    #[test]
    fn what_may_be_decided_otherwise_later_is_told_from_what_is_refused_for_good_whatever_it_says() {
        // The words of the one in the mouth of the other change nothing.
        let twisted = Refusal::BadDocument("the admission could not be decided".to_owned());
        for refusal in [Refusal::Revoked, Refusal::UsedUp, Refusal::Expired, Refusal::NameTaken, Refusal::Tampered, twisted] {
            assert_eq!(refused(refusal.clone()).kind, Kind::Refused, "{refusal}");
        }
        for refusal in [Refusal::Undecided("others did not answer".to_owned()), Refusal::CannotAdmit] {
            assert_eq!(refused(refusal.clone()).kind, Kind::NotNow, "{refusal}");
        }
    }
}
