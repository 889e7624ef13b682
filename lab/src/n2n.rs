//! The commands of n2n: a supernode, and edges that register with it. The comparison and the
//! network bench start them on their hosts.

use std::{path::Path, process::Command};

/// Where a supernode listens.
const PORT: &str = "7654";

/// The command of a supernode.
pub(crate) fn supernode(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["-l", PORT]);
    command
}

/// The command of an edge with this address in the overlay, whose supernode is at `supernode`.
pub(crate) fn edge(program: &Path, address: &str, supernode: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-d", "n2n0", "-c", "lab", "-k", "secret", "-a", address])
        .args(["-l", &format!("{supernode}:{PORT}")]);
    command
}
