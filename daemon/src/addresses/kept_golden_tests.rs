//! The bytes of the saved lease.

use super::*;
use crate::golden;
use p2pvm_dhcp::Holder;
use p2pvm_overlay::{Epoch, MemberId};

#[test]
fn the_next_version_reads_the_saved_lease() {
    let lease = |v6| Lease {
        v4: [10, 1, 2, 3].into(),
        prefix: 16,
        v6,
        holder: Holder {
            member: MemberId([1; 32]),
            epoch: Epoch(0),
            vm: None,
            name: "attic".into(),
        },
        expires: UnixTime(1_796_000_000),
        version: 300,
    };
    golden::check("lease", |golden| {
        let both = lease(Some([0xfd00, 1, 2, 3, 4, 5, 6, 7].into()));
        for (name, lease) in [("lease.v4", lease(None)), ("lease.both", both)] {
            golden.message(
                name,
                &lease,
                |lease| postcard::to_allocvec(lease).expect("plain fields"),
                |bytes| postcard::from_bytes(bytes).ok(),
            );
        }
    });
}
