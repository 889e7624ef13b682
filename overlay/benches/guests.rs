//! Guest to guest across two hosts, beside host to host over the same two planes: one TCP stream,
//! in turn, round by round. A guest is a network namespace at the far end of its port: what a
//! guest's virtio-net device gives a TAP, the kernel gives the port here, TSO packets behind a
//! virtio-net header, without a machine emulator that would be what is measured.
//!
//! Needs root and iperf3. `cargo bench -p p2pvm-overlay --no-default-features --bench guests [--
//! ROUNDS]`. Prints Gbit/s and the planes' processor seconds per gigabyte: medians and all rounds.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{Epoch, plane::Route};
use std::{
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};
use world::{Host, Nat, World, introduce, sh};

/// Seconds of one stream.
const SECONDS: u32 = 2;

/// Processor seconds of this process, which is both planes.
fn cpu() -> f64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .expect("every Linux has it");
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

/// One stream: Gbit/s, and processor seconds of the planes per 10⁹ bytes.
fn stream(from: &str, to: &str, address: &str) -> (f64, f64) {
    let mut server = Command::new("ip")
        .args(["netns", "exec", to, "iperf3", "-s", "-1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("iperf3 starts");
    std::thread::sleep(Duration::from_millis(300));
    let before = cpu();
    let out = sh(&format!(
        "ip netns exec {from} iperf3 -c {address} -t {SECONDS} --json"
    ));
    let used = cpu() - before;
    let _ = server.wait();
    let text = String::from_utf8_lossy(&out.stdout);
    let received = text
        .split_once("\"sum_received\"")
        .map_or("", |(_, rest)| rest);
    let bytes = received
        .split_once("\"bytes\":")
        .and_then(|(_, rest)| rest.split(',').next()?.trim().parse::<f64>().ok());
    let bytes = bytes.unwrap_or_else(|| panic!("iperf3 said: {text}"));
    (bytes * 8.0 / f64::from(SECONDS) / 1e9, used / (bytes / 1e9))
}

/// The figures of both ways, and how they compare round by round.
fn figures(by_host: &[(f64, f64)], by_guest: &[(f64, f64)]) -> Vec<Figure> {
    let ways = [("host to host", by_host), ("guest to guest", by_guest)];
    let rates = ways.map(|(of, rounds)| {
        let rounds = rounds.iter().map(|(rate, _)| *rate);
        let figure = Figure::new("stream", "one TCP stream", "Gbit/s", rounds);
        figure.of(of).digits(2)
    });
    let costs = ways.map(|(of, rounds)| {
        let rounds = rounds.iter().map(|(_, cost)| *cost);
        let figure = Figure::new("cpu", "both planes' processor time", "s/GB", rounds);
        figure.of(of).digits(2)
    });
    let pairs = by_host.iter().zip(by_guest);
    let shares = pairs.map(|(host, guest)| guest.0 / host.0 * 100.0);
    let share = Figure::new("share", "guest to guest, of host to host", "%", shares);
    let share = share.aim("≥ 80 %");
    rates.into_iter().chain(costs).chain([share]).collect()
}

#[tokio::main]
async fn main() {
    let rounds: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(5);
    let recorder = Recorder::from_environment();
    let mut world = World::new(Duration::from_millis(1));
    let hosts: [Host; 2] = [world.host(Nat::None), world.host(Nat::None)];
    introduce(&[&hosts[0], &hosts[1]]);
    hosts[0]
        .plane
        .ping(hosts[1].member, Duration::from_secs(10))
        .await
        .expect("a link");
    let guests: Vec<(String, IpAddr)> = [(0, "ga", 11), (1, "gb", 12)]
        .into_iter()
        .map(|(on, name, vm)| {
            let (namespace, port) = world.guest(&hosts[on], name, vm, 1);
            let there = Route {
                member: hosts[on].member,
                epoch: Epoch(1),
            };
            hosts
                .iter()
                .for_each(|host| host.plane.set_route(port.v4.into(), there));
            (namespace, port.v4.into())
        })
        .collect();
    for (here, there) in [(0, 1), (1, 0)] {
        // The overlay's gateway answers for every address, as it does where the daemon answers ARP.
        let (namespace, address) = (&guests[here].0, guests[there].1);
        let done = sh(&format!(
            "ip -n {namespace} neigh replace {address} lladdr 02:00:00:00:00:01 dev eth0"
        ));
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let (mut by_host, mut by_guest) = (Vec::new(), Vec::new());
    tokio::task::block_in_place(|| {
        stream(
            &hosts[0].namespace,
            &hosts[1].namespace,
            &hosts[1].overlay(),
        );
        for _ in 0..rounds {
            by_host.push(stream(
                &hosts[0].namespace,
                &hosts[1].namespace,
                &hosts[1].overlay(),
            ));
            by_guest.push(stream(&guests[0].0, &guests[1].0, &guests[1].1.to_string()));
        }
    });
    let figures = figures(&by_host, &by_guest);
    println!("{}", Recorder::overview(&figures));
    let command =
        format!("cargo bench -p p2pvm-overlay --no-default-features --bench guests -- {rounds}");
    recorder
        .record("guests", &command, &figures)
        .expect("the figures are written");
}
