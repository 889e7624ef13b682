//! Junk and floods to every service. A flood is measured in pairs: what an honest member waits for
//! the flooded daemon, and what it waits for the same daemon while another one is flooded in the
//! same way, so that the load of this machine is in both.

use super::{Attempt, Stage, records, votes};
use p2pvm_dht::wire as dht;
use p2pvm_overlay::{Fabric, FabricError, MemberId};
use p2pvm_snapshot_sync::{ChunkId, exchange::wire as chunk};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// How long one flood lasts.
const LASTS: Duration = Duration::from_millis(1500);
/// How many requests of a flood are under way at a time: more than one member may have served.
const AT_ONCE: usize = 200;
/// How many times longer an honest member may wait, and what is never counted.
const LONGER: f64 = 3.0;
const UNCOUNTED_MS: f64 = 20.0;
/// How much a flood may leave in a daemon's memory, in bytes.
const LEFT: u64 = 64 << 20;
/// How long an honest member waits at most.
const HONEST: Duration = Duration::from_secs(10);

/// How requests were answered.
#[derive(Debug, Default)]
pub struct Tally {
    pub answers: Vec<Vec<u8>>,
    pub refused: usize,
    /// Different reasons, a few of them.
    pub reasons: BTreeSet<String>,
    /// Neither answered nor refused.
    pub failed: Vec<FabricError>,
}

impl Tally {
    fn note(&mut self, answer: Result<Vec<u8>, FabricError>) {
        match answer {
            Ok(answer) => self.answers.push(answer),
            Err(FabricError::Refused(_, why)) => {
                self.refused += 1;
                if self.reasons.len() < 16 {
                    self.reasons.insert(why);
                }
            }
            Err(other) => self.failed.push(other),
        }
    }

    /// Whether a refusal had these words.
    pub fn says(&self, words: &str) -> bool {
        self.reasons.iter().any(|why| why.contains(words))
    }
}

/// Sends all of these, so many at a time.
pub async fn send(
    fabric: Arc<dyn Fabric>,
    to: MemberId,
    service: &'static str,
    bodies: Vec<Vec<u8>>,
    at_once: usize,
) -> Tally {
    let waiting = Arc::new(Mutex::new(bodies));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut workers = JoinSet::new();
    for _ in 0..at_once {
        let (fabric, waiting, tally) = (fabric.clone(), waiting.clone(), tally.clone());
        workers.spawn(async move {
            loop {
                let next = waiting.lock().unwrap().pop();
                let Some(body) = next else { return };
                let limit = super::member::PATIENCE;
                let answer = fabric.call(to, service, body, limit).await;
                tally.lock().unwrap().note(answer);
            }
        });
    }
    while workers.join_next().await.is_some() {}
    std::mem::take(&mut *tally.lock().unwrap())
}

/// Sends requests of a pool until the time is over; gives how many.
async fn pour(
    fabric: Arc<dyn Fabric>,
    to: MemberId,
    service: &'static str,
    pool: Arc<Vec<Vec<u8>>>,
) -> usize {
    let until = Instant::now() + LASTS;
    let mut workers = JoinSet::new();
    for worker in 0..AT_ONCE {
        let (fabric, pool) = (fabric.clone(), pool.clone());
        workers.spawn(async move {
            let mut sent = 0;
            while Instant::now() < until {
                let body = pool[(worker + sent * AT_ONCE) % pool.len()].clone();
                // Refused or not: a flood goes on.
                let _ = fabric.call(to, service, body, LASTS).await;
                sent += 1;
            }
            sent
        });
    }
    let mut all = 0;
    while let Some(sent) = workers.join_next().await {
        all += sent.unwrap_or(0);
    }
    all
}

