//! The bytes of a sealed document, and of what is in a voter's envelope.

use super::*;
use crate::golden;

#[test]
fn later_versions_read_a_sealed_document_and_its_shares() {
    golden::check("sealed", |golden| {
        let sealed = Sealed {
            holding: None,
            needed: 2,
            owner: vec![1, 2],
            shares: vec![(MemberId([0x31; 32]), vec![3])],
            body: vec![4],
        };
        golden.message("sealed", &sealed, Sealed::to_bytes, Sealed::from_bytes);
        let later = Sealed {
            holding: Some(Epoch(258)),
            ..sealed
        };
        let bytes = later.to_bytes();
        assert_eq!(bytes[..9], [3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(Sealed::from_bytes(&bytes), Some(later));
        let letter = ShareLetter {
            vm: VmId([0x41; 32]),
            owner: MemberId([0x42; 32]),
            share: KeyShare {
                number: 1,
                value: [0x43; 32],
            },
        };
        golden.message(
            "share",
            &letter,
            |letter| postcard::to_allocvec(letter).expect("plain fields"),
            |bytes| postcard::from_bytes(bytes).ok(),
        );
        golden.bytes("domain.share", SHARE.as_bytes());
        golden.bytes("domain.owner", OWNER.as_bytes());
    });
}
