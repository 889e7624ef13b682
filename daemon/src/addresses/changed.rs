//! What p2pvm changed in this machine's lists of name servers, and undoing it.

use p2pvm_api::{Doing, Outcome};
use p2pvm_host::names::file;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The changes to undo, as the journal keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesChanged {
    /// The file that names our resolver, as the previous release wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
    /// The lists of name servers with lines of ours.
    pub files: Vec<PathBuf>,
    /// The id that marks our lines.
    pub id: String,
}

/// Undoes the changes, in any process. What could not be undone stays in `names`.
pub fn undo(names: &mut NamesChanged) -> Outcome<()> {
    let mut failed = Ok(());
    let mut is_done = |path: &PathBuf, id: &str| match file::take_out(path, id) {
        Ok(()) => true,
        Err(error) => {
            failed = Err(error).doing(format_args!(
                "taking p2pvm's lines out of {}",
                path.display()
            ));
            false
        }
    };
    names.resolv_conf = names
        .resolv_conf
        .take()
        .filter(|path| !is_done(path, &names.id));
    let id = names.id.clone();
    names.files.retain(|path| !is_done(path, &id));
    if names.files.is_empty() {
        names.id.clear();
    }
    failed
}

#[cfg(test)]
#[path = "changed_golden_tests.rs"]
mod golden_tests;
