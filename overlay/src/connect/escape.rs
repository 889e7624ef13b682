//! Ways out of a black hole: what a router has once decided about a flow stays for as long as
//! packets keep the flow alive, and ours do (see [`crate::plane`]'s second port). Where a direct
//! path should be possible and several tries found none, every other try is made from another port;
//! where nobody at all answers the first port and somebody answers the second, all is written from
//! there, and the first one is kept silent until the router has forgotten its flows.

use super::{
    CandidateKind, NatKind, Shared, message::Whereabouts, mobility::open_member, nat::is_private,
};
use crate::{id::MemberId, plane::Path};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How the second port looks from outside is believed this long.
pub(crate) const LOOK_LIFE: Duration = Duration::from_secs(180);
/// One look.
const LOOK_LIMIT: Duration = Duration::from_millis(1200);
/// The first port is silent for so long before it is looked at again. Reason: Linux forgets a UDP
/// flow 120 s after its last packet, and 30 s where nothing ever answered.
pub(crate) const SILENCE: Duration = Duration::from_secs(130);

impl Shared {
    /// From which port the member's addresses are to be written to.
    pub(super) fn choose_port(&self, member: MemberId, whereabouts: &Whereabouts) {
        let aside = {
            let state = self.state();
            state.first_port_dead || state.aside.contains(&member)
        };
        // A way that carries is a flow of the port that it leaves from: it stays with it.
        let carries = |way: &SocketAddr| self.plane.carries(member, Path::Direct(*way));
        let ways = whereabouts
            .candidates
            .iter()
            .filter(|c| c.kind != CandidateKind::Local || !is_private(&c.addr.ip()));
        let ways: Vec<SocketAddr> = ways.map(|c| c.addr).filter(|way| !carries(way)).collect();
        if !aside {
            self.plane.move_to_first_port(&ways);
        } else if let Err(error) = self.plane.move_to_second_port(&ways) {
            tracing::debug!(%error, "no other port");
        }
    }

    /// The first port is alive, or another router stands before us: all begins there.
    pub(super) fn come_back_all(&self) {
        let mut state = self.state();
        state.first_port_dead = false;
        self.plane.silence_first_port(false);
        state.reflexive_aside = None;
        state.aside.clear();
    }
}

/// Decides whether the member's try with this number is made from the second port, and looks how
/// that is seen from outside.
pub(crate) async fn prepare(shared: &Arc<Shared>, member: MemberId, number: u32, hopeless: bool) {
    let aside = number.is_multiple_of(2) && !hopeless && shared.state().nat != NatKind::Blocked;
    let was = {
        let mut state = shared.state();
        if aside {
            !state.aside.insert(member)
        } else {
            state.aside.remove(&member)
        }
    };
    if was != aside {
        tracing::debug!(?member, aside, "from the other port");
    }
    if aside {
        look(shared).await;
    }
}

/// Looks how the second port is seen from outside. Whether anybody answered there.
async fn look(shared: &Arc<Shared>) -> bool {
    let Some(server) = open_member(shared) else {
        return false;
    };
    let seen = shared.plane.stun_from_second_port(server, LOOK_LIMIT).await;
    shared.state().reflexive_aside = seen.map(|mapped| (mapped, Instant::now()));
    seen.is_some()
}

/// Whether somebody answers the second port while nobody answers the first: then all is written
/// from there.
pub(crate) async fn from_silence(shared: &Arc<Shared>) -> bool {
    if !look(shared).await {
        return false;
    }
    let anew = {
        let mut state = shared.state();
        (state.nat, state.reflexive) = (NatKind::Unknown, None);
        state.retries.all_anew(Instant::now());
        !std::mem::replace(&mut state.first_port_dead, true)
    };
    if anew {
        let port = shared.plane.udp_port();
        shared.plane.move_all_to_second_port();
        tracing::warn!(
            port,
            "nothing comes back to this port, such as where a router holds on to a dead flow: \
                another is used"
        );
    }
    true
}
