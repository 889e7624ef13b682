//! What counting traffic costs: the same TCP stream through two pairs of planes in one run, one pair that counts and one
//! that does not, in turn, many times. Needs root and iperf3. `cargo bench -p p2pvm-overlay --bench traffic [-- ROUNDS]`.
//! Prints each round, then medians and quartiles of throughput and of the planes' processor time per gigabyte.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

use std::{
    process::{Command, Stdio},
    time::Duration,
};
use world::{Host, Nat, World, introduce, sh};

/// One stream lasts so long, seconds.
const STREAM: u32 = 2;

/// Processor time of this process, which runs both planes and nothing else meanwhile.
fn cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("the kernel counts");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Gbit/s, and processor seconds per gigabyte.
fn stream(from: &Host, to: &Host) -> (f64, f64) {
    let mut server = Command::new("ip")
        .args(["netns", "exec", &to.namespace, "iperf3", "-s", "-1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("iperf3 starts");
    std::thread::sleep(Duration::from_millis(400));
    let before = cpu();
    let out = sh(&format!("ip netns exec {} iperf3 -c {} -t {STREAM} -f m", from.namespace, to.overlay()));
    let used = cpu() - before;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}");
    let _ = server.wait();
    let words: Vec<&str> = text.lines().find(|l| l.contains("receiver")).expect("a summary").split_whitespace().collect();
    let mbit: f64 = words[words.iter().position(|w| *w == "Mbits/sec").expect("a rate") - 1].parse().expect("a number");
    (mbit / 1000.0, used / (mbit * f64::from(STREAM) / 8000.0))
}

/// Lower quartile, median, upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|q| values[(values.len() - 1) * q / 4])
}

fn main() {
    let rounds: usize = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(15);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let mut worlds = Vec::new();
    for counts in [true, false] {
        let mut world = World::new(Duration::from_millis(1));
        world.traffic = counts;
        let (a, b) = (world.host(Nat::None), world.host(Nat::None));
        introduce(&[&a, &b]);
        runtime.block_on(a.plane.ping(b.member, Duration::from_secs(10))).expect("a link");
        stream(&a, &b);
        worlds.push((world, a, b));
    }
    let mut seen: [Vec<(f64, f64)>; 2] = Default::default();
    for round in 0..rounds {
        // Who begins changes from round to round.
        for which in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (_, a, b) = &worlds[which];
            seen[which].push(stream(a, b));
        }
        let [on, off] = [seen[0][round], seen[1][round]];
        println!("round {:2}: counting {:.2} Gbit/s {:.2} s/GB, not {:.2} Gbit/s {:.2} s/GB", round + 1, on.0, on.1, off.0, off.1);
    }
    assert!(!worlds[0].1.plane.traffic().flows.is_empty() && worlds[1].1.plane.traffic().flows.is_empty());
    for (what, pick) in [("Gbit/s", 0), ("CPU s/GB", 1)] {
        let of = |which: usize| seen[which].iter().map(|s: &(f64, f64)| if pick == 0 { s.0 } else { s.1 }).collect::<Vec<_>>();
        let ratio: Vec<f64> = of(0).iter().zip(of(1)).map(|(on, off)| on / off).collect();
        println!("{what}: quartiles counting {:.3?}, not {:.3?}, ratio {:.3?}", quartiles(of(0)), quartiles(of(1)), quartiles(ratio));
    }
}
