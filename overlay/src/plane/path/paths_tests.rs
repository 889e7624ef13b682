//! Paths in virtual time.

use super::*;

fn probes(paths: &mut Paths) -> Vec<(Path, u64)> {
    std::iter::from_fn(|| paths.poll())
        .filter_map(|s| {
            if let Step::Probe(p, t) = s {
                Some((p, t))
            } else {
                None
            }
        })
        .collect()
}

const RELAY: Path = Path::Relayed(MemberId([7; 32]));

fn direct(port: u16) -> Path {
    Path::Direct(([192, 0, 2, 1], port).into())
}

#[test]
fn the_first_answering_path_is_used_until_a_direct_one_answers() {
    let (mut paths, now) = (Paths::default(), Instant::now());
    paths.add(RELAY, now);
    paths.add(direct(1), now);
    paths.tick(now, Activity::default());
    let sent = probes(&mut paths);
    let token = |p: Path| sent.iter().find(|(q, _)| *q == p).map(|(_, t)| *t).unwrap();
    paths.pong(RELAY, token(RELAY), now + Duration::from_millis(5));
    assert_eq!(paths.poll(), Some(Step::Select(Some(RELAY))));
    paths.pong(direct(1), token(direct(1)), now + Duration::from_millis(90));
    assert_eq!(paths.poll(), Some(Step::Select(Some(direct(1)))));
    assert_eq!(paths.rtt(), Some(Duration::from_millis(90)));
}

#[test]
fn bad_ways_are_given_up_for_good_and_none_follows() {
    let (mut paths, now) = (Paths::default(), Instant::now());
    for path in [direct(1), direct(2), RELAY] {
        paths.add(path, now);
    }
    paths.tick(now, Activity::default());
    for (path, token) in probes(&mut paths) {
        paths.pong(path, token, now);
    }
    assert_eq!(paths.selected(), Some(direct(1)));
    paths.forget(|path| matches!(path, Path::Direct(_)), now);
    assert_eq!(paths.selected(), Some(RELAY));
    paths.rouse(now);
    paths.tick(now, Activity::default());
    assert!(probes(&mut paths).iter().all(|(path, _)| *path == RELAY));
}

#[test]
fn a_pong_with_a_foreign_token_selects_nothing() {
    let (mut paths, now) = (Paths::default(), Instant::now());
    paths.add(direct(1), now);
    paths.tick(now, Activity::default());
    let token = probes(&mut paths)[0].1;
    paths.pong(direct(1), token ^ 1, now);
    paths.pong(direct(2), token, now);
    assert_eq!(paths.selected(), None);
}

#[test]
fn a_silent_path_yields_to_the_spare_within_five_seconds() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    for path in [direct(1), RELAY] {
        paths.add(path, start);
        paths.tick(start, Activity::default());
        for (p, token) in probes(&mut paths) {
            paths.pong(p, token, start + Duration::from_millis(10));
        }
    }
    assert_eq!(paths.selected(), Some(direct(1)));
    let unanswered = Activity {
        unanswered: Some(start),
        sent: Some(start),
        ..Activity::default()
    };
    let mut now = start;
    while paths.selected() == Some(direct(1)) && now < start + Duration::from_secs(10) {
        now += Duration::from_millis(100);
        paths.tick(now, unanswered);
    }
    assert_eq!(paths.selected(), Some(RELAY));
    assert!(
        now < start + Duration::from_secs(5),
        "took {:?}",
        now - start
    );
}

#[test]
fn a_peer_on_another_path_is_followed_within_a_second() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    paths.add(direct(1), start);
    paths.tick(start, Activity::default());
    let token = probes(&mut paths)[0].1;
    paths.pong(direct(1), token, start + Duration::from_millis(10));
    let turn = start + Duration::from_secs(9);
    paths.heard(RELAY, turn, Some(start));
    let mut now = turn;
    while paths.selected() != Some(RELAY) && now < turn + Duration::from_secs(5) {
        paths.tick(
            now,
            Activity {
                received: Some(start),
                ..Activity::default()
            },
        );
        for (path, token) in probes(&mut paths) {
            if path == RELAY {
                paths.pong(path, token, now + Duration::from_millis(10));
            }
        }
        now += Duration::from_millis(20);
    }
    assert!(now < turn + Duration::from_secs(1), "took {:?}", now - turn);
}

fn living(paths: &mut Paths, path: Path, now: Instant, rtt_ms: u64) {
    paths.add(path, now);
    paths.tick(now, Activity::default());
    for (p, token) in probes(paths) {
        paths.pong(p, token, now + Duration::from_millis(rtt_ms));
    }
}

