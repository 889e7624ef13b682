//! Questions to all, over tables of rings made by hand.

use super::*;
use crate::{
    fabric::memory::MemoryNet,
    ring::{NEAR_EACH_SIDE, Node},
};
use rand::{SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;

/// The tables of a ring of `count` with true near neighbours and some far ones.
fn tables(seed: u64, count: usize, far: usize) -> BTreeMap<MemberId, Table> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut nodes: Vec<Node> = (0..count)
        .map(|_| Node::from(MemberId(rng.random())))
        .collect();
    nodes.sort_unstable();
    let mut edges: Vec<Vec<Node>> = vec![Vec::new(); count];
    for i in 0..count {
        edges[i].extend(
            (1..=NEAR_EACH_SIDE)
                .flat_map(|d| [nodes[(i + d) % count], nodes[(i + count - d) % count]]),
        );
        for _ in 0..far {
            // The harmonic law: the logarithm of the distance is uniform.
            let distance = (count as f64 / 2.0).powf(rng.random::<f64>()) as usize;
            let other = (i + distance) % count;
            edges[i].push(nodes[other]);
            let me = nodes[i];
            edges[other].push(me);
        }
    }
    nodes
        .iter()
        .zip(edges)
        .map(|(node, edges)| (node.member, Table::new(node.member, true, edges, [])))
        .collect()
}

#[test]
fn a_thousand_members_are_each_asked_once_in_logarithmic_depth() {
    for seed in 0..5 {
        let tables = tables(seed, 1000, 10);
        let root = *tables.keys().next().expect("not empty");
        let mut asked: BTreeMap<MemberId, u32> = BTreeMap::from([(root, 1)]);
        let mut level = vec![(root, Range::all_but(Position::of(&root)))];
        let mut depth = 0;
        while !level.is_empty() {
            level = level
                .into_iter()
                .flat_map(|(member, range)| tables[&member].split(range))
                .collect();
            level
                .iter()
                .for_each(|(member, _)| *asked.entry(*member).or_default() += 1);
            depth += usize::from(!level.is_empty());
        }
        assert_eq!(asked.len(), 1000, "seed {seed}");
        assert!(asked.values().all(|times| *times == 1), "seed {seed}");
        assert!(depth <= 10, "seed {seed}: {depth} levels");
    }
}

struct Own(u64);
impl Respond for Own {
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        match question {
            b"long" => Some(vec![7; MAX_ANSWER_BYTES / 10]),
            _ => Some(self.0.to_be_bytes().to_vec()),
        }
    }

    fn combine(&self, question: &[u8], one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        if question == b"sum" {
            Some((number(one)? + number(other)?).to_be_bytes().to_vec())
        } else {
            None
        }
    }
}

