//! The nftables rules of the calling thread's network namespace: how they are read and changed.

use crate::{
    error::Error,
    links::Mark,
    ruleset::Ruleset,
    run::{RunError, run},
    wanted::nft_table,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

/// The set in a network's own table that names the interfaces whose forwarding it switched on.
const SWITCHED: &str = "switched";

/// How many times nft is asked for all rules before its failure counts.
/// Reason: it fails without a message if rules change while it lists them, as when a firewall
/// reloads its own.
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
    let not_json = |e: serde_json::Error| RunError::Refused {
        program: "nft",
        said: format!("it printed no JSON: {}", crate::chain(&e)),
    };
    let mut ruleset = Ruleset::parse(&printed).map_err(not_json)?;
    let untold: Vec<String> = ruleset.untold().into_iter().map(str::to_owned).collect();
    for family in untold {
        let program = if family == "ip6" {
            "ip6tables-nft-save"
        } else {
            "iptables-nft-save"
        };
        // Without the program p2pvm does not recognize the rule.
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

/// Applies a text with nft, as one transaction.
pub(crate) fn nft(doing: &str, text: &str) -> Result<(), Error> {
    run("nft", &["-f", "-"], text)
        .map(drop)
        .map_err(|cause| Error::Program(doing.to_owned(), cause))
}

/// Removes a table. A missing one is no failure.
pub(crate) fn drop_table(name: &str) -> Result<(), Error> {
    let doing = format!("remove nftables table {name}");
    match nft(
        &doing,
        &format!("add table ip {name}\ndelete table ip {name}\n"),
    ) {
        // Without nft there is no table.
        Err(Error::Program(_, RunError::Missing { .. })) => Ok(()),
        done => done,
    }
}

/// The interfaces whose forwarding other p2pvm networks of this machine switched on, by their
/// tables.
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
