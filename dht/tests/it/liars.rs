//! Members that lie as replicas, a third of all, and members that flood, forge, and send records
//! that are too old or too large.

use crate::net::{World, key, owner};
use async_trait::async_trait;
use p2pvm_dht::{
    DhtOptions, Limits, Record, RecordError, Records, Refusal,
    cell::Cell,
    wire::{Reply, Request, emit, parse},
};
use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{Fabric, MemberId, RingAddr, Serve, UnixTime, identity::KeyPair};
use rand::{Rng, seq::index::sample};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy)]
enum Lie {
    /// Holds nothing and takes everything.
    Deny,
    /// Says that every key has long been the liars'.
    Claim,
}

/// A replica that lies; all liars share one owner, so that they back each other.
struct Liar(Lie);

fn claimed(key: RingAddr) -> Cell {
    Cell::of(
        Record::sign(
            &owner(66),
            key,
            7,
            UnixTime(1_900_000_000),
            Some(b"mine".to_vec()),
        ),
        true,
    )
}

#[async_trait]
impl Serve for Liar {
    async fn serve(&self, _: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let reply = match (parse(&body).ok_or("unreadable")?, self.0) {
            (Request::Write { .. }, Lie::Deny) => Reply::Written {
                accepted: true,
                cell: Cell::default(),
            },
            (Request::Write { record, .. }, Lie::Claim) => Reply::Written {
                accepted: false,
                cell: claimed(record.key),
            },
            (Request::Read(key) | Request::Merge(key, _), Lie::Claim) => Reply::Holds(claimed(key)),
            (Request::Read(_) | Request::Merge(..), Lie::Deny) => Reply::Holds(Cell::default()),
            (Request::Withdraw { .. }, _) => Reply::Done,
            (Request::Compare(_), _) => Reply::Differs(Vec::new()),
        };
        Ok(emit(&reply))
    }
}

#[derive(Debug, Default)]
struct Tally {
    keys: u32,
    created: u32,
    two_owners: u32,
    read: u32,
    read_failed: u32,
    absent: u32,
    wrong: u32,
}

