//! What is to be undone on this machine, as the program keeps it: the journal of the kernel's
//! changes ([`p2pvm_host::journal`]) with what the part for names changed beside them. Each change
//! is written down before it is made, so that whoever comes next (this daemon at its end, its
//! guardian after a kill, the next daemon, or `p2pvm down`) can put things back.

use crate::{
    addresses::changed::{self, NamesChanged},
    layout::Layout,
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_host::{
    chain,
    journal::{Entries, Journal},
    undo as kernel,
};

/// The journal of a state directory.
pub fn journal(layout: &Layout) -> Journal {
    Journal::at(layout.undo())
}

/// What the part for names has written down; words of another version that it does not know count
/// as none.
fn names(entries: &Entries) -> NamesChanged {
    let mut names: NamesChanged = match &entries.names {
        serde_json::Value::Null => NamesChanged::default(),
        said => serde_json::from_value(said.clone()).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was changed of this machine's name servers is not known");
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

/// Writes down what is about to be changed of this machine's name servers.
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

/// Puts everything back that is written down. What cannot be put back is logged and stays written
/// down. `may` is asked once nobody else can write: false leaves everything as it is.
pub fn undo_if(layout: &Layout, may: impl FnOnce() -> bool) {
    if !layout.undo().exists() {
        return;
    }
    let journal = journal(layout);
    let mut held = match journal.hold() {
        Ok(held) => held,
        Err(error) => {
            return tracing::warn!(%error, "cannot open the journal: the changes of this machine are not undone");
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
            tracing::warn!(%error, "not noted which names are undone");
        }
    }
    if let Err(error) = held.save() {
        tracing::warn!(%error, "cannot remove undone changes from the journal");
    }
}

/// Puts everything back that is written down, and removes what somebody has saved of it and loaded
/// again since it was undone.
pub fn undo(layout: &Layout) {
    undo_if(layout, || true);
    remove_revived();
}

/// Removes firewall rules of networks that are not here: somebody saved them with his own and
/// loaded them again. How many.
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
    fn names_that_were_changed_are_noted_beside_the_rest_and_undone_with_it() {
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
