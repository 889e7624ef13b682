//! Takes back what the journal says p2pvm changed in the kernel. Works in any process of the same network namespace.

use crate::{
    error::Error,
    journal::{Change, Entries, Former},
    kernel,
    links::{Mark, links},
    netlink::Netlink,
    opening,
    plan::{Step, rules_without, wanted_by_others},
    routes,
    rules::{PROTOCOL, rules},
    wanted::Switched,
};
use std::{collections::BTreeMap, io};

/// Takes back everything in the kernel; what could not be taken back stays in `entries`, and its failures are given.
pub fn undo(entries: &mut Entries) -> Vec<Error> {
    let mut failures = Vec::new();
    if let Some(former) = entries.forwarding.take()
        && let Err(error) = undo_former(&former)
    {
        entries.forwarding = Some(former);
        failures.push(error);
    }
    let tables: Vec<String> =
        entries.kernel.iter().filter_map(|c| if let Change::Table { name } = c { Some(name.clone()) } else { None }).collect();
    // The guard in the table goes after the forwarding that it guards.
    entries.kernel.sort_by_key(|change| match change {
        Change::Passage { .. } => 0,
        Change::Routes { .. } => 1,
        Change::Forwarding { .. } => 2,
        Change::Table { .. } => 3,
    });
    if let Ok(links) = links() {
        entries.follow_renamed(&links);
    }
    entries.kernel.retain(|change| match undo_change(change, &tables) {
        Ok(()) => false,
        Err(error) => {
            failures.push(error);
            true
        }
    });
    failures
}

fn undo_change(change: &Change, tables: &[String]) -> Result<(), Error> {
    match change {
        Change::Passage { device, passage } => opening::close(passage, device),
        Change::Routes { table } => undo_routes(*table).map_err(|cause| Error::Kernel("remove routes and their rules".into(), cause)),
        Change::Forwarding { interface, global, .. } => undo_forwarding(interface, Switched { global: *global }, tables),
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
    for route in routes::routes(&mut netlink, table)?.into_iter().filter(|route| route.protocol == PROTOCOL) {
        routes::remove(&mut netlink, route.net, table, route.device)?;
    }
    Ok(())
}

/// What the aliases of all p2pvm interfaces here say.
pub(crate) fn marks() -> io::Result<BTreeMap<String, Mark>> {
    Ok(links()?.into_iter().filter_map(|link| link.mark().map(|mark| (link.name, mark))).collect())
}

fn undo_forwarding(interface: &str, note: Switched, tables: &[String]) -> Result<(), Error> {
    if kernel::forwarding(interface) != Some(true) || wanted_by_others(note, kernel::ip_forward()) {
        return Ok(());
    }
    let marks = marks().map_err(|cause| Error::Kernel("look at this machine's interfaces".into(), cause))?;
    let others = kernel::ruleset().is_ok_and(|ruleset| {
        let own = tables.first().map_or("", String::as_str);
        kernel::switched_by_others(&ruleset, &marks, own).contains(interface)
    });
    if others { Ok(()) } else { kernel::set_forwarding(interface, false) }
}

/// The previous release switched forwarding on for the whole machine.
fn undo_former(former: &Former) -> Result<(), Error> {
    if former.switched_on {
        kernel::clear_ip_forward()?;
    }
    kernel::drop_table(&former.table)
}
