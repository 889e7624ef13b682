//! Whether an interface forwards packets, and for which program: `net.ipv4.conf.IF.forwarding`,
//! read and changed.

use crate::error::Error;
use std::{collections::BTreeSet, fs};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// What p2pvm writes to switch an interface's forwarding on ([`ForwardingState`]).
const OURS: &str = "2";

/// Whether an interface forwards, and which program switched it on last. The kernel takes every
/// number but 0 for yes: p2pvm writes 2, every other program 1, also `net.ipv4.ip_forward`. So the
/// value itself names the program, also after changes that p2pvm did not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardingState {
    /// It does not.
    No,
    /// p2pvm switched it on, and nobody has changed it since.
    ForUs,
    /// Somebody else switched it on.
    ForOthers,
}

fn path(interface: &str) -> String {
    format!("{INTERFACES}/{interface}/forwarding")
}

/// Whether an interface forwards; `None` if there is no such interface.
pub(crate) fn forwarding(interface: &str) -> Option<ForwardingState> {
    fs::read_to_string(path(interface))
        .ok()
        .map(|text| match text.trim() {
            "0" => ForwardingState::No,
            OURS => ForwardingState::ForUs,
            _ => ForwardingState::ForOthers,
        })
}

/// The interfaces that forward for p2pvm, whatever their names are now.
pub(crate) fn forwarding_for_us() -> BTreeSet<String> {
    let all = fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| forwarding(name) == Some(ForwardingState::ForUs))
        .collect()
}

/// Switches an interface's forwarding on, or off again. If another program has changed it
/// meanwhile, it stays as it is.
pub(crate) fn set_forwarding(interface: &str, on: bool) -> Result<(), Error> {
    let path = path(interface);
    let said = |cause| {
        Error::Kernel(
            format!(
                "switch forwarding {} in {path}",
                if on { "on" } else { "off" }
            ),
            cause,
        )
    };
    match forwarding(interface) {
        Some(ForwardingState::No) if on => fs::write(&path, OURS).map_err(said),
        Some(ForwardingState::ForUs) if !on => fs::write(&path, "0").map_err(said),
        None if on => Err(said(std::io::ErrorKind::NotFound.into())),
        _ => Ok(()),
    }
}

/// Switches the machine's forwarding off, which the previous release had switched on.
pub(crate) fn clear_ip_forward() -> Result<(), Error> {
    fs::write(IP_FORWARD, "0")
        .map_err(|cause| Error::Kernel(format!("switch off forwarding in {IP_FORWARD}"), cause))
}
