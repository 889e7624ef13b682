//! Golden bytes of what a network's root, delegates and members sign, and samples of it for the
//! messages of other modules. Keys and times are fixed, and ed25519 signs the same bytes the same
//! way: so these hold what is signed, too.

use super::*;
use crate::{
    golden::{self, variants},
    id::{NetworkId, UnixTime, VmId},
    identity::{KeyPair, LinkKey},
};
use std::net::Ipv4Addr;

/// When the samples end. Reason: later than any clock of a machine that runs tests.
pub(crate) const END: UnixTime = UnixTime(1 << 40);

pub(crate) fn root() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

pub(crate) fn delegate_keys() -> KeyPair {
    KeyPair::from_seed(&[2; 32])
}

pub(crate) fn member_keys() -> KeyPair {
    KeyPair::from_seed(&[7; 32])
}

pub(crate) fn network() -> NetworkConfig {
    let subnet = Ipv4Subnet::new(Ipv4Addr::new(10, 9, 0, 0), 16).expect("a subnet");
    NetworkConfig::found(&root(), "lab", subnet, UnixTime(1)).expect("a network")
}

fn certify(
    issuer: &Issuer<'_>,
    of: &KeyPair,
    name: &str,
    admit: bool,
    groups: Groups,
) -> Certificate {
    let who = (MemberId(of.public()), LinkKey([9; 32]));
    let granted = (Rights { admit }, groups);
    issuer
        .certify_in(&network(), who, name, granted, (UnixTime(2), END))
        .expect("a certificate")
}

/// The certificate of a member, by the root.
pub(crate) fn certificate() -> Certificate {
    let groups = Groups::default();
    certify(
        &Issuer::root(&root()),
        &member_keys(),
        "alpha",
        false,
        groups,
    )
}

pub(crate) fn delegate() -> Certificate {
    let groups = Groups::default();
    certify(
        &Issuer::root(&root()),
        &delegate_keys(),
        "gate",
        true,
        groups,
    )
}

fn groups() -> Groups {
    Groups::new(["lab", "servers"]).expect("groups")
}

fn by_delegate() -> Certificate {
    let (keys, own) = (delegate_keys(), delegate());
    certify(
        &Issuer::delegate(&keys, &own),
        &member_keys(),
        "beta",
        false,
        groups(),
    )
}

pub(crate) fn invite() -> Invite {
    let terms = InviteTerms {
        uses: 3,
        expires: END,
        delegate: true,
        groups: Groups::default(),
    };
    let address = "/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooWA".to_owned();
    Invite::sign(
        &Issuer::root(&root()),
        &network(),
        &[address],
        terms,
        InviteId([5; 16]),
    )
}

fn invite_of_delegate() -> Invite {
    let terms = InviteTerms {
        uses: 1,
        expires: END,
        delegate: false,
        groups: groups(),
    };
    let (keys, own) = (delegate_keys(), delegate());
    Invite::sign(
        &Issuer::delegate(&keys, &own),
        &network(),
        &[],
        terms,
        InviteId([6; 16]),
    )
}

fn revoke(issuer: &Issuer<'_>, target: Target) -> Revocation {
    Revocation::issue(issuer, network().id, target, UnixTime(3))
}

pub(crate) fn revocation() -> Revocation {
    revoke(&Issuer::root(&root()), Target::Member(MemberId([4; 32])))
}

fn revocation_of_delegate() -> Revocation {
    let (keys, own) = (delegate_keys(), delegate());
    revoke(
        &Issuer::delegate(&keys, &own),
        Target::Invite(InviteId([6; 16])),
    )
}

fn policy(issuer: &Issuer<'_>, version: u64) -> Notice {
    let text = "default = \"deny\"";
    let signed = SignedPolicy::issue(issuer, network().id, version, UnixTime(4), text);
    Notice::Policy(Box::new(signed.expect("a policy")))
}

fn offer() -> Notice {
    let subnets = ["192.168.7.0/24", "fd00::/8"].map(|text| text.parse().expect("a subnet"));
    Notice::Offer(Box::new(Offer::sign(
        &member_keys(),
        certificate(),
        (subnets.to_vec(), true),
        UnixTime(5),
        (8, END),
    )))
}

