//! How long a receiver takes to read and check a token, as it was given and as it was passed on,
//! beside one bare ed25519 signature: microseconds. Each round measures all of them, so that other
//! load of the machine affects all alike. `cargo bench -p p2pvm-authority`.

use p2pvm_authority::{Amounts, Grant, Request, Resource, Right, Token};
use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{
    VmId,
    identity::{KeyPair, verify},
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

const ROUNDS: usize = 15;
/// How long one measurement of one round takes.
const SLICE: Duration = Duration::from_millis(50);
const NOW: u64 = 1_800_000_000;

/// How many nanoseconds one call takes.
fn time(mut one: impl FnMut()) -> f64 {
    let (began, mut calls) = (Instant::now(), 0u32);
    while began.elapsed() < SLICE {
        one();
        calls += 1;
    }
    began.elapsed().as_nanos() as f64 / f64::from(calls)
}

fn main() {
    let recorder = Recorder::from_environment();
    let keys: Vec<KeyPair> = (1..=4).map(|n| KeyPair::from_seed(&[n; 32])).collect();
    let grant = |to: &KeyPair| Grant {
        resource: Resource::Vm(VmId([7; 32])),
        rights: [Right::Console, Right::Start].into_iter().collect(),
        audience: to.public(),
        from: NOW,
        until: NOW + 3600,
        amounts: Amounts::default(),
    };
    let given = Token::issue(&keys[0], grant(&keys[1]));
    let passed = given
        .pass_on(&keys[1], grant(&keys[2]))
        .expect("it is the holder's");
    let check = |token: &[u8], asker: &KeyPair| {
        let request = Request {
            asker: asker.public(),
            resource: Resource::Vm(VmId([7; 32])),
            right: Right::Console,
            amounts: Amounts::default(),
            now: NOW + 1,
        };
        let token = Token::from_bytes(black_box(token)).expect("it is whole");
        token
            .check(&[keys[0].public()], &request, |_| false)
            .expect("it allows this");
    };
    let (one, two) = (given.to_bytes(), passed.to_bytes());
    let signature = keys[0].sign("bench", b"message");
    let public = keys[0].public();
    let mut seen: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let times = [
            time(|| assert!(verify(&public, "bench", black_box(b"message"), &signature))),
            time(|| check(&one, &keys[1])),
            time(|| check(&two, &keys[2])),
        ];
        seen.iter_mut()
            .zip(times)
            .for_each(|(seen, time)| seen.push(time / 1000.0));
    }
    let names = [
        "one ed25519 signature",
        "a token as given",
        "a token passed on once",
    ];
    let figures: Vec<Figure> = names
        .into_iter()
        .zip(seen)
        .map(|(of, rounds)| {
            Figure::new("check", "check", "µs", rounds)
                .of(of)
                .digits(1)
                .aim("≤ 100 µs")
        })
        .collect();
    println!("{}", Recorder::overview(&figures));
    let command = "cargo bench --profile dev -p p2pvm-authority";
    recorder
        .record("tokens", command, &figures)
        .expect("the figures are written");
}
