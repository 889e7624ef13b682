//! Why this node is no longer a member: the issuer that revoked it, since when, and what to do.

use crate::clock;
use p2pvm_overlay::{
    UnixTime,
    membership::{Certificate, Refusal, Target, Trust},
};

const FORGET: &str = "'p2pvm leave --force' forgets it; a new invite lets a new identity in";

/// The sentence for a certificate that was refused because of `why`.
pub(crate) fn sentence(trust: &Trust, own: &Certificate, why: &Refusal) -> String {
    match why {
        Refusal::Revoked => revoked(trust, own),
        Refusal::Expired => format!(
            "this node's membership has ended: its certificate was good from {} until {}, and \
                this machine's clock shows {}; if the clock \
             is wrong, {}; else {FORGET}",
            clock::shown(own.issued()),
            clock::shown(own.expires()),
            clock::shown(UnixTime::wall()),
            clock::SET
        ),
        other => format!(
            "this node's membership is not valid: {other}; 'p2pvm leave --force' forgets it"
        ),
    }
}

fn revoked(trust: &Trust, own: &Certificate) -> String {
    let all = trust.revocations();
    let hits = all.iter().filter_map(|word| match word.target() {
        Target::Member(member) if own.hangs_on(member) => Some((member, word)),
        _ => None,
    });
    // The revocation of this node itself says more than that of a member that it depends on.
    let Some((member, word)) = hits.min_by_key(|(member, _)| *member != own.member()) else {
        return format!("this node's membership has been revoked: {FORGET}");
    };
    let by = word.delegate_name().map_or_else(
        || "the network's founder".to_owned(),
        |name| format!("its delegate {name}"),
    );
    let what = if member == own.member() {
        "this node's membership has been revoked"
    } else if own.delegate() == Some(member) {
        "this node's membership has fallen: the delegate that admitted it has been revoked"
    } else {
        "this node's membership has fallen: the member of whose state it was a copy has been \
            revoked"
    };
    format!("{what}, by {by} on {}: {FORGET}", clock::shown(word.at()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::{
        identity::{Identity, KeyPair},
        membership::{Ipv4Subnet, Issuer, NetworkConfig, Revocation, Rights},
    };

    const AT: UnixTime = UnixTime(1_790_000_000);

    struct World {
        root: KeyPair,
        network: NetworkConfig,
        trust: Trust,
        _dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let (root, dir) = (KeyPair::generate(), tempfile::tempdir().unwrap());
            let subnet = Ipv4Subnet::new([10, 99, 0, 0].into(), 16).unwrap();
            let network = NetworkConfig::found(&root, "lab", subnet, AT).unwrap();
            let trust = Trust::load(network.id, &dir.path().join("revocations")).unwrap();
            Self {
                root,
                network,
                trust,
                _dir: dir,
            }
        }

        fn member(
            &self,
            issuer: &Issuer<'_>,
            name: &str,
            rights: Rights,
        ) -> (Identity, Certificate) {
            let identity = Identity::generate();
            let who = (identity.member_id(), identity.link_key());
            let lasts = (AT, UnixTime(AT.0 + 3600));
            let certificate = issuer
                .certify(&self.network, who, name, rights, lasts)
                .unwrap();
            (identity, certificate)
        }

        fn revoke(&self, issuer: &Issuer<'_>, member: p2pvm_overlay::MemberId) {
            let word = Revocation::issue(
                issuer,
                self.network.id,
                Target::Member(member),
                UnixTime(AT.0 + 60),
            );
            self.trust.add_revocation(word).unwrap();
        }
    }

    #[test]
    fn an_expelled_member_learns_who_revoked_whom_and_when() {
        let world = World::new();
        let root = Issuer::root(&world.root);
        let (delegate, delegates) = world.member(&root, "boss", Rights { admit: true });
        let by_delegate = Issuer::delegate(delegate.keys(), &delegates);
        let (_, own) = world.member(&by_delegate, "own", Rights::default());
        let (_, other) = world.member(&by_delegate, "other", Rights::default());
        world.revoke(&by_delegate, own.member());
        let said = sentence(&world.trust, &own, &Refusal::Revoked);
        assert!(
            said.contains("has been revoked, by its delegate boss on 2026-09-21T"),
            "{said}"
        );
        assert!(said.contains("p2pvm leave --force"), "{said}");
        world.revoke(&root, delegate.member_id());
        let said = sentence(&world.trust, &other, &Refusal::Revoked);
        assert!(
            said.contains(
                "the delegate that admitted it has been revoked, by the network's founder"
            ),
            "{said}"
        );
    }

    #[test]
    fn an_expired_certificate_is_told_with_its_dates_and_the_clock() {
        let world = World::new();
        let (_, own) = world.member(&Issuer::root(&world.root), "own", Rights::default());
        let said = sentence(&world.trust, &own, &Refusal::Expired);
        assert!(
            said.contains("2026-09-21T")
                && said.contains("this machine's clock shows")
                && said.contains("timedatectl"),
            "{said}"
        );
    }
}
