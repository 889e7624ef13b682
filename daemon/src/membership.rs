//! This machine's membership on disk: founding a network, joining one, forgetting it.

mod found;
mod join;
mod names;

use crate::layout::{Layout, read_if_there};
pub use found::{NewNetwork, found};
pub use join::{Welcome, join};
pub use names::{check_host, check_network, is_host};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_overlay::{
    UnixTime,
    identity::{Identity, KeyPair},
    membership::{Certificate, Invite, NetworkConfig, Refusal},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, path::Path};

/// The prefix of every invite.
pub const INVITE_PREFIX: &str = "p2pvm1";

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
    if certificate.link_key() != identity.link_key() {
        return Err(Failure::refused(
            "the certificate here has a link key that is not this machine's: the member that \
                admitted it put in another; leave with 'p2pvm leave --force' and join again, at \
                another member",
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

/// Forgets the membership and its state: also who is known by name, and the tokens with which
/// others use the dashboard. The identity and the root key stay, because they belong to this
/// machine and to the network. So do the tokens that this member gave and those that it revoked.
/// Reason: they are signed with the identity, so they count wherever it is a member, until they
/// expire.
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
        layout.own_vms(),
        layout.keepers(),
        layout.releases(),
        layout.users(),
        layout.user_accounts(),
        layout.offer(),
        layout.dashboard_token(),
        layout.dashboard_reader_token(),
        layout.dashboard_certificate(),
    ] {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing(format_args!("removing {}", file.display()));
            }
            _ => {}
        }
    }
    // A voter's promises stay: forgetting one could let a VM run twice.
    for dir in [
        layout.tables(),
        layout.vms(),
        layout.successor(),
        layout.usage(),
        layout.events(),
        layout.tokens(),
        layout.guardian(),
    ] {
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
    fn what_others_may_do_here_ends_with_the_membership() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let stays = [
            layout.identity(),
            layout.root_key(),
            layout.votes(),
            layout.config(),
            layout.user_key(),
            layout.dashboard_switch(),
        ];
        let goes = [
            layout.certificate(),
            layout.network(),
            layout.users(),
            layout.user_accounts(),
            layout.offer(),
            layout.dashboard_token(),
            layout.dashboard_reader_token(),
            layout.dashboard_certificate(),
        ];
        for file in stays.iter().chain(&goes) {
            fs::write(file, b"x").unwrap();
        }
        let [kept, given, revoked] = [
            layout.tokens(),
            layout.given_tokens(),
            layout.revoked_tokens(),
        ];
        for tokens in [&kept, &given, &revoked] {
            fs::create_dir(tokens).unwrap();
            fs::write(tokens.join("x"), b"x").unwrap();
        }
        forget(&layout).unwrap();
        for file in stays.iter().chain([&given, &revoked]) {
            assert!(file.exists(), "{}", file.display());
        }
        for file in goes.iter().chain([&kept]) {
            assert!(!file.exists(), "{}", file.display());
        }
        forget(&layout).unwrap();
    }

    #[test]
    fn a_refusal_for_good_differs_from_one_that_may_change() {
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
