//! What a machine that is no member gets.

use super::*;
use crate::identity::LinkKey;
use door::{Door, DoorError, ProvedPeer};
use futures::StreamExt;
use libp2p::{
    Swarm, identify,
    swarm::{
        ConnectionId, FromSwarm, ListenError, NetworkBehaviour, SwarmEvent,
        behaviour::ListenFailure, dummy,
    },
};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// Asks for everything at once.
#[derive(libp2p::swarm::NetworkBehaviour)]
struct Raw {
    identify: identify::Behaviour,
    streams: streams::Streams,
}

type Incoming = mpsc::Sender<(libp2p::PeerId, streams::RawStream)>;

fn stranger(incoming: Incoming) -> Swarm<Raw> {
    libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| {
            Ok(Raw {
                identify: identify::Behaviour::new(identify::Config::new(
                    "/p2pvm/1".into(),
                    key.public(),
                )),
                streams: streams::Streams::new(incoming),
            })
        })
        .unwrap()
        .with_swarm_config(|c| c.with_idle_connection_timeout(LONG * 10))
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_proved_nothing_is_served_nothing_else() {
    let world = World::new(1);
    let first = world.first().await;
    first.serve("reverse", Arc::new(Reverse));
    let (incoming, mut opened_to_us) = mpsc::channel(1);
    let mut swarm = stranger(incoming);
    let target: Multiaddr = first
        .listen_addrs()
        .into_iter()
        .find(|a| a.contains("quic"))
        .unwrap()
        .parse()
        .unwrap();
    let peer = address::peer_of(first.me()).unwrap();
    swarm.dial(target).unwrap();
    let (waiter, mut answer) = oneshot::channel();
    let mut waiter = Some(waiter);
    let mut denied = false;
    let closed = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                    swarm
                        .behaviour_mut()
                        .streams
                        .open(peer, connection_id, waiter.take().unwrap());
                }
                SwarmEvent::Behaviour(RawEvent::Identify(identify::Event::Error { .. })) => {
                    denied = true
                }
                SwarmEvent::Behaviour(RawEvent::Identify(event)) => {
                    panic!("identify was served: {event:?}")
                }
                SwarmEvent::ConnectionClosed { .. } => break,
                _ => {}
            }
            if denied && !matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                break;
            }
        }
    };
    tokio::time::timeout(LONG * 2, closed)
        .await
        .expect("the stranger is denied or cut off");
    assert!(first.connected().is_empty());
    assert!(
        !matches!(answer.try_recv(), Ok(Ok(_))),
        "a stream was opened"
    );
    assert!(
        opened_to_us.try_recv().is_err(),
        "nothing is opened to a stranger either"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_two_networks_do_not_connect() {
    let (here, there) = (World::new(1), World::new(2));
    let first = here.first().await;
    let stranger = there.member("stranger", &[&first]).await;
    let asked = stranger
        .call(first.me(), "reverse", vec![1], Duration::from_secs(5))
        .await;
    assert!(
        matches!(
            asked,
            Err(FabricError::Unreachable(_) | FabricError::TimedOut(..))
        ),
        "{asked:?}"
    );
    assert!(first.connected().is_empty() && stranger.connected().is_empty());
    assert!(first.peers().is_empty() && stranger.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_reached_although_a_stranger_answers_first() {
    let (world, other) = (World::new(1), World::new(2));
    let (first, stranger) = (world.first().await, other.first().await);
    let over = |control: &Control, transport: &str| {
        control
            .listen_addrs()
            .into_iter()
            .find(|a| a.contains(transport))
            .unwrap()
            .parse::<Multiaddr>()
            .unwrap()
    };
    // QUIC is dialled before TCP and has fewer round trips.
    let named = address::peer_of(first.me()).unwrap();
    let wrong = address::split_peer(over(&stranger, "/quic-v1"))
        .0
        .with(libp2p::multiaddr::Protocol::P2p(named));
    let identity = Identity::generate();
    let certificate = world.certify(&identity, "second", false);
    let bootstrap = vec![wrong.to_string(), over(&first, "/tcp/").to_string()];
    let second = Control::start(world.config(identity, certificate, bootstrap))
        .await
        .unwrap();
    meshed(&[&first, &second]).await;
}

/// The door of a machine that asks to join as "third".
fn joining(world: &World, joiner: &Identity) -> Door {
    let terms = InviteTerms {
        uses: 1,
        expires: UnixTime::now().plus(60),
        delegate: false,
        groups: crate::membership::Groups::default(),
    };
    let issuer = Issuer::root(&world.root);
    let request = wire::AdmitRequest {
        invite: Invite::issue(&issuer, &world.network, &[], terms).unwrap(),
        name: "third".to_owned(),
        link_key: joiner.link_key(),
    };
    let trust = Arc::new(Trust::new(world.network.id));
    let signed = admit::SignedAdmit::sign(joiner.keys(), request);
    Door::of_joiner(joiner.member_id(), world.network.clone(), trust, signed)
}

#[tokio::test]
async fn an_issuer_admits_by_signed_requests_and_by_the_first_releases() {
    for reads_signed in [true, false] {
        let (world, joiner, host) = (World::new(1), Identity::generate(), Identity::generate());
        let (me, host_id) = (joiner.member_id(), host.member_id());
        let certificate = world.certify(&host, "host", true);
        let root = KeyPair::from_seed(&world.root.seed());
        let host = door_of(&world.config(host, certificate, Vec::new()), Some(root));
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut near, mut far) = (near.compat(), far.compat());
        let door = joining(&world, &joiner);
        let (joined, admitted) = tokio::join!(
            door.knock(host_id, reads_signed, &mut near),
            host.answer(me, &mut far)
        );
        assert_eq!(admitted.unwrap().contact.member(), me);
        let admitted = joined.unwrap().admitted.expect("a certificate");
        assert_eq!(admitted.certificate.link_key(), joiner.link_key());
    }
}

/// A member that may admit and answers a joiner as it likes.
async fn admit(
    world: &World,
    (joiner, door): (&Identity, &Door),
    certified: (LinkKey, &str),
) -> Result<ProvedPeer, DoorError> {
    let (host, (link_key, name)) = (Identity::generate(), certified);
    let contact = Contact::sign(&host, world.certify(&host, "host", true), vec![], false, 1);
    let certificate = Issuer::root(&world.root)
        .certify(
            &world.network,
            (joiner.member_id(), link_key),
            name,
            Rights { admit: false },
            (UnixTime::now(), UnixTime::now().plus(3600)),
        )
        .unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut near, mut far) = (near.compat(), far.compat());
    let answering = async {
        let _hello: wire::Hello = wire::read_value(&mut far, 1 << 16).await.unwrap();
        let presentation = wire::Presentation {
            contact,
            revocations: [0; 32],
            contacts: [0; 32],
            known: 0,
        };
        let reply = wire::Reply::Admitted {
            certificate: Box::new(certificate),
            presentation: Box::new(presentation),
            revocations: vec![],
            contacts: vec![],
        };
        wire::write_value(&mut far, &reply).await.unwrap();
    };
    let (proved, ()) = tokio::join!(door.knock(host.member_id(), true, &mut near), answering);
    proved
}

#[tokio::test]
async fn a_joiner_rejects_a_certificate_with_another_link_key_or_name() {
    let (world, joiner) = (World::new(1), Identity::generate());
    let door = joining(&world, &joiner);
    let (own, others) = (joiner.link_key(), Identity::generate().link_key());
    for (certified, is_taken) in [
        ((own, "third"), true),
        ((others, "third"), false),
        ((own, "fourth"), false),
    ] {
        match admit(&world, (&joiner, &door), certified).await {
            Ok(proved) => assert!(is_taken && proved.admitted.is_some()),
            Err(DoorError::Refused(why)) => assert!(!is_taken && why == Refusal::Tampered),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn strangers_connections_are_turned_away_beyond_a_number_until_some_end() {
    let world = World::new(1);
    let identity = Identity::generate();
    let certificate = world.certify(&identity, "first", true);
    let door = door_of(&world.config(identity, certificate, Vec::new()), None);
    let mut gate = gate::Gated::new(dummy::Behaviour, Arc::new(door));
    let local: Multiaddr = "/ip4/192.0.2.9/tcp/4001".parse().unwrap();
    let remote: Multiaddr = "/ip4/192.0.2.1/tcp/4001".parse().unwrap();
    let mut begun = |ids: std::ops::Range<usize>, ended: Option<usize>| {
        if let Some(ended) = ended {
            gate.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
                local_addr: &local,
                send_back_addr: &remote,
                error: &ListenError::Aborted,
                connection_id: ConnectionId::new_unchecked(ended),
                peer_id: None,
            }));
        }
        ids.filter(|id| {
            let id = ConnectionId::new_unchecked(*id);
            gate.handle_pending_inbound_connection(id, &local, &remote)
                .is_ok()
        })
        .count()
    };
    assert_eq!(begun(0..300, None), 64);
    assert_eq!(begun(300..310, Some(5)), 1);
}
