//! This machine's membership on disk: founding a network, joining one, forgetting it.

use crate::{
    clock,
    layout::{Layout, read_if_there, write_atomically},
    naming::Called,
    preflight, shown,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_dhcp::{NameKind, Subnet, is_name};
use p2pvm_overlay::{
    NetworkId, UnixTime,
    control::{self, JoinError},
    identity::{Identity, KeyPair},
    membership::{
        Certificate, Groups, Invite, Ipv4Subnet, Issuer, NetworkConfig, Refusal, Rights, Trust,
        valid_name,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, net::Ipv4Addr, path::Path};

/// The prefix of every invite.
pub const INVITE_PREFIX: &str = "p2pvm1";

/// The life of a founder's certificate. Reason: it outlives any machine; others live shorter.
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
    /// The addresses to dial first.
    pub bootstrap: Vec<String>,
}

/// The result of `init`, as text.
pub struct Founded {
    /// The network's id.
    pub network: NetworkId,
    /// This member's id.
    pub member: String,
    /// The subnet.
    pub subnet: Ipv4Subnet,
}

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

fn encode(value: &impl Serialize) -> Outcome<Vec<u8>> {
    postcard::to_allocvec(value).doing("encoding")
}

fn decode<T: DeserializeOwned>(path: &Path) -> Outcome<Option<T>> {
    let Some(bytes) = read_if_there(path)? else {
        return Ok(None);
    };
    postcard::from_bytes(&bytes)
        .doing(format_args!(
            "{} is damaged: restore it from a backup, or leave and join again",
            path.display()
        ))
        .map(Some)
}

/// Fails without a membership.
pub fn require_member(layout: &Layout) -> Outcome<()> {
    if layout.is_member() {
        return Ok(());
    }
    Err(Failure::not_found(format!(
        "{} holds no membership: found a network with 'p2pvm init --network NAME' or join one \
            with 'p2pvm join INVITE'",
        layout.dir().display()
    )))
}

/// Fails if this machine is a member of a network.
pub fn refuse_member(layout: &Layout) -> Outcome<()> {
    if !layout.is_member() {
        return Ok(());
    }
    let known = network(layout)?.map_or_else(String::new, |n| n.name);
    Err(Failure::refused(format!(
        "this machine is a member of {known} already; 'p2pvm leave' first, or use another --dir"
    )))
}

/// Founds a network on this machine.
pub fn found(
    layout: &Layout,
    (name, subnet): (&str, Option<&str>),
    (host, groups): (&str, &[String]),
    force: bool,
) -> Outcome<Founded> {
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
    Ok(Founded {
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

/// Turns a refusal into a sentence that says what to do.
pub fn refused(refusal: Refusal) -> Failure {
    let kind = match refusal {
        // Too few members answered, or none was reached: neither says anything about this machine.
        Refusal::Undecided(_) | Refusal::CannotAdmit => Kind::NotNow,
        _ => Kind::Refused,
    };
    let message = match refusal {
        Refusal::Expired => "the invite has expired: ask for a new one ('p2pvm invite')".to_owned(),
        Refusal::UsedUp => {
            "the invite is used up: ask for a new one ('p2pvm invite --uses N')".to_owned()
        }
        Refusal::Tampered => {
            "the invite was changed on the way (its signature is invalid): ask for it again"
                .to_owned()
        }
        Refusal::NotAnInvite => {
            format!(
                "this is no invite: one begins with {INVITE_PREFIX} and is a single line; it may \
                    have been cut off when it was copied"
            )
        }
        other => other.to_string(),
    };
    Failure::new(kind, message)
}

/// The name of an invite's network, if the invite is complete. Only a member decides whether it has
/// expired, because this machine's clock may be wrong.
pub fn network_of_invite(text: &str) -> Outcome<String> {
    Ok(Invite::parse(text).map_err(refused)?.network().name.clone())
}

/// Checks that an invite is complete and, by this machine's clock, still valid.
pub fn checked_invite(text: &str) -> Outcome<()> {
    let invite = Invite::parse(text).map_err(refused)?;
    invite.check(UnixTime::now()).map_err(refused)
}

/// Whether this machine is a member of an invite's network.
///
/// # Errors
/// It is a member of another network, or its name is not `given`.
pub fn already(layout: &Layout, invite: &Invite, given: Option<&str>) -> Outcome<bool> {
    if layout.is_member() {
        return match network(layout)? {
            Some(network) if network.id == invite.network().id => match given {
                Some(given) => keeps_name(layout, given).map(|()| true),
                None => Ok(true),
            },
            Some(network) => Err(Failure::refused(format!(
                "this machine is a member of {} already and the invite is for {}; 'p2pvm leave' \
                    first, or use another --dir",
                network.name,
                invite.network().name
            ))),
            None => Err(Failure::refused(
                "this machine's membership is damaged; 'p2pvm leave --force' forgets it",
            )),
        };
    }
    Ok(false)
}

/// Rejects another name: the name is in the certificate and stays as long as the membership.
fn keeps_name(layout: &Layout, given: &str) -> Outcome<()> {
    let certificate: Option<Certificate> = decode(&layout.certificate())?;
    match certificate {
        Some(certificate) if certificate.name() != given => Err(Failure::refused(format!(
            "this machine is a member already, called {}, and keeps that name: to be called \
                {given} it has to 'p2pvm leave' and join with a new invite",
            certificate.name()
        ))),
        _ => Ok(()),
    }
}

/// A note about this machine's clock, if it differs from a member's.
fn clock_note(wall: UnixTime, theirs: UnixTime) -> Option<String> {
    let apart = clock::apart(wall, theirs)?;
    Some(format!(
        "this machine's clock ({}) is {apart} that of the member asked ({}): {}",
        clock::shown(wall),
        clock::shown(theirs),
        clock::SET
    ))
}

/// A refusal because of time: by which clock, and whether this machine's clock differs.
fn expired(invite: &Invite, wall: UnixTime, theirs: Option<UnixTime>) -> Failure {
    let Failure { kind, message, .. } = refused(Refusal::Expired);
    let note = theirs.and_then(|theirs| clock_note(wall, theirs));
    let here = match (invite.check(wall).is_ok(), &note) {
        (true, None) => format!(
            "; by this machine's clock ({}) it has not, so one of the two clocks is wrong",
            clock::shown(wall)
        ),
        _ => String::new(),
    };
    let note = note.map_or_else(String::new, |note| format!("; besides, {note}"));
    Failure::new(kind, format!("{message}{here}{note}"))
}

/// The failure after this machine rejected a member's certificate. Certificates last for years, so
/// the message doubts the clock first.
fn member_expired(wall: UnixTime) -> Failure {
    Failure::refused(format!(
        "by this machine's clock, which shows {}, the certificate of the member asked has ended: \
            {}; if the clock is right, ask another member for an invite",
        clock::shown(wall),
        clock::SET
    ))
}

/// The result of joining.
pub struct Welcome {
    /// This machine's name in the network.
    pub called: Called,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Joins an invite's network. Joining the same network again is not an error. The members decide
/// whether the invite has expired, because this machine's clock may be wrong.
pub async fn join(
    layout: &Layout,
    text: &str,
    address: Option<String>,
    called: &Called,
) -> Outcome<Welcome> {
    let invite = Invite::parse(text).map_err(refused)?;
    if already(layout, &invite, None)? {
        return Ok(Welcome {
            called: called.clone(),
            notes: Vec::new(),
        });
    }
    let wall = UnixTime::wall();
    layout.create()?;
    let identity =
        Identity::load_or_create(&layout.identity()).doing("making this node's identity")?;
    let extra: Vec<String> = address.into_iter().collect();
    let mut called = called.clone();
    let mut asked = control::join(&identity, &invite, &called.label, &extra).await;
    if called.derived && matches!(asked, Err(JoinError::Refused(Refusal::NameTaken))) {
        called = called.another(identity.member_id());
        asked = control::join(&identity, &invite, &called.label, &extra).await;
    }
    let joined = asked.map_err(|e| match e {
        JoinError::Refused(Refusal::Revoked) => Failure::refused(format!(
            "the invite has been revoked, or this machine has been expelled: ask for a new \
                invite; if that one is refused too, remove {}, so that it joins as a new member",
            layout.identity().display()
        )),
        JoinError::Refused(Refusal::Expired) => expired(&invite, wall, None),
        JoinError::MemberExpired => member_expired(wall),
        JoinError::Expired(theirs) => expired(&invite, wall, Some(theirs)),
        JoinError::Refused(refusal) => refused(refusal),
        inside @ JoinError::Inside(_) => Failure::refused(inside.to_string()),
        other => {
            let doubt = clock::doubt(&invite, wall)
                .map_or_else(String::new, |doubt| format!("; besides, {doubt}"));
            Failure::timed_out(format!(
                "{other}; is the inviting machine up and reachable? \
                (another member's address works too: p2pvm join MULTIADDR --invite FILE){doubt}"
            ))
        }
    })?;
    let trust =
        Trust::load(joined.network.id, &layout.revocations()).doing("reading revocations")?;
    for revocation in joined.revocations {
        // A revocation that does not verify concerns no member of this network.
        if let Err(refusal) = trust.add_revocation(revocation) {
            tracing::debug!(%refusal, "an invalid revocation came with the certificate");
        }
    }
    write_atomically(&layout.network(), &encode(&joined.network)?, 0o644)?;
    write_atomically(
        &layout.bootstrap(),
        joined.peers.join("\n").as_bytes(),
        0o644,
    )?;
    write_atomically(&layout.certificate(), &encode(&joined.certificate)?, 0o644)?;
    let notes = called
        .note
        .clone()
        .into_iter()
        .chain(clock_note(UnixTime::wall(), joined.certificate.issued()))
        .collect();
    Ok(Welcome { called, notes })
}

/// This machine's network, if it is a member of one.
pub fn network(layout: &Layout) -> Outcome<Option<NetworkConfig>> {
    decode(&layout.network())
}

/// Reads this machine's membership.
pub fn load(layout: &Layout) -> Outcome<Membership> {
    require_member(layout)?;
    let missing = || {
        Failure::not_found(
            "this machine's membership is incomplete; leave with 'p2pvm leave --force' and join \
                again",
        )
    };
    let network = network(layout)?.ok_or_else(missing)?;
    let certificate: Certificate = decode(&layout.certificate())?.ok_or_else(missing)?;
    let identity =
        Identity::load_or_create(&layout.identity()).doing("reading this node's identity")?;
    if certificate.member() != identity.member_id() {
        return Err(Failure::refused(
            "the certificate here is for another identity; leave with 'p2pvm leave --force' and \
                join again",
        ));
    }
    let root = read_if_there(&layout.root_key())?
        .and_then(|seed| <[u8; 32]>::try_from(seed).ok())
        .map(|seed| KeyPair::from_seed(&seed));
    let bootstrap = read_if_there(&layout.bootstrap())?.unwrap_or_default();
    let bootstrap = String::from_utf8_lossy(&bootstrap)
        .lines()
        .map(str::to_owned)
        .collect();
    Ok(Membership {
        network,
        certificate,
        identity,
        root,
        bootstrap,
    })
}

/// Forgets the membership and its state. The identity and the root key stay, because they belong to
/// this machine and to the network.
pub fn forget(layout: &Layout) -> Outcome<()> {
    // The certificate goes first: without it this machine is no member, also after a crash here.
    for file in [
        layout.certificate(),
        layout.network(),
        layout.bootstrap(),
        layout.leases(),
        layout.reserve(),
        layout.admissions(),
        layout.dir().join("peers.json"),
        layout.revocations(),
        layout.notices(),
        layout.routes(),
        layout.succession(),
    ] {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing(format_args!("removing {}", file.display()));
            }
            _ => {}
        }
    }
    // A voter's promises stay: forgetting one could let a VM run twice.
    for dir in [layout.tables(), layout.vms(), layout.successor()] {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing(format_args!("removing {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn who_joins_with_a_wrong_clock_is_told_by_how_much() {
        let issued = UnixTime(1_800_000_000);
        assert_eq!(clock_note(issued.plus(30), issued), None);
        let ahead = clock_note(issued.plus(82_800), issued).unwrap();
        assert!(
            ahead.contains("is 23 h ahead of that of the member asked"),
            "{ahead}"
        );
        assert!(
            clock_note(UnixTime(0), issued)
                .unwrap()
                .contains("20833 d behind that")
        );
    }

    #[test]
    fn an_invite_that_has_expired_by_one_clock_only_says_which_clocks_differ_by_how_much() {
        let (root, now) = (KeyPair::generate(), UnixTime(1_800_000_000));
        let subnet = Ipv4Subnet::new([10, 83, 0, 0].into(), 16).unwrap();
        let network = NetworkConfig::found(&root, "lab", subnet, now).unwrap();
        let terms = p2pvm_overlay::membership::InviteTerms {
            uses: 1,
            expires: now.plus(3600),
            delegate: false,
            groups: Groups::default(),
        };
        let invite = Invite::issue(&Issuer::root(&root), &network, &[], terms).unwrap();
        let behind = expired(&invite, now, Some(now.plus(86_400)));
        assert!(
            behind.kind == Kind::Refused && behind.message.contains("this machine's clock"),
            "{behind}"
        );
        assert!(
            behind
                .message
                .contains("1 d behind that of the member asked"),
            "{behind}"
        );
        let unsaid = expired(&invite, now, None);
        assert!(
            unsaid.message.contains("one of the two clocks is wrong"),
            "{unsaid}"
        );
        let ahead = member_expired(UnixTime(4_000_000_000)).message;
        assert!(
            ahead.contains("this machine's clock, which shows 2096-") && ahead.contains(clock::SET),
            "{ahead}"
        );
        let truly = expired(&invite, now.plus(7200), Some(now.plus(7201)));
        assert_eq!(truly.message, refused(Refusal::Expired).message);
        assert!(
            clock::doubt(&invite, UnixTime(0))
                .unwrap()
                .contains("before the network was founded")
        );
        assert!(
            clock::doubt(&invite, now.plus(86_400))
                .unwrap()
                .contains("by this machine's clock")
        );
        assert_eq!(clock::doubt(&invite, now), None);
    }

    #[test]
    fn a_machine_that_is_called_as_the_zone_of_vms_is_told_to_take_another_name() {
        assert!(check_host("attic").is_ok() && check_network("vm").is_ok());
        let failure = check_host("vm").unwrap_err();
        assert!(
            failure.kind == Kind::Usage && failure.message.contains("--name"),
            "{failure:?}"
        );
        assert!(check_host("At tic").is_err());
    }

    #[test]
    fn a_name_that_cannot_be_one_is_shown_as_it_was_typed_with_its_own_option() {
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

    #[test]
    fn what_may_be_decided_otherwise_later_is_told_from_what_is_refused_for_good_whatever_it_says()
    {
        // The words of the one in the mouth of the other change nothing.
        let twisted = Refusal::BadDocument("the admission could not be decided".to_owned());
        for refusal in [
            Refusal::Revoked,
            Refusal::UsedUp,
            Refusal::Expired,
            Refusal::NameTaken,
            Refusal::Tampered,
            twisted,
        ] {
            assert_eq!(refused(refusal.clone()).kind, Kind::Refused, "{refusal}");
        }
        for refusal in [
            Refusal::Undecided("others did not answer".to_owned()),
            Refusal::CannotAdmit,
        ] {
            assert_eq!(refused(refusal.clone()).kind, Kind::NotNow, "{refusal}");
        }
    }
}
