//! Forwarding by interface, and the nftables rules: how they are read and changed.

use crate::{
    error::Error,
    links::Mark,
    ruleset::Ruleset,
    run::{RunError, run},
    wanted::{Forwards, nft_table},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Duration,
};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// What p2pvm writes to switch an interface's forwarding on ([`Forwards`]).
const OURS: &str = "2";
/// The set in a network's own table that names the interfaces whose forwarding it switched on.
const SWITCHED: &str = "switched";

fn path(interface: &str) -> String {
    format!("{INTERFACES}/{interface}/forwarding")
}

/// Whether an interface forwards; none: it is not there.
pub(crate) fn forwarding(interface: &str) -> Option<Forwards> {
    fs::read_to_string(path(interface))
        .ok()
        .map(|text| match text.trim() {
            "0" => Forwards::No,
            OURS => Forwards::ForUs,
            _ => Forwards::ForOthers,
        })
}

/// The interfaces that forward for p2pvm's sake, whatever they are called now.
pub(crate) fn forwarding_for_us() -> BTreeSet<String> {
    let all = fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| forwarding(name) == Some(Forwards::ForUs))
        .collect()
}

/// Switches an interface's forwarding on, or off again; what others have switched meanwhile stays
/// as they have it.
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
        Some(Forwards::No) if on => fs::write(&path, OURS).map_err(said),
        Some(Forwards::ForUs) if !on => fs::write(&path, "0").map_err(said),
        None if on => Err(said(std::io::ErrorKind::NotFound.into())),
        _ => Ok(()),
    }
}

/// Switches the machine's forwarding off, as the previous release had switched it on.
pub(crate) fn clear_ip_forward() -> Result<(), Error> {
    fs::write(IP_FORWARD, "0")
        .map_err(|cause| Error::Kernel(format!("switch off forwarding in {IP_FORWARD}"), cause))
}

/// How often nft is asked for all rules before its refusal counts. Reason: it gives up, without a
/// word, on rules that change while it lists them, as they do when a firewall loads its own anew.
const LISTINGS: u32 = 3;
const LISTING_PAUSE: Duration = Duration::from_millis(30);

fn listing() -> Result<Vec<u8>, RunError> {
    for _ in 1..LISTINGS {
        match run("nft", &["-j", "list", "ruleset"], "") {
            Err(RunError::Refused { .. }) => thread::sleep(LISTING_PAUSE),
            answer => return answer,
        }
    }
    run("nft", &["-j", "list", "ruleset"], "")
}

/// All nftables rules of this network namespace.
pub(crate) fn ruleset() -> Result<Ruleset, RunError> {
    let printed = listing()?;
    let not_json = |e| RunError::Refused {
        program: "nft",
        said: format!("it printed no JSON: {e}"),
    };
    let mut ruleset = Ruleset::parse(&printed).map_err(not_json)?;
    let untold: Vec<String> = ruleset.untold().into_iter().map(str::to_owned).collect();
    for family in untold {
        let program = if family == "ip6" {
            "ip6tables-nft-save"
        } else {
            "iptables-nft-save"
        };
        // Without the program the rule is one that p2pvm knows nothing of.
        if let Ok(saved) = run(program, &["-t", "filter"], "") {
            ruleset.tell(&family, &String::from_utf8_lossy(&saved));
        }
    }
    for id in ruleset.without_devices() {
        let (family, table, chain) = (id.0.as_str(), id.1.as_str(), id.2.as_str());
        if let Ok(listed) = run("nft", &["list", "chain", family, table, chain], "") {
            ruleset.tell_devices(&id, &String::from_utf8_lossy(&listed));
        }
    }
    Ok(ruleset)
}

/// Gives nft a text, which is one transaction.
pub(crate) fn nft(doing: &str, text: &str) -> Result<(), Error> {
    run("nft", &["-f", "-"], text)
        .map(drop)
        .map_err(|cause| Error::Program(doing.to_owned(), cause))
}

/// Removes a table; one that is not there is no failure.
pub(crate) fn drop_table(name: &str) -> Result<(), Error> {
    let doing = format!("remove nftables table {name}");
    match nft(
        &doing,
        &format!("add table ip {name}\ndelete table ip {name}\n"),
    ) {
        // Who has no nft has no table.
        Err(Error::Program(_, RunError::Missing { .. })) => Ok(()),
        done => done,
    }
}

/// What other p2pvm networks that live on this machine switched on, by their tables.
pub(crate) fn switched_by_others(
    ruleset: &Ruleset,
    marks: &BTreeMap<String, Mark>,
    own: &str,
) -> BTreeSet<String> {
    let tables = marks
        .keys()
        .map(|device| nft_table(device))
        .filter(|table| table != own);
    let sets = tables.filter_map(|table| {
        ruleset
            .sets
            .get(&("ip".to_owned(), table, SWITCHED.to_owned()))
    });
    sets.flatten()
        .filter_map(|element| element.as_str().map(str::to_owned))
        .collect()
}
