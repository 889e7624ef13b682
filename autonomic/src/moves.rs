//! Which VM moves where: what a move would be worth ([`score`], [`affinity`]), what two nodes agree
//! on ([`negotiation`]), and the state machine that drives both ([`manager`]).

mod affinity;
mod figures;
pub(crate) mod manager;
mod negotiation;
pub(crate) mod score;
