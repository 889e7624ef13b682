//! What a host answers to a revocation, and the bytes of it.

use super::*;
use crate::{golden, wiring::alone::Alone};
use p2pvm_overlay::identity::KeyPair;

const WEB: Resource = Resource::Vm(VmId([7; 32]));

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_vm_says_so_and_other_bytes_are_refused() {
    let alone = Alone::start().await;
    let parts = &alone.services.vms.parts;
    let tell = |body: Vec<u8>| {
        let asked = parts.fabric();
        async move { asked.call(asked.me(), SERVICE, body, TELL_LIMIT).await }
    };
    let keys = KeyPair::from_seed(&[1; 32]);
    let until = UnixTime::now().plus(60).0;
    let word = Revocation::sign(&keys, WEB, [9; 16], until).to_message(WEB);
    assert_eq!(tell(word).await.unwrap(), NOT_HERE);
    let host = Resource::Host(parts.me());
    let foreign = Revocation::sign(&keys, host, [9; 16], until).to_message(host);
    for (body, said) in [
        (foreign, "only tokens for VMs"),
        (Vec::new(), "cannot be read"),
        (vec![7; 100], "cannot be read"),
    ] {
        let refused = tell(body).await.unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_forgotten_when_its_token_has_ended() {
    let alone = Alone::start().await;
    let (tokens, keys) = (&alone.services.tokens, KeyPair::from_seed(&[1; 32]));
    let now = UnixTime::now().0;
    for (serial, until) in [([1; 16], now), ([2; 16], now + 60)] {
        let word = Revocation::sign(&keys, WEB, serial, until);
        tokens.keep_revocation(WEB, word).unwrap();
    }
    let left = tokens.revocations();
    assert_eq!(left.len(), 1);
    assert!(tokens.has_revoked(&[2; 16]) && !tokens.has_revoked(&[1; 16]));
    // Nobody has the VM: the looks go on, and nothing is noted as told.
    alone.services.revoker.look().await;
    assert_eq!(alone.services.revoker.was_told(&[2; 16]), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_revocation_stays_and_its_next_host_is_told() {
    let alone = Alone::start().await;
    let (tokens, revoker) = (&alone.services.tokens, &alone.services.revoker);
    let until = UnixTime::now().plus(60).0;
    let word = Revocation::sign(&KeyPair::from_seed(&[1; 32]), WEB, [2; 16], until);
    tokens.keep_revocation(WEB, word).unwrap();
    let stay = |host: u8| (MemberId([host; 32]), Epoch(3));
    assert!(revoker.note([2; 16], stay(1), false));
    assert!(!revoker.note([2; 16], stay(1), false), "one warning a stay");
    assert_eq!(revoker.was_told(&[2; 16]), None, "it is told again");
    revoker.look().await;
    assert!(tokens.has_revoked(&[2; 16]));
    assert!(revoker.note([2; 16], stay(2), true));
    assert_eq!(revoker.was_told(&[2; 16]), Some(stay(2)));
}

#[tokio::test]
async fn a_host_that_shuts_down_refuses_no_revocation() {
    let word = Revocation::sign(&KeyPair::from_seed(&[1; 32]), WEB, [9; 16], 60);
    let gone = Service(Weak::new());
    let answer = gone.serve(MemberId([1; 32]), word.to_message(WEB)).await;
    assert_eq!(answer, Ok(NOT_HERE.to_vec()));
}

#[test]
fn members_of_the_previous_version_read_a_revocation() {
    golden::check("token", |golden| {
        let keys = KeyPair::from_seed(&[1; 32]);
        let word = Revocation::sign(&keys, WEB, [9; 16], 1_796_000_000);
        golden.message(
            "revocation",
            &(WEB, word),
            |(resource, word)| word.to_message(*resource),
            Revocation::from_message,
        );
        golden.bytes("answer.not-here", &NOT_HERE);
        golden.bytes("service", SERVICE.as_bytes());
    });
}