/// A notice of each kind and kind of issuer, by the names of their lines.
pub(crate) fn notices() -> Vec<(&'static str, Notice)> {
    let (keys, own) = (delegate_keys(), delegate());
    variants! {
        Notice::Policy(_) => {
            "policy.by-root": policy(&Issuer::root(&root()), 1),
            "policy.by-delegate": policy(&Issuer::delegate(&keys, &own), 2),
        }
        Notice::Offer(_) => { "offer": offer() }
    }
}

pub(crate) fn refusals() -> Vec<(&'static str, Refusal)> {
    variants! {
        Refusal::Expired => { "refusal.expired": Refusal::Expired }
        Refusal::UsedUp => { "refusal.used-up": Refusal::UsedUp }
        Refusal::Tampered => { "refusal.tampered": Refusal::Tampered }
        Refusal::OtherNetwork => { "refusal.other-network": Refusal::OtherNetwork }
        Refusal::Revoked => { "refusal.revoked": Refusal::Revoked }
        Refusal::NotAnInvite => { "refusal.not-an-invite": Refusal::NotAnInvite }
        Refusal::UnknownIssuer => { "refusal.unknown-issuer": Refusal::UnknownIssuer }
        Refusal::NameTaken => { "refusal.name-taken": Refusal::NameTaken }
        Refusal::BadName => { "refusal.bad-name": Refusal::BadName }
        Refusal::NotYours => { "refusal.not-yours": Refusal::NotYours }
        Refusal::CannotAdmit => { "refusal.cannot-admit": Refusal::CannotAdmit }
        Refusal::Undecided(_) => { "refusal.undecided": Refusal::Undecided("busy".into()) }
        Refusal::BadGroup => { "refusal.bad-group": Refusal::BadGroup }
        Refusal::BadDocument(_) => { "refusal.bad-document": Refusal::BadDocument("no".into()) }
    }
}

/// Plain postcard, as on a stream, with nothing left over.
pub(crate) fn plain<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain fields always serialize")
}

/// See [`plain`].
pub(crate) fn read_plain<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

#[test]
fn members_of_the_previous_version_read_every_signed_document() {
    golden::check("membership", |golden| {
        let trust = Trust::new(network().id);
        golden.message("network", &network(), plain, read_plain);
        let copy = groups().of_copy(MemberId([4; 32])).expect("groups");
        let certificates = [
            ("certificate", certificate()),
            ("certificate.admit", delegate()),
            ("certificate.by-delegate", by_delegate()),
            (
                "certificate.copy",
                certify(&Issuer::root(&root()), &member_keys(), "copy", false, copy),
            ),
        ];
        for (name, sample) in &certificates {
            golden.message(name, sample, plain, read_plain);
            assert_eq!(trust.verify_at(sample, UnixTime(9)), Ok(()), "{name}");
        }
        for (name, sample) in [
            ("invite", invite()),
            ("invite.by-delegate", invite_of_delegate()),
        ] {
            golden.message(name, &sample, plain, read_plain);
            let text = format!("{name}.text");
            golden.message(
                &text,
                &sample,
                |i| i.to_text().into(),
                |bytes| Invite::parse(std::str::from_utf8(bytes).ok()?).ok(),
            );
        }
        let revocations = [revocation(), revocation_of_delegate()];
        let named = variants! {
            Target::Member(_) => { "revocation.member": revocations[0].target() }
            Target::Invite(_) => { "revocation.invite": revocations[1].target() }
        };
        for ((name, _), sample) in named.into_iter().zip(revocations) {
            golden.message(name, &sample, plain, read_plain);
            assert_eq!(trust.add_revocation(sample), Ok(true), "{name}");
        }
        golden.bytes("digest-of-revocations", &trust.digest());
        golden.messages(notices(), plain, read_plain);
        for (name, notice) in notices() {
            assert_eq!(notice.verify(&trust), Ok(()), "{name}");
        }
        golden.messages(refusals(), plain, read_plain);
    });
}

#[test]
fn members_of_the_previous_version_derive_the_same_addresses() {
    golden::check("addresses", |golden| {
        let (network, member, vm) = (network(), MemberId([4; 32]), VmId([3; 32]));
        let NetworkId(id) = network.id;
        golden.bytes("network.id", &id);
        golden.bytes("network.prefix", &network.ula_prefix().octets());
        golden.bytes("member.v6", &network.member_v6(member).octets());
        golden.bytes("vm.prefix", &network.vm_prefix().octets());
        golden.bytes("vm.v6", &network.vm_v6(vm).octets());
        golden.bytes("vm.mac", &vm_mac(vm));
        golden.bytes("member.ring-address", &member.ring_addr().0);
    });
}
