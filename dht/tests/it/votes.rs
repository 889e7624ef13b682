//! Voters over a network: what they grant, and that no epoch has two holders.

use crate::net::{Rough, chance, identity, owner};
use p2pvm_dht::{
    VoteError, Voter, VoterLog, VoterSet, Votes,
    votes::{LogError, VoteLimits},
};
use p2pvm_overlay::{Epoch, Fabric, MemberId, UnixTime, fabric::memory::MemoryNet};
use rand::Rng;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;

/// Three voters with their logs, on a network with faults.
pub struct Parliament {
    net: MemoryNet,
    directory: TempDir,
    ids: Vec<MemberId>,
    limits: VoteLimits,
    seed: u64,
}

impl Parliament {
    pub async fn new(seed: u64) -> Self {
        Self::limited(seed, VoteLimits::default()).await
    }

    async fn limited(seed: u64, limits: VoteLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ids = (0..3).map(|n| identity(n).member_id()).collect();
        let parliament = Self {
            net: MemoryNet::new(Duration::from_millis(20)),
            directory,
            ids,
            limits,
            seed,
        };
        for n in 0..3 {
            parliament.start(n).await;
        }
        parliament
    }

    fn log(&self, n: usize) -> PathBuf {
        self.directory.path().join(n.to_string())
    }

