//! What [`Addresses`] promises, over records in memory.

use crate::{
    Addresses, Error, NameKind, Names, Subject, Subnet, address_key, entry::Holder,
    memory::MemoryRecords, subnet,
};
use p2pvm_dht::record::Records;
use p2pvm_overlay::{Epoch, MemberId, identity::KeyPair};
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

fn derive(subject: Subject) -> Ipv6Addr {
    let bytes: [u8; 16] = subject.owner()[..16].try_into().unwrap();
    Ipv6Addr::from_bits(u128::from_be_bytes(bytes) >> 48 | 0xfd77 << 112)
}

fn node(records: &Arc<MemoryRecords>, subnet: &str, dir: &Path, name: &str) -> Addresses {
    Addresses::new(records.clone(), subnet.parse().unwrap(), dir.join(name))
        .with_v6(Arc::new(derive))
}

fn keys(n: u8) -> (KeyPair, MemberId) {
    let keys = KeyPair::from_seed(&[n; 32]);
    let member = MemberId(keys.public());
    (keys, member)
}

#[tokio::test]
async fn many_concurrent_claimers_of_a_nearly_full_subnet_get_one_address_each() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..13u8 {
        let addresses = node(&records, "10.77.0.0/28", dir.path(), &format!("c{n}"));
        tasks.spawn(async move {
            let (keys, member) = keys(n);
            addresses
                .claim_host(&keys, member, &format!("h{n}"))
                .await
                .unwrap()
        });
    }
    let leases = tasks.join_all().await;
    let distinct: HashSet<_> = leases.iter().map(|l| l.v4).collect();
    assert_eq!(distinct.len(), 13);
    assert!(
        !distinct.contains(&"10.77.0.1".parse().unwrap()),
        "the gateway is never claimed"
    );

    let late = node(&records, "10.77.0.0/28", dir.path(), "late");
    let (keys, member) = keys(99);
    assert!(matches!(
        late.claim_host(&keys, member, "late").await,
        Err(Error::Exhausted { tried: 13, .. })
    ));
}

#[tokio::test]
async fn a_restarted_host_gets_its_address_back_with_or_without_its_cache() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let (keys, member) = keys(1);
    let first = node(&records, "10.77.0.0/16", dir.path(), "c")
        .claim_host(&keys, member, "alpha")
        .await
        .unwrap();
    let second = node(&records, "10.77.0.0/16", dir.path(), "c")
        .claim_host(&keys, member, "alpha")
        .await
        .unwrap();
    let third = node(&records, "10.77.0.0/16", dir.path(), "lost")
        .claim_host(&keys, member, "alpha")
        .await
        .unwrap();
    assert_eq!((first.v4, first.v4), (second.v4, third.v4));
    // After all records have run out, the cache alone brings the same address.
    records.later.store(10 * 3600, Relaxed);
    let fourth = node(&records, "10.77.0.0/16", dir.path(), "c")
        .claim_host(&keys, member, "alpha")
        .await
        .unwrap();
    assert_eq!(first.v4, fourth.v4);
}

#[tokio::test]
async fn a_name_has_one_owner_and_the_loser_keeps_no_address() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let addresses = node(&records, "10.77.0.0/16", dir.path(), "c");
    let ((a, member_a), (b, member_b)) = (keys(1), keys(2));
    addresses.claim_host(&a, member_a, "alpha").await.unwrap();
    let taken = addresses.claim_host(&b, member_b, "alpha").await;
    assert_eq!(
        taken,
        Err(Error::NameTaken {
            name: "alpha".into(),
            by: Subject::Member(member_a)
        })
    );
    assert!(matches!(
        addresses.claim_host(&b, member_b, "vm").await,
        Err(Error::InvalidName(_))
    ));
    let held = records
        .map
        .lock()
        .unwrap()
        .values()
        .filter(|r| r.owner == b.public() && r.value.is_some())
        .count();
    assert_eq!(held, 0);
    // A VM may share a host's label.
    addresses
        .claim_vm(&b, member_a, Epoch(1), "alpha")
        .await
        .unwrap();
}

#[tokio::test]
async fn a_vm_moves_in_no_epoch_beyond_the_last() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let addresses = node(&records, "10.77.0.0/16", dir.path(), "o");
    let (vm, (_, member)) = (KeyPair::from_seed(&[9; 32]), keys(1));
    let lease = addresses
        .claim_vm(&vm, member, Epoch(1), "web")
        .await
        .unwrap();
    for epoch in [Epoch::MAX.next(), Epoch(u64::MAX)] {
        let made = addresses.lease_of(&vm, lease.v4, member, epoch, "web");
        assert_eq!(made.version, Epoch::MAX.first_version());
        let moved = addresses.move_vm(&vm, lease.v4, member, epoch, "web").await;
        assert!(matches!(moved, Err(Error::Superseded { .. })), "{epoch}");
    }
}

