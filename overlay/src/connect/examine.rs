//! How the NAT before this node maps and filters, found out with members in the place of RFC 5780's
//! servers.
//!
//! One public member is enough for most of it: it sends an answer that nobody asked for from a port
//! of its own (does it come in?), then answers a STUN request at that port (does it see the address
//! that its usual port saw?). A second one, to whom this node never wrote, knocks from its usual
//! port (does even that come in?). What is not heard counts as filtered only if the same port is
//! then reached: otherwise it shows nothing.

use super::{
    Shared,
    dial::ask,
    message::{Answer, NatKind, Request},
    nat::is_public_own,
};
use crate::{id::MemberId, stun, stun::TransactionId};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;

/// A request to a member over the control plane.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// A knock is on its way as long as the answer over the control plane, and a little longer at
/// worst.
const KNOCK_LATE: Duration = Duration::from_millis(400);
/// One STUN exchange.
const STUN_LIMIT: Duration = Duration::from_millis(1200);
/// Times that a knock is sent: one may be lost.
const KNOCKS: u32 = 2;
/// A port opened for another member answers so long, and so often.
const PORT_LIFE: Duration = Duration::from_secs(4);
const PORT_ANSWERS: u32 = 8;
/// Ports open for others at a time: each is a socket for some seconds, and a member that starts
/// asks for two.
pub(crate) const MAX_PORTS: usize = 64;
/// A NAT forgets whom it wrote to within this (RFC 4787 REQ-5 asks for 2 minutes at least; some
/// keep 5).
const REMEMBERED: Duration = Duration::from_secs(310);
/// Ports that a NAT which counts may have given to others between two of ours.
const MAX_STEP: u16 = 24;
/// Ports guessed ahead. Odd, so that two NATs that count meet in the middle (see [`order`]).
pub(crate) const GUESSES: u16 = 9;

/// Whom a NAT or firewall lets in (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Not found out.
    #[default]
    Unknown,
    /// Everybody.
    Independent,
    /// Addresses that were written to, and maybe everybody.
    Address,
    /// Addresses and ports that were written to.
    Port,
}

/// What the examination showed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finding {
    pub filtering: Filtering,
    /// Whether another port of the same member saw another address.
    pub by_port: bool,
    /// The newest mapping, if the NAT seems to count, and when it was seen.
    pub newest: Option<(SocketAddr, Instant)>,
    /// Whether a second member has knocked as well.
    pub complete: bool,
}

impl Finding {
    /// Another port of the member that saw us at `mapped` saw us at `second`.
    pub fn note_second(&mut self, mapped: SocketAddr, second: SocketAddr) {
        if second != mapped {
            self.by_port = true;
            self.newest = counts(mapped, second).then(|| (second, Instant::now()));
        }
    }
}

/// The kind of NAT that follows from how it maps (`kind`) and the finding.
pub(crate) fn refine(kind: NatKind, finding: &Finding) -> NatKind {
    match (kind, finding.filtering) {
        (NatKind::Cone, _) if finding.by_port => refine(NatKind::Symmetric, finding),
        (NatKind::Symmetric, _) if finding.newest.is_some() => NatKind::Counting,
        (NatKind::Open, Filtering::Port) => NatKind::Firewalled,
        (NatKind::Cone, Filtering::Address) => NatKind::AddressCone,
        // Without a stranger's knock it is not known to filter at all, and few firewalls look at
        // addresses alone.
        (NatKind::Open, Filtering::Address) if finding.complete => NatKind::AddressCone,
        (NatKind::Cone, Filtering::Independent) => NatKind::FullCone,
        (kind, _) => kind,
    }
}

/// Addresses that our packets go to: a NAT may let in whoever is there.
#[derive(Default)]
pub(crate) struct Written(HashMap<IpAddr, Instant>);

impl Written {
    pub fn note(&mut self, addr: IpAddr, now: Instant) {
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        self.0.insert(addr, now);
    }

