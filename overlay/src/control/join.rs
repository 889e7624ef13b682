//! Becoming a member: one connection, one question.
//!
//! Round trips until the certificate is here: one for the QUIC handshake, one for the admission
//! itself (the stream's protocol is negotiated along with it), plus those of the admitting member
//! to count the invite's use.

use super::{
    address::{dials, ip_of, member_of},
    admit::SignedAdmit,
    door::{ADMISSION_TIMEOUT, AdmissionAnswer, Door, DoorError},
    gate::GateEvent,
    host,
    wire::{AdmitRequest, Contact},
};
use crate::{
    id::{MemberId, UnixTime},
    identity::Identity,
    membership::{Certificate, Invite, NetworkConfig, Refusal, Revocation, Trust},
    underlay::Underlay,
};
use futures::StreamExt;
use libp2p::{
    Multiaddr, Swarm,
    multiaddr::Protocol,
    swarm::{ConnectionId, SwarmEvent},
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// How long joining may take: dialling, and the decision.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10).saturating_add(ADMISSION_TIMEOUT);

/// The initial state of a new member.
#[derive(Clone, Debug)]
pub struct NewMembership {
    /// The certificate that the network issued.
    pub certificate: Certificate,
    /// The network that it is a member of.
    pub network: NetworkConfig,
    /// The revocations known to the member that admitted it.
    pub revocations: Vec<Revocation>,
    /// Multiaddresses with `/p2p/` of members: the next start's bootstrap.
    pub peers: Vec<String>,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The invite or this node was refused.
    #[error("the invite was refused")]
    Refused(#[source] Refusal),
    /// By this machine's clock the certificate of the member asked has ended: one of the two is at
    /// fault.
    #[error("by this machine's clock the certificate of the member asked has ended")]
    MemberExpired,
    /// By a member's clock, which is at this, the invite is over.
    #[error("the invite was refused: {}", Refusal::Expired)]
    Expired(UnixTime),
    /// None of the addresses leads to a member.
    #[error("no member answered at {0}: is one of them running, and can it be reached from here?")]
    Unreachable(String),
    /// All addresses lie behind another network of this machine: a network through a network would
    /// carry itself.
    #[error(
        "{0}: each lies inside another p2pvm network of this machine, through which no network is \
            built: name another address of a member"
    )]
    Inside(String),
    /// Neither a certificate nor a refusal came.
    #[error("the network did not decide within {0:?}: try again")]
    TimedOut(Duration),
    /// libp2p could not be set up here.
    #[error("cannot set up the network host")]
    Host(#[source] host::Cause),
}

/// Presents `invite` at the addresses in it and in `knock_at`, and returns the network's answer.
/// Asking again with the same identity after a lost answer costs no second use of the invite.
///
/// # Errors
/// The refusal with its reason, or that no member was reached.
pub async fn join(
    identity: &Identity,
    invite: &Invite,
    name: &str,
    knock_at: &[String],
) -> Result<NewMembership, JoinError> {
    if !crate::membership::valid_name(name) {
        return Err(JoinError::Refused(Refusal::BadName));
    }
    let underlay = Underlay::look();
    let addresses = addresses(invite, knock_at, &underlay)?;
    let (admitted, host) = knock(identity, invite, name, &addresses, &underlay).await?;
    let AdmissionAnswer {
        certificate,
        revocations,
        contacts,
    } = admitted;
    Ok(NewMembership {
        certificate,
        network: invite.network().clone(),
        revocations,
        peers: peers(&host, &contacts, &addresses),
    })
}

fn addresses(
    invite: &Invite,
    knock_at: &[String],
    underlay: &Underlay,
) -> Result<Vec<Multiaddr>, JoinError> {
    invite.verify().map_err(JoinError::Refused)?;
    let named: Vec<Multiaddr> = invite
        .knock_at(knock_at)
        .filter_map(|a| a.parse().ok())
        .collect();
    let is_inside = |address: &Multiaddr| ip_of(address).is_some_and(|ip| underlay.is_inside(&ip));
    let addresses: Vec<Multiaddr> = named
        .iter()
        .filter(|address| !is_inside(address))
        .cloned()
        .collect();
    if addresses.is_empty() && !named.is_empty() {
        return Err(JoinError::Inside(
            named
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        ));
    }
    if addresses.is_empty() {
        return Err(JoinError::Unreachable(
            "any address: the invite names none".into(),
        ));
    }
    Ok(addresses)
}

fn tried(addresses: &[Multiaddr]) -> String {
    let mut tried: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    // QUIC first, and the same list in the same words each time.
    tried.sort_by_cached_key(|address| (!address.contains("/quic-v1"), address.clone()));
    tried.join(", ")
}

async fn knock(
    identity: &Identity,
    invite: &Invite,
    name: &str,
    addresses: &[Multiaddr],
    underlay: &Underlay,
) -> Result<(AdmissionAnswer, Contact), JoinError> {
    let trust = Arc::new(Trust::new(invite.network().id));
    let request = AdmitRequest {
        invite: invite.clone(),
        name: name.to_owned(),
        link_key: identity.link_key(),
    };
    let door = Arc::new(Door::of_joiner(
        identity.member_id(),
        invite.network().clone(),
        trust,
        SignedAdmit::sign(identity.keys(), request),
    ));
    let key = host::keypair(identity).map_err(|e| JoinError::Host(e.into()))?;
    let (incoming, _none) = mpsc::channel(1);
    let mut swarm = host::build(key, door, incoming, underlay).map_err(JoinError::Host)?;
    let mut dialling = HashSet::new();
    for options in dials(addresses) {
        let id = options.connection_id();
        if swarm.dial(options).is_ok() {
            dialling.insert(id);
        }
    }
    tokio::time::timeout(JOIN_TIMEOUT, decide(&mut swarm, dialling, addresses))
        .await
        .map_err(|_| JoinError::TimedOut(JOIN_TIMEOUT))?
}

/// Follows the dials until one member has decided, or all have failed.
async fn decide(
    swarm: &mut Swarm<host::Host>,
    mut dialling: HashSet<ConnectionId>,
    addresses: &[Multiaddr],
) -> Result<(AdmissionAnswer, Contact), JoinError> {
    let mut refusal = None;
    let mut open = HashSet::new();
    while !(dialling.is_empty() && open.is_empty()) {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(GateEvent::Proved { proved, .. }) => {
                if let Some(admitted) = proved.admitted {
                    return Ok((*admitted, proved.contact));
                }
            }
            SwarmEvent::Behaviour(GateEvent::Failed { peer, error }) => {
                tracing::debug!(member = ?member_of(&peer), "knocking \
                    failed: {}", p2pvm_host::chain(&error));
                match error {
                    // This one cannot, cannot now, or is of another network; another may. One that
                    // answers with what was not asked for is not the only one either.
                    DoorError::TurnedDown(
                        why
                        @ (Refusal::CannotAdmit | Refusal::Undecided(_) | Refusal::OtherNetwork),
                        _,
                        _,
                    )
                    | DoorError::Refused(why @ Refusal::Tampered) => {
                        refusal = Some(why);
                    }
                    DoorError::TurnedDown(Refusal::Expired, _, Some(clock)) => {
                        return Err(JoinError::Expired(clock));
                    }
                    DoorError::Refused(Refusal::Expired) => return Err(JoinError::MemberExpired),
                    DoorError::TurnedDown(why, _, _) | DoorError::Refused(why) => {
                        return Err(JoinError::Refused(why));
                    }
                    DoorError::Io(_) | DoorError::TimedOut => {}
                }
            }
            SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                dialling.remove(&connection_id);
                open.insert(connection_id);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => drop(open.remove(&connection_id)),
            SwarmEvent::OutgoingConnectionError { connection_id, .. } => {
                let _ = dialling.remove(&connection_id);
            }
            _ => {}
        }
    }
    Err(refusal.map_or_else(
        || JoinError::Unreachable(tried(addresses)),
        JoinError::Refused,
    ))
}

fn peers(host: &Contact, contacts: &[Contact], knocked_at: &[Multiaddr]) -> Vec<String> {
    let of = |contact: &Contact| {
        let peer = super::address::peer_of(contact.member());
        let whole = move |a: &String| {
            Some(
                a.parse::<Multiaddr>()
                    .ok()?
                    .with(Protocol::P2p(peer?))
                    .to_string(),
            )
        };
        contact
            .addresses
            .iter()
            .filter_map(whole)
            .collect::<Vec<_>>()
    };
    let mut peers: Vec<String> = knocked_at
        .iter()
        .map(ToString::to_string)
        .chain(of(host))
        .collect();
    let me_too: HashSet<MemberId> = [host.member()].into();
    peers.extend(
        contacts
            .iter()
            .filter(|c| !me_too.contains(&c.member()))
            .flat_map(of),
    );
    let mut seen = HashSet::new();
    peers.retain(|p| seen.insert(p.clone()));
    peers.truncate(64);
    peers
}
