//! The bootable appliance (`appliance-image/`): how a machine that was just switched on becomes a
//! member with no question asked.
//!
//! `prepare` is what its first-boot unit runs: it decides where the state lives, and `sources` says
//! which network the machine belongs to. `reserved` is the room in the ISO that `customize` writes
//! an invite into, `iso9660` finds it. `install` puts the appliance on a disk. `volumes` asks the
//! kernel which labelled volumes there are. docs/appliance.md has the decisions.

pub mod customize;
pub mod install;
mod iso9660;
mod mbr;
pub mod prepare;
pub mod reserved;
pub mod sources;
mod volumes;
