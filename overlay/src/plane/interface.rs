//! The TUN and guests' interfaces as they have to be: watched, put back, and proved by packets that
//! pass through them.

pub(super) mod addresses;
pub(super) mod answers;
pub(super) mod loops;
pub(super) mod mend;
pub(super) mod network;
pub(super) mod probe;
pub(super) mod proof;
pub(super) mod prove;
pub(super) mod repairs;
pub(super) mod wanted;
pub(super) mod watch;
