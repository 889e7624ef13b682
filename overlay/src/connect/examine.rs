//! Knocks and STUN answers for the examination of a NAT ([`super::state::examine`]): the requests
//! of this node, and its answers to others'.

use super::{
    Shared,
    dial::ask,
    message::{Answer, Request},
    nat::STUN_LIMIT,
};
use crate::{id::MemberId, stun, stun::TransactionId};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;

/// How long a request to a member over the control plane may take.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait for a knock after the answer over the control plane. Reason: both take the same
/// time.
const KNOCK_LATE: Duration = Duration::from_millis(400);
/// How many times a knock is sent. Reason: one may be lost.
const KNOCKS: u32 = 2;
/// How long a port opened for another member stays open, and how many requests it answers.
const PORT_LIFE: Duration = Duration::from_secs(4);
const PORT_ANSWERS: u32 = 8;
/// How many ports are open for others at a time. Reason: each is a socket for some seconds, and a
/// member that starts asks for two.
pub(crate) const MAX_PORTS: usize = 64;

/// Makes a member knock, from its usual port or from one of its own. Returns whether the knock
/// arrived, and the member's answer.
pub(crate) async fn knocked(
    shared: &Shared,
    member: MemberId,
    mapped: SocketAddr,
    elsewhere: bool,
) -> (bool, Option<Answer>) {
    let id = stun::new_transaction();
    let request = if elsewhere {
        Request::KnockElsewhere
    } else {
        Request::Knock
    };
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

/// Finds the last port that a counting NAT gave, so that guesses are fresh. Does nothing behind
/// other NATs.
pub(crate) async fn look_at_the_counter(shared: &Shared) {
    let helper = shared.state().counter_helper();
    let Some((helper, server)) = helper else {
        return;
    };
    if let Some(newest) = mapped_anew(shared, helper, server).await {
        shared.state().nat.four.finding.newest = Some((newest, Instant::now()));
    }
}

/// The address at which a port of `helper` that we never wrote to sees us. Reason: only a
/// destination that is new to a NAT shows whether it maps by destination, and where its counter is.
pub(crate) async fn mapped_anew(
    shared: &Shared,
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
                // If sending fails, it is lost like any datagram.
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }));
    Ok(Answer::KnockedFrom(port))
}