/// What an honest member waits for `asked`, in milliseconds, while `flooded` is flooded: the
/// median. Fails if one of its requests is not answered.
fn waits(stage: &Stage, asked: &str, flooded: &str, service: &'static str) -> f64 {
    let (asked, flooded) = (stage.id(asked), stage.id(flooded));
    let pool = Arc::new(samples(stage, service));
    let (rogue, honest) = (&stage.rogue, stage.honest.fabric());
    let mut waited: Vec<f64> = std::thread::scope(|scope| {
        let flood = scope.spawn(|| rogue.run(pour(rogue.fabric(), flooded, service, pool)));
        let waited = stage.honest.run(async move {
            let (until, mut waited) = (Instant::now() + LASTS, Vec::new());
            while Instant::now() < until {
                let began = Instant::now();
                let answer = honest.call(asked, "clock", Vec::new(), HONEST).await;
                answer.expect("an honest member is answered");
                waited.push(began.elapsed().as_secs_f64() * 1e3);
            }
            waited
        });
        let sent = flood.join().expect("the flood ends");
        assert!(sent > AT_ONCE, "'{service}' was hardly flooded: {sent}");
        waited
    });
    waited.sort_by(f64::total_cmp);
    waited[waited.len() / 2]
}

fn flood(stage: &Stage, service: &'static str) {
    let resident = || stage.lab.status("b").unwrap().resident_bytes;
    let before = resident();
    let beside = waits(stage, "b", "c", service);
    let under = waits(stage, "b", "b", service);
    println!("  '{service}': {under:.1} ms, and {beside:.1} ms while another is flooded");
    assert!(
        under <= LONGER * beside + UNCOUNTED_MS,
        "an honest member waits {under:.1} ms instead of {beside:.1} ms"
    );
    let left = resident().saturating_sub(before);
    assert!(left < LEFT, "{left} bytes of memory are left of it");
}

/// Requests as a member of this version makes them, or nearly.
fn samples(stage: &Stage, service: &str) -> Vec<Vec<u8>> {
    let mut chance = StdRng::seed_from_u64(1);
    let mut many = |n: usize| -> Vec<[u8; 32]> { (0..n).map(|_| chance.random()).collect() };
    match service {
        "clock" | "~probe" => vec![Vec::new()],
        "vm" => vec![vec![0]],
        "dht" => records::new_records(64)
            .into_iter()
            .map(|record| dht::emit(&dht::Request::Write { record, attempt: 7 }))
            .collect(),
        "vote" => votes::new_vms(stage, "b", 64),
        "chunk" => {
            let ids = many(512).into_iter().map(ChunkId).collect();
            vec![chunk::Request::Has(ids).to_bytes()]
        }
        "route" => vec![records::told(stage, 64)],
        "notice" => many(8).iter().map(|digest| variant(0, digest)).collect(),
        "~gossip" => vec![vec![0, 0]],
        "~nearest" => many(8).iter().map(|place| place.to_vec()).collect(),
        "~contacts" => vec![postcard::to_stdvec(&many(32)).unwrap()],
        _ => (0..64).map(|_| junk_of(&mut chance, 200)).collect(),
    }
}

/// An enum's variant with one field of bytes, in postcard's form.
pub fn variant(number: u8, field: &[u8]) -> Vec<u8> {
    [&[number], field].concat()
}

fn junk_of(chance: &mut StdRng, most: usize) -> Vec<u8> {
    let length = chance.random_range(0..=most);
    (0..length).map(|_| chance.random()).collect()
}

/// Every answer to junk is an answer or a refusal, and the next request is answered.
fn junk(stage: &Stage, service: &'static str) {
    let seed = rand::random();
    let mut chance = StdRng::seed_from_u64(seed);
    let mut bodies: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    bodies.push(Vec::new());
    bodies.extend((0..300).map(|_| junk_of(&mut chance, 600)));
    // What begins as a message of some version does.
    bodies.extend((0..300).map(|n| variant(n as u8 % 6, &junk_of(&mut chance, 200))));
    bodies.push(vec![0xff; 1 << 20]);
    let sent = bodies.len();
    let tally = stage.rogue.flood(stage.id("b"), service, bodies, 16);
    assert!(tally.failed.is_empty(), "seed {seed}: {:?}", tally.failed);
    assert_eq!(tally.answers.len() + tally.refused, sent, "seed {seed}");
    stage
        .honest
        .call(stage.id("b"), "vm", vec![0])
        .expect("an honest member is answered");
}

