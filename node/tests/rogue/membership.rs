//! Rules, offers, revocations, contacts, admissions and clocks: what a member says in a name that
//! is not its own, and what a delegate does with the rights that it has.

use super::{Attempt, DAEMONS, Stage, member::Member};
use crate::common::{is_connected, policy_on};
use p2pvm_overlay::{
    MemberId, UnixTime,
    identity::{KeyPair, LinkKey},
    membership::{Cidr, Invite, Issuer, Notice, Offer, Refusal, Revocation, SignedPolicy, Target},
    network_time::ClockReport,
};
use serde::Serialize;
use std::time::Duration;

/// How many revocations of a delegate each member keeps.
const OF_A_DELEGATE: usize = 1024;
/// How far a daemon's time may be from the wall clock.
const APART_MS: i64 = 60_000;
/// News that is believed is known everywhere by then.
const SPREAD: Duration = Duration::from_secs(2);

pub const ATTEMPTS: &[Attempt] = &[
    ("rules by a member without the right", rules_without_right),
    ("rules that the root did not sign", rules_of_no_root),
    ("an offer of routes in another's name", anothers_offer),
    (
        "a revocation by a member without the right",
        revocation_without_right,
    ),
    (
        "a revocation that the root did not sign",
        revocation_of_no_root,
    ),
    ("the founder revoked by a delegate", founder_revoked),
    ("other addresses for another member", anothers_contact),
    ("another member's farewell", anothers_farewell),
    ("an invite used more often than it may be", used_up_invite),
    ("an admission under another's name", taken_name),
    ("an admission with a forged invite", forged_invite),
    ("an invite for a copy of another member", anothers_copy),
    ("a clock ten years ahead", wrong_clock),
];

/// What only ends a member is played last.
pub const LAST: &[Attempt] = &[
    ("thousands of revocations by a delegate", revocation_flood),
    ("a revoked delegate that goes on", revoked_goes_on),
];

/// A notice as a member sends it: the second variant of the message, a list of one.
fn notice(stage: &Stage, by: &Member, notice: Notice) {
    let body = [vec![1], postcard::to_stdvec(&vec![notice]).unwrap()].concat();
    for host in DAEMONS {
        // Whether it is believed shows in what the daemons do.
        let answer = by.call(stage.id(host), "notice", body.clone());
        assert!(answer.is_ok(), "{answer:?}");
    }
    std::thread::sleep(SPREAD);
}

fn policy_by(stage: &Stage, issuer: &Issuer<'_>) {
    let before: Vec<_> = DAEMONS
        .map(|host| policy_on(&stage.lab, host).unwrap().version)
        .into();
    let text = "default = \"deny\"\n";
    let (network, at) = (stage.rogue.network.id, UnixTime::now());
    for version in [1, 1000, u64::MAX] {
        let policy = SignedPolicy::issue(issuer, network, version, at, text).unwrap();
        notice(stage, &stage.rogue, Notice::Policy(Box::new(policy)));
    }
    let after: Vec<_> = DAEMONS
        .map(|host| policy_on(&stage.lab, host).unwrap().version)
        .into();
    assert_eq!(after, before);
    stage.assert_guest_reached();
}

fn rules_without_right(stage: &Stage) {
    let rogue = &stage.rogue;
    policy_by(
        stage,
        &Issuer::delegate(rogue.identity.keys(), &rogue.certificate),
    );
}

fn rules_of_no_root(stage: &Stage) {
    policy_by(stage, &Issuer::root(stage.rogue.identity.keys()));
    policy_by(stage, &Issuer::root(&KeyPair::generate()));
}

fn anothers_offer(stage: &Stage) {
    let theirs = stage.rogue.control.certificate(stage.id("a")).unwrap();
    let subnet: Cidr = "198.51.100.0/24".parse().unwrap();
    let now = UnixTime::now();
    let offer = Offer::sign(
        stage.rogue.identity.keys(),
        theirs,
        (vec![subnet], true),
        now,
        (u64::MAX, now.plus(3600)),
    );
    notice(stage, &stage.rogue, Notice::Offer(Box::new(offer)));
    for host in DAEMONS {
        let routes = stage.lab.routes(host).unwrap();
        let told = routes
            .iter()
            .find(|route| route.subnet.starts_with("198.51.100"));
        assert!(told.is_none(), "{host}: {told:?}");
    }
}

