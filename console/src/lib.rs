//! The status screen of a node (`p2pvm top`, and tty1 of the appliance), without the node.
//!
//! The idea: a [`Model`] holds what is known and what the person is doing; [`Model::press`] turns a
//! key into an [`Action`] or a change of the model; [`draw`] paints a model into a buffer of cells.
//! None of the three does IO, so that every screen can be tested as text. Whoever runs the terminal
//! feeds the model and carries the actions out (`node/src/top/`).
//!
//! Terminals: everything is said in words; colours and line characters are added where the
//! [`Theme`] says that the terminal has them. 80x24 is the smallest size that shows all; a smaller
//! one is cut, never broken.

#![deny(missing_docs)]

mod dialogs;
mod draw;
mod health;
mod keys;
mod model;
pub mod qr;
mod theme;

pub use draw::{draw, plain_text};
pub use health::{Health, LEFTOVER, ORPHANED, UNREACHABLE, Vitals, lost, troubled, udp_port};
pub use keys::{Action, Key, Power};
pub use model::{
    Decision, Doing, Invitation, JoinPhase, Member, Model, Node, Options, Reach, Screen, Vm,
};
pub use theme::Theme;