#[tokio::test]
async fn a_moved_vms_address_cannot_be_taken_back_by_its_old_holder() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let (old, new) = (
        node(&records, "10.77.0.0/16", dir.path(), "o"),
        node(&records, "10.77.0.0/16", dir.path(), "n"),
    );
    let (vm, ((_, a), (_, b))) = (KeyPair::from_seed(&[9; 32]), (keys(1), keys(2)));
    let before = old.claim_vm(&vm, a, Epoch(1), "web").await.unwrap();
    assert!(before.version >= 1 << 32);
    let after = new
        .move_vm(&vm, before.v4, b, Epoch(2), "web")
        .await
        .unwrap();
    let expected = Holder {
        member: b,
        epoch: Epoch(2),
        vm: Some(vm.vm_id()),
        name: "web".into(),
    };
    assert_eq!(
        old.resolve(IpAddr::V4(before.v4)).await.unwrap(),
        Some(expected.clone())
    );
    assert_eq!(
        old.resolve(IpAddr::V6(before.v6.unwrap())).await.unwrap(),
        Some(expected.clone())
    );
    assert!(!old.check(&before).await.unwrap() && new.check(&after).await.unwrap());
    assert!(matches!(
        old.renew(&vm, &before).await,
        Err(Error::Superseded { .. })
    ));
    assert!(matches!(
        old.claim_vm(&vm, a, Epoch(1), "web").await,
        Err(Error::Superseded { .. })
    ));
    assert!(matches!(
        old.move_vm(&vm, before.v4, a, Epoch(1), "web").await,
        Err(Error::Superseded { .. })
    ));
    let renewed = new.renew(&vm, &after).await.unwrap();
    assert_eq!(
        (renewed.v4, renewed.v6, renewed.holder),
        (before.v4, before.v6, expected)
    );
    assert_eq!(
        new.resolve_name("WEB", NameKind::Vm)
            .await
            .unwrap()
            .map(|n| n.v4),
        Some(before.v4)
    );
}

#[tokio::test]
async fn the_loser_of_a_healed_partition_learns_it_and_draws_again() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let addresses = node(&records, "10.77.0.0/24", dir.path(), "c");
    let ((a, member_a), (b, member_b)) = (keys(1), keys(2));
    let lease = addresses.claim_host(&a, member_a, "alpha").await.unwrap();
    assert!(addresses.check(&lease).await.unwrap());
    // The replicas kept the record of an owner beyond the cut.
    let winner = Holder {
        member: member_b,
        epoch: Epoch(0),
        vm: None,
        name: "beta".into(),
    };
    records
        .map
        .lock()
        .unwrap()
        .remove(&address_key(IpAddr::V4(lease.v4)));
    records
        .create(
            &b,
            address_key(IpAddr::V4(lease.v4)),
            winner.encode(),
            crate::LEASE_TTL,
        )
        .await
        .unwrap();
    assert!(!addresses.check(&lease).await.unwrap());
    assert_eq!(
        addresses.renew(&a, &lease).await,
        Err(Error::Lost { address: lease.v4 })
    );
    let again = addresses.claim_host(&a, member_a, "alpha").await.unwrap();
    assert_ne!(again.v4, lease.v4);
    assert_eq!(
        addresses
            .resolve_name("alpha", NameKind::Host)
            .await
            .unwrap()
            .map(|n| n.v4),
        Some(again.v4)
    );
}

#[tokio::test]
async fn an_expired_untaken_lease_is_renewed_and_released_ones_are_free() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let addresses = node(&records, "10.77.0.0/24", dir.path(), "c");
    let (a, member) = keys(1);
    let lease = addresses.claim_host(&a, member, "alpha").await.unwrap();
    records.later.store(4000, Relaxed);
    assert_eq!(addresses.resolve(IpAddr::V4(lease.v4)).await.unwrap(), None);
    assert!(addresses.check(&lease).await.unwrap());
    let renewed = addresses.renew(&a, &lease).await.unwrap();
    assert_eq!(
        addresses.resolve(IpAddr::V4(lease.v4)).await.unwrap(),
        Some(lease.holder.clone())
    );
    assert!(renewed.expires > lease.expires);
    addresses.release(&a, &renewed).await.unwrap();
    assert_eq!(addresses.resolve(IpAddr::V4(lease.v4)).await.unwrap(), None);
    assert_eq!(
        addresses
            .resolve_name("alpha", NameKind::Host)
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn an_entry_is_believed_only_from_who_may_make_it() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    let addresses = node(&records, "10.77.0.0/16", dir.path(), "c");
    let ((_, victim), (thief, _)) = (keys(1), keys(2));
    let ip: IpAddr = "10.77.3.3".parse().unwrap();
    let forged = Holder {
        member: victim,
        epoch: Epoch(0),
        vm: None,
        name: "x".into(),
    };
    records
        .create(&thief, address_key(ip), forged.encode(), crate::LEASE_TTL)
        .await
        .unwrap();
    assert_eq!(addresses.resolve(ip).await.unwrap(), None);
    // An IPv6 address that does not follow from the owner's key.
    let own = Holder {
        member: MemberId(thief.public()),
        epoch: Epoch(0),
        vm: None,
        name: "x".into(),
    };
    let v6 = IpAddr::V6(derive(Subject::Member(victim)));
    records
        .create(&thief, address_key(v6), own.encode(), crate::LEASE_TTL)
        .await
        .unwrap();
    assert_eq!(addresses.resolve(v6).await.unwrap(), None);
}

#[tokio::test]
async fn without_a_quorum_nothing_is_claimed_and_the_error_says_so() {
    let (records, dir) = (
        Arc::new(MemoryRecords::default()),
        tempfile::tempdir().unwrap(),
    );
    records.cut.store(true, Relaxed);
    let addresses = node(&records, "10.77.0.0/16", dir.path(), "c");
    let (a, member) = keys(1);
    let error = addresses.claim_host(&a, member, "alpha").await.unwrap_err();
    let said = p2pvm_overlay::chain(&error);
    assert!(
        said.starts_with("the address records cannot be reached: ")
            && said.contains("too few to decide"),
        "{said}"
    );
    assert!(addresses.forward(NameKind::Host, "alpha").await.is_err());
}

#[test]
fn the_machine_the_tests_run_on_has_a_readable_routing_table() {
    let routes = subnet::local_routes().unwrap();
    assert!(Subnet::choose(&routes, &mut rand::rng()).is_some());
}
