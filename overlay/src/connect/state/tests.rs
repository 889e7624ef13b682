//! What the connector promises, over pairs of members behind every kind of NAT in virtual time.

mod gate;
mod world;

use super::*;
use crate::plane::Path;
use gate::Home;
use rand::{Rng, SeedableRng, rngs::StdRng};
use world::World;

const SECOND: Duration = Duration::from_secs(1);
/// Members that are open to all: two tell how a NAT maps, the third knocks as a stranger.
const OPEN: usize = 4;
const A: usize = OPEN;
const B: usize = OPEN + 1;

fn kinds(a: Home, b: Home) -> (NatKind, NatKind) {
    (a.kind(), b.kind())
}

#[test]
fn the_survey_finds_every_kind_of_nat_whatever_is_lost() {
    for home in Home::ALL {
        for seed in 0..40 {
            let loss = if seed % 2 == 0 { 0.0 } else { 0.05 };
            let mut world = World::new(seed, OPEN, &[home], loss);
            let found = |w: &World| w.nodes[A].state.nat.kind == home.kind();
            world.run(120 * SECOND, found);
            let kind = world.nodes[A].state.nat.kind;
            assert_eq!(kind, home.kind(), "seed {seed}");
            // And it stays with that.
            world.run(5 * SECOND, |_| false);
        }
    }
}

/// One pair: how long after the dial the link was as good as its NATs allow; `None`: never.
fn pair(seed: u64, a: Home, b: Home) -> Option<Duration> {
    let mut rng = StdRng::seed_from_u64(seed);
    let loss = [0.0, 0.02, 0.1][rng.random_range(0..3)];
    let mut world = World::new(seed, OPEN, &[a, b], loss);
    // Right after the start, or later.
    let start = Duration::from_millis(rng.random_range(0..20_000));
    world.dial(A, B, start);
    let (a, b) = kinds(a, b);
    let good = move |w: &World| match a.may_punch(b) {
        true => w.is_direct(A, B) && w.is_direct(B, A),
        false if [a, b].contains(&NatKind::Blocked) => w.path(A, B) == Some(Path::Stream),
        false => matches!(w.path(A, B), Some(Path::Relayed(_))),
    };
    world.run(start + 180 * SECOND, good);
    good(&world).then(|| world.now - world.start - start)
}

#[test]
fn every_pair_of_nats_ends_on_the_best_path_that_they_allow() {
    let (mut count, mut soon) = (0, 0);
    for (i, a) in Home::ALL.into_iter().enumerate() {
        for (j, b) in Home::ALL.into_iter().enumerate() {
            for n in 0..20 {
                let seed = (i * 8 + j) as u64 * 1000 + n;
                let took = pair(seed, a, b);
                let took = took.unwrap_or_else(|| panic!("seed {seed}: {a:?} and {b:?}"));
                count += 1;
                soon += usize::from(took < 10 * SECOND);
            }
        }
    }
    println!("{soon} of {count} pairs within 10 s");
    assert!(soon * 100 >= count * 90, "{soon} of {count} within 10 s");
}

// --- The parts by themselves

fn member(n: u8) -> MemberId {
    MemberId([n; 32])
}

fn address(n: u8) -> SocketAddr {
    ([198, 18, 0, n], 7).into()
}

fn open_member(n: u8) -> Statement {
    Statement {
        reachability: Reachability {
            candidates: vec![Candidate {
                kind: CandidateKind::Local,
                addr: address(n),
            }],
            nat: NatKind::Open,
            ..Reachability::default()
        },
        hidden: None,
    }
}

fn host() -> Host {
    Host {
        local: vec![address(1).ip()],
        port: 7,
        uses_second_port: false,
    }
}

#[test]
fn a_move_during_a_survey_begins_another_at_its_end() {
    let now = Instant::now();
    let mut state = State::new(member(1), ConnectOptions::default());
    let mut survey = survey::Survey::new(now);
    let (host, connected) = (host(), [member(2)]);
    let view = survey::View {
        host: &host,
        connected: &connected,
        gets_through: false,
        wants_better: false,
        is_linked: &|_| true,
    };
    let mut asked = Vec::new();
    survey.handle(now, &mut state, &view, survey::Input::Tick);
    for _ in 0..8 {
        let Some(action) = survey.poll() else { break };
        asked.push(action.clone());
        let input = match action {
            survey::Action::AskWhere(member) => survey::Input::Where(member, Some(open_member(2))),
            survey::Action::Stun(query, _) => {
                if asked.len() < 3 {
                    survey.handle(now, &mut state, &view, survey::Input::Again);
                }
                survey::Input::Stun(query, Some(address(1)))
            }
            survey::Action::Knock { .. } => survey::Input::Knocked(examine::KnockResult::default()),
            _ => continue,
        };
        survey.handle(now, &mut state, &view, input);
    }
    let rounds = |action: &&survey::Action| matches!(action, survey::Action::Stun(..));
    assert_eq!(asked.iter().filter(rounds).count(), 2, "{asked:?}");
    assert!(survey.wake_at().is_some_and(|at| at > now + 60 * SECOND));
}

