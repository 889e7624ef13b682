//! Joining the network of an invite.

use super::{already, encode, refused};
use crate::{
    clock,
    layout::{Layout, write_atomically},
    naming::HostName,
};
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_host::chain;
use p2pvm_overlay::{
    UnixTime,
    control::{self, JoinError},
    identity::Identity,
    membership::{Invite, Refusal, Trust},
};

/// The result of joining.
pub struct Welcome {
    /// This machine's name in the network.
    pub called: HostName,
    /// Notes for the user.
    pub notes: Vec<String>,
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

/// Joins an invite's network. Joining the same network again is not an error. The members decide
/// whether the invite has expired, because this machine's clock may be wrong.
pub async fn join(
    layout: &Layout,
    text: &str,
    address: Option<String>,
    called: &HostName,
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
        JoinError::Refused(Refusal::Tampered) => altered(),
        JoinError::Refused(Refusal::Expired) => expired(&invite, wall, None),
        JoinError::MemberExpired => member_expired(wall),
        JoinError::Expired(theirs) => expired(&invite, wall, Some(theirs)),
        JoinError::Refused(refusal) => refused(refusal),
        inside @ JoinError::Inside(_) => Failure::refused(inside.to_string()),
        other => {
            let doubt = clock::doubt(&invite, wall)
                .map_or_else(String::new, |doubt| format!("; besides, {doubt}"));
            Failure::timed_out(format!(
                "{}; is the inviting machine up and reachable? \
                (another member's address works too: p2pvm join MULTIADDR --invite FILE){doubt}",
                chain(&other)
            ))
        }
    })?;
    let trust =
        Trust::load(joined.network.id, &layout.revocations()).doing("reading revocations")?;
    for revocation in joined.revocations {
        // A revocation that does not verify concerns no member of this network.
        if let Err(refusal) = trust.hear(revocation) {
            tracing::debug!(%refusal, "an invalid revocation came with the certificate");
        }
    }
    trust.keep();
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

/// A member's answer is not what was asked for. The invite itself was read before it was shown.
fn altered() -> Failure {
    Failure::refused(
        "the member asked answered with a certificate that is not what this machine asked for, \
            such as one with another link key: it may be hostile, so join at another member \
            (p2pvm join MULTIADDR --invite FILE)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Kind;
    use p2pvm_overlay::{
        identity::KeyPair,
        membership::{Groups, Ipv4Subnet, Issuer, NetworkConfig},
    };

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
    fn an_invite_expired_by_one_clock_tells_how_clocks_differ() {
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
}
