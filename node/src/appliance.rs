//! The bootable appliance (`appliance-image/`): how a machine becomes a member at its first boot
//! without asking a question.
//!
//! The first-boot unit runs `prepare`, which decides where the state is stored; `sources` says
//! which network the machine belongs to. `reserved` is the file in the ISO into which `customize`
//! writes an invite, and `iso9660` finds it. `install` puts the appliance on a disk. `volumes`
//! lists labelled volumes. docs/appliance.md has the decisions.

pub mod customize;
pub mod install;
mod iso9660;
mod mbr;
pub mod prepare;
pub mod reserved;
pub mod sources;
mod volumes;