/// Counts the outcomes for a hundred keys with a third of thirty members lying: first the keys of
/// which at most two replicas lie, then the others.
async fn third_lies(seed: u64, lie: Lie) -> [Tally; 2] {
    let world = World::new(seed, 30);
    let liars: BTreeSet<usize> = sample(&mut *world.chance.lock().unwrap(), 30, 10)
        .into_iter()
        .collect();
    let mut mouths = Vec::new();
    for at in &liars {
        let fabric = world.net.add(world.nodes[*at].id);
        fabric.serve("dht", Arc::new(Liar(lie)));
        mouths.push(fabric);
    }
    let honest: Vec<usize> = (0..30).filter(|i| !liars.contains(i)).collect();
    let mut tallies: [Tally; 2] = Default::default();
    for n in 0..100 {
        let place = RingAddr::of("a key among liars", &[n]);
        let replicas = mouths[0].closest(place, 5).await.unwrap();
        let lying = replicas
            .iter()
            .filter(|r| liars.iter().any(|i| world.nodes[*i].id == **r))
            .count();
        let tally = &mut tallies[usize::from(lying > 2)];
        tally.keys += 1;
        let pick = || honest[world.chance.lock().unwrap().random_range(0..honest.len())];
        let first = world
            .dht(pick())
            .create(&owner(1), place, vec![n], HOUR)
            .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Every liar now tells every replica that the key has another owner.
        for mouth in &mouths {
            for replica in &replicas {
                let _ = mouth
                    .call(
                        *replica,
                        "dht",
                        emit(&Request::Merge(place, claimed(place))),
                        HOUR,
                    )
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let Ok(mine) = first else { continue };
        tally.created += 1;
        let second = world
            .dht(pick())
            .create(&owner(2), place, vec![n], HOUR)
            .await;
        tally.two_owners += u32::from(second.is_ok());
        match world.dht(pick()).get(place).await {
            Ok(Some(record)) if record == mine => tally.read += 1,
            Ok(Some(_)) => tally.wrong += 1,
            Ok(None) => tally.absent += 1,
            Err(_) => tally.read_failed += 1,
        }
    }
    tallies
}

#[tokio::test(start_paused = true)]
async fn a_third_of_liars_makes_no_second_owner_and_no_wrong_read() {
    let recorder = Recorder::from_environment();
    let mut figures = Vec::new();
    for (lie, name) in [(Lie::Deny, "deny"), (Lie::Claim, "claim")] {
        for seed in 0..4 {
            let [few, many] = third_lies(seed, lie).await;
            figures.extend(as_figures(&format!("{name}-few"), seed, &few));
            figures.extend(as_figures(&format!("{name}-many"), seed, &many));
            println!(
                "liars {name}, seed {seed}: at most two of five lie: {few:?}; three or more: \
                    {many:?}"
            );
            assert_eq!(
                (few.two_owners, few.wrong, few.absent),
                (0, 0, 0),
                "seed {seed}, liars {name}: {few:?}"
            );
            assert!(
                few.keys > 60 && (few.created > few.keys / 2 || matches!(lie, Lie::Claim)),
                "seed {seed}: {few:?}"
            );
        }
    }
    recorder
        .record_part("liars", "cargo test -p p2pvm-dht --test it liars", &figures)
        .expect("the figures are written");
}

/// For docs/dht.md; `kind`: what liars do, and whether few or many of a key's replicas lie.
fn as_figures(kind: &str, seed: u64, tally: &Tally) -> Vec<Figure> {
    let all = [
        ("keys", "keys", tally.keys),
        ("created", "creates that succeed", tally.created),
        ("read", "right reads", tally.read),
        ("wrong", "wrong reads", tally.wrong),
        ("absent", "false 'absent'", tally.absent),
        ("two-owners", "second owners", tally.two_owners),
    ];
    let figure = |(name, what, count): (&str, &str, u32)| {
        let name = format!("{kind}-{name}");
        Figure::new(&name, what, "", [f64::from(count)]).of(seed.to_string())
    };
    all.into_iter().map(figure).collect()
}

#[tokio::test(start_paused = true)]
async fn one_member_alone_cannot_take_a_key_by_claiming_it() {
    let world = World::new(3, 9);
    let made = world
        .dht(0)
        .create(&owner(1), key(1), b"a".to_vec(), HOUR)
        .await
        .unwrap();
    let thief = world.net.add(MemberId(owner(99).public()));
    for node in &world.nodes {
        for _ in 0..5 {
            let _ = thief
                .call(
                    node.id,
                    "dht",
                    emit(&Request::Merge(key(1), claimed(key(1)))),
                    HOUR,
                )
                .await;
        }
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    for i in 0..9 {
        assert_eq!(world.dht(i).get(key(1)).await, Ok(Some(made.clone())));
    }
}

async fn refusal(world: &World, request: Request) -> Option<Refusal> {
    let stranger = world.net.add(MemberId(owner(98).public()));
    let answer = stranger
        .call(world.nodes[0].id, "dht", emit(&request), HOUR)
        .await
        .ok()?;
    match parse(&answer) {
        Some(Reply::Refused(refusal)) => Some(refusal),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn forged_expired_oversized_and_too_long_records_are_refused_with_the_reason() {
    let world = World::new(4, 5);
    let now = 1_800_000_000;
    let good = |expires, value| Record::sign(&owner(1), key(1), 1, UnixTime(expires), Some(value));
    let write = |record| Request::Write { record, attempt: 1 };
    let mut forged = good(now + 60, vec![1]);
    forged.value = Some(vec![2]);
    let mut moved = good(now + 60, vec![1]);
    moved.key = key(2);
    let oversized = good(now + 60, vec![0; p2pvm_dht::record::MAX_VALUE_BYTES + 1]);
    for (record, expected) in [
        (forged.clone(), Refusal::NotAuthentic),
        (moved, Refusal::NotAuthentic),
        (good(now - 1, vec![1]), Refusal::Expired),
        (
            good(now + Limits::default().ttl_seconds + 60, vec![1]),
            Refusal::TooLong,
        ),
        (oversized, Refusal::TooLarge),
    ] {
        assert_eq!(refusal(&world, write(record)).await, Some(expected));
    }
    let planted = Request::Merge(
        key(1),
        Cell {
            record: Some(forged),
            settled: Some(1),
            graves: Vec::new(),
        },
    );
    assert_eq!(refusal(&world, planted).await, Some(Refusal::NotAuthentic));
    assert_eq!(world.dht(0).get(key(1)).await, Ok(None));
    assert_eq!(refusal(&world, write(good(now + 60, vec![1]))).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_writer_with_a_wrong_clock_is_refused_with_the_reason() {
    let mut world = World::new(5, 5);
    let skewed = |world: &mut World, seconds: i64| {
        let clock = Arc::new(move || UnixTime((1_800_000_000 + seconds) as u64));
        let node = &mut world.nodes[0];
        node.dht = Some(p2pvm_dht::Dht::start(
            world.net.add(node.id),
            node.store.clone(),
            DhtOptions {
                clock,
                seed: Some(1),
                ..DhtOptions::default()
            },
        ));
        node.dht.clone().unwrap()
    };
    let minute = Duration::from_secs(60);
    for fine in [-5, 5] {
        let dht = skewed(&mut world, fine);
        assert!(
            dht.create(&owner(1), key(1), vec![1], minute).await.is_ok(),
            "{fine} s are no harm"
        );
        assert_eq!(
            world.dht(1).get(key(1)).await.unwrap().unwrap().owner,
            owner(1).public()
        );
    }
    let late = skewed(&mut world, -7200);
    assert_eq!(
        late.create(&owner(1), key(2), vec![1], minute).await,
        Err(RecordError::Refused(Refusal::Expired))
    );
    let early = skewed(&mut world, 3 * 366 * 24 * 3600);
    assert_eq!(
        early.create(&owner(1), key(2), vec![1], minute).await,
        Err(RecordError::Refused(Refusal::TooLong))
    );
}

#[tokio::test(start_paused = true)]
async fn a_flooding_owner_or_member_uses_up_its_own_limits() {
    let world = World::new(6, 5);
    let limits = Limits::default();
    let dht = world.dht(0);
    let place = |n: u32| RingAddr::of("flood", &n.to_be_bytes());
    for n in 0..limits.owner_records as u32 {
        assert!(
            dht.create(&owner(1), place(n), vec![1], HOUR).await.is_ok(),
            "{n}"
        );
    }
    assert_eq!(
        dht.create(&owner(1), place(9999), vec![1], HOUR).await,
        Err(RecordError::Refused(Refusal::OwnerLimit))
    );
    assert!(
        dht.create(&owner(1), place(0), vec![2], HOUR).await.is_ok(),
        "a renewal is not refused"
    );
    assert!(
        dht.create(&owner(2), place(9999), vec![1], HOUR)
            .await
            .is_ok(),
        "another owner has its own share"
    );
    dht.delete(&owner(1), place(0)).await.unwrap();
    assert!(
        dht.create(&owner(1), place(9998), vec![1], HOUR)
            .await
            .is_ok(),
        "what is deleted is free again"
    );

    // A member that makes an owner for each record is held to a rate. All requests are sent at
    // once, so that no time passes.
    let from = world.dht(1);
    let flood = (0..2 * limits.burst).map(|n| {
        let from = from.clone();
        let owner = KeyPair::from_seed(&place(n).0);
        async move { from.create(&owner, place(10_000 + n), vec![1], HOUR).await }
    });
    let results = futures::future::join_all(flood).await;
    let made = results.iter().filter(|r| r.is_ok()).count() as u32;
    assert!(made <= limits.burst + 2 * limits.per_second, "{made} made");
    assert!(results.contains(&Err(RecordError::Refused(Refusal::TooFast))));
    assert!(
        world
            .dht(2)
            .create(&owner(3), key(1), vec![1], HOUR)
            .await
            .is_ok(),
        "the others go on"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        from.create(&owner(4), key(2), vec![1], HOUR).await.is_ok(),
        "the flooding member may go on too, slowly"
    );
}
