//! Several control hosts in one process, on loopback.

mod flood;
mod joining;
mod large;
mod leaving;
mod nat;
mod revocations;
mod stranger;

use super::*;
use crate::membership::{
    Invite, InviteTerms, Ipv4Subnet, LocalAdmission, NetworkConfig, Rights, Trust,
};
use std::{net::Ipv4Addr, time::Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(20);

/// A network with its root, and a directory for its nodes' files.
struct World {
    root: KeyPair,
    network: NetworkConfig,
    dir: tempfile::TempDir,
}

impl World {
    fn new(seed: u8) -> Self {
        let root = KeyPair::from_seed(&[seed; 32]);
        let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 99, 0, 0), 16).unwrap();
        let network = NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap();
        Self {
            root,
            network,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn certify(&self, who: &Identity, name: &str, admit: bool) -> Certificate {
        let lasts = (UnixTime::now(), UnixTime::now().plus(3600));
        Issuer::root(&self.root)
            .certify(
                &self.network,
                (who.member_id(), who.link_key()),
                name,
                Rights { admit },
                lasts,
            )
            .unwrap()
    }

    /// Everything for a node that listens on loopback only.
    fn config(
        &self,
        identity: Identity,
        certificate: Certificate,
        bootstrap: Vec<String>,
    ) -> ControlConfig {
        let state = self.dir.path().join(identity.member_id().short());
        std::fs::create_dir_all(&state).unwrap();
        let trust = Arc::new(Trust::load(self.network.id, &state.join("revocations")).unwrap());
        let admission = Arc::new(LocalAdmission::default());
        let config = ControlConfig::new(
            Arc::new(identity),
            certificate,
            self.network.clone(),
            trust,
            state,
            admission,
        );
        ControlConfig {
            listen_on: vec![Ipv4Addr::LOCALHOST.into()],
            bootstrap,
            ..config
        }
    }

    /// The first node, which holds the root's key.
    async fn first(&self) -> Arc<Control> {
        let identity = Identity::generate();
        let certificate = self.certify(&identity, "first", true);
        let config = self.config(identity, certificate, Vec::new());
        let control = Control::start(ControlConfig {
            issuer_key: Some(KeyPair::from_seed(&self.root.seed())),
            ..config
        })
        .await
        .unwrap();
        listening(&control).await;
        control
    }

    async fn member(&self, name: &str, bootstrap: &[&Control]) -> Arc<Control> {
        let identity = Identity::generate();
        let certificate = self.certify(&identity, name, false);
        let bootstrap = bootstrap.iter().flat_map(|c| c.listen_addrs()).collect();
        let control = Control::start(self.config(identity, certificate, bootstrap))
            .await
            .unwrap();
        listening(&control).await;
        control
    }

    fn invite(&self, at: &Control, uses: u32, seconds: u64) -> Invite {
        let terms = InviteTerms {
            uses,
            expires: UnixTime::now().plus(seconds),
            delegate: false,
            groups: crate::membership::Groups::default(),
        };
        Invite::issue(
            &Issuer::root(&self.root),
            &self.network,
            &at.listen_addrs(),
            terms,
        )
        .unwrap()
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn listening(control: &Control) {
    eventually("listens on QUIC and TCP", || {
        control.listen_addrs().len() >= 2
    })
    .await;
}

async fn meshed(all: &[&Control]) {
    eventually("everyone is connected to everyone", || {
        all.iter().all(|c| c.connected().len() + 1 >= all.len())
    })
    .await;
}

/// The network's root revokes a member and tells it to `first` alone.
async fn revoke(world: &World, first: &Control, member: MemberId) {
    let revocation = Revocation::issue(
        &Issuer::root(&world.root),
        world.network.id,
        Target::Member(member),
        UnixTime::now(),
    );
    first
        .shared
        .commands
        .send(Command::Revoke(Box::new(revocation)))
        .await
        .unwrap();
}

struct Reverse;
#[async_trait]
impl Serve for Reverse {
    async fn serve(&self, _: MemberId, mut body: Vec<u8>) -> Result<Vec<u8>, String> {
        if body.is_empty() {
            return Err("nothing to reverse".into());
        }
        body.reverse();
        Ok(body)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarts_into_the_network_when_its_bootstrap_is_gone() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    let (seed, identity) = (KeyPair::generate().seed(), world.dir.path().join("third"));
    std::fs::write(&identity, [&seed[..], &seed[..]].concat()).unwrap();
    let load = || Identity::load_or_create(&identity).unwrap();
    let certificate = world.certify(&load(), "third", false);
    let third = Control::start(world.config(load(), certificate.clone(), first.listen_addrs()))
        .await
        .unwrap();
    meshed(&[&first, &second, &third]).await;
    eventually("the contact of the second is known", || {
        third.peers().iter().all(|p| !p.addresses.is_empty())
    })
    .await;
    let bootstrap = first.listen_addrs();
    first.shutdown().await;
    third.shutdown().await;
    drop(third);
    let again = Control::start(world.config(load(), certificate, bootstrap))
        .await
        .unwrap();
    eventually("it is back", || again.connected() == vec![second.me()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_up_to_the_largest_body_succeed_or_fail_with_reason() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    first.serve("reverse", Arc::new(Reverse));
    // No waiting for the connection: the call dials.
    let large: Vec<u8> = (0..MAX_BODY).map(|i| (i % 251) as u8).collect();
    let mut reversed = large.clone();
    reversed.reverse();
    meshed(&[&first, &second]).await;
    let to = first.me();
    assert_eq!(
        second.call(to, "reverse", large.clone(), LONG).await,
        Ok(reversed.clone())
    );
    assert_eq!(first.call(to, "reverse", large, LONG).await, Ok(reversed));
    assert_eq!(
        second.call(to, "reverse", vec![], LONG).await,
        Err(FabricError::Refused(to, "nothing to reverse".into()))
    );
    assert_eq!(
        second.call(to, "other", vec![], LONG).await,
        Err(FabricError::NoSuchService(to, "other".into()))
    );
    assert_eq!(
        second
            .call(to, "reverse", vec![0; MAX_BODY + 1], LONG)
            .await,
        Err(FabricError::TooLarge(MAX_BODY + 1))
    );
    let unknown = MemberId(KeyPair::generate().public());
    assert_eq!(
        second.call(unknown, "reverse", vec![], LONG).await,
        Err(FabricError::Unreachable(unknown))
    );
    let calls = (0..200u8).map(|i| second.call(to, "reverse", vec![i, 0], LONG));
    for (i, answer) in futures::future::join_all(calls)
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(answer, Ok(vec![0, i as u8]));
    }
}

const MAX_BODY: usize = crate::fabric::MAX_BODY_BYTES;

async fn stream_50_mb(from: &Control, to: &Control) {
    const SIZE: usize = 50 << 20;
    let mut acceptor = to.accept_streams("bulk");
    let mut stream = from.open_stream(to.me(), "bulk").await.unwrap();
    let sender = tokio::spawn(async move {
        let block: Vec<u8> = (0..1 << 16).map(|i: u32| (i % 255) as u8).collect();
        for _ in 0..SIZE / block.len() {
            stream.write_all(&block).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    });
    let (member, mut received) = acceptor.recv().await.unwrap();
    assert_eq!(member, from.me());
    let (mut buffer, mut total, started) = (vec![0; 1 << 16], 0, Instant::now());
    loop {
        match received.read(&mut buffer).await.unwrap() {
            0 => break,
            n => {
                assert!(
                    (0..n)
                        .step_by(997)
                        .all(|i| buffer[i] == (((total + i) % (1 << 16)) % 255) as u8)
                );
                total += n;
            }
        }
    }
    assert_eq!(total, SIZE);
    println!("50 MiB in {:?}", started.elapsed());
    received.write_all(b"got it").await.unwrap();
    received.shutdown().await.unwrap();
    assert_eq!(sender.await.unwrap(), b"got it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_50_mb_and_is_refused_where_nobody_accepts() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    meshed(&[&first, &second]).await;
    let refused = second.open_stream(first.me(), "bulk").await.err();
    assert_eq!(
        refused,
        Some(FabricError::NoSuchService(first.me(), "bulk".into()))
    );
    stream_50_mb(&second, &first).await;
    stream_50_mb(&first, &second).await;
    stream_50_mb(&first, &first).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_noticed_and_its_return_too() {
    let world = World::new(1);
    let first = world.first().await;
    let second = world.member("second", &[&first]).await;
    meshed(&[&first, &second]).await;
    let mut events = first.events();
    let gone = second.me();
    drop(second);
    let noticed =
        async { while events.recv().await.unwrap() != ControlEvent::Disconnected(gone) {} };
    tokio::time::timeout(Duration::from_secs(15), noticed)
        .await
        .expect("noticed within 15 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_carries_what_quic_cannot() {
    let world = World::new(1);
    let first = world.first().await;
    let identity = Identity::generate();
    let certificate = world.certify(&identity, "tcp", false);
    let tcp = first
        .listen_addrs()
        .into_iter()
        .filter(|a| a.contains("/tcp/"))
        .collect();
    let second = Control::start(world.config(identity, certificate, tcp))
        .await
        .unwrap();
    meshed(&[&first, &second]).await;
    stream_50_mb(&second, &first).await;
    stream_50_mb(&first, &second).await;
    // Both ways at once (rust-libp2p#5410: yamux once stalled here).
    let echo = async {
        let mut acceptor = first.accept_streams("echo");
        let (_, stream) = acceptor.recv().await.unwrap();
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let there_and_back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (mut from, mut to) =
            tokio::io::split(second.open_stream(first.me(), "echo").await.unwrap());
        let sending = async {
            to.write_all(&vec![7; 20 << 20]).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, read) = tokio::join!(sending, from.read_to_end(&mut back));
        assert_eq!(read.unwrap(), 20 << 20);
    };
    tokio::time::timeout(LONG * 2, async { tokio::join!(echo, there_and_back) })
        .await
        .expect("no stall");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_cannot_be_dialled_reach_each_other_through_a_relay() {
    let world = World::new(1);
    let first = world.first().await;
    // A member that listens on loopback cannot tell that it can be dialled: it is told.
    let identity = Identity::generate();
    let certificate = world.certify(&identity, "relay", false);
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let public_addresses = vec![format!("/ip4/127.0.0.1/udp/{port}/quic-v1")];
    let config = world.config(identity, certificate, first.listen_addrs());
    let relay = Control::start(ControlConfig {
        listen_port: port,
        public_addresses,
        ..config
    })
    .await
    .unwrap();
    meshed(&[&first, &relay]).await;
    let mut hidden = Vec::new();
    for name in ["one", "two"] {
        let identity = Identity::generate();
        let certificate = world.certify(&identity, name, false);
        let config = world.config(identity, certificate, relay.listen_addrs());
        hidden.push(
            Control::start(ControlConfig {
                listen_on: Vec::new(),
                ..config
            })
            .await
            .unwrap(),
        );
    }
    let (one, two) = (&hidden[0], &hidden[1]);
    meshed(&[&first, &relay, one, two]).await;
    let path = one
        .peers()
        .into_iter()
        .find(|p| p.member == two.me())
        .unwrap();
    assert_eq!(path.relayed, Some(relay.me()));
    two.serve("reverse", Arc::new(Reverse));
    let body = vec![1; 1 << 20];
    assert_eq!(
        one.call(two.me(), "reverse", body.clone(), LONG).await,
        Ok(body)
    );
    stream_50_mb(one, two).await;
    // Nobody asks over the circuit whether the other end lives: the relay, which loses its leg,
    // ends it.
    let gone = two.me();
    drop(hidden.pop());
    eventually("the end of the circuit is noticed", || {
        !hidden[0].connected().contains(&gone)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_known_twice_over_gets_one_connection() {
    let world = World::new(1);
    let first = world.first().await;
    let file = world.dir.path().join("identity");
    let identity = || Identity::load_or_create(&file).unwrap();
    let certificate = world.certify(&identity(), "second", false);
    let start = async || {
        Control::start(world.config(identity(), certificate.clone(), first.listen_addrs()))
            .await
            .unwrap()
    };
    let second = start().await;
    meshed(&[&first, &second]).await;
    eventually("it knows the other", || {
        second.peers().iter().any(|p| !p.addresses.is_empty())
    })
    .await;
    second.shutdown().await;
    drop(second);
    let second = start().await;
    meshed(&[&first, &second]).await;
    // Both dials, if there were two, have ended by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        second
            .shared
            .made
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
}