macro_rules! services {
    ($($service:literal),+) => {
        /// Random bytes to each service.
        pub const JUNK: &[Attempt] = &[
            $((concat!("junk to '", $service, "'"), |stage| junk(stage, $service))),+
        ];
        /// More requests to each service than it serves for one member.
        pub const FLOODS: &[Attempt] = &[
            $((concat!("a flood of '", $service, "'"), |stage| flood(stage, $service))),+
        ];
    };
}

services!(
    "dht",
    "vote",
    "chunk",
    "route",
    "load",
    "why",
    "ask",
    "prove",
    "twin",
    "notice",
    "clock",
    "link",
    "vm",
    "migrate",
    "~gossip",
    "~nearest",
    "~contacts",
    "~admit",
    "~probe",
    "usage",
    "token",
    "~admit2",
    "~revoked",
    "~part"
);

/// Floods that are not of one kind of request.
pub const HOGS: &[Attempt] = &[
    ("seats held by requests that wait", seats_held_by_waiting),
    ("streams opened and left alone", idle_streams),
    ("junk over the streams of each service", junk_streams),
    ("an unknown service", unknown_service),
];

/// A member's requests that wait ten seconds each take its own seats only.
fn seats_held_by_waiting(stage: &Stage) {
    let to = stage.id("c");
    let keep = chunk::Request::Keep {
        manifest: p2pvm_snapshot_sync::ManifestId(ChunkId([9; 32])),
        label: "held".into(),
        providers: Vec::new(),
        wait_ms: 60_000,
    };
    super::chunks::provide(&stage.rogue, super::chunks::Provider::Silent);
    let bodies = vec![keep.to_bytes(); 150];
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| stage.rogue.flood(to, "chunk", bodies, 150));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!flood.is_finished(), "nothing waits");
        for service in ["clock", "vm"] {
            let body = if service == "vm" { vec![0] } else { Vec::new() };
            let answered = stage.honest.call(to, service, body);
            answered.expect("an honest member is answered");
        }
        flood.join().expect("the flood ends");
    });
}

fn idle_streams(stage: &Stage) {
    for service in ["api", "chunk", "migrate"] {
        let (to, fabric) = (stage.id("b"), stage.rogue.fabric());
        let held = stage.rogue.run(async move {
            let mut opening = JoinSet::new();
            for _ in 0..400 {
                let fabric = fabric.clone();
                opening.spawn(async move { fabric.open_stream(to, service).await.ok() });
            }
            let mut held = Vec::new();
            while let Some(opened) = opening.join_next().await {
                held.extend(opened.ok().flatten());
            }
            held
        });
        assert!(held.len() < 400, "'{service}' took {} streams", held.len());
        let (status, answer) = stage.honest.http(to, "GET /vms", "", "");
        assert_eq!(status, 200, "while '{service}' is held: {answer}");
        drop(held);
    }
}

fn junk_streams(stage: &Stage) {
    let seed = rand::random();
    let mut chance = StdRng::seed_from_u64(seed);
    for service in ["api", "chunk", "migrate", "link-stream"] {
        for _ in 0..20 {
            let bytes = junk_of(&mut chance, 5000);
            stage.rogue.poke(stage.id("b"), service, bytes);
        }
        // A frame that claims four gigabytes.
        let frame = vec![2, 0xff, 0xff, 0xff, 0xff];
        stage.rogue.poke(stage.id("b"), service, frame);
    }
    let (status, answer) = stage.honest.http(stage.id("b"), "GET /vms", "", "");
    assert_eq!(status, 200, "seed {seed}: {answer}");
}

fn unknown_service(stage: &Stage) {
    let to = stage.id("b");
    let answer = stage.rogue.call(to, "nothing", vec![1]);
    let none = |e: &FabricError| matches!(e, FabricError::NoSuchService(..));
    assert!(answer.as_ref().is_err_and(none), "{answer:?}");
    // The word behind which the daemon's own services are is no service either.
    let answer = stage.rogue.call(to, "~", vec![1]);
    assert!(answer.as_ref().is_err_and(none), "{answer:?}");
}
