//! What the ring promises, over whole rings in virtual time.

mod retry;
mod world;

use super::*;
use std::time::Duration;
use world::World;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn two_members_that_know_of_each_other_make_a_ring() {
    for seed in 1..10 {
        let mut world = World::new(seed);
        let (a, b) = (world.add(), world.add());
        world.input(a, Input::Seed(b));
        world.input(b, Input::Seed(a));
        let took = world.settle(MINUTE);
        assert!(took < Duration::from_secs(5), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_hundred_join_one_after_another_in_any_order() {
    for seed in 1..=2 {
        let mut world = World::new(seed);
        world.grow(100, Duration::from_secs(100));
        let took = world.settle(MINUTE);
        assert!(took < Duration::from_secs(15), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_hundred_join_at_once() {
    for seed in 1..=4 {
        let mut world = World::new(seed);
        world.grow(100, Duration::ZERO);
        let took = world.settle(MINUTE);
        assert!(took < Duration::from_secs(30), "seed {seed}: {took:?}");
    }
}

#[test]
fn the_ring_heals_when_some_or_half_of_all_die_at_once() {
    for seed in 1..=3 {
        for share in [0.01, 0.1, 0.5] {
            let mut world = World::settled(seed, 100);
            world.kill(share);
            let took = world.settle(3 * MINUTE);
            println!("seed {seed}: {share} dead: healed after {took:?}");
            assert!(
                took < Duration::from_secs(40),
                "seed {seed}: {share} dead: {took:?}"
            );
        }
    }
}

#[test]
fn a_ring_forms_and_stays_with_a_tenth_of_packets_lost() {
    for seed in 1..=3 {
        let mut world = World::new(seed);
        world.loss = 0.1;
        world.grow(60, Duration::from_secs(10));
        world.settle(2 * MINUTE);
        world.kill(0.1);
        world.settle(2 * MINUTE);
    }
}

#[test]
fn packets_that_overtake_each_other_or_come_twice_change_nothing() {
    for seed in 1..=3 {
        let mut world = World::new(seed);
        (world.jitter, world.duplication) = (Duration::from_millis(400), 0.3);
        world.grow(60, Duration::from_secs(2));
        world.settle(MINUTE);
        world.kill(0.2);
        world.settle(2 * MINUTE);
    }
}

#[test]
fn the_halves_of_a_divided_network_are_rings_and_become_one_again() {
    for seed in 1..=3 {
        let mut world = World::settled(seed, 80);
        for (i, member) in world.ids().into_iter().enumerate() {
            world.parts.insert(member, (i % 2) as u8);
        }
        world.settle(3 * MINUTE);
        world.run(3 * MINUTE);
        world.parts.clear();
        let took = world.settle(MINUTE);
        println!("seed {seed}: one ring {took:?} after the cut was healed");
    }
}

#[test]
fn two_rings_that_never_met_become_one_through_one_member() {
    for seed in 1..=3 {
        let mut world = World::new(seed);
        let (a, b) = (world.add(), world.add());
        world.parts.insert(b, 1);
        for i in 0..98u8 {
            let member = world.add();
            world.parts.insert(member, i % 2);
            world.input(member, Input::Seed(if i % 2 == 0 { a } else { b }));
            world.run(Duration::from_millis(200));
        }
        world.settle(2 * MINUTE);
        world.parts.clear();
        world.input(a, Input::Seed(b));
        let took = world.settle(3 * MINUTE);
        println!("seed {seed}: one ring {took:?} after they met");
    }
}

/// No greedy path leads over the gap where both have their next neighbours farther off than each
/// other, and nobody else has a reason to say anything: they try again by themselves, through a
/// neighbour, soon. The search for lost neighbours alone takes up to half a minute.
#[test]
fn neighbours_cut_off_long_find_each_other_in_a_quiet_ring() {
    for seed in 1..=10 {
        let mut world = World::settled(seed, 32);
        let mut nodes: Vec<Node> = world.ids().into_iter().map(Node::from).collect();
        nodes.sort_unstable();
        let gap = |i: usize| nodes[i].position.clockwise(nodes[i + 1].position);
        let alone = (1..nodes.len() - 2)
            .find(|i| gap(*i) < gap(i - 1) && gap(*i) < gap(i + 1))
            .expect("a pair closer than its neighbours");
        let pair = [nodes[alone].member, nodes[alone + 1].member];
        (world.routed_calls, world.cut) = (true, Some(pair));
        world.run(MINUTE * 5);
        assert!(
            world.check().is_err(),
            "seed {seed}: the cut was not noticed"
        );
        world.cut = None;
        let took = world.settle(MINUTE);
        assert!(took < Duration::from_secs(10), "seed {seed}: {took:?}");
    }
}

#[test]
fn churn_ends_in_a_whole_ring() {
    for seed in 1..=3 {
        let mut world = World::settled(seed, 60);
        for _ in 0..90 {
            let seed_member = world.ids()[world.rng.random_range(0..world.hosts.len())];
            let member = world.add();
            world.input(member, Input::Seed(seed_member));
            world.run(Duration::from_secs(2));
            let ids = world.ids();
            let dies = ids[world.rng.random_range(0..ids.len())];
            world.hosts.remove(&dies);
        }
        let took = world.settle(2 * MINUTE);
        println!("seed {seed}: whole {took:?} after churn");
    }
}

/// Joins make no hole: a reachable member stays reachable at every moment while others join.
#[test]
fn members_route_to_each_other_at_all_times_while_others_join() {
    let mut world = World::settled(1, 50);
    let old: Vec<Node> = world.ids().into_iter().map(Node::from).collect();
    for _ in 0..40 {
        let member = world.add();
        let seed_member = old[world.rng.random_range(0..old.len())].member;
        world.input(member, Input::Seed(seed_member));
        for _ in 0..10 {
            world.run(Duration::from_millis(53));
            for _ in 0..100 {
                let (a, b) = (
                    old[world.rng.random_range(0..50)],
                    old[world.rng.random_range(0..50)],
                );
                assert_eq!(
                    world.route(a, b.position, Mode::Exact).0,
                    Some(b.member),
                    "{a:?} to {b:?}"
                );
            }
        }
    }
    world.settle(MINUTE);
}

#[test]
fn paths_are_short_and_far_edges_evenly_spread() {
    let mut world = World::settled(1, 256);
    world.run(2 * MINUTE);
    let nodes: Vec<Node> = world.ids().into_iter().map(Node::from).collect();
    let mut hops = Vec::new();
    for a in &nodes {
        for b in nodes.iter().filter(|b| *b != a).step_by(5) {
            let (end, count) = world.route(*a, b.position, Mode::Exact);
            assert_eq!(end, Some(b.member));
            hops.push(count);
        }
    }
    hops.sort_unstable();
    let mean = hops.iter().sum::<usize>() as f64 / hops.len() as f64;
    println!(
        "mean {mean:.2} hops, 99 % within {}",
        hops[hops.len() * 99 / 100]
    );
    assert!(mean <= 0.6 * 8.0, "{mean}");
    for host in world.hosts.values() {
        let status = host.ring.status();
        let far = status.neighbours.iter().filter(|n| n.far).count();
        assert!(
            (6.5..9.5).contains(&status.size.log2()),
            "size {}",
            status.size
        );
        assert!(
            (7..=9).contains(&status.far_wanted)
                && far >= status.far_wanted / 2
                && far <= 3 * status.far_wanted,
            "{far} far"
        );
    }
}

#[test]
fn an_idle_ring_costs_less_than_its_budget() {
    let mut world = World::settled(1, 100);
    world.run(4 * MINUTE);
    let sent = |world: &World| {
        world
            .hosts
            .values()
            .map(|h| (h.sent, h.sent_bytes))
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    let links = |world: &World| world.hosts.values().map(|h| h.links_made).sum::<u64>();
    let (before, links_before) = (sent(&world), links(&world));
    world.run(10 * MINUTE);
    let after = sent(&world);
    let rate = (after.1 - before.1) as f64 / 100.0 / 600.0;
    let packets = (after.0 - before.0) as f64 / 100.0 / 600.0;
    let edges: usize = world
        .hosts
        .values()
        .map(|h| h.ring.status().neighbours.len())
        .sum();
    println!(
        "{rate:.0} B/s, {packets:.2} packets/s, {:.1} edges a member",
        edges as f64 / 100.0
    );
    assert!(rate < 400.0, "{rate} B/s a member");
    assert!(
        links(&world) - links_before <= 10,
        "a ring at rest makes no edges"
    );
}

#[test]
fn much_traffic_earns_a_shortcut_and_idleness_loses_it() {
    let mut world = World::settled(1, 60);
    let nodes: Vec<Node> = world.ids().into_iter().map(Node::from).collect();
    let (a, b) = nodes
        .iter()
        .flat_map(|a| nodes.iter().map(move |b| (*a, *b)))
        .find(|(a, b)| a != b && world.route(*a, b.position, Mode::Exact).1 > 2)
        .expect("two that are no neighbours");
    let shortcut = |world: &World| {
        world.hosts[&a.member]
            .ring
            .status()
            .neighbours
            .iter()
            .any(|n| n.node == b && n.shortcut)
    };
    for second in 0..15 {
        assert!(second > 3 || !shortcut(&world), "a burst earns nothing");
        world.input(a.member, Input::Traffic(&[(b.member, 100_000)]));
        world.run(Duration::from_secs(1));
    }
    assert!(shortcut(&world));
    assert_eq!(world.route(a, b.position, Mode::Exact).1, 1);
    for second in 0..90 {
        assert!(second > 50 || shortcut(&world), "dropped after {second} s");
        world.input(a.member, Input::Traffic(&[]));
        world.run(Duration::from_secs(1));
    }
    assert!(!shortcut(&world));
}

#[test]
fn members_know_where_they_stand_after_some_minutes() {
    let mut world = World::settled(1, 60);
    world.run(Duration::from_secs(120));
    for host in world.hosts.values() {
        let status = host.ring.status();
        assert!(
            status.coordinate.is_known(),
            "seed {}: off by {}",
            world.seed,
            status.coordinate_error
        );
        assert!(
            status
                .neighbours
                .iter()
                .all(|n| n.coordinate.is_some_and(|there| there.is_known()))
        );
    }
}

#[test]
fn a_trace_names_every_hop() {
    let mut world = World::settled(1, 60);
    let nodes: Vec<Node> = world.ids().into_iter().map(Node::from).collect();
    for (a, b) in nodes
        .iter()
        .zip(nodes.iter().rev())
        .filter(|(a, b)| a != b)
        .take(20)
    {
        let hops = world.route(*a, b.position, Mode::Exact).1;
        let packet = Packet {
            header: Header::new(Kind::Trace, a.position, b.position),
            body: trace::request(77),
        };
        let RingHop::Via(first) = world.hosts[&a.member]
            .ring
            .table()
            .next(b.position, Mode::Exact)
        else {
            panic!("no way")
        };
        world.input(
            first,
            Input::Received {
                from: a.member,
                packet,
            },
        );
        world.run(Duration::from_secs(3));
        let answer = world
            .hosts
            .get_mut(&a.member)
            .and_then(|h| h.delivered.pop())
            .expect("an answer")
            .1;
        let report = trace::parse_report(&answer.body).expect("a report");
        assert_eq!(
            (report.id, report.reached, report.hops.len()),
            (77, true, hops)
        );
        assert_eq!(
            report.hops.last().map(|h| h.member.to_vec()),
            Some(b.member.0[..8].to_vec())
        );
        assert!(report.hops.iter().all(|h| h.rtt.is_some()));
    }
}

/// A member sends what it likes: anything that parses, with any header, at any time.
#[test]
fn nothing_that_a_neighbour_sends_panics_or_grows_memory_without_bound() {
    for seed in 1..=5 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut now = Instant::now();
        let me = MemberId([7; 32]);
        let mut ring = Ring::new(me, RingOptions::default(), seed);
        let peers: Vec<MemberId> = (0..40).map(|_| MemberId(rng.random())).collect();
        let mut forwarded = 0;
        for step in 0..40_000u64 {
            now += Duration::from_millis(rng.random_range(0..20));
            let from = peers[rng.random_range(0..peers.len())];
            let message = random_message(&mut rng, &peers);
            let any = if rng.random() {
                Position::of(&from)
            } else {
                Position(rng.random())
            };
            let to = if rng.random() {
                ring.me.position
            } else {
                Position(rng.random())
            };
            let kind = if rng.random() {
                Kind::Control
            } else {
                Kind::ControlClosest
            };
            let body = if rng.random_bool(0.9) {
                message.encode()
            } else {
                (0..30).map(|_| rng.random()).collect()
            };
            let agent = rng.random::<bool>().then(|| Position(rng.random()));
            let header = Header {
                agent,
                leaf: agent.filter(|_| rng.random()),
                ..Header::new(kind, any, to)
            };
            match rng.random_range(0..200) {
                0 => ring.handle(
                    now,
                    Input::Linked {
                        member: from,
                        rtt: None,
                    },
                ),
                1 => ring.handle(now, Input::Unlinked { member: from }),
                2 => ring.handle(now, Input::Seed(MemberId(rng.random()))),
                3 => ring.handle(
                    now,
                    Input::Traffic(&[(MemberId(rng.random()), rng.random())]),
                ),
                _ => ring.handle(
                    now,
                    Input::Received {
                        from,
                        packet: Packet { header, body },
                    },
                ),
            }
            let mut outputs = 0;
            while let Some(output) = ring.poll() {
                outputs += 1;
                forwarded += u64::from(matches!(output, Output::Send { .. }));
                if let Output::Link { member, .. } = output {
                    ring.handle(now, Input::LinkFailed { member });
                }
            }
            assert!(
                outputs < 3000,
                "seed {seed}, step {step}: {outputs} outputs"
            );
            assert!(
                ring.edges.len() <= peers.len() && ring.pending.len() <= edges::MAX_PENDING,
                "seed {seed}"
            );
            assert!(
                ring.wake_at()
                    .is_none_or(|at| at + Duration::from_secs(1) >= now),
                "seed {seed}"
            );
            if ring.wake_at().is_some_and(|at| at <= now) {
                ring.handle(now, Input::Tick);
            }
        }
        assert!(
            forwarded < 40_000 * 20,
            "seed {seed}: {forwarded} sent for 40 000 received"
        );
    }
}

fn random_message(rng: &mut StdRng, peers: &[MemberId]) -> Message {
    let id = |rng: &mut StdRng| {
        if rng.random() {
            peers[rng.random_range(0..peers.len())]
        } else {
            MemberId(rng.random())
        }
    };
    let ids = |rng: &mut StdRng, most: usize| {
        (0..rng.random_range(0..=most))
            .map(|_| id(rng))
            .collect::<Vec<_>>()
    };
    match rng.random_range(0..8) {
        0 | 1 => Message::Hello(message::Hello {
            seq: rng.random(),
            answers: rng.random::<bool>().then(|| rng.random()),
            joined: rng.random(),
            roles: Roles(rng.random()),
            digest: rng.random(),
            size: rng.random(),
            coordinate: Coordinate::default(),
        }),
        2 => Message::List {
            digest: rng.random(),
            direct: ids(rng, 16),
            heard: ids(rng, 16),
            gone: ids(rng, 4),
        },
        3 => Message::AskList,
        4 => Message::Locate {
            nonce: rng.random(),
            origin: id(rng),
            purpose: if rng.random() {
                message::Purpose::Near
            } else {
                message::Purpose::Far
            },
        },
        5 => Message::Found {
            nonce: rng.random(),
            members: ids(rng, 16).into_iter().map(|m| (m, None)).collect(),
        },
        6 => Message::Decline {
            role: Roles(rng.random()),
            instead: rng.random::<bool>().then(|| id(rng)),
        },
        _ => Message::Bye,
    }
}

#[test]
fn a_position_is_computed_and_never_believed() {
    let now = Instant::now();
    let (me, liar) = (MemberId([1; 32]), MemberId([2; 32]));
    let mut ring = Ring::new(me, RingOptions::default(), 1);
    let hello = message::Hello {
        seq: 1,
        answers: None,
        joined: true,
        roles: Roles::NEAR,
        digest: 0,
        size: 0,
        coordinate: Coordinate::default(),
    };
    let mut header = Header::new(Kind::Control, ring.me.position.plus(1), ring.me.position);
    let body = Message::Hello(hello).encode();
    ring.handle(
        now,
        Input::Received {
            from: liar,
            packet: Packet {
                header,
                body: body.clone(),
            },
        },
    );
    assert!(
        ring.edges.is_empty(),
        "a hello of another place than its sender's is not heard"
    );
    header.from = Position::of(&liar);
    ring.handle(
        now,
        Input::Received {
            from: liar,
            packet: Packet { header, body },
        },
    );
    assert_eq!(ring.table().members(), [Node::from(liar)]);
}

#[test]
#[should_panic(expected = "which is no such neighbour")]
fn a_changed_table_is_compared_with_the_edges() {
    let (me, other) = (MemberId([1; 32]), MemberId([2; 32]));
    let now = Instant::now();
    let mut ring = Ring::new(me, RingOptions::default(), 1);
    let another = Node::from(MemberId([3; 32]));
    let mut edge = Edge::new(another, Roles::SEED, None, 1, now);
    edge.heard = true;
    ring.edges.insert(other, edge);
    ring.changed = true;
    ring.handle(now, Input::Tick);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "which is no such neighbour")]
fn a_table_that_names_a_lost_neighbour_stops_the_member() {
    let (me, lost) = (MemberId([1; 32]), MemberId([2; 32]));
    let mut ring = Ring::new(me, RingOptions::default(), 1);
    ring.table = Arc::new(Table::new(me, false, [Node::from(lost)], []));
    ring.hurry = true;
    ring.handle(Instant::now(), Input::Tick);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "is missing in the table")]
fn an_edge_that_the_table_lacks_stops_the_member() {
    let (me, other) = (MemberId([1; 32]), MemberId([2; 32]));
    let now = Instant::now();
    let mut ring = Ring::new(me, RingOptions::default(), 1);
    ring.edges.insert(
        other,
        Edge::new(Node::from(other), Roles::SEED, None, 1, now),
    );
    ring.edges.get_mut(&other).expect("just put in").heard = true;
    ring.hurry = true;
    ring.handle(now, Input::Tick);
}
