//! A document and its voters.

use super::*;

const VM: VmId = VmId([0x41; 32]);
const DOCUMENT: &[u8] = b"the VM's definition and key";

struct Case {
    owner: Identity,
    voters: Vec<Identity>,
    sealed: Sealed,
}

impl Case {
    fn new(voters: usize) -> Self {
        let owner = Identity::generate();
        let voters: Vec<_> = (0..voters).map(|_| Identity::generate()).collect();
        let ids: Vec<_> = voters.iter().map(Identity::member_id).collect();
        let sealed = Sealed::seal((VM, None), owner.member_id(), &ids, DOCUMENT);
        let sealed = Sealed::from_bytes(&sealed.to_bytes()).unwrap();
        Self {
            owner,
            voters,
            sealed,
        }
    }

    /// The shares that the voters release.
    fn shares(&self) -> Vec<KeyShare> {
        let letters = self.voters.iter().zip(self.sealed.shares());
        letters
            .map(|(voter, (id, envelope))| {
                assert_eq!(*id, voter.member_id());
                let letter = ShareLetter::open(voter, envelope).unwrap();
                assert_eq!((letter.vm, letter.owner), (VM, self.owner.member_id()));
                letter.share
            })
            .collect()
    }
}

#[test]
fn a_majority_of_voters_opens_a_document_and_fewer_do_not() {
    for voters in [1, 2, 3, 5] {
        let case = Case::new(voters);
        let shares = case.shares();
        let needed = voters / 2 + 1;
        assert_eq!(case.sealed.needed(), needed);
        assert_eq!(
            case.sealed.open(&shares[voters - needed..]).unwrap(),
            DOCUMENT
        );
        assert_eq!(case.sealed.open(&shares[..needed - 1]), None);
    }
}

#[test]
fn a_wrong_share_does_not_keep_the_right_ones_from_opening() {
    let case = Case::new(5);
    let mut shares = case.shares();
    shares[0].value[0] ^= 1;
    shares[2].value[31] ^= 1;
    assert_eq!(case.sealed.open(&shares[..4]), None);
    assert_eq!(case.sealed.open(&shares).unwrap(), DOCUMENT);
    shares[0] = KeyShare {
        number: shares[4].number,
        ..shares[0]
    };
    assert_eq!(case.sealed.open(&shares).unwrap(), DOCUMENT);
    shares[4] = shares[3];
    assert_eq!(
        case.sealed.open(&shares),
        None,
        "the same share twice is one"
    );
}

#[test]
fn the_owner_opens_a_document_alone_and_nobody_else_does() {
    let case = Case::new(3);
    assert_eq!(case.sealed.open_as(&case.owner).unwrap(), DOCUMENT);
    let (first, second) = (&case.voters[0], &case.voters[1]);
    assert_eq!(case.sealed.open_as(first), None);
    let theirs = &case.sealed.shares()[0].1;
    assert!(ShareLetter::open(second, theirs).is_none());
    assert!(ShareLetter::open(&case.owner, theirs).is_none());
}

#[test]
fn a_sealed_document_shows_nothing_of_what_is_in_it() {
    let case = Case::new(3);
    let bytes = case.sealed.to_bytes();
    assert!(!bytes.windows(8).any(|at| at == &DOCUMENT[..8]));
    assert!(!bytes.windows(32).any(|at| at == VM.0));
}

#[test]
fn what_is_no_sealed_document_is_refused() {
    let good = Case::new(3).sealed;
    assert_eq!(Sealed::from_bytes(&[]), None);
    assert_eq!(Sealed::from_bytes(&crate::framed::to_bytes(&good)), None);
    let none = Sealed {
        needed: 0,
        ..good.clone()
    };
    assert_eq!(Sealed::from_bytes(&none.to_bytes()), None);
    let many = Sealed {
        shares: vec![good.shares[0].clone(); 16],
        ..good
    };
    assert_eq!(Sealed::from_bytes(&many.to_bytes()), None);
}
