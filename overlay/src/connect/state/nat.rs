//! What is known of the NAT in front of this node, and the judgement of others' answers.
//!
//! IPv4 and IPv6 are judged separately. Others are told the IPv4 result if there is one: IPv6 has
//! no NATs, and a firewall there opens whenever both sides write at once.

use super::{
    Action, State,
    examine::{self, Finding, WrittenAddresses},
};
use crate::{
    connect::message::{Candidate, CandidateKind, NatKind, Reachability},
    id::MemberId,
    plane::packet::is_site_local,
    portmap,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// How long a finding is believed; shorter if a second member's help was missing.
const FINDING_LIFE: Duration = Duration::from_secs(600);
const FINDING_LIFE_INCOMPLETE: Duration = Duration::from_secs(4);
/// How long it is believed while a link in use is not direct. Reason: the NAT may be another one
/// than the one found.
const FINDING_LIFE_WANTED: Duration = Duration::from_secs(40);

/// The result of a closer look at one address family.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExaminationResult {
    pub finding: Finding,
    /// The outside address it was made at, and when.
    pub found: Option<(SocketAddr, Instant)>,
}

/// What is known of the NAT before this node.
#[derive(Default)]
pub(crate) struct Nat {
    /// The kind of NAT, by IPv4 if this node has that.
    pub kind: NatKind,
    /// The kind of firewall in front of its IPv6 addresses.
    pub kind6: NatKind,
    /// Its address as others see it, where a NAT changes it, and the previous one.
    pub reflexive: Option<SocketAddr>,
    reflexive_before: Option<SocketAddr>,
    pub mapped: Option<SocketAddr>,
    pub mapped_by: Option<portmap::Protocol>,
    /// The newest mapping, also if it is no longer held: flows through it go on.
    pub mapped_last: Option<SocketAddr>,
    pub four: ExaminationResult,
    pub six: ExaminationResult,
    /// Whether it is known if the NAT gives each destination another mapping.
    pub mapping_known: bool,
    /// The member that helped with the closer look, and its address.
    pub helper: Option<(MemberId, SocketAddr)>,
    pub written: WrittenAddresses,
}

impl Nat {
    /// Forgets everything that may differ in another network.
    pub fn forget(&mut self) {
        (self.mapped, self.mapped_by, self.helper) = (None, None, None);
        self.kind6 = NatKind::Unknown;
        self.doubt();
    }

    /// Marks all findings as uncertain: they are found out again, and others are told "unknown"
    /// meanwhile.
    pub fn doubt(&mut self) {
        (self.kind, self.reflexive) = (NatKind::Unknown, None);
        (self.four.found, self.six.found) = (None, None);
    }

    pub fn examined(&mut self, v4: bool) -> &mut ExaminationResult {
        if v4 { &mut self.four } else { &mut self.six }
    }
}

/// The judgement of one round's answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub kind: NatKind,
    /// Our outside address, if others see another than ours.
    pub reflexive: Option<SocketAddr>,
    /// Answers that show how the NAT maps.
    pub telling: usize,
}

/// Judges the answers of one round. `seen` has the server asked and our address as it saw it.
/// `let_through` knows the ports that the router lets all packets through to us. Such a port says
/// nothing about the NAT: a member that wrote to us there sees us there, others see what the NAT
/// gives us.
pub(crate) fn judge(
    seen: &[(SocketAddr, SocketAddr)],
    (local, port): (&[IpAddr], u16),
    let_through: impl Fn(SocketAddr) -> bool,
) -> Verdict {
    let is_ours = |mapped: &SocketAddr| mapped.port() == port && local.contains(&mapped.ip());
    // A member in our own network sees our own address whatever NAT is at the border: the others
    // decide.
    let outside: Vec<_> = seen.iter().filter(|(_, mapped)| !is_ours(mapped)).collect();
    let telling: Vec<_> = outside
        .iter()
        .filter(|(_, mapped)| !let_through(*mapped))
        .collect();
    let Some((server, mapped)) = telling.first().copied().or(outside.first()) else {
        let kind = if seen.is_empty() {
            NatKind::Unknown
        } else {
            NatKind::Open
        };
        return Verdict {
            kind,
            reflexive: None,
            telling: seen.len(),
        };
    };
    let differs = telling.iter().any(|(other, m)| {
        other.ip() != server.ip() && m.ip() == mapped.ip() && m.port() != mapped.port()
    });
    let kind = if differs {
        NatKind::Symmetric
    } else {
        NatKind::Cone
    };
    Verdict {
        kind,
        reflexive: Some(*mapped),
        telling: telling.len(),
    }
}

/// Whether a member has the address on an interface of its own and others can reach it.
pub(crate) fn is_public_own(candidate: &Candidate) -> bool {
    candidate.kind == CandidateKind::Local && !is_private(&candidate.addr.ip())
}

/// Whether a member can be expected to accept packets from anywhere.
pub(crate) fn seems_open(reachability: &Reachability) -> bool {
    matches!(reachability.nat, NatKind::Open | NatKind::Unknown)
        && reachability.candidates.iter().any(is_public_own)
}

/// Whether an address is of the kind that NATs hide (RFC 1918, RFC 6598, RFC 4193), or that means
/// another machine at each site.
pub(crate) fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local() || is_site_local(ip),
    }
}

impl ExaminationResult {
    /// Whether the finding about the NAT at `mapped` still holds.
    pub fn holds(&self, mapped: SocketAddr, wants_better: bool, now: Instant) -> bool {
        let life = match (self.finding.complete, wants_better) {
            (false, _) => FINDING_LIFE_INCOMPLETE,
            (true, true) => FINDING_LIFE_WANTED,
            (true, false) => FINDING_LIFE,
        };
        self.found.is_some_and(|(of, at)| {
            of.ip() == mapped.ip() && now.saturating_duration_since(at) < life
        })
    }
}