#[test]
fn a_peer_that_says_it_moved_is_followed_at_its_first_answer() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    living(&mut paths, direct(1), start, 10);
    let turn = start + Duration::from_secs(3);
    paths.peer_moved(direct(2), turn);
    paths.peer_moved(direct(3), turn);
    paths.tick(
        turn,
        Activity {
            received: Some(turn),
            ..Activity::default()
        },
    );
    let sent = probes(&mut paths);
    // Slower than what was, but where the peer is now.
    paths.pong(
        direct(2),
        sent.iter().find(|(p, _)| *p == direct(2)).unwrap().1,
        turn + Duration::from_millis(50),
    );
    assert_eq!(paths.selected(), Some(direct(2)));
    assert!(
        sent.iter().all(|(p, _)| *p != direct(3)),
        "the first that it is heard by"
    );
}

#[test]
fn roused_it_asks_every_way_and_the_peer_to_follow() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    living(&mut paths, direct(1), start, 10);
    living(&mut paths, direct(2), start, 9);
    let turn = start + Duration::from_secs(100);
    paths.tick(turn, Activity::default());
    paths.rouse(turn);
    paths.tick(turn, Activity::default());
    let sent = probes(&mut paths);
    assert!(
        [direct(1), direct(2)]
            .iter()
            .all(|path| sent.iter().any(|(p, _)| p == path)),
        "{sent:?}"
    );
    assert!(
        sent.iter()
            .all(|(_, token)| token & ROAMED != 0 && token >> 63 == 0)
    );
}

#[test]
fn the_other_family_takes_over_when_the_one_in_use_falls_silent() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    let v6 = Path::Direct("[2001:db8::1]:7".parse().unwrap());
    living(&mut paths, v6, start, 30);
    living(&mut paths, direct(1), start, 10);
    assert_eq!(paths.selected(), Some(direct(1)));
    // Long after the spare was forgotten.
    let silent = start + Duration::from_secs(300);
    let mut now = silent;
    while paths.selected() == Some(direct(1)) && now < silent + Duration::from_secs(10) {
        paths.tick(
            now,
            Activity {
                unanswered: Some(silent),
                sent: Some(now),
                ..Activity::default()
            },
        );
        for (path, token) in probes(&mut paths) {
            if path == v6 {
                paths.pong(path, token, now + Duration::from_millis(30));
            }
        }
        now += Duration::from_millis(20);
    }
    assert_eq!(paths.selected(), Some(v6));
    assert!(
        now < silent + Duration::from_secs(3),
        "took {:?}",
        now - silent
    );
}

#[test]
fn a_spare_relay_stays_warm_and_takes_over_within_three_seconds() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    let other = Path::Relayed(MemberId([8; 32]));
    living(&mut paths, RELAY, start, 10);
    living(&mut paths, other, start, 12);
    assert_eq!(paths.relays().len(), 2);
    let (mut now, died) = (start, start + Duration::from_secs(95));
    while now < died + Duration::from_secs(5) && paths.selected() != Some(other) {
        let dead = now >= died;
        let heard = if dead { died } else { now };
        paths.tick(
            now,
            Activity {
                received: Some(heard),
                sent: Some(now),
                unanswered: dead.then_some(died),
                ..Activity::default()
            },
        );
        for (path, token) in probes(&mut paths) {
            if path == other || !dead {
                paths.pong(path, token, now + Duration::from_millis(10));
            }
        }
        now += Duration::from_millis(20);
    }
    assert_eq!(paths.selected(), Some(other));
    assert!(now < died + Duration::from_secs(3), "took {:?}", now - died);
}

#[test]
fn the_ring_carries_at_once_until_anything_but_a_stream_replaces_it() {
    let (mut paths, now) = (Paths::default(), Instant::now());
    paths.assume(Path::Ring, now);
    assert_eq!(paths.selected(), Some(Path::Ring));
    let answer = |paths: &mut Paths, path: Path| {
        paths.add(path, now);
        paths.tick(now, Activity::default());
        let token = probes(paths)
            .into_iter()
            .rfind(|(p, _)| *p == path)
            .map(|(_, t)| t)
            .unwrap();
        paths.pong(path, token, now + Duration::from_millis(1));
    };
    answer(&mut paths, Path::Stream);
    assert_eq!(paths.selected(), Some(Path::Ring));
    answer(&mut paths, RELAY);
    assert_eq!(paths.selected(), Some(RELAY));
    paths.assume(Path::Ring, now);
    assert_eq!(
        paths.selected(),
        Some(RELAY),
        "what works is not given up for an assumption"
    );
}