/// Gossip as a member sends it: contacts, then revocations.
fn gossip(stage: &Stage, by: &Member, said: &impl Serialize) {
    let body = postcard::to_stdvec(said).unwrap();
    for host in DAEMONS {
        let answer = by.call(stage.id(host), "~gossip", body.clone());
        assert!(answer.is_ok(), "{answer:?}");
    }
}

fn revoke(stage: &Stage, by: &Member, issuer: &Issuer<'_>, members: &[MemberId]) {
    let now = UnixTime::now();
    let one = |m: &MemberId| Revocation::issue(issuer, by.network.id, Target::Member(*m), now);
    for page in members.chunks(400) {
        let said: Vec<Revocation> = page.iter().map(one).collect();
        gossip(stage, by, &(Vec::<u8>::new(), said));
    }
    std::thread::sleep(SPREAD);
}

/// All daemons are connected with each other, and packets go both ways.
fn assert_together(stage: &Stage) {
    for host in DAEMONS {
        for other in DAEMONS.iter().filter(|other| **other != host) {
            let connected = is_connected(&stage.lab, host, other).unwrap();
            assert!(connected, "{host} has lost {other}");
        }
        stage.assert_reached(host);
    }
}

fn revocation_without_right(stage: &Stage) {
    let rogue = &stage.rogue;
    let issuer = Issuer::delegate(rogue.identity.keys(), &rogue.certificate);
    revoke(stage, rogue, &issuer, &DAEMONS.map(|host| stage.id(host)));
    assert_together(stage);
}

fn revocation_of_no_root(stage: &Stage) {
    let issuer = Issuer::root(stage.rogue.identity.keys());
    revoke(
        stage,
        &stage.rogue,
        &issuer,
        &DAEMONS.map(|host| stage.id(host)),
    );
    assert_together(stage);
}

fn founder_revoked(stage: &Stage) {
    let delegate = &stage.delegate;
    let issuer = Issuer::delegate(delegate.identity.keys(), &delegate.certificate);
    revoke(stage, delegate, &issuer, &[stage.id("a")]);
    assert_together(stage);
}

/// A contact of `a` with these addresses, signed by the rogue.
fn forged_contact(stage: &Stage, addresses: &[String]) {
    let rogue = &stage.rogue;
    let theirs = rogue.control.certificate(stage.id("a")).unwrap();
    let (is_public, seq) = (true, u64::MAX);
    let signed = postcard::to_stdvec(&(addresses, is_public, seq)).unwrap();
    let signature = rogue.identity.sign("p2pvm contact 1", &signed);
    let contact = (theirs, addresses, is_public, seq, signature);
    gossip(stage, rogue, &(vec![contact], Vec::<u8>::new()));
    std::thread::sleep(SPREAD);
    let known = stage.lab.peers("b").unwrap();
    assert!(known.iter().any(|peer| peer.name == "a" && peer.connected));
    assert_together(stage);
}

fn anothers_contact(stage: &Stage) {
    let address = stage.lab.testbed().host("r").unwrap().address;
    forged_contact(stage, &[format!("/ip4/{address}/tcp/4001")]);
}

fn anothers_farewell(stage: &Stage) {
    forged_contact(stage, &[]);
}

/// What a member that admits says of a request that another member passes on.
fn admit(stage: &Stage, invite: &Invite, name: &str) -> Result<(), Refusal> {
    let joiner = MemberId(KeyPair::generate().public());
    let request = (joiner, invite, name, LinkKey(rand::random()));
    let body = postcard::to_stdvec(&request).unwrap();
    let answer = stage.rogue.call(stage.id("a"), "~admit", body).unwrap();
    match answer.first() {
        // What follows is a certificate.
        Some(0) => Ok(()),
        _ => postcard::from_bytes(&answer).expect("a refusal"),
    }
}

fn invite(stage: &Stage, uses: u32) -> Invite {
    Invite::parse(&stage.lab.invite("a", uses).unwrap()).unwrap()
}

