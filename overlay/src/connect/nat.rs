//! Finding out what stands between this node and the others: STUN against members, then a closer
//! look with their help.
//!
//! IPv4 and IPv6 are asked for apart. What is told to others is the IPv4 side where there is one:
//! IPv6 has no NATs, and a firewall there is passed whenever both write at once.

use super::{
    Shared,
    dial::{self, ask},
    escape,
    examine::{self, Filtering, Finding},
    message::{Answer, Candidate, CandidateKind, NatKind, Request, Whereabouts},
    mobility,
};
use crate::{
    id::MemberId,
    plane::{Path, packet::is_site_local},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Members whose whereabouts are asked for in one round.
const SERVERS: usize = 3;
/// Members asked by STUN in one round: two different ones tell a cone from a symmetric NAT, a third
/// makes up for one that is NATted, unless it is known to be open: then it is better kept as one to
/// whom nothing was ever written.
const ASKED: usize = 2;
/// What a member said of itself is believed this long here.
const FRESH: Duration = Duration::from_secs(600);
/// One STUN exchange.
const STUN_LIMIT: Duration = Duration::from_millis(1200);
/// With an address of our own that others see, things change rarely.
const WHEN_OPEN: Duration = Duration::from_secs(300);
/// Behind a NAT the mapping must be kept alive (many drop one after 30 s), unless that is done by
/// the looks of `mobility`.
const WHEN_NATTED: Duration = Duration::from_secs(20);
/// Otherwise only the kind of NAT is looked at anew: a router may have been exchanged.
const WHEN_LOOKED_AFTER: Duration = Duration::from_secs(120);
/// UDP that did not get through may do so later: a laptop moves, and who did not answer may have
/// been the one without UDP.
const WHEN_BLOCKED: Duration = Duration::from_secs(20);
/// Who lives answers over the control plane within this.
const ALIVE_LIMIT: Duration = Duration::from_secs(3);
/// Rounds that follow each other quickly until two members have answered.
const HASTY_ROUNDS: u32 = 5;
/// Rounds with members to ask and no answer after which UDP counts as blocked.
const SILENT_ROUNDS: u32 = 2;
/// A finding is believed this long, and one that lacked a second member's help less long.
const FINDING_LIFE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(4));
/// While a link in use is not direct, which another NAT than the one found may be the reason of, so
/// long.
const FINDING_LIFE_WANTED: Duration = Duration::from_secs(40);
/// And that is looked at so often.
const WHEN_WANTED: Duration = Duration::from_secs(30);
/// As long as that help is lacking, so many members are asked in a round where they are, and rounds
/// follow sooner.
const SEEKING: usize = 8;
const WHEN_SEEKING: Duration = Duration::from_secs(5);
/// Rounds that follow sooner for it: in a network of few public members there may never be one.
const SEEKING_ROUNDS: u32 = 8;

/// What the answers of one round mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub kind: NatKind,
    /// Our address outside, if others see another than ours.
    pub reflexive: Option<SocketAddr>,
    /// Answers that tell how the NAT maps.
    pub telling: usize,
}

