//! The status screen of a node (`p2pvm top`, and tty1 of the appliance), without the node.
//!
//! A [`Model`] holds the node's state and the screen that the user has opened; [`Model::press`]
//! turns a key into an [`Action`] or a change of the model; [`draw`] paints a model into a buffer
//! of cells. None of the three does IO, so that every screen can be tested as text. `node/src/top/`
//! owns the terminal, feeds the model and carries the actions out.
//!
//! All information is text; colours and line characters are added if the [`Theme`] says that the
//! terminal has them. 80x24 is the smallest size that shows all; on a smaller one text is cut.

#![deny(missing_docs)]

mod dialogs;
mod draw;
mod keys;
mod model;
mod overview;
mod page;
pub mod qr;
mod theme;

pub use draw::{draw, plain_text};
pub use keys::{Action, Key};
pub use model::{
    Activity, DaemonState, Decision, Invitation, JoinPhase, Member, Model, Node, Options, Power,
    Screen, Vm,
};
pub use theme::Theme;