fn used_up_invite(stage: &Stage) {
    let one = invite(stage, 1);
    assert_eq!(admit(stage, &one, "extra-1"), Ok(()));
    for name in ["extra-2", "extra-3"] {
        assert_eq!(admit(stage, &one, name), Err(Refusal::UsedUp));
    }
}

fn taken_name(stage: &Stage) {
    let many = invite(stage, 5);
    for name in ["a", "b"] {
        assert_eq!(admit(stage, &many, name), Err(Refusal::NameTaken));
    }
    assert_eq!(admit(stage, &many, "Not a name"), Err(Refusal::BadName));
}

fn forged_invite(stage: &Stage) {
    let text = stage.lab.invite("a", 1).unwrap();
    let genuine = postcard::to_stdvec(&Invite::parse(&text).unwrap()).unwrap();
    let mut admitted = 0;
    // Each byte is changed once: the network, the terms, the addresses, the signature.
    for at in 0..genuine.len() {
        let mut bytes = genuine.clone();
        bytes[at] ^= 0x11;
        let Ok(forged) = postcard::from_bytes::<Invite>(&bytes) else {
            continue;
        };
        admitted += usize::from(admit(stage, &forged, "forged").is_ok());
    }
    assert_eq!(admitted, 0);
}

/// A member gets invites for copies of itself only, a few a day, and none of another's.
fn anothers_copy(stage: &Stage) {
    let ask = || stage.rogue.call(stage.id("a"), "twin", vec![1]).unwrap();
    let invites: Vec<Vec<u8>> = (0..8)
        .map(|_| ask())
        .filter(|answer| answer[0] == 1)
        .collect();
    assert!(invites.len() <= 4, "{} invites", invites.len());
    for answer in invites {
        let text: String = postcard::from_bytes(&answer[1..]).unwrap();
        let invite = Invite::parse(&text).unwrap();
        assert!(!invite.terms().delegate && invite.uses() == 1);
    }
}

/// The rogue has told every daemon that it is ten years later, and that many clocks say so.
fn wrong_clock(stage: &Stage) {
    for host in DAEMONS {
        let answer = stage
            .honest
            .call(stage.id(host), "clock", Vec::new())
            .unwrap();
        let clock: ClockReport = postcard::from_bytes(&answer).unwrap();
        assert!(clock.clocks >= 3, "{host} has not asked: {clock:?}");
        assert!(
            (clock.net_ms - clock.wall_ms).abs() < APART_MS,
            "{host}: {clock:?}"
        );
    }
}

fn revocation_flood(stage: &Stage) {
    let delegate = &stage.delegate;
    let issuer = Issuer::delegate(delegate.identity.keys(), &delegate.certificate);
    let invented: Vec<MemberId> = (0..3 * OF_A_DELEGATE)
        .map(|_| MemberId(rand::random()))
        .collect();
    revoke(stage, delegate, &issuer, &invented);
    for host in DAEMONS {
        let kept = stage.lab.dir(host).unwrap().join("revocations");
        let bytes = std::fs::metadata(&kept).map_or(0, |file| file.len());
        assert!(bytes < 1 << 20, "{host} keeps {bytes} bytes of revocations");
    }
    assert_together(stage);
}

/// The root's revocation counts after the delegate's own; a revoked member is served nothing.
fn revoked_goes_on(stage: &Stage) {
    stage.lab.p2pvm("a", &["revoke", "d"]).unwrap();
    for host in DAEMONS {
        let began = std::time::Instant::now();
        while stage.delegate.call(stage.id(host), "vm", vec![0]).is_ok() {
            assert!(began.elapsed() < Duration::from_secs(15), "{host} answers");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let delegate = &stage.delegate;
    let issuer = Issuer::delegate(delegate.identity.keys(), &delegate.certificate);
    let one = Revocation::issue(
        &issuer,
        delegate.network.id,
        Target::Member(stage.id("b")),
        UnixTime::now(),
    );
    // Passed on by a member that is one.
    gossip(stage, &stage.rogue, &(Vec::<u8>::new(), vec![one]));
    std::thread::sleep(SPREAD);
    assert_together(stage);
}
