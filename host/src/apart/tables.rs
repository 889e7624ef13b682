//! The filter of nftables in front of a guest's interface, for kernels without the modules that
//! traffic control needs: a table of its own in the family `netdev`, whose chain at the interface's
//! ingress drops everything, after packet sockets have had their copy.
//!
//! nft is a program: it runs when an interface comes, and again now and then, since a firewall that
//! is loaded again may remove all tables.

use crate::{
    lock,
    run::{RunError, run},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How long before nft makes a table again that it has made.
const AGAIN: Duration = Duration::from_secs(30);
/// How the name of each table begins.
const PREFIX: &str = "p2pvm_guest_";
/// Before the chains of other programs.
const PRIORITY: i32 = -500;

/// A network namespace and an interface in it.
type Place = (u64, String);

/// When each table was last made, and for which interface: another one may get its name.
static MADE: Mutex<BTreeMap<Place, (u32, Instant)>> = Mutex::new(BTreeMap::new());

fn made() -> MutexGuard<'static, BTreeMap<Place, (u32, Instant)>> {
    lock(&MADE)
}

fn place(ifname: &str) -> io::Result<Place> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok((namespace, ifname.to_owned()))
}

fn table(ifname: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = ifname.chars().map(plain).collect();
    format!("{PREFIX}{name}")
}

/// The tables of guests' interfaces in nft's list of tables, without those of the interfaces that
/// are there.
fn without_interface(listed: &str, interfaces: &BTreeSet<String>) -> Vec<String> {
    let kept: BTreeSet<String> = interfaces.iter().map(|name| table(name)).collect();
    let named = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table netdev "));
    named
        .filter(|name| name.starts_with(PREFIX) && !kept.contains(*name))
        .map(str::to_owned)
        .collect()
}

/// The text for nft. Chain and table may be there already.
fn text(ifname: &str) -> String {
    let table = table(ifname);
    format!(
        "add table netdev {table}\n\
        add chain netdev {table} guest {{ type filter hook ingress device \"{ifname}\" \
            priority {PRIORITY}; policy drop; }}\n"
    )
}

/// Makes the table for the interface, unless that was done a moment ago.
pub(super) fn drop_all(ifname: &str) -> io::Result<()> {
    let (place, now) = (place(ifname)?, nix::net::if_::if_nametoindex(ifname)?);
    let is_fresh = |(index, at): &(u32, Instant)| *index == now && at.elapsed() < AGAIN;
    if made().get(&place).is_some_and(is_fresh) {
        return Ok(());
    }
    run("nft", &["-f", "-"], &text(ifname)).map_err(io::Error::other)?;
    made().insert(place, (now, Instant::now()));
    Ok(())
}

/// Removes the table of an interface that is gone.
pub(super) fn let_go(ifname: &str) {
    let Ok(place) = place(ifname) else { return };
    let is_there = nix::net::if_::if_nametoindex(ifname).is_ok();
    if is_there || made().remove(&place).is_none() {
        return;
    }
    let table = table(ifname);
    let text = format!("add table netdev {table}\ndelete table netdev {table}\n");
    match run("nft", &["-f", "-"], &text) {
        Ok(_) | Err(RunError::Missing { .. }) => {}
        Err(error) => tracing::debug!(
            ifname,
            error = %crate::chain(&error),
            "cannot remove the filter of a guest's interface that is gone"
        ),
    }
}

/// Removes the tables of interfaces that are gone, whichever process made them: a daemon that was
/// killed removes none.
pub(super) fn let_go_of_gone() -> io::Result<()> {
    let listed = match run("nft", &["list", "tables", "netdev"], "") {
        Ok(listed) => listed,
        Err(RunError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(io::Error::other(error)),
    };
    // After the list: an interface that comes later has no table in it.
    let interfaces = nix::net::if_::if_nameindex()?
        .iter()
        .map(|one| one.name().to_string_lossy().into_owned())
        .collect();
    let gone = without_interface(&String::from_utf8_lossy(&listed), &interfaces);
    if gone.is_empty() {
        return Ok(());
    }
    let text: String = gone
        .iter()
        .map(|name| format!("add table netdev {name}\ndelete table netdev {name}\n"))
        .collect();
    run("nft", &["-f", "-"], &text).map_err(io::Error::other)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_gone_interfaces_are_removed() {
        let listed = "table netdev p2pvm_guest_pv1\ntable netdev other\n\
            table netdev p2pvm_guest_pv2\ntable ip p2pvm_guest_pv3\n";
        let there = BTreeSet::from(["pv1".to_owned(), "eth0".to_owned()]);
        assert_eq!(without_interface(listed, &there), ["p2pvm_guest_pv2"]);
        assert!(without_interface("", &there).is_empty());
    }

    #[test]
    fn a_table_has_a_name_that_nft_reads() {
        assert_eq!(table("pv3k2-x.1"), "p2pvm_guest_pv3k2_x_1");
        assert!(text("pv3k2").contains("device \"pv3k2\" priority -500; policy drop;"));
    }
}