#[test]
fn a_nats_new_address_is_noticed_a_lost_answer_is_none() {
    let now = Instant::now();
    let mut state = State::new(member(1), ConnectOptions::default());
    state.nat.kind = NatKind::Cone;
    state.handle(now, Input::Heard(member(2), open_member(2)));
    let connected = [member(2)];
    let view = watch::View {
        connected: &connected,
        is_unanswered: false,
    };
    let mut watch = watch::Watch::new(now);
    let mut at = now;
    let mut look = |state: &mut State, seen: Option<SocketAddr>| {
        at = watch.due().max(at);
        watch.handle(at, state, &view, watch::Input::Tick { doubt: false });
        let looks = matches!(watch.poll(), Some(watch::Action::Look { .. }));
        assert!(looks, "a look is due");
        watch.handle(at, state, &view, watch::Input::Seen(seen));
        let mut again = false;
        while let Some(action) = watch.poll() {
            match action {
                watch::Action::LookFromSecondPort => {
                    watch.handle(at, state, &view, watch::Input::SecondPort(false));
                }
                watch::Action::SurveyAgain => again = true,
                watch::Action::Look { .. } => panic!("one look at a time"),
            }
        }
        (state.poll() == Some(Action::MappingChanged), again)
    };
    let outside = |n| Some(SocketAddr::from(([203, 0, 113, n], 4000)));
    assert_eq!(look(&mut state, outside(1)), (false, false));
    assert_eq!(look(&mut state, None), (false, false));
    assert_eq!(look(&mut state, outside(1)), (false, false));
    assert_eq!(look(&mut state, outside(9)), (true, false));
    // Three in a row are another matter.
    assert_eq!(look(&mut state, None), (false, false));
    assert_eq!(look(&mut state, None), (false, false));
    assert_eq!(look(&mut state, None), (false, true));
    assert_eq!(state.nat.kind, NatKind::Unknown);
}

/// Settles a link with a member behind `theirs`, as `relays` answer; what was done.
fn settled(theirs: NatKind, relays: &[(u8, bool)]) -> (Vec<settle::Action>, Option<Path>) {
    let now = Instant::now();
    let state = State::new(member(1), ConnectOptions::default());
    let host = host();
    let mut theirs = Reachability {
        nat: theirs,
        ..open_member(2).reachability
    };
    theirs.relay = true;
    let met = (theirs, Duration::from_millis(40));
    let mut settling = settle::Settling::new(now, &state, &host, settle::Reach::Any, met);
    let view = settle::View {
        host: &host,
        path: None,
        is_edge: false,
    };
    let (mut done, mut streams) = (Vec::new(), false);
    while let Some(action) = settling.poll() {
        done.push(action.clone());
        let input = match action {
            settle::Action::AwaitMapping => settle::Input::MappingKnown,
            settle::Action::AwaitPath(..) => settle::Input::Path(streams.then_some(Path::Stream)),
            settle::Action::ListRelays => {
                settle::Input::Relays(relays.iter().map(|(n, _)| member(*n)).collect())
            }
            settle::Action::TryRelay(relay) => {
                let works = relays
                    .iter()
                    .any(|(n, works)| member(*n) == relay && *works);
                settle::Input::Relayed(works.then_some(Path::Relayed(relay)))
            }
            settle::Action::PreferStream => continue,
            settle::Action::OpenStream => {
                streams = true;
                settle::Input::Stream(true)
            }
        };
        settling.handle(now, &state, &view, input);
    }
    (done, settling.outcome().expect("it is settled"))
}

#[test]
fn relays_are_tried_in_twos_and_a_stream_after_all() {
    let tried = |done: &[settle::Action]| -> Vec<u8> {
        let relay = |action: &settle::Action| match action {
            settle::Action::TryRelay(relay) => Some(relay.0[0]),
            _ => None,
        };
        done.iter().filter_map(relay).collect()
    };
    let (done, path) = settled(
        NatKind::Cone,
        &[(3, false), (4, false), (5, true), (6, true)],
    );
    assert_eq!(path, Some(Path::Relayed(member(5))));
    assert_eq!(tried(&done), [3, 4, 5, 6]);
    let (done, path) = settled(NatKind::Cone, &[(3, false)]);
    assert_eq!((tried(&done), path), (vec![3], Some(Path::Stream)));
    // Where UDP does not get through a relay would be a stream too.
    let (done, path) = settled(NatKind::Blocked, &[(3, true)]);
    assert_eq!((tried(&done), path), (vec![], Some(Path::Stream)));
    assert!(done.contains(&settle::Action::PreferStream));
}
