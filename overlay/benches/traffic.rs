//! What counting traffic costs the packet plane, and what keeping access rules costs it: one TCP
//! stream between two planes, cut into short slices that have it on and off in turn, ABBA, so that
//! whatever else the machine does meets both alike. Compared is the processor time per gigabyte of
//! this process, which is both planes and nothing else: unlike throughput it does not say how busy
//! the machine is. Pairs of slices that differ in nothing run beside the others and show what the
//! measurement can tell.
//!
//! Needs root and iperf3. `cargo bench --profile dev -p p2pvm-overlay --no-default-features --bench
//! traffic [-- PAIRS]`. Prints the median of the pairs' ratios on/off, its 95 % confidence interval
//! by order statistics (no distribution assumed), and the quartiles.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{membership::NetworkPolicy, plane::Directory};
use std::{
    fmt::Write as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use world::{Host, Nat, Numbered, World, introduce};

/// One slice. Long beside the millisecond for which packets are under way, short beside what
/// changes on a machine.
const SLICE: Duration = Duration::from_millis(40);
/// A slice that carried less says nothing: the stream stood still.
const LEAST_BYTES: u64 = 256 << 10;
/// Rules that are looked through before the one that lets the stream in.
const RULES: usize = 20;

/// What a pair of slices differs in.
#[derive(Clone, Copy, PartialEq)]
enum Toggled {
    Nothing,
    Matrix,
    Rules,
}

fn policy() -> Arc<NetworkPolicy> {
    let mut text = "default = 'deny'\n".to_owned();
    for n in 0..RULES {
        let _ = writeln!(
            text,
            "[[rule]]\naction = 'allow'\nfrom = 'other{n}'\nto = '*'\nports = 'tcp/{}'",
            100 + n
        );
    }
    text.push_str("[[rule]]\naction = 'allow'\nfrom = 'g1'\nto = 'g2'\nports = 'tcp/5201'\n");
    Arc::new(NetworkPolicy::parse(&text).expect("a policy"))
}

/// A stream that runs until it is dropped.
struct Stream([Child; 2]);

impl Stream {
    fn start(from: &Host, to: &Host) -> Self {
        let run = |namespace: &str, arguments: &[&str]| {
            let mut command = Command::new("ip");
            command
                .args(["netns", "exec", namespace, "iperf3"])
                .args(arguments)
                .stdout(Stdio::null())
                .spawn()
                .expect("iperf3 starts")
        };
        let server = run(&to.namespace, &["-s", "-1"]);
        std::thread::sleep(Duration::from_millis(500));
        let client = run(&from.namespace, &["-c", &to.overlay(), "-t", "86400"]);
        std::thread::sleep(Duration::from_secs(2));
        Self([client, server])
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Processor time of this process in nanoseconds.
fn cpu() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .expect("every Linux has it");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Bytes that `a` has sent to `b` so far.
fn sent(a: &Host, b: &Host) -> u64 {
    a.plane.path(b.member).map_or(0, |info| info.tx_bytes)
}

struct Bench {
    a: Host,
    b: Host,
    policy: Arc<NetworkPolicy>,
}

impl Bench {
    fn set(&self, what: Toggled, on: bool) {
        for plane in [&self.a.plane, &self.b.plane] {
            match what {
                Toggled::Nothing => {}
                Toggled::Matrix => plane.count_traffic(on),
                Toggled::Rules => plane.set_policy(on.then(|| {
                    (
                        self.policy.clone(),
                        Arc::new(Numbered) as Arc<dyn Directory>,
                    )
                })),
            }
        }
    }

    /// Nanoseconds per byte of one slice.
    fn slice(&self, what: Toggled, on: bool) -> Option<f64> {
        self.set(what, on);
        // What was begun before ends.
        std::thread::sleep(Duration::from_millis(3));
        let (bytes, time) = (sent(&self.a, &self.b), cpu());
        std::thread::sleep(SLICE);
        let (bytes, time) = (sent(&self.a, &self.b) - bytes, cpu() - time);
        (bytes >= LEAST_BYTES).then(|| time as f64 / bytes as f64)
    }

    /// On/off of two slices in each order, so that a drift cancels out; and seconds per gigabyte
    /// with it off.
    fn pair(&self, what: Toggled) -> Option<(f64, f64)> {
        let taken = [true, false, false, true].map(|on| self.slice(what, on));
        // As a node has it by default: counting, and no rules.
        self.set(what, what != Toggled::Rules);
        let [on, off, off2, on2] = taken;
        let (on, off) = (on? + on2?, off? + off2?);
        Some((on / off, off / 2.0))
    }
}

/// Writes the costs, pair by pair, where that is asked for.
fn record<'a>(
    recorder: &Recorder,
    pairs: usize,
    told: impl Iterator<Item = (&'a Vec<(f64, f64)>, &'a str)>,
) {
    let figure = |(seen, name): (&Vec<(f64, f64)>, &str)| {
        let more = seen.iter().map(|(ratio, _)| (ratio - 1.0) * 100.0);
        let what = "processor time per byte beside none, pair by pair";
        Figure::new("cost", what, "%", more).of(name).digits(2)
    };
    let figures: Vec<Figure> = told.map(figure).collect();
    let bench = "cargo bench --profile dev -p p2pvm-overlay --no-default-features --bench traffic";
    recorder
        .record("counting", &format!("{bench} -- {pairs}"), &figures)
        .expect("the figures are written");
}

fn main() {
    let pairs: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(300);
    let recorder = Recorder::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let mut world = World::new(Duration::from_millis(1));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    runtime
        .block_on(a.plane.ping(b.member, Duration::from_secs(10)))
        .expect("a link");
    let bench = Bench {
        a,
        b,
        policy: policy(),
    };
    let _stream = Stream::start(&bench.a, &bench.b);
    let kinds = [
        (Toggled::Nothing, "nothing"),
        (Toggled::Matrix, "traffic matrix"),
        (Toggled::Rules, "access rules"),
    ];
    let mut seen: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..pairs {
        for (seen, (what, _)) in seen.iter_mut().zip(kinds) {
            seen.extend(bench.pair(what));
        }
    }
    assert!(
        !bench.a.plane.traffic().flows.is_empty(),
        "the stream was counted"
    );
    let told = seen.iter().zip(kinds.map(|(_, name)| name));
    record(&recorder, pairs, told);
    for (seen, (_, name)) in seen.iter().zip(kinds) {
        let mut ratios: Vec<f64> = seen.iter().map(|(ratio, _)| *ratio).collect();
        let mut costs: Vec<f64> = seen.iter().map(|(_, cost)| *cost).collect();
        ratios.sort_by(f64::total_cmp);
        costs.sort_by(f64::total_cmp);
        let n = ratios.len();
        assert!(
            n >= 20,
            "{name}: the stream stood still in {} of {pairs} pairs",
            pairs - n
        );
        // The median lies between these ranks in 95 of 100 samples (binomial, by its normal
        // approximation).
        let off = (0.98 * (n as f64).sqrt()).ceil() as usize;
        let at = |rank: usize| (ratios[rank.min(n - 1)] - 1.0) * 100.0;
        println!(
            "{name}: {:+.2} % processor time per byte, 95 % interval {:+.2} to {:+.2} %, \
                quartiles {:+.1} and {:+.1} %; {n} pairs, {:.2} s/GB without",
            at(n / 2),
            at((n / 2).saturating_sub(off)),
            at(n / 2 + off),
            at(n / 4),
            at(n * 3 / 4),
            costs[n / 2],
        );
    }
}