    pub fn contains(&self, addr: IpAddr, now: Instant) -> bool {
        self.0
            .get(&addr)
            .is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED)
    }
}

/// Examines what stands between us and `helper`, whose address `server` sees us as `mapped`.
pub(crate) async fn examine(
    shared: &Arc<Shared>,
    helper: MemberId,
    server: SocketAddr,
    mapped: SocketAddr,
) -> Finding {
    let mut finding = Finding::default();
    let (heard, port) = knocked(shared, helper, mapped, Request::KnockElsewhere).await;
    let Some(Answer::KnockedFrom(port)) = port else {
        return finding;
    };
    let second = shared
        .plane
        .stun(SocketAddr::new(server.ip(), port), STUN_LIMIT)
        .await;
    finding.filtering = match (heard, second) {
        (true, _) => Filtering::Address,
        (false, Some(_)) => Filtering::Port,
        (false, None) => Filtering::Unknown,
    };
    if let Some(second) = second.filter(|second| !shared.is_let_through(*second)) {
        finding.note_second(mapped, second);
    }
    finding.complete = finding.filtering == Filtering::Port;
    if finding.filtering == Filtering::Address
        && let Some(stranger) = stranger(shared, mapped.is_ipv4())
    {
        let (heard, answer) = knocked(shared, stranger, mapped, Request::Knock).await;
        finding.complete = answer.is_some();
        if heard {
            finding.filtering = Filtering::Independent;
        }
    }
    finding
}

/// Whether the later of two mappings has one of the next ports.
fn counts(earlier: SocketAddr, later: SocketAddr) -> bool {
    earlier.ip() == later.ip()
        && (1..=MAX_STEP).contains(&later.port().wrapping_sub(earlier.port()))
}

/// Has a member knock; whether it was heard, and what the member said.
async fn knocked(
    shared: &Arc<Shared>,
    member: MemberId,
    mapped: SocketAddr,
    request: fn(SocketAddr, TransactionId) -> Request,
) -> (bool, Option<Answer>) {
    let id = stun::new_transaction();
    let (hearing, asking) = (
        shared.plane.hear_stun(id, ASK_LIMIT + KNOCK_LATE),
        ask(shared, member, request(mapped, id), ASK_LIMIT),
    );
    tokio::pin!(hearing, asking);
    let mut heard = None;
    let answer = loop {
        tokio::select! {
            answer = &mut asking => break answer.ok(),
            got = &mut hearing, if heard.is_none() => heard = Some(got.is_some()),
        }
    };
    let heard = match heard {
        Some(heard) => heard,
        None if answer.is_none() => false,
        None => tokio::time::timeout(KNOCK_LATE, hearing)
            .await
            .is_ok_and(|got| got.is_some()),
    };
    (heard, answer)
}

/// A public member to whom nothing was ever sent from our port.
fn stranger(shared: &Shared, v4: bool) -> Option<MemberId> {
    let now = Instant::now();
    let state = shared.state();
    shared.fabric.connected().into_iter().find(|member| {
        let Some((_, whereabouts)) = state.known.get(member) else {
            return false;
        };
        let mut addresses = whereabouts
            .candidates
            .iter()
            .map(|c| c.addr)
            .filter(|addr| addr.is_ipv4() == v4)
            .peekable();
        // One whose own UDP is blocked would knock in vain: it must have shown that it gets
        // through.
        matches!(whereabouts.nat, NatKind::Open | NatKind::Firewalled)
            && whereabouts.candidates.iter().any(is_public_own)
            && !shared.plane.has_peer(*member)
            && addresses.peek().is_some()
            && addresses.all(|addr| !state.written.contains(addr.ip(), now))
    })
}

/// Behind a NAT that counts: sees which port was given last, so that [`guesses`] are fresh.
/// Elsewhere nothing.
pub(crate) async fn look_at_the_counter(shared: &Arc<Shared>) {
    let (kind, helper) = {
        let state = shared.state();
        (state.nat, state.helper)
    };
    let (NatKind::Counting, Some((helper, server))) = (kind, helper) else {
        return;
    };
    if let Some(newest) = mapped_anew(shared, helper, server).await {
        shared.state().finding.newest = Some((newest, Instant::now()));
    }
}

