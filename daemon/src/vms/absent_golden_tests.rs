//! The bytes in which members tell of the VM records that they hold.

use super::*;
use crate::golden;
use p2pvm_overlay::identity::KeyPair;

fn told(seen: Option<UnixTime>) -> Sighting {
    let keys = KeyPair::from_seed(&[1; 32]);
    let (key, expires) = (vm_key(keys.vm_id()), UnixTime(1_796_000_000));
    Sighting {
        record: Record::sign(&keys, key, 300, expires, Some(vec![1, 2, 3])),
        seen,
    }
}

#[test]
fn members_of_the_previous_version_read_which_vm_records_others_hold() {
    golden::check("records", |golden| {
        let seen = told(Some(UnixTime(1_795_000_000)));
        let samples = [
            ("told.none", Vec::new()),
            ("told.seen", vec![seen.clone()]),
            ("told.both", vec![seen, told(None)]),
        ];
        golden.messages(
            samples.into(),
            |all| postcard::to_allocvec(all).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
    });
}
