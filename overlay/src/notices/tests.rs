//! Which notice stands, and that all members come to agree on it.

use super::*;
use crate::{
    fabric::memory::{MemoryFabric, MemoryNet},
    identity::{Identity, KeyPair},
    membership::{
        Certificate, Groups, Ipv4Subnet, Issuer, NetworkConfig, Revocation, Rights, Target,
    },
};
use std::net::Ipv4Addr;

struct Network {
    root: KeyPair,
    config: NetworkConfig,
}

fn network() -> Network {
    let root = KeyPair::from_seed(&[1; 32]);
    let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 9, 0, 0), 16).unwrap();
    let config = NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap();
    Network { root, config }
}

impl Network {
    fn certificate(&self, who: &Identity, admit: bool) -> Certificate {
        let lasts = (UnixTime(1), UnixTime::now().plus(3600));
        let granted = (Rights { admit }, Groups::new(["lab"]).unwrap());
        Issuer::root(&self.root)
            .certify_in(
                &self.config,
                (who.member_id(), who.link_key()),
                "m",
                granted,
                lasts,
            )
            .unwrap()
    }

    fn policy(&self, issuer: &Issuer<'_>, version: u64, default: &str) -> Notice {
        let text = format!("default = \"{default}\"");
        Notice::Policy(Box::new(
            SignedPolicy::issue(issuer, self.config.id, version, UnixTime::now(), &text).unwrap(),
        ))
    }

    fn offer(&self, who: &Identity, subnet: &str, seq: u64) -> Notice {
        let end = UnixTime::now().plus(600);
        let what = (vec![subnet.parse().unwrap()], false);
        Notice::Offer(Box::new(Offer::sign(
            who.keys(),
            self.certificate(who, false),
            what,
            UnixTime::now(),
            (seq, end),
        )))
    }