/// At which address a port of `helper` sees us to which nothing was ever sent: only a destination
/// that is new to a NAT shows whether it maps by destination, and where its counter stands.
pub(crate) async fn mapped_anew(
    shared: &Arc<Shared>,
    helper: MemberId,
    server: SocketAddr,
) -> Option<SocketAddr> {
    let nowhere = SocketAddr::new(server.ip(), 0);
    match ask(
        shared,
        helper,
        Request::KnockElsewhere(nowhere, stun::new_transaction()),
        ASK_LIMIT,
    )
    .await
    {
        Ok(Answer::KnockedFrom(port)) => {
            shared
                .plane
                .stun(SocketAddr::new(server.ip(), port), STUN_LIMIT)
                .await
        }
        _ => None,
    }
}

/// The addresses that the NAT's next mappings are expected to have, nearest first.
pub(crate) fn guesses(newest: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    (1..=GUESSES)
        .filter_map(move |n| Some(SocketAddr::new(newest.ip(), newest.port().checked_add(n)?)))
}

/// In which order the other's guessed addresses are written to. Each write makes a mapping of ours,
/// so where both NATs count, the n-th write of one side must go where the other's m-th write comes
/// from and the other way round. With one side counting up and the other down, both meet in the
/// middle as long as the other mappings made meanwhile differ by an even number.
pub(crate) fn order(mut guessed: Vec<SocketAddr>, opened_by_us: bool) -> Vec<SocketAddr> {
    guessed.sort();
    if !opened_by_us {
        guessed.reverse();
    }
    guessed
}

/// Knocks on behalf of a member.
pub(crate) fn knock(shared: &Shared, to: SocketAddr, id: TransactionId) -> Result<Answer, String> {
    let datagram = knock_datagram(shared, to, id)?;
    for _ in 0..KNOCKS {
        shared.plane.send_datagram(to, &datagram);
    }
    Ok(Answer::Knocked)
}

fn knock_datagram(shared: &Shared, to: SocketAddr, id: TransactionId) -> Result<Vec<u8>, String> {
    if !crate::plane::packet::is_unicast(&to.ip()) || shared.plane.is_inside_tunnel(&to.ip()) {
        return Err("that is no address of a host".into());
    }
    stun::unasked(id, to).ok_or_else(|| "cannot be encoded".into())
}

