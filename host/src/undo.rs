//! Undoes what p2pvm changed in the kernel, as the journal has it, in any process of the same
//! network namespace.

use crate::{
    error::Error,
    forwarding::{self, ForwardingState},
    journal::{Change, Entries, FormerForwarding},
    kernel,
    links::{Mark, links},
    netlink::Netlink,
    opening::{self, copies},
    plan::{Step, rules_without},
    routes,
    rules::{PROTOCOL, SILENT, rules},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

pub use crate::opening::copies::remove_revived;

/// Undoes everything in the kernel. What could not be undone stays in `entries`. Returns the
/// failures.
pub fn undo(entries: &mut Entries) -> Vec<Error> {
    let mut failures = Vec::new();
    if let Some(former) = entries.forwarding.take()
        && let Err(error) = undo_former(&former)
    {
        entries.forwarding = Some(former);
        failures.push(error);
    }
    let tables: Vec<String> = entries
        .kernel
        .iter()
        .filter_map(|c| {
            if let Change::Table { name } = c {
                Some(name.clone())
            } else {
                None
            }
        })
        .collect();
    let opened: BTreeSet<String> = entries
        .kernel
        .iter()
        .filter_map(|c| {
            if let Change::Passage { device, .. } = c {
                Some(device.clone())
            } else {
                None
            }
        })
        .collect();
    // The guard in the table is removed after the forwarding that it guards.
    entries.kernel.sort_by_key(|change| match change {
        Change::Passage { .. } => 0,
        Change::Routes { .. } => 1,
        Change::Forwarding { .. } => 2,
        Change::Table { .. } => 3,
    });
    entries
        .kernel
        .retain(|change| match undo_change(change, &tables) {
            Ok(()) => false,
            Err(error) => {
                failures.push(error);
                true
            }
        });
    // Copies that another program has loaded into other chains.
    if !opened.is_empty()
        && let Err(error) = copies::sweep(|device| opened.contains(device))
    {
        failures.push(error);
    }
    failures
}

fn undo_change(change: &Change, tables: &[String]) -> Result<(), Error> {
    match change {
        Change::Passage { device, passage } => opening::close(passage, device),
        Change::Routes { table } => undo_routes(*table)
            .map_err(|cause| Error::Kernel("remove routes and their rules".into(), cause)),
        Change::Forwarding { interface } => undo_forwarding(interface, tables),
        Change::Table { name } => kernel::drop_table(name),
    }
}

fn undo_routes(table: u32) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for step in rules_without(table, &marks()?, &rules(&mut netlink)?.ours) {
        match step {
            Step::Unrule(rule) => rule.remove(&mut netlink)?,
            Step::Rule(rule) => rule.make(&mut netlink)?,
            _ => {}
        }
    }
    for route in routes::routes(&mut netlink, table)?
        .into_iter()
        .filter(|route| [PROTOCOL, SILENT].contains(&route.protocol))
    {
        routes::remove(&mut netlink, route.net, table, route.device)?;
    }
    Ok(())
}

/// The marks of all p2pvm interfaces here.
pub(crate) fn marks() -> io::Result<BTreeMap<String, Mark>> {
    Ok(links()?
        .into_iter()
        .filter_map(|link| link.mark().map(|mark| (link.name, mark)))
        .collect())
}

fn undo_forwarding(interface: &str, tables: &[String]) -> Result<(), Error> {
    let ours = match forwarding::forwarding(interface) {
        Some(ForwardingState::ForUs) => BTreeSet::from([interface.to_owned()]),
        Some(_) => return Ok(()),
        // It is gone, or has another name now.
        None => forwarding::forwarding_for_us(),
    };
    if ours.is_empty() {
        return Ok(());
    }
    let marks = marks()
        .map_err(|cause| Error::Kernel("look at this machine's interfaces".into(), cause))?;
    let own = tables.first().map_or("", String::as_str);
    let others = kernel::ruleset()
        .map(|ruleset| kernel::switched_by_others(&ruleset, &marks, own))
        .unwrap_or_default();
    ours.difference(&others)
        .try_for_each(|interface| forwarding::set_forwarding(interface, false))
}

/// The previous release switched forwarding on for the whole machine.
fn undo_former(former: &FormerForwarding) -> Result<(), Error> {
    if former.switched_on {
        forwarding::clear_ip_forward()?;
    }
    kernel::drop_table(&former.table)
}
