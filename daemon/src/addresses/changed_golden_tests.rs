//! The text in the journal of what was changed in lists of name servers.

use super::*;
use crate::golden;

#[test]
fn the_next_version_undoes_changes_of_name_servers() {
    golden::check_texts("names", |golden| {
        let read = |text: &[u8]| serde_json::from_slice(text).ok();
        let changed = NamesChanged {
            resolv_conf: None,
            files: vec!["/etc/resolv.conf".into()],
            id: "p2pvm-1a2b".into(),
        };
        golden.message(
            "changed",
            &changed,
            |changed| serde_json::to_vec(changed).expect("plain fields"),
            read,
        );
        let first = NamesChanged {
            resolv_conf: Some("/etc/resolv.conf".into()),
            files: Vec::new(),
            id: "p2pvm-1a2b".into(),
        };
        golden.message(
            "changed.first",
            &first,
            |changed| serde_json::to_vec(changed).expect("plain fields"),
            read,
        );
    });
}