impl State {
    /// Stores the result of a round, and returns the present kind.
    pub(super) fn note(
        &mut self,
        now: Instant,
        verdict: Verdict,
        kind6: NatKind,
        local: &[IpAddr],
    ) -> NatKind {
        let (mut kind, reflexive) = (verdict.kind, verdict.reflexive);
        let before = self.nat.kind;
        // One member alone cannot tell a symmetric NAT from a cone: the result of two stays.
        if kind == NatKind::Cone
            && verdict.telling < 2
            && matches!(before, NatKind::Symmetric | NatKind::Counting)
        {
            kind = before;
        }
        let same =
            |of: SocketAddr| reflexive.map_or(local.contains(&of.ip()), |r| r.ip() == of.ip());
        if self.nat.four.found.is_some_and(|(of, _)| same(of)) {
            kind = examine::refine(kind, &self.nat.four.finding);
        }
        if kind6 != NatKind::Unknown {
            self.nat.kind6 = kind6;
        }
        if kind != NatKind::Unknown {
            self.note_kind(now, kind, reflexive);
        }
        kind
    }

    fn note_kind(&mut self, now: Instant, kind: NatKind, reflexive: Option<SocketAddr>) {
        let nat = &mut self.nat;
        // The outside address has changed: links and connections made before are dead, whichever
        // end learns of it first.
        let moved = nat
            .reflexive
            .zip(reflexive)
            .is_some_and(|(was, is)| was.ip() != is.ip());
        // A router may keep a previous mapping beside the new one: each member sees its own, and
        // neither is news.
        let in_turn = reflexive.is_some() && nat.reflexive_before == reflexive;
        let differs = nat.reflexive != reflexive;
        if differs {
            nat.reflexive_before = nat.reflexive;
        }
        if nat.kind != kind || moved || (differs && !in_turn) {
            tracing::info!(?kind, ?reflexive, "what others see of us");
            // Paths that failed before may work now.
            self.retries.all_anew(now);
        }
        (self.nat.kind, self.nat.reflexive) = (kind, reflexive);
        if moved {
            self.actions.push_back(Action::MappingChanged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_kind_of_nat_shows_in_what_two_members_see() {
        let local = ["192.168.1.5".parse().unwrap()];
        let (s1, s2) = (at("198.18.0.1:7"), at("198.18.0.2:7"));
        let (m1, m2) = (at("198.18.9.9:4000"), at("198.18.9.9:4001"));
        let judged = |seen: &[_]| {
            let verdict = judge(seen, (&local, 7), |_| false);
            (verdict.kind, verdict.reflexive)
        };
        assert_eq!(judged(&[]).0, NatKind::Unknown);
        assert_eq!(judged(&[(s1, at("192.168.1.5:7"))]), (NatKind::Open, None));
        assert_eq!(judged(&[(s1, m1), (s2, m1)]), (NatKind::Cone, Some(m1)));
        assert_eq!(
            judged(&[(s1, m1), (s2, m2)]),
            (NatKind::Symmetric, Some(m1))
        );
        let neighbour = at("192.168.1.6:7");
        assert_eq!(
            judged(&[(neighbour, at("192.168.1.5:7")), (s2, m1)]),
            (NatKind::Cone, Some(m1))
        );
    }

    #[test]
    fn addresses_that_every_site_gives_out_make_no_member_open() {
        let local = |ip: &str| Candidate {
            kind: CandidateKind::Local,
            addr: SocketAddr::new(ip.parse().unwrap(), 7),
        };
        let member = |ips: &[&str]| Reachability {
            candidates: ips.iter().copied().map(local).collect(),
            nat: NatKind::Unknown,
            neighbours: Vec::new(),
            relay: false,
            coordinate: None,
        };
        // What QEMU's own NAT gives to each machine behind it.
        assert!(!seems_open(&member(&[
            "10.0.2.15",
            "fec0::5054:ff:fe12:3456"
        ])));
        assert!(!seems_open(&member(&["fd00::1"])));
        assert!(seems_open(&member(&["10.0.2.15", "2001:db8::7"])));
    }

    #[test]
    fn a_port_that_the_router_lets_through_shows_nothing_of_the_nat() {
        let local = ["192.168.1.5".parse().unwrap()];
        let (s1, s2, s3) = (at("198.18.0.1:7"), at("198.18.0.2:7"), at("198.18.0.3:7"));
        let (m1, m2, mapped) = (
            at("198.18.9.9:4000"),
            at("198.18.9.9:4001"),
            at("198.18.9.9:7"),
        );
        let judged = |seen: &[_]| judge(seen, (&local, 7), |addr| addr == mapped);
        let cone = |telling| Verdict {
            kind: NatKind::Cone,
            reflexive: Some(m1),
            telling,
        };
        // In any order of their answers, and whichever of them has written to us there.
        assert_eq!(judged(&[(s1, mapped), (s2, m1)]), cone(1));
        assert_eq!(judged(&[(s1, m1), (s2, mapped), (s3, m1)]), cone(2));
        assert_eq!(
            judged(&[(s1, mapped), (s2, m1), (s3, m2)]),
            Verdict {
                kind: NatKind::Symmetric,
                ..cone(2)
            }
        );
        // Where nobody tells, `note` lets stand what is known.
        assert_eq!(
            judged(&[(s1, mapped), (s2, mapped)]),
            Verdict {
                reflexive: Some(mapped),
                ..cone(0)
            }
        );
    }
}
