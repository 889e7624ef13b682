//! Ways out of a black hole: a router keeps its decision about a flow for as long as packets keep
//! the flow alive, and ours do (see [`crate::plane`]'s second port). If a direct path should be
//! possible and several tries found none, every other try is made from a second port. If no member
//! answers the first port and one answers the second, everything is sent from the second, and the
//! first is kept silent until the router has forgotten its flows.

use super::{Shared, state::Input};
use crate::id::MemberId;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one check from the second port may take.
const LOOK_LIMIT: Duration = Duration::from_millis(1200);

/// Decides whether the member's try with this number is made from the second port, and finds that
/// port's outside address.
pub(crate) async fn prepare(shared: &Shared, member: MemberId, number: u32, is_hopeless: bool) {
    let second = shared
        .state()
        .choose_port_of_try(member, number, is_hopeless);
    if second {
        look(shared).await;
    }
}

/// Finds the outside address of the second port. Returns whether a member answered there.
async fn look(shared: &Shared) -> bool {
    let connected = shared.fabric.connected();
    let server = shared.state().open_member(&connected);
    let Some(server) = server else {
        return false;
    };
    let seen = shared.plane.stun_from_second_port(server, LOOK_LIMIT).await;
    shared.state().reflexive_aside = seen.map(|mapped| (mapped, Instant::now()));
    seen.is_some()
}

/// Whether a member answers the second port while none answers the first: then everything is sent
/// from the second.
pub(crate) async fn from_silence(shared: &Arc<Shared>) -> bool {
    let answers = look(shared).await;
    if answers {
        shared.handle(Input::FirstPortDead);
    }
    answers
}