/// Opens a port for a member: knocks from it (unless `to` has no port), then answers STUN requests
/// there for a while.
pub(crate) async fn knock_elsewhere(
    shared: &Shared,
    to: SocketAddr,
    id: TransactionId,
) -> Result<Answer, String> {
    let permit = shared
        .ports
        .clone()
        .try_acquire_owned()
        .map_err(|_| "too many ports are open for others".to_owned())?;
    let any: IpAddr = if to.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))
        .await
        .map_err(|e| e.to_string())?;
    crate::underlay::mark(&socket);
    if to.port() != 0 {
        let datagram = knock_datagram(shared, to, id)?;
        for _ in 0..KNOCKS {
            socket
                .send_to(&datagram, to)
                .await
                .map_err(|e| e.to_string())?;
        }
    }
    let port = socket.local_addr().map_err(|e| e.to_string())?.port();
    tokio::spawn(tokio::time::timeout(PORT_LIFE, async move {
        let _permit = permit;
        let mut buf = [0; 600];
        for _ in 0..PORT_ANSWERS {
            let Ok((len, from)) = socket.recv_from(&mut buf).await else {
                return;
            };
            if let Some(answer) = stun::answer(&buf[..len], from) {
                // Lost like any datagram if it cannot be sent.
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }));
    Ok(Answer::KnockedFrom(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_mapping_and_filtering() {
        let finding = |filtering| Finding {
            filtering,
            ..Finding::default()
        };
        for (kind, filtering, refined) in [
            (NatKind::Open, Filtering::Unknown, NatKind::Open),
            (NatKind::Open, Filtering::Independent, NatKind::Open),
            (NatKind::Open, Filtering::Port, NatKind::Firewalled),
            (NatKind::Cone, Filtering::Unknown, NatKind::Cone),
            (NatKind::Cone, Filtering::Port, NatKind::Cone),
            (NatKind::Cone, Filtering::Address, NatKind::AddressCone),
            (NatKind::Cone, Filtering::Independent, NatKind::FullCone),
            (NatKind::Symmetric, Filtering::Port, NatKind::Symmetric),
        ] {
            assert_eq!(
                refine(kind, &finding(filtering)),
                refined,
                "{kind} {filtering:?}"
            );
        }
        let refused = Finding {
            complete: true,
            ..finding(Filtering::Address)
        };
        assert_eq!(
            refine(NatKind::Open, &finding(Filtering::Address)),
            NatKind::Open,
            "nobody else has knocked"
        );
        assert_eq!(refine(NatKind::Open, &refused), NatKind::AddressCone);
        let by_port = Finding {
            by_port: true,
            ..Finding::default()
        };
        assert_eq!(refine(NatKind::Cone, &by_port), NatKind::Symmetric);
        let counting = Finding {
            newest: Some((([198, 18, 0, 1], 7).into(), Instant::now())),
            ..by_port
        };
        assert_eq!(refine(NatKind::Cone, &counting), NatKind::Counting);
    }

    #[test]
    fn a_few_ports_further_is_counting_and_another_address_is_not() {
        let at = |port| SocketAddr::from(([198, 18, 0, 1], port));
        assert!(counts(at(40000), at(40001)) && counts(at(40000), at(40024)));
        assert!(
            !counts(at(40000), at(40000))
                && !counts(at(40000), at(39999))
                && !counts(at(40000), at(52000))
        );
        assert!(!counts(at(40000), ([198, 18, 0, 2], 40001).into()));
        assert_eq!(guesses(at(65533)).count(), 2, "never beyond the last port");
    }

    /// Two NATs that count, each of which has made some mappings more than its side expected when
    /// the guesses are used.
    fn meet(ahead_a: u16, ahead_b: u16) -> bool {
        let at = |host, port| SocketAddr::from(([198, 18, 0, host], port));
        let (a, b) = (at(1, 40000), at(2, 50000));
        let wrote =
            |own: SocketAddr, ahead: u16, to: Vec<SocketAddr>| -> Vec<(SocketAddr, SocketAddr)> {
                (1..)
                    .map(|n| SocketAddr::new(own.ip(), own.port() + ahead + n))
                    .zip(to)
                    .collect()
            };
        let by_a = wrote(a, ahead_a, order(guesses(b).collect(), true));
        let by_b = wrote(b, ahead_b, order(guesses(a).collect(), false));
        by_a.iter().any(|(from, to)| by_b.contains(&(*to, *from)))
    }

    #[test]
    fn two_nats_that_count_meet_whenever_they_are_ahead_by_an_even_number_of_ports_of_each_other() {
        for (ahead_a, ahead_b) in [(0, 0), (1, 1), (2, 0), (0, 4), (3, 1), (2, 2)] {
            assert!(meet(ahead_a, ahead_b), "{ahead_a} {ahead_b}");
        }
        assert!(!meet(1, 0), "an odd difference waits for the next try");
    }

    #[test]
    fn whom_nothing_was_sent_to_for_minutes_is_a_stranger_again() {
        let (mut written, now, addr) = (
            Written::default(),
            Instant::now(),
            IpAddr::from([198, 18, 0, 1]),
        );
        written.note(addr, now);
        assert!(written.contains(addr, now) && !written.contains([198, 18, 0, 2].into(), now));
        assert!(!written.contains(addr, now + REMEMBERED));
    }
}