    fn board(&self) -> Arc<Notices> {
        Arc::new(Notices::new(Arc::new(Trust::new(self.config.id))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_board_has_heard_since_its_member_first_met_another() {
    let (network, dir, net) = (
        network(),
        tempfile::tempdir().unwrap(),
        MemoryNet::new(Duration::from_millis(20)),
    );
    let (file, trust) = (
        dir.path().join("notices"),
        Arc::new(Trust::new(network.config.id)),
    );
    let board = Arc::new(Notices::load(trust.clone(), &file).unwrap());
    let other = node(&network, &net, 2);
    let fabric: Arc<MemoryFabric> = net.add(MemberId([1; 32]));
    let mine = Spread::start(fabric, board.clone());
    assert!(!board.heard());
    mine.meet(other.0).await.unwrap();
    assert!(board.heard() && board.policy().is_none());
    assert!(Notices::load(trust, &file).unwrap().heard());
}

fn standing(board: &Notices) -> Option<String> {
    board.policy().map(|p| p.text().to_owned())
}

#[test]
fn an_older_policy_never_replaces_the_newer_one_on_disk() {
    let (network, dir) = (network(), tempfile::tempdir().unwrap());
    let (file, root) = (dir.path().join("notices"), Issuer::root(&network.root));
    let trust = Arc::new(Trust::new(network.config.id));
    let board = Notices::load(trust.clone(), &file).unwrap();
    let second = network.policy(&root, 2, "deny");
    assert_eq!(board.add(second.clone()), Ok(true));
    assert_eq!(board.add(network.policy(&root, 1, "allow")), Ok(false));
    assert_eq!(board.add(second), Ok(false));
    let again = Notices::load(trust, &file).unwrap();
    assert_eq!(
        (standing(&again).as_deref(), again.digest()),
        (Some("default = \"deny\""), board.digest())
    );
    fs::write(&file, b"\xff\xff\xff").unwrap();
    assert!(Notices::load(Arc::new(Trust::new(network.config.id)), &file).is_err());
}

#[test]
fn a_policy_is_refused_unless_readable_and_from_an_own_issuer() {
    let (network, member, stranger) = (network(), Identity::generate(), KeyPair::generate());
    let plain = network.certificate(&member, false);
    let board = network.board();
    assert_eq!(
        board.add(network.policy(&Issuer::root(&stranger), 1, "deny")),
        Err(Refusal::Tampered)
    );
    assert_eq!(
        board.add(network.policy(&Issuer::delegate(member.keys(), &plain), 1, "deny")),
        Err(Refusal::UnknownIssuer)
    );
    let other = SignedPolicy::issue(
        &Issuer::root(&stranger),
        crate::NetworkId(stranger.public()),
        1,
        UnixTime(5),
        "default = 'deny'",
    );
    assert_eq!(
        board.add(Notice::Policy(Box::new(other.unwrap()))),
        Err(Refusal::OtherNetwork)
    );
    let unreadable = SignedPolicy::issue(
        &Issuer::root(&network.root),
        network.config.id,
        1,
        UnixTime(5),
        "default = 'perhaps'",
    );
    assert!(
        matches!(unreadable, Err(Refusal::BadDocument(reason)) if reason.starts_with("line 1: "))
    );
    assert_eq!(board.policy(), None);
}

#[test]
fn a_revoked_delegates_policy_falls_with_it_whatever_its_version() {
    let (network, delegate) = (network(), Identity::generate());
    let own = network.certificate(&delegate, true);
    let root = Issuer::root(&network.root);
    let board = network.board();
    board.add(network.policy(&root, 1, "deny")).unwrap();
    assert_eq!(
        board.add(network.policy(&Issuer::delegate(delegate.keys(), &own), u64::MAX, "allow")),
        Ok(true)
    );
    assert_eq!(standing(&board).as_deref(), Some("default = \"allow\""));
    let gone = Revocation::issue(
        &root,
        network.config.id,
        Target::Member(delegate.member_id()),
        UnixTime::now(),
    );
    board.trust.add_revocation(gone).unwrap();
    assert_eq!(standing(&board).as_deref(), Some("default = \"deny\""));
}

#[test]
fn the_roots_policy_is_taken_however_many_delegates_have_theirs() {
    let network = network();
    let board = network.board();
    for n in 0..MAX_POLICIES + 3 {
        let delegate = Identity::generate();
        let own = network.certificate(&delegate, true);
        let policy = network.policy(&Issuer::delegate(delegate.keys(), &own), 1, "allow");
        assert_eq!(board.add(policy), Ok(n < MAX_POLICIES));
    }
    let root = Issuer::root(&network.root);
    assert_eq!(board.add(network.policy(&root, 2, "deny")), Ok(true));
    assert_eq!(standing(&board).as_deref(), Some("default = \"deny\""));
}

#[test]
fn an_offer_is_its_members_own_and_ends_by_itself() {
    let (network, member, other) = (network(), Identity::generate(), Identity::generate());
    let board = network.board();
    assert_eq!(
        board.add(network.offer(&member, "192.168.7.0/24", 5)),
        Ok(true)
    );
    assert_eq!(
        board.add(network.offer(&member, "192.168.8.0/24", 4)),
        Ok(false),
        "an older one"
    );
    let what = || (vec!["192.168.9.0/24".parse().unwrap()], false);
    let forged = Offer::sign(
        other.keys(),
        network.certificate(&member, false),
        what(),
        UnixTime(1),
        (9, UnixTime::now().plus(60)),
    );
    assert_eq!(
        board.add(Notice::Offer(Box::new(forged))),
        Err(Refusal::Tampered)
    );
    let over = Offer::sign(
        other.keys(),
        network.certificate(&other, false),
        what(),
        UnixTime(1),
        (9, UnixTime::now()),
    );
    assert_eq!(
        board.add(Notice::Offer(Box::new(over))),
        Err(Refusal::Expired)
    );
    let subnets: Vec<_> = board
        .offers()
        .iter()
        .flat_map(|o| o.subnets().to_vec())
        .map(|s| s.to_string())
        .collect();
    assert_eq!(subnets, ["192.168.7.0/24"]);
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

fn node(network: &Network, net: &MemoryNet, n: u8) -> (MemberId, Arc<Notices>, Arc<Spread>) {
    let fabric: Arc<MemoryFabric> = net.add(MemberId([n; 32]));
    let board = network.board();
    (
        MemberId([n; 32]),
        board.clone(),
        Spread::start(fabric, board),
    )
}

#[tokio::test(start_paused = true)]
async fn a_notice_reaches_unconnected_and_later_members() {
    let (network, net) = (network(), MemoryNet::new(Duration::from_millis(20)));
    let nodes: Vec<_> = (1..=4).map(|n| node(&network, &net, n)).collect();
    // A chain: each knows its neighbours only; the last has nobody at first.
    for (a, b) in [(0, 2), (0, 3), (1, 3), (2, 3)] {
        net.set_cut(nodes[a].0, nodes[b].0, true);
    }
    nodes[0]
        .2
        .publish(network.policy(&Issuer::root(&network.root), 1, "deny"))
        .unwrap();
    settle().await;
    assert_eq!(
        [0, 1, 2, 3].map(|n| standing(&nodes[n].1).is_some()),
        [true, true, true, false]
    );
    let member = Identity::generate();
    nodes[3]
        .2
        .publish(network.offer(&member, "192.168.7.0/24", 1))
        .unwrap();
    net.set_cut(nodes[2].0, nodes[3].0, false);
    nodes[3].2.meet(nodes[2].0).await.unwrap();
    settle().await;
    for (_, board, _) in &nodes {
        assert_eq!((standing(board).is_some(), board.offers().len()), (true, 1));
        assert_eq!(board.digest(), nodes[0].1.digest());
    }
}
