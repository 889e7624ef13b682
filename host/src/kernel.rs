//! Forwarding by interface, and the nftables rules: how they are read and changed.

use crate::{
    error::Error,
    links::Mark,
    ruleset::Ruleset,
    run::{RunError, run},
    wanted::nft_table,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// The set in a network's own table that names the interfaces whose forwarding it switched on.
const SWITCHED: &str = "switched";

fn path(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")
}

/// Whether an interface forwards; none: it is not there.
pub(crate) fn forwarding(interface: &str) -> Option<bool> {
    fs::read_to_string(path(interface)).ok().map(|text| text.trim() != "0")
}

/// Whether the machine forwards as a whole.
pub(crate) fn ip_forward() -> bool {
    fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() != "0")
}

/// Switches an interface's forwarding. One that has gone, or is called otherwise since it was looked at, forwards nothing by this name.
pub(crate) fn set_forwarding(interface: &str, on: bool) -> Result<(), Error> {
    let path = path(interface);
    let said = |cause| Error::Kernel(format!("switch forwarding {} in {path}", if on { "on" } else { "off" }), cause);
    match fs::write(&path, if on { "1" } else { "0" }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !on => Ok(()),
        done => done.map_err(said),
    }
}

/// Switches the machine's forwarding off, as the previous release had switched it on.
pub(crate) fn clear_ip_forward() -> Result<(), Error> {
    fs::write(IP_FORWARD, "0").map_err(|cause| Error::Kernel(format!("switch off forwarding in {IP_FORWARD}"), cause))
}

/// All nftables rules of this network namespace.
pub(crate) fn ruleset() -> Result<Ruleset, RunError> {
    let printed = run("nft", &["-j", "list", "ruleset"], "")?;
    Ruleset::parse(&printed).map_err(|e| RunError::Refused { program: "nft", said: format!("it printed no JSON: {e}") })
}

/// Gives nft a text, which is one transaction.
pub(crate) fn nft(doing: &str, text: &str) -> Result<(), Error> {
    run("nft", &["-f", "-"], text).map(drop).map_err(|cause| Error::Program(doing.to_owned(), cause))
}

/// Removes a table; one that is not there is no failure.
pub(crate) fn drop_table(name: &str) -> Result<(), Error> {
    let doing = format!("remove nftables table {name}");
    match nft(&doing, &format!("add table ip {name}\ndelete table ip {name}\n")) {
        // Who has no nft has no table.
        Err(Error::Program(_, RunError::Missing { .. })) => Ok(()),
        done => done,
    }
}

/// What other p2pvm networks that live on this machine switched on, by their tables.
pub(crate) fn switched_by_others(ruleset: &Ruleset, marks: &BTreeMap<String, Mark>, own: &str) -> BTreeSet<String> {
    let tables = marks.keys().map(|device| nft_table(device)).filter(|table| table != own);
    let sets = tables.filter_map(|table| ruleset.sets.get(&("ip".to_owned(), table, SWITCHED.to_owned())));
    sets.flatten().filter_map(|element| element.as_str().map(str::to_owned)).collect()
}