fn network(seed: u64, count: usize) -> (MemoryNet, BTreeMap<MemberId, AskAll>) {
    let net = MemoryNet::new(Duration::from_millis(20));
    let mut all = BTreeMap::new();
    for (number, (member, table)) in tables(seed, count, 3).into_iter().enumerate() {
        let table = Arc::new(ArcSwap::from_pointee(table));
        all.insert(
            member,
            AskAll::start(net.add(member), table, Arc::new(Own(number as u64))),
        );
    }
    (net, all)
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn everyone_answers_a_question_once() {
    let (_net, all) = network(1, 30);
    for asker in all.values().take(5) {
        let mut answers = asker
            .ask(b"list".to_vec(), LIMIT)
            .await
            .expect("short enough");
        assert_eq!(
            (answers.asked, answers.dead.len(), answers.truncated),
            (30, 0, 0)
        );
        answers.items.sort();
        let expected: Vec<_> = all
            .keys()
            .zip(0u64..)
            .map(|(m, n)| (*m, n.to_be_bytes().to_vec()))
            .collect();
        assert_eq!(answers.items, expected);
        assert!((2..=7).contains(&answers.depth), "{} levels", answers.depth);
    }
}

#[tokio::test(start_paused = true)]
async fn sums_come_back_as_one_number() {
    let (_net, all) = network(2, 30);
    let asker = all.values().next().expect("not empty");
    let answers = asker
        .ask(b"sum".to_vec(), LIMIT)
        .await
        .expect("short enough");
    let numbers: Vec<_> = answers.items.iter().map(|(_, item)| item.clone()).collect();
    assert_eq!(numbers, [(0..30u64).sum::<u64>().to_be_bytes().to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn dead_branches_are_named_and_their_parts_answered_by_others_in_time() {
    for seed in 0..10 {
        let (net, all) = network(seed, 30);
        let asker = *all.keys().next().expect("not empty");
        let dead: Vec<MemberId> = all
            .keys()
            .copied()
            .filter(|m| *m != asker)
            .skip(seed as usize)
            .step_by(9)
            .collect();
        dead.iter().for_each(|m| net.kill(*m));
        let begun = Instant::now();
        let answers = all[&asker]
            .ask(b"list".to_vec(), LIMIT)
            .await
            .expect("short enough");
        assert!(begun.elapsed() <= LIMIT, "seed {seed}");
        assert_eq!(
            answers.asked as usize,
            30 - dead.len(),
            "seed {seed}: {answers:?}"
        );
        let mut named: Vec<MemberId> = answers.dead.iter().map(|d| d.member).collect();
        named.sort();
        named.dedup();
        // One that only other dead ones had beside them is known to nobody any more.
        assert!(
            !named.is_empty() && named.iter().all(|m| dead.contains(m)),
            "seed {seed}: {named:?} of {dead:?}"
        );
        assert!(
            answers.dead.iter().all(|d| d.covered),
            "seed {seed}: {:?}",
            answers.dead
        );
    }
}

/// A member that takes questions and never answers.
struct Stall;

#[async_trait]
impl Serve for Stall {
    async fn serve(&self, _from: MemberId, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn questions_without_end_of_one_member_leave_places_to_the_others() {
    let (_net, all) = network(4, 6);
    let members: Vec<MemberId> = all.keys().copied().collect();
    let (victim, rogue, other) = (members[0], members[1], members[2]);
    let fabric = |member: &MemberId| all[member].0.fabric.clone();
    fabric(&rogue).serve(SERVICE, Arc::new(Stall));
    let body = |id, asker: &MemberId, depth_left| {
        let request = Request {
            id,
            range: Range::all_but(Position::of(asker)),
            depth_left,
            millis: u32::MAX,
            avoid: Vec::new(),
            question: b"list".to_vec(),
        };
        request.encode()
    };
    let mut asking = Vec::new();
    for id in 0..2 * AT_ONCE.0 as u64 {
        // Passed on to the rogue itself, which keeps it.
        let (fabric, body) = (fabric(&rogue), body(id, &victim, 3));
        let call = async move { fabric.call(victim, SERVICE, body, LIMIT * 1000).await };
        asking.push(tokio::spawn(call));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(asking.iter().any(|call| !call.is_finished()));
    let answer = fabric(&other)
        .call(victim, SERVICE, body(1 << 40, &other, 0), LIMIT)
        .await;
    assert!(answer.is_ok(), "{answer:?}");
    tokio::time::sleep(Duration::from_millis(2 * u64::from(MAX_MILLIS))).await;
    assert!(asking.iter().all(|call| call.is_finished()));
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_too_long_are_counted_and_left_out() {
    let (_net, all) = network(3, 30);
    let asker = all.values().next().expect("not empty");
    let answers = asker
        .ask(b"long".to_vec(), LIMIT)
        .await
        .expect("short enough");
    assert_eq!(
        (
            answers.asked,
            answers.items.len() as u64 + answers.truncated
        ),
        (30, 30)
    );
    assert!(answers.items.len() == 9);
    let long = vec![0; MAX_QUESTION_BYTES + 1];
    assert_eq!(
        asker.ask(long.clone(), LIMIT).await,
        Err(AskError::TooLong(long.len()))
    );
}

#[test]
fn any_bytes_parse_without_panic() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..10_000 {
        let mut bytes: Vec<u8> = (0..rng.random_range(0..80)).map(|_| rng.random()).collect();
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        parse(&bytes);
    }
}
