//! What is told of a VM for the log of events: one line where it happens.

use super::{Entry, Host, HostEvent};
use p2pvm_api::EventKind;
use p2pvm_overlay::VmId;
use serde::{Deserialize, Serialize};

/// An event of a VM, for the log of its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// The VM.
    pub vm: VmId,
    /// Its name here.
    pub name: String,
    /// What happened.
    pub kind: EventKind,
    /// Figures and names, by their keys. A value that is a member's id is shown with its name.
    pub fields: Vec<(String, String)>,
    /// What happened, in a sentence.
    pub sentence: String,
}

impl Host {
    /// Tells the log of events what happened to a VM here.
    pub(crate) fn note(
        &self,
        entry: &Entry,
        kind: EventKind,
        fields: &[(&str, String)],
        sentence: impl Into<String>,
    ) {
        let field = |(key, value): &(&str, String)| ((*key).to_owned(), value.clone());
        self.emit(HostEvent::Noted(Noted {
            vm: entry.definition.vm,
            name: entry.listed_name(),
            kind,
            fields: fields.iter().map(field).collect(),
            sentence: sentence.into(),
        }));
    }
}