#[test]
fn a_link_whose_only_path_dies_goes_over_the_ring() {
    let (mut paths, now) = (Paths::default(), Instant::now());
    paths.add(direct(1), now);
    paths.tick(
        now,
        Activity {
            ring: true,
            ..Activity::default()
        },
    );
    let token = probes(&mut paths)[0].1;
    paths.pong(direct(1), token, now);
    paths.remove(direct(1), now);
    assert_eq!(paths.selected(), Some(Path::Ring));
    paths.remove(Path::Ring, now);
    assert_eq!(
        paths.selected(),
        None,
        "a dead ring path is not taken again by itself"
    );
}

#[test]
fn a_dead_candidate_costs_seven_probes() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    paths.add(direct(1), start);
    let mut sent = 0;
    for ms in (0..20_000).step_by(20) {
        paths.tick(start + Duration::from_millis(ms), Activity::default());
        sent += probes(&mut paths).len();
    }
    assert_eq!(sent, PROBE_PAUSES_MS.len());
    assert!(!paths.probing());
}

#[test]
fn a_silent_path_is_told_once_and_an_answering_stream_takes_over() {
    for spare in [false, true] {
        let (mut paths, start) = (Paths::default(), Instant::now());
        living(&mut paths, direct(1), start, 10);
        if spare {
            living(&mut paths, RELAY, start, 20);
        }
        let unanswered = Activity {
            unanswered: Some(start),
            sent: Some(start),
            ..Activity::default()
        };
        let (mut now, mut said) = (start, Vec::new());
        while paths.selected() == Some(direct(1)) && now < start + Duration::from_secs(10) {
            now += Duration::from_millis(20);
            paths.tick(now, unanswered);
            for step in std::iter::from_fn(|| paths.poll()).collect::<Vec<_>>() {
                match step {
                    Step::Silent => {
                        said.push(now);
                        // The connector opens one at once.
                        paths.add(Path::Stream, now);
                        paths.tick(now, unanswered);
                    }
                    Step::Probe(path @ (Path::Stream | Path::Relayed(_)), token) => {
                        assert!(paths.pong(path, token, now + Duration::from_millis(10)));
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(said.len(), 1);
        assert!(
            said[0] - start < Duration::from_millis(1500),
            "{:?}",
            said[0] - start
        );
        assert_eq!(
            paths.selected(),
            Some(if spare { RELAY } else { Path::Stream })
        );
    }
}

#[test]
fn a_later_stream_takes_over_when_direct_path_and_ring_die() {
    let (mut paths, start) = (Paths::default(), Instant::now());
    living(&mut paths, direct(1), start, 10);
    paths.tick(
        start,
        Activity {
            ring: true,
            ..Activity::default()
        },
    );
    paths.remove(direct(1), start);
    assert_eq!(paths.selected(), Some(Path::Ring));
    paths.add(Path::Stream, start);
    let mut now = start;
    while paths.selected() == Some(Path::Ring) && now < start + Duration::from_secs(10) {
        now += Duration::from_millis(20);
        paths.tick(
            now,
            Activity {
                ring: true,
                unanswered: Some(start),
                sent: Some(start),
                ..Activity::default()
            },
        );
        for (path, token) in probes(&mut paths) {
            if path == Path::Stream {
                paths.pong(path, token, now + Duration::from_millis(30));
            }
        }
    }
    assert_eq!(paths.selected(), Some(Path::Stream));
    assert!(
        now - start < Duration::from_millis(1500),
        "{:?}",
        now - start
    );
}

#[test]
fn what_lives_takes_over_at_once_however_many_ways_have_died_together() {
    for survivor in [Path::Stream, RELAY, direct(99)] {
        let (mut paths, start) = (Paths::default(), Instant::now());
        // A NAT's mappings that were in use one after the other within half a minute.
        (1..=12).for_each(|port| living(&mut paths, direct(port), start, 10));
        living(&mut paths, survivor, start, 30);
        let died = start + Duration::from_secs(5);
        let mut now = died;
        while paths.selected() != Some(survivor) && now < died + Duration::from_secs(30) {
            now += Duration::from_millis(20);
            paths.tick(
                now,
                Activity {
                    received: Some(start),
                    unanswered: Some(died),
                    sent: Some(now),
                    ..Activity::default()
                },
            );
            for (path, token) in probes(&mut paths) {
                if path == survivor {
                    paths.pong(path, token, now + Duration::from_millis(30));
                }
            }
        }
        assert!(
            now - died < Duration::from_millis(1500),
            "{survivor:?} took {:?}",
            now - died
        );
    }
}
