//! Rules that are passages by their comment, in any chain of a `filter` table: found and removed.

use crate::{
    error::Error,
    kernel, legacy,
    links::links,
    passage::{FirewallKind, Passage},
    run::RunError,
    wanted::nft_table,
};
use std::{collections::BTreeSet, fmt::Write as _};

/// The prefix of all networks' tables.
const TABLES: &str = "p2pvm_";

/// Removes the rules for which `which` (family, chain, comment) is true. Returns how many.
pub(super) fn remove(
    by: FirewallKind,
    doing: &str,
    which: impl Fn(&str, &str, &str) -> bool,
) -> Result<usize, Error> {
    match by {
        FirewallKind::Nft => {
            let (text, count) = removal(doing, which)?;
            if count > 0 {
                kernel::nft(doing, &text)?;
            }
            Ok(count)
        }
        FirewallKind::Legacy => {
            legacy::remove(which).map_err(|cause| Error::Program(doing.to_owned(), cause))
        }
        FirewallKind::Firewalld => Ok(0),
    }
}

/// Replaces the rules for which `which` is true by one rule, in nft's syntax.
pub(super) fn replace(
    doing: &str,
    rule: &str,
    which: impl Fn(&str, &str, &str) -> bool,
) -> Result<(), Error> {
    let (removal, _) = removal(doing, which)?;
    kernel::nft(doing, &format!("{removal}{rule}"))
}

/// The text by which nft removes the rules, and their number.
fn removal(
    doing: &str,
    which: impl Fn(&str, &str, &str) -> bool,
) -> Result<(String, usize), Error> {
    let ruleset = match kernel::ruleset() {
        Err(RunError::Missing { .. }) => return Ok((String::new(), 0)),
        ruleset => ruleset.map_err(|cause| Error::Program(doing.to_owned(), cause))?,
    };
    let (mut text, mut count) = (String::new(), 0);
    for ((family, _, chain), rules) in ruleset.chains.iter().filter(|(id, _)| id.1 == "filter") {
        for rule in &rules.rules {
            if rule
                .comment
                .as_deref()
                .is_some_and(|comment| which(family, chain, comment))
            {
                let _ = writeln!(
                    text,
                    "delete rule {family} filter {chain} handle {}",
                    rule.handle
                );
                count += 1;
            }
        }
    }
    Ok((text, count))
}

/// Removes every passage for the interfaces for which `gone` is true. Returns how many.
pub(crate) fn sweep(gone: impl Fn(&str) -> bool) -> Result<usize, Error> {
    let doing = "remove rules of p2pvm's that were loaded again";
    let which = |_: &str, _: &str, comment: &str| Passage::device_of(comment).is_some_and(&gone);
    Ok(remove(FirewallKind::Nft, doing, which)? + remove(FirewallKind::Legacy, doing, which)?)
}

/// Removes passages and tables of networks whose interface is not here: another program has loaded
/// them again. Returns how many.
///
/// # Errors
/// The kernel's or nft's error.
pub fn remove_revived() -> Result<usize, Error> {
    let cause = |cause| Error::Kernel("look at this machine's interfaces".into(), cause);
    let names: BTreeSet<String> = links()
        .map_err(cause)?
        .into_iter()
        .map(|link| link.name)
        .collect();
    let mut count = sweep(|device| !names.contains(device))?;
    let living: BTreeSet<String> = names.iter().map(|name| nft_table(name)).collect();
    let Ok(ruleset) = kernel::ruleset() else {
        return Ok(count);
    };
    for (family, name) in ruleset.tables.keys() {
        if family == "ip" && name.starts_with(TABLES) && !living.contains(name) {
            kernel::drop_table(name)?;
            count += 1;
        }
    }
    Ok(count)
}
