//! Ways out of a black hole: what a router has once decided about a flow stays for as long as
//! packets keep the flow alive, and ours do (see [`crate::plane`]'s second port). Where a direct
//! path should be possible and several tries found none, every other try is made from another port;
//! where nobody at all answers the first port and somebody answers the second, all is written from
//! there, and the first one is kept silent until the router has forgotten its flows.

use super::{Shared, state::Input};
use crate::id::MemberId;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one look from the second port may take.
const LOOK_LIMIT: Duration = Duration::from_millis(1200);

/// Decides whether the member's try with this number is made from the second port, and looks how
/// that is seen from outside.
pub(crate) async fn prepare(shared: &Shared, member: MemberId, number: u32, is_hopeless: bool) {
    let second = shared
        .state()
        .choose_port_of_try(member, number, is_hopeless);
    if second {
        look(shared).await;
    }
}

/// Looks how the second port is seen from outside. Whether anybody answered there.
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

/// Whether somebody answers the second port while nobody answers the first: then all is written
/// from there.
pub(crate) async fn from_silence(shared: &Arc<Shared>) -> bool {
    let answers = look(shared).await;
    if answers {
        shared.handle(Input::FirstPortDead);
    }
    answers
}