/// Judges the answers of one round. `seen`: the server asked and our address as it saw it.
/// `let_through` knows the ports that the router lets everybody through to us: a member that wrote
/// to us there sees us there, others see what the NAT gives us, so the one says nothing about the
/// other.
pub(crate) fn judge(
    seen: &[(SocketAddr, SocketAddr)],
    (local, port): (&[IpAddr], u16),
    let_through: impl Fn(SocketAddr) -> bool,
) -> Verdict {
    let is_ours = |mapped: &SocketAddr| mapped.port() == port && local.contains(&mapped.ip());
    // Someone in our own network sees our own address whatever stands at its border: the others
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

/// A member that answered by STUN: the address that answered, and ours as it saw it.
#[derive(Clone, Copy)]
struct Seen {
    member: MemberId,
    /// It answered at a public address of its own, so it hears whoever writes to it.
    open: bool,
    server: SocketAddr,
    mapped: SocketAddr,
}

/// One member's addresses worth asking.
struct Server {
    member: MemberId,
    candidates: Vec<Candidate>,
    /// It should answer if UDP gets through at all.
    open: bool,
}

/// Whether a member has it on an interface of its own and others can reach it.
pub(crate) fn is_public_own(candidate: &Candidate) -> bool {
    candidate.kind == CandidateKind::Local && !is_private(&candidate.addr.ip())
}

/// Whether a member may be expected to hear whoever writes to it.
pub(super) fn seems_open(whereabouts: &Whereabouts) -> bool {
    matches!(whereabouts.nat, NatKind::Open | NatKind::Unknown)
        && whereabouts.candidates.iter().any(is_public_own)
}

/// Members' addresses worth asking, a few per member, members known to stand open first.
async fn servers(shared: &Arc<Shared>) -> Vec<Server> {
    let connected = shared.fabric.connected();
    let now = Instant::now();
    let unknown: Vec<MemberId> = {
        let state = shared.state();
        let fresh = |m: &MemberId| {
            state.known.get(m).is_some_and(|(at, w)| {
                now.saturating_duration_since(*at) < FRESH && w.nat != NatKind::Unknown
            })
        };
        let seeking = state.found.is_some() && !state.finding.complete;
        connected
            .iter()
            .copied()
            .filter(|m| !fresh(m))
            .take(if seeking { SEEKING } else { SERVERS })
            .collect()
    };
    let mut asking = JoinSet::new();
    for member in unknown {
        let shared = shared.clone();
        asking.spawn(async move {
            if let Ok(Answer::Here(whereabouts)) =
                ask(&shared, member, Request::Where, Duration::from_secs(3)).await
            {
                shared.remember(member, &whereabouts);
            }
        });
    }
    while asking.join_next().await.is_some() {}
    let state = shared.state();
    let mut known: Vec<_> = connected
        .iter()
        .filter_map(|m| Some((*m, &state.known.get(m)?.1)))
        .collect();
    // Two that know of nobody else and took each other's silence for their own would never ask
    // again.
    if known.iter().any(|(_, w)| w.nat != NatKind::Blocked) {
        known.retain(|(_, w)| w.nat != NatKind::Blocked);
    }
    // Those that were asked before first: the fewer are written to, the more may knock.
    let asked = |w: &Whereabouts| {
        w.candidates
            .iter()
            .any(|c| state.written.contains(c.addr.ip(), now))
    };
    known.sort_by_key(|(member, w)| (!seems_open(w), !asked(w), *member));
    let mut servers: Vec<Server> = Vec::new();
    for (member, whereabouts) in known.into_iter().take(SERVERS) {
        let open = seems_open(whereabouts);
        if servers.len() < ASKED || servers.iter().any(|s| !s.open) {
            servers.push(Server {
                member,
                candidates: whereabouts.candidates.clone(),
                open,
            });
        }
    }
    servers
}

/// One round: the members asked that should have answered, and what those who did saw.
async fn round(shared: &Arc<Shared>) -> (BTreeSet<MemberId>, Vec<Seen>) {
    let local = shared.plane.local_addresses();
    let servers = servers(shared).await;
    let (mut asking, mut asked) = (JoinSet::new(), BTreeSet::new());
    for v4 in [true, false] {
        // Without an address of our own that leads out there is nothing to ask.
        if !local
            .iter()
            .any(|ip| ip.is_ipv4() == v4 && (v4 || !is_private(ip)))
        {
            continue;
        }
        for server in &servers {
            let candidates: Vec<_> = server
                .candidates
                .iter()
                .filter(|c| c.addr.is_ipv4() == v4)
                .take(3)
                .copied()
                .collect();
            if candidates.is_empty() {
                continue;
            }
            asked.extend(server.open.then_some(server.member));
            let now = Instant::now();
            candidates
                .iter()
                .for_each(|c| shared.state().written.note(c.addr.ip(), now));
            let (shared, member) = (shared.clone(), server.member);
            asking.spawn(async move {
                let mut tries = JoinSet::new();
                for candidate in candidates {
                    let shared = shared.clone();
                    tries.spawn(async move {
                        (
                            candidate,
                            shared.plane.stun(candidate.addr, STUN_LIMIT).await,
                        )
                    });
                }
                while let Some(answer) = tries.join_next().await {
                    if let Ok((candidate, Some(mapped))) = answer {
                        return Some(Seen {
                            member,
                            open: is_public_own(&candidate),
                            server: candidate.addr,
                            mapped,
                        });
                    }
                }
                None
            });
        }
    }
    let mut seen = Vec::new();
    while let Some(answer) = asking.join_next().await {
        seen.extend(answer.ok().flatten());
    }
    (asked, seen)
}

/// Whether a link shows that UDP gets out of this site and back.
fn gets_through(shared: &Shared) -> bool {
    shared
        .plane
        .peers()
        .iter()
        .any(|(_, info)| matches!(info.path, Path::Direct(at) if !is_private(&at.ip())))
}

/// Whether it is for UDP that these, who should have answered, did not. Who is gone answers
/// nothing, and the control plane takes a while to notice that it is.
async fn is_blocked(shared: &Arc<Shared>, silent: BTreeSet<MemberId>) -> bool {
    if gets_through(shared) {
        return false;
    }
    let mut asking = JoinSet::new();
    for member in silent {
        let shared = shared.clone();
        asking.spawn(async move {
            ask(&shared, member, Request::Where, ALIVE_LIMIT)
                .await
                .is_ok()
        });
    }
    while let Some(answer) = asking.join_next().await {
        if answer.is_ok_and(|lives| lives) {
            return !escape::from_silence(shared).await;
        }
    }
    false
}

/// Takes back that UDP is blocked when a link shows that it is not, or when all are gone who could
/// have shown it.
fn unblock(shared: &Shared) {
    if !gets_through(shared) && !shared.fabric.connected().is_empty() {
        return;
    }
    let mut state = shared.state();
    if state.nat == NatKind::Blocked {
        tracing::info!("UDP may get through after all");
        (state.nat, state.nat6) = (NatKind::Unknown, NatKind::Unknown);
    }
}

/// Whether what was found out about the NAT at `mapped` still holds.
fn holds(
    finding: &Finding,
    found: Option<(SocketAddr, Instant)>,
    mapped: SocketAddr,
    (now, wanted): (Instant, bool),
) -> bool {
    found.is_some_and(|(of, at)| {
        let life = match (finding.complete, wanted) {
            (false, _) => FINDING_LIFE.1,
            (true, true) => FINDING_LIFE_WANTED,
            (true, false) => FINDING_LIFE.0,
        };
        of.ip() == mapped.ip() && now.saturating_duration_since(at) < life
    })
}

/// Looks closer at one family's NAT or firewall, unless that was done lately.
async fn look_closer(shared: &Arc<Shared>, seen: &[Seen], v4: bool, kind: NatKind) -> NatKind {
    // A knock at a port that the router lets through shows nothing of the NAT.
    let telling =
        |s: &&Seen| s.open && s.server.is_ipv4() == v4 && !shared.is_let_through(s.mapped);
    let Some(helper) = seen.iter().find(telling) else {
        // Nobody here can tell.
        shared.state().mapping_known |= v4;
        return kind;
    };
    let (finding, found) = {
        let state = shared.state();
        if v4 {
            (state.finding, state.found)
        } else {
            (state.finding6, state.found6)
        }
    };
    if holds(
        &finding,
        found,
        helper.mapped,
        (Instant::now(), dial::wants_better(shared)),
    ) {
        return examine::refine(kind, &finding);
    }
    // Who has no NAT has no mapping.
    let mapping = async {
        if v4 && kind != NatKind::Open {
            look_at_the_mapping(shared, helper, kind).await
        } else {
            None
        }
    };
    let (mut new, second) = tokio::join!(
        examine::examine(shared, helper.member, helper.server, helper.mapped),
        mapping
    );
    if let Some(second) = second.filter(|second| !new.by_port && !shared.is_let_through(*second)) {
        new.note_second(helper.mapped, second);
    }
    let mut state = shared.state();
    let stamp = Some((helper.mapped, Instant::now()));
    // A helper that did not help must not make us forget what another showed.
    let kept = if new.filtering == Filtering::Unknown
        && found.is_some_and(|(of, _)| of.ip() == helper.mapped.ip())
    {
        finding
    } else {
        new
    };
    if v4 {
        (state.finding, state.found, state.helper) =
            (kept, stamp, Some((helper.member, helper.server)));
    } else {
        (state.finding6, state.found6) = (kept, stamp);
    }
    examine::refine(kind, &kept)
}

/// Whether the NAT gives other destinations other mappings. First punches wait for this
/// ([`Shared::punch`]), so it is told at once, while the slow knocks are still under way.
async fn look_at_the_mapping(
    shared: &Arc<Shared>,
    helper: &Seen,
    kind: NatKind,
) -> Option<SocketAddr> {
    let second = examine::mapped_anew(shared, helper.member, helper.server).await;
    {
        let mut state = shared.state();
        if let Some(second) =
            second.filter(|second| !state.is_let_through(&shared.options, *second))
        {
            let mut finding = state.finding;
            finding.note_second(helper.mapped, second);
            if finding.by_port {
                (state.finding, state.helper) = (finding, Some((helper.member, helper.server)));
                state.nat = examine::refine(kind, &finding);
            }
        }
        state.mapping_known = true;
    }
    shared.learned.notify_waiters();
    second
}

/// Keeps the reflexive address and the kind of NAT known.
pub(crate) async fn learn(shared: Arc<Shared>) {
    let (mut silent, mut rounds) = (0, 0u32);
    loop {
        let (should_answer, seen) = round(&shared).await;
        let asked = !should_answer.is_empty();
        rounds = rounds.saturating_add(u32::from(asked));
        silent = if asked && seen.is_empty() && is_blocked(&shared, should_answer).await {
            silent + 1
        } else {
            0
        };
        let (local, port) = (shared.plane.local_addresses(), shared.plane.udp_port());
        let of = |v4: bool| -> Vec<_> {
            seen.iter()
                .filter(|s| s.server.is_ipv4() == v4)
                .map(|s| (s.server, s.mapped))
                .collect()
        };
        let (four, six) = (of(true), of(false));
        let let_through = |addr| shared.is_let_through(addr);
        let Verdict {
            mut kind,
            reflexive,
            telling,
        } = judge(&four, (&local, port), let_through);
        let mut kind6 = judge(&six, (&local, port), let_through).kind;
        if silent >= SILENT_ROUNDS {
            (kind, kind6) = (NatKind::Blocked, NatKind::Blocked);
        } else if kind == NatKind::Unknown {
            // No IPv4, or nobody to ask there.
            kind = kind6;
        }
        if kind == NatKind::Unknown {
            unblock(&shared);
        }
        if !seen.is_empty() && shared.state().first_port_dead {
            tracing::info!("the first port gets through again");
            shared.come_back_all();
        }
        // What is known so far is worth telling at once: a closer look takes another round trip or
        // two.
        note(&shared, kind, kind6, reflexive, telling);
        shared.learned.notify_waiters();
        if !four.is_empty() {
            kind = look_closer(&shared, &seen, true, kind).await;
        }
        if !six.is_empty() {
            kind6 = look_closer(&shared, &seen, false, kind6).await;
            if four.is_empty() {
                kind = kind6;
            }
        }
        kind = note(&shared, kind, kind6, reflexive, telling);
        shared.learned.notify_waiters();
        let pause = match kind {
            _ if shared.state().first_port_dead => escape::SILENCE,
            NatKind::Open => WHEN_OPEN,
            NatKind::Blocked => WHEN_BLOCKED,
            // Alone, it costs nothing to look; with one member only, a second that could tell more
            // may never come.
            _ if !asked => Duration::from_millis(50),
            _ if seen.len() < 2 && rounds < HASTY_ROUNDS => Duration::from_secs(2),
            _ if rounds < SEEKING_ROUNDS
                && shared.state().found.is_some()
                && !shared.state().finding.complete =>
            {
                WHEN_SEEKING
            }
            _ if dial::wants_better(&shared) => WHEN_WANTED,
            _ if mobility::open_member(&shared).is_some() => WHEN_LOOKED_AFTER,
            _ => WHEN_NATTED,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.learn_again.notified() => (silent, rounds) = (0, 0),
        }
    }
}

/// Keeps what a round showed; the kind that stands now.
fn note(
    shared: &Shared,
    mut kind: NatKind,
    kind6: NatKind,
    reflexive: Option<SocketAddr>,
    telling: usize,
) -> NatKind {
    let local = shared.plane.local_addresses();
    let mut state = shared.state();
    let before = state.nat;
    // One member alone cannot tell a symmetric NAT from a cone: what two have shown stands.
    if kind == NatKind::Cone
        && telling < 2
        && matches!(before, NatKind::Symmetric | NatKind::Counting)
    {
        kind = before;
    }
    let same = |of: SocketAddr| reflexive.map_or(local.contains(&of.ip()), |r| r.ip() == of.ip());
    if state.found.is_some_and(|(of, _)| same(of)) {
        kind = examine::refine(kind, &state.finding);
    }
    if kind6 != NatKind::Unknown {
        state.nat6 = kind6;
    }
    if kind != NatKind::Unknown {
        // Another outside address: links and connections of before are dead, whoever is told first.
        let moved = state
            .reflexive
            .zip(reflexive)
            .is_some_and(|(was, is)| was.ip() != is.ip());
        // A router that keeps a mapping of before beside the new one: each member sees its own, and
        // none is news.
        let in_turn = reflexive.is_some() && state.reflexive_before == reflexive;
        if state.reflexive != reflexive {
            state.reflexive_before = state.reflexive;
        }
        if before != kind || moved || (state.reflexive != reflexive && !in_turn) {
            tracing::info!(?kind, ?reflexive, "what others see of us");
            // What did not lead to a member before may do now.
            state.retries.all_anew(Instant::now());
        }
        (state.nat, state.reflexive) = (kind, reflexive);
        drop(state);
        if moved {
            shared.plane.mapping_changed();
        }
    }
    kind
}

/// Whether an address is of the kind that NATs hide (RFC 1918, RFC 6598, RFC 4193), or that means
/// another machine at each site.
pub(crate) fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local() || is_site_local(ip),
    }
}

/// Waits, right after the start, until the first round told something: behind a NAT, an address
/// learned now saves a failed try. A node with a public address of its own does not wait.
pub(crate) async fn settle(shared: &Shared, limit: Duration) {
    let told = shared.learned.notified();
    if shared.local_is_private() && shared.options.stun && shared.state().nat == NatKind::Unknown {
        let _ = tokio::time::timeout(limit, told).await;
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
    fn who_has_no_more_than_what_is_given_to_machines_at_every_site_is_not_expected_to_hear_everybody()
     {
        let local = |ip: &str| Candidate {
            kind: CandidateKind::Local,
            addr: SocketAddr::new(ip.parse().unwrap(), 7),
        };
        let member = |ips: &[&str]| Whereabouts {
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
    fn who_sees_us_at_a_port_that_the_router_lets_through_does_not_make_a_cone_symmetric_nor_a_symmetric_nat_a_cone()
     {
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
        // In whatever order they answer, and whoever of them has written to us there.
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