    /// Starts the voter, or restarts it with its log.
    pub async fn start(&self, n: usize) {
        let fabric: Arc<dyn Fabric> = self.net.add(self.ids[n]);
        let log = loop {
            match VoterLog::open(&self.log(n)) {
                Ok(log) => break log,
                // The previous voter still writes its last promise.
                Err(LogError::InUse(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(e) => panic!("seed {}: {e:?}", self.seed),
            }
        };
        let clock = Arc::new(UnixTime::now);
        Voter::start_limited(&fabric, identity(n), log, self.limits, clock);
    }

    pub fn kill(&self, n: usize) {
        self.net.kill(self.ids[n]);
    }

    pub fn set(&self) -> VoterSet {
        self.set_of(1)
    }

    pub fn set_of(&self, vm: u8) -> VoterSet {
        VoterSet::sign(&owner(vm), &self.ids)
    }

    /// A member that asks the voters.
    pub fn asker(&self, n: u8, jitter_ms: u64, lost_percent: u32) -> (MemberId, Votes) {
        let inner = self.net.add(member(n));
        let chance = chance(self.seed << 8 | u64::from(n));
        (
            member(n),
            Votes::new(Arc::new(Rough {
                inner,
                chance,
                jitter_ms,
                lost_percent,
                fixed: None,
            })),
        )
    }
}

fn member(n: u8) -> MemberId {
    MemberId(owner(n).public())
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_a_majoritys_and_can_be_checked_by_anyone() {
    let parliament = Parliament::new(1).await;
    let (me, votes) = parliament.asker(50, 0, 0);
    parliament.net.kill(parliament.ids[2]);
    let (vm, set) = (owner(1), parliament.set());
    let began = tokio::time::Instant::now();
    let grant = votes.grant(&vm, &set, Epoch(1), me).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "does not wait for the dead voter"
    );
    assert!(grant.is_by(&set) && grant.promises.len() == 2);
    assert_eq!(
        votes.grant(&vm, &set, Epoch(1), me).await.map(|g| g.epoch),
        Ok(Epoch(1)),
        "again"
    );
    for damage in 0..4 {
        let mut other = grant.clone();
        match damage {
            0 => other.epoch = Epoch(2),
            1 => other.holder = member(9),
            2 => drop(other.promises.pop()),
            _ => other.promises[1] = other.promises[0],
        }
        assert!(!other.verify(), "damage {damage}");
    }
    parliament.net.kill(parliament.ids[1]);
    assert_eq!(
        votes.grant(&vm, &set, Epoch(2), me).await,
        Err(VoteError::NoMajority {
            answered: 1,
            asked: 3
        })
    );
}

#[tokio::test(start_paused = true)]
async fn an_older_epoch_and_another_holder_are_refused_and_told_why() {
    let parliament = Parliament::new(2).await;
    let ((a, votes), (b, _)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    assert_eq!(votes.newest(&set).await, Ok(None));
    votes.grant(&vm, &set, Epoch(4), a).await.unwrap();
    let refused = Err(VoteError::Refused {
        newest: Epoch(4),
        holder: a,
    });
    assert_eq!(votes.grant(&vm, &set, Epoch(4), b).await, refused);
    assert_eq!(votes.grant(&vm, &set, Epoch(3), b).await, refused);
    let newest = votes.newest(&set).await.unwrap().unwrap();
    assert_eq!(
        (
            newest.epoch,
            newest.holder,
            newest.confirmed,
            newest.granted
        ),
        (Epoch(4), a, false, true)
    );
    votes.confirm(&vm, &set, Epoch(4), a).await.unwrap();
    assert!(votes.newest(&set).await.unwrap().unwrap().confirmed);
    assert!(
        votes.take_back(&vm, &set, Epoch(5), b).await.is_err(),
        "confirmed"
    );
    votes.grant(&vm, &set, Epoch(5), b).await.unwrap();
    assert_eq!(
        votes.confirm(&vm, &set, Epoch(4), a).await,
        Err(VoteError::Refused {
            newest: Epoch(5),
            holder: b
        })
    );
    assert!(
        votes.take_back(&vm, &set, Epoch(6), a).await.is_ok(),
        "not confirmed"
    );
}

#[tokio::test(start_paused = true)]
async fn only_the_vms_key_names_voters_or_asks_them() {
    let parliament = Parliament::new(3).await;
    let (me, votes) = parliament.asker(50, 0, 0);
    let (set, stranger) = (parliament.set(), owner(2));
    assert!(matches!(
        votes.grant(&stranger, &set, Epoch(1), me).await,
        Err(VoteError::Invalid(_))
    ));
    let forged = VoterSet {
        vm: set.vm,
        ..VoterSet::sign(&stranger, &parliament.ids)
    };
    assert!(matches!(
        votes.grant(&owner(1), &forged, Epoch(1), me).await,
        Err(VoteError::Invalid(_))
    ));
    assert!(!VoterSet::sign(&owner(1), &[]).is_authentic());
    votes.grant(&owner(1), &set, Epoch(1), me).await.unwrap();
    let others = VoterSet::sign(&owner(1), &parliament.ids[..2]);
    assert_eq!(
        votes.grant(&owner(1), &others, Epoch(2), me).await,
        Err(VoteError::Invalid("the VM has other voters"))
    );
}

fn simulate(seeds: std::ops::Range<u64>, run: impl AsyncFn(u64)) {
    let only = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse::<u64>().ok());
    for seed in only.map_or(seeds, |seed| seed..seed + 1) {
        println!("repeat with SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(seed));
    }
}

#[test]
fn no_epoch_has_two_holders_under_cuts_lost_answers_and_restarts() {
    simulate(0..25, async |seed| {
        let parliament = Parliament::new(seed).await;
        let set = parliament.set();
        let granted: Arc<Mutex<BTreeMap<Epoch, MemberId>>> = Arc::default();
        let askers = (0..4u8).map(|n| {
            let (me, votes) = parliament.asker(50 + n, 50, 15);
            let (set, granted) = (set.clone(), granted.clone());
            let random = chance(seed * 100 + u64::from(n));
            async move {
                let mut epoch = Epoch(1);
                for _ in 0..8 {
                    match votes.grant(&owner(1), &set, epoch, me).await {
                        Ok(grant) => {
                            assert!(grant.is_by(&set), "seed {seed}");
                            let before = granted.lock().unwrap().insert(grant.epoch, me);
                            assert!(
                                before.is_none_or(|b| b == me),
                                "seed {seed}: two holders of epoch {epoch}"
                            );
                            epoch = epoch.next();
                        }
                        Err(VoteError::Refused { newest, .. }) => epoch = newest.next(),
                        Err(_) => {}
                    }
                    let wait = random.lock().unwrap().random_range(0..200);
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
            }
        });
        let trouble = async {
            let random = chance(seed);
            for _ in 0..40 {
                let (n, m, what) = {
                    let mut random = random.lock().unwrap();
                    (
                        random.random_range(0..3),
                        random.random_range(50..54),
                        random.random_range(0..4),
                    )
                };
                match what {
                    0 => parliament.net.set_cut(parliament.ids[n], member(m), true),
                    1 => parliament.net.set_cut(parliament.ids[n], member(m), false),
                    _ => parliament.start(n).await,
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (0..3).for_each(|n| {
                (50..54).for_each(|m| parliament.net.set_cut(parliament.ids[n], member(m), false))
            });
        };
        futures::future::join(futures::future::join_all(askers), trouble).await;
        assert!(
            !granted.lock().unwrap().is_empty(),
            "seed {seed}: no member was ever granted an epoch"
        );
    });
}

#[test]
fn a_late_confirmation_and_a_take_back_never_both_succeed() {
    simulate(0..30, async |seed| {
        let parliament = Parliament::new(seed).await;
        let (vm, set) = (owner(1), parliament.set());
        let (source, source_votes) = parliament.asker(50, 60, 20);
        let (target, target_votes) = parliament.asker(51, 60, 20);
        let (_, sure) = parliament.asker(52, 0, 0);
        sure.grant(&vm, &set, Epoch(1), source).await.unwrap();
        sure.confirm(&vm, &set, Epoch(1), source).await.unwrap();
        sure.grant(&vm, &set, Epoch(2), target).await.unwrap();
        let cut = parliament.ids[seed as usize % 3];
        parliament.net.set_cut(
            cut,
            if seed.is_multiple_of(2) {
                source
            } else {
                target
            },
            !seed.is_multiple_of(5),
        );
        let (confirmed, taken_back) = futures::future::join(
            target_votes.confirm(&vm, &set, Epoch(2), target),
            source_votes.take_back(&vm, &set, Epoch(3), source),
        )
        .await;
        assert!(
            confirmed.is_err() || taken_back.is_err(),
            "seed {seed}: both run"
        );
    });
}

#[tokio::test(start_paused = true)]
async fn a_huge_epoch_does_not_lock_a_vm_for_ever() {
    let parliament = Parliament::new(4).await;
    let ((a, votes), (b, _)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    for epoch in [Epoch(u64::MAX), Epoch(u64::from(u32::MAX)), Epoch(1 << 20)] {
        let granted = votes.grant(&vm, &set, epoch, b).await;
        assert!(
            granted.is_err(),
            "{epoch}: no next epoch could be asked for"
        );
    }
    votes.grant(&vm, &set, Epoch(1), a).await.unwrap();
    votes.grant(&vm, &set, Epoch(1000), b).await.unwrap();
    assert_eq!(
        votes.newest(&set).await.unwrap().unwrap().epoch,
        Epoch(1000)
    );
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_asks_again_does_not_lose_its_confirmation() {
    let parliament = Parliament::new(5).await;
    let ((a, votes), (b, _)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    votes.grant(&vm, &set, Epoch(1), a).await.unwrap();
    votes.confirm(&vm, &set, Epoch(1), a).await.unwrap();
    votes.grant(&vm, &set, Epoch(2), a).await.unwrap();
    for n in 0..3 {
        parliament.start(n).await;
    }
    assert!(
        votes.take_back(&vm, &set, Epoch(3), b).await.is_err(),
        "it runs in epoch 1 until it runs in epoch 2"
    );
    let newest = votes.newest(&set).await.unwrap().unwrap();
    assert_eq!((newest.epoch, newest.confirmed), (Epoch(2), false));
    votes.grant(&vm, &set, Epoch(3), b).await.unwrap();
    assert!(
        votes.take_back(&vm, &set, Epoch(4), a).await.is_ok(),
        "the other holder has not confirmed its epoch"
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_that_makes_vms_up_uses_up_its_own_share() {
    let limits = VoteLimits {
        vms: 12,
        member_vms: 8,
        ..VoteLimits::default()
    };
    let parliament = Parliament::limited(6, limits).await;
    let ((flood, votes), (b, other)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let make = async |by: &Votes, n: u8, me| {
        let set = VoterSet::sign(&owner(n), &parliament.ids);
        by.grant(&owner(n), &set, Epoch(1), me).await.map(drop)
    };
    for n in 1..=8 {
        make(&votes, n, flood).await.unwrap();
    }
    for n in 0..3 {
        parliament.start(n).await;
    }
    let refused = make(&votes, 9, flood).await.unwrap_err();
    assert!(
        matches!(&refused, VoteError::Declined { reason, .. } if reason.contains("8 VMs")),
        "counted over a restart: {refused}"
    );
    make(&votes, 8, flood).await.unwrap();
    let set = VoterSet::sign(&owner(1), &parliament.ids);
    other.grant(&owner(1), &set, Epoch(2), b).await.unwrap();
    for n in 21..=24 {
        make(&other, n, b)
            .await
            .expect("the other member's VMs are promised");
    }
    let full = make(&other, 25, b).await.unwrap_err();
    assert!(
        matches!(&full, VoteError::Declined { reason, .. } if reason.contains("12 VMs")),
        "{full}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_that_asks_without_end_does_not_hold_the_others() {
    let limits = VoteLimits {
        waiting: 4,
        ..VoteLimits::default()
    };
    let parliament = Parliament::limited(7, limits).await;
    let ((flood, votes), (b, other)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let sets: Vec<_> = (100..150)
        .map(|n| (owner(n), VoterSet::sign(&owner(n), &parliament.ids)))
        .collect();
    let asked = sets
        .iter()
        .map(|(vm, set)| votes.grant(vm, set, Epoch(1), flood));
    let (vm, set) = (owner(1), parliament.set());
    let (flooded, granted) = futures::future::join(
        futures::future::join_all(asked),
        other.grant(&vm, &set, Epoch(1), b),
    )
    .await;
    granted.unwrap();
    let declined = flooded.iter().filter(|answer| {
        matches!(answer, Err(VoteError::Declined { reason, .. }) if reason.contains("wait"))
    });
    assert!(declined.count() > 20, "{flooded:?}");
}

#[tokio::test(start_paused = true)]
async fn only_its_holder_says_that_a_vm_was_deleted() {
    let parliament = Parliament::new(8).await;
    let ((a, votes), (b, other)) = (parliament.asker(50, 0, 0), parliament.asker(51, 0, 0));
    let (vm, set) = (owner(1), parliament.set());
    votes.grant(&vm, &set, Epoch(1), b).await.unwrap();
    votes.grant(&vm, &set, Epoch(2), a).await.unwrap();
    let refused = Err(VoteError::Refused {
        newest: Epoch(2),
        holder: a,
    });
    assert_eq!(other.deleted(&vm, &set, Epoch(2), b).await, refused);
    assert!(matches!(
        other.deleted(&vm, &set, Epoch(2), a).await,
        Err(VoteError::Declined { .. })
    ));
    votes.deleted(&vm, &set, Epoch(2), a).await.unwrap();
    assert!(
        votes.newest(&set).await.unwrap().is_some(),
        "remembered for a while"
    );
    votes.grant(&vm, &set, Epoch(3), b).await.unwrap();
}
