//! The changes to undo on this machine: the journal of the kernel's changes
//! ([`p2pvm_host::journal`]), with the changes of name servers beside them. Each change is written
//! down before it is made, so that it can be undone by this daemon at its end, its guardian after a
//! kill, the next daemon, or `p2pvm down`.

use crate::{
    addresses::changed::{self, NamesChanged},
    layout::Layout,
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_host::{
    apart, chain,
    journal::{Entries, Journal},
    undo as kernel,
};

/// The journal of a state directory.
pub fn journal(layout: &Layout) -> Journal {
    Journal::at(layout.undo())
}

/// The changes of name servers in the journal; those of an unknown version count as none.
fn names(entries: &Entries) -> NamesChanged {
    let mut names: NamesChanged = match &entries.names {
        serde_json::Value::Null => NamesChanged::default(),
        said => serde_json::from_value(said.clone()).unwrap_or_else(|error| {
            tracing::warn!(
                error = %chain(&error),
                "what was changed of this machine's name servers is not known"
            );
            NamesChanged::default()
        }),
    };
    // The previous release kept it beside the others.
    names.resolv_conf = names.resolv_conf.or_else(|| entries.resolv_conf.clone());
    names
}

fn set_names(entries: &mut Entries, names: &NamesChanged) -> serde_json::Result<()> {
    entries.resolv_conf = None;
    entries.names = if *names == NamesChanged::default() {
        serde_json::Value::Null
    } else {
        serde_json::to_value(names)?
    };
    Ok(())
}

/// Notes a change of this machine's name servers before it is made.
pub fn note_names(layout: &Layout, change: impl FnOnce(&mut NamesChanged)) -> Outcome<()> {
    let mut failed = None;
    journal(layout)
        .alter(|entries| {
            let mut names = names(entries);
            change(&mut names);
            failed = set_names(entries, &names).err();
        })
        .doing(format_args!(
            "writing down in {} what is to be undone",
            layout.undo().display()
        ))?;
    failed
        .map_or(Ok(()), Err)
        .doing("writing down what is to be undone")
}

/// Undoes everything in the journal, and removes the filters of guests that are gone. A change that
/// cannot be undone is logged and stays there. `may` is called once no other process can write:
/// false leaves the journal's changes as they are.
pub fn undo_if(layout: &Layout, may: impl FnOnce() -> bool) {
    apart::let_go_of_gone();
    if !layout.undo().exists() {
        return;
    }
    let journal = journal(layout);
    let mut held = match journal.hold() {
        Ok(held) => held,
        Err(error) => {
            return tracing::warn!(
                error = %chain(&error),
                "cannot open the journal: the changes of this machine are not undone"
            );
        }
    };
    if held.entries.is_empty() || !may() {
        return;
    }
    for error in kernel::undo(&mut held.entries) {
        tracing::warn!("{}", chain(&error));
    }
    let mut changed = names(&held.entries);
    if changed != NamesChanged::default() {
        if let Err(failure) = changed::undo(&mut changed) {
            tracing::warn!(%failure, "the list of name servers still names ours");
        }
        if let Err(error) = set_names(&mut held.entries, &changed) {
            tracing::warn!(error = %chain(&error), "cannot remove undone names from the journal");
        }
    }
    if let Err(error) = held.save() {
        tracing::warn!(error = %chain(&error), "cannot remove undone changes from the journal");
    }
}

/// Undoes everything in the journal, and removes rules of ours that another program has saved and
/// loaded again since.
pub fn undo(layout: &Layout) {
    undo_if(layout, || true);
    remove_revived();
}

/// Removes firewall rules of networks that are not here: another program saved them with its own
/// and loaded them again. Returns how many.
pub fn remove_revived() -> usize {
    match kernel::remove_revived() {
        Ok(0) => 0,
        Ok(count) => {
            tracing::info!(
                count,
                "removed firewall rules of p2pvm's that were loaded again when it had gone"
            );
            count
        }
        Err(error) => {
            tracing::debug!("{}", chain(&error));
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn changed_names_are_noted_and_undone_with_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let list = dir.path().join("resolv.conf");
        fs::write(&list, "nameserver 192.0.2.1\n").unwrap();
        note_names(&layout, |names| names.files.push(list.clone())).unwrap();
        assert_eq!(names(&journal(&layout).load()).files, [list]);
        undo_if(&layout, || false);
        assert!(layout.undo().exists(), "somebody else is to do it");
        undo(&layout);
        assert!(!layout.undo().exists());
        undo(&layout);
    }

    #[test]
    fn what_the_previous_release_wrote_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let list = dir.path().join("resolv.conf");
        fs::write(&list, "nameserver 192.0.2.1\n").unwrap();
        fs::write(
            layout.undo(),
            serde_json::json!({ "forwarding": null, "resolv_conf": list }).to_string(),
        )
        .unwrap();
        assert_eq!(names(&journal(&layout).load()).resolv_conf, Some(list));
        undo(&layout);
        assert!(!layout.undo().exists());
    }
}
