//! Leases over a network: who is granted a protected VM's next epoch, and when.

use crate::net::owner;
use crate::votes::Parliament;
use p2pvm_dht::{
    VoteError, Votes,
    votes::{Holding, LEASE, RENEW_EVERY, Renewed},
};
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A protected VM, held by the first member in epoch 1, and a second member that may take it over.
async fn protected(parliament: &Parliament) -> [(MemberId, Votes); 2] {
    let ((host, votes), heir) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    votes.grant(&vm, &set, Epoch(1), host).await.unwrap();
    let on = votes.protect(&vm, &set, Epoch(1), host, true).await;
    assert_eq!(on, Ok(()));
    [(host, votes), heir]
}

async fn renew(parliament: &Parliament, votes: &Votes, epoch: u64) -> Renewed {
    let holding = Holding {
        set: parliament.set(),
        epoch: Epoch(epoch),
    };
    let renewed = votes.renew(&[holding]).await;
    assert_eq!(renewed.len(), 1);
    renewed[0]
}

#[tokio::test(start_paused = true)]
async fn an_heir_takes_over_once_the_hosts_lease_has_run_out() {
    let parliament = Parliament::new(30).await;
    let [(host, votes), (heir, others)] = protected(&parliament).await;
    let (vm, set) = (owner(1), parliament.set());
    tokio::time::sleep(RENEW_EVERY).await;
    assert_eq!(renew(&parliament, &votes, 1).await, Renewed::Ours);
    tokio::time::sleep(LEASE - SECOND).await;
    let early = others.take_over(&vm, &set, Epoch(2), heir).await;
    assert!(
        matches!(early, Err(VoteError::Leased { free_in }) if free_in <= SECOND),
        "{early:?}"
    );
    let view = others.lease(&set).await.unwrap();
    assert!(view.protected && view.free_in <= SECOND);
    tokio::time::sleep(SECOND).await;
    assert_eq!(others.lease(&set).await.unwrap().free_in, Duration::ZERO);
    let grant = others.take_over(&vm, &set, Epoch(2), heir).await.unwrap();
    assert!(grant.is_by(&set));
    let newest = others.newest(&set).await.unwrap().unwrap();
    assert!(newest.confirmed && newest.holder == heir);
    let lost = Renewed::Newer {
        epoch: Epoch(2),
        holder: heir,
    };
    assert_eq!(renew(&parliament, &votes, 1).await, lost);
    assert_eq!(renew(&parliament, &others, 2).await, Renewed::Ours);
    let back = votes.take_over(&vm, &set, Epoch(3), host).await;
    assert!(matches!(back, Err(VoteError::Leased { .. })), "{back:?}");
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_restarted_grants_nothing_for_a_whole_lease() {
    let parliament = Parliament::new(31).await;
    let [_, (heir, others)] = protected(&parliament).await;
    let (vm, set) = (owner(1), parliament.set());
    tokio::time::sleep(LEASE).await;
    for n in 0..2 {
        parliament.start(n).await;
    }
    let refused = others.take_over(&vm, &set, Epoch(2), heir).await;
    assert!(
        matches!(refused, Err(VoteError::Leased { .. })),
        "{refused:?}"
    );
    tokio::time::sleep(LEASE).await;
    others.take_over(&vm, &set, Epoch(2), heir).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_protected_vm_moves_only_by_its_hosts_word() {
    let parliament = Parliament::new(32).await;
    let [(host, votes), (target, others)] = protected(&parliament).await;
    let (vm, set) = (owner(1), parliament.set());
    let unasked = others.grant(&vm, &set, Epoch(2), target).await;
    let refused = VoteError::Refused {
        newest: Epoch(1),
        holder: host,
    };
    assert_eq!(unasked, Err(refused));
    votes.grant(&vm, &set, Epoch(2), target).await.unwrap();
    others.grant(&vm, &set, Epoch(2), target).await.unwrap();
    others.confirm(&vm, &set, Epoch(2), target).await.unwrap();
    assert_eq!(renew(&parliament, &others, 2).await, Renewed::Ours);
    let in_its_name = votes.confirm(&vm, &set, Epoch(2), target).await;
    assert!(matches!(in_its_name, Err(VoteError::Declined { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_person_may_force_a_protected_vm_away_from_its_host() {
    let parliament = Parliament::new(33).await;
    let [_, (other, others)] = protected(&parliament).await;
    let (vm, set) = (owner(1), parliament.set());
    let stale = others.force(&vm, &set, Epoch(1), other).await;
    assert!(matches!(stale, Err(VoteError::Refused { .. })));
    others.force(&vm, &set, Epoch(2), other).await.unwrap();
    assert_eq!(renew(&parliament, &others, 2).await, Renewed::Ours);
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_protected_by_all_its_voters_or_not_at_all() {
    let parliament = Parliament::new(34).await;
    let ((host, votes), (heir, others)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    votes.grant(&vm, &set, Epoch(1), host).await.unwrap();
    parliament.kill(2);
    let missing = votes.protect(&vm, &set, Epoch(1), host, true).await;
    let no_majority = VoteError::NoMajority {
        answered: 2,
        asked: 3,
    };
    assert_eq!(missing, Err(no_majority));
    assert!(!votes.lease(&set).await.unwrap().protected);
    let unprotected = others.take_over(&vm, &set, Epoch(2), heir).await;
    assert!(
        matches!(unprotected, Err(VoteError::Invalid(_))),
        "{unprotected:?}"
    );
    let alone = renew(&parliament, &votes, 1).await;
    assert!(
        matches!(alone, Renewed::Undecided { answered: 2, .. }),
        "{alone:?}"
    );
    parliament.start(2).await;
    votes
        .protect(&vm, &set, Epoch(1), host, true)
        .await
        .unwrap();
    parliament.kill(2);
    // Said again, it needs a majority only.
    votes
        .protect(&vm, &set, Epoch(1), host, true)
        .await
        .unwrap();
    votes
        .protect(&vm, &set, Epoch(1), host, false)
        .await
        .unwrap();
    assert!(!votes.lease(&set).await.unwrap().protected);
    others.grant(&vm, &set, Epoch(2), heir).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_vms_are_renewed_together_and_each_has_its_answer() {
    let parliament = Parliament::new(35).await;
    let (host, votes) = parliament.asker(50, 0, 0);
    let mut held = Vec::new();
    for n in 1..=20 {
        let (vm, set) = (owner(n), parliament.set_of(n));
        votes.grant(&vm, &set, Epoch(1), host).await.unwrap();
        if n % 2 == 0 {
            votes
                .protect(&vm, &set, Epoch(1), host, true)
                .await
                .unwrap();
        }
        held.push(Holding {
            set,
            epoch: Epoch(1),
        });
    }
    parliament.kill(0);
    let renewed = votes.renew(&held).await;
    for (n, renewed) in (1..=20).zip(renewed) {
        assert_eq!(renewed == Renewed::Ours, n % 2 == 0, "VM {n}: {renewed:?}");
    }
    assert_eq!(votes.renew(&[]).await, []);
}
