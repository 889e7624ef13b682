//! Guest to guest across two hosts, beside host to host over the same two planes: one TCP stream,
//! in turn, round by round. A guest is a network namespace at the far end of its port: what a
//! guest's virtio-net device gives a TAP, the kernel gives the port here, TSO packets behind a
//! virtio-net header, without a machine emulator that would be what is measured.
//!
//! Needs root and iperf3. `cargo bench -p p2pvm-overlay --no-default-features --bench guests [--
//! ROUNDS]`. Prints Gbit/s and the planes' processor seconds per gigabyte: medians, smallest and
//! largest.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

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

fn row(name: &str, mut values: Vec<(f64, f64)>) -> f64 {
    let mid = values.len() / 2;
    let mut cells = Vec::new();
    for pick in [|v: &(f64, f64)| v.0, |v: &(f64, f64)| v.1] {
        values.sort_by(|a, b| pick(a).total_cmp(&pick(b)));
        cells.push(format!(
            "{:.2} ({:.2}–{:.2})",
            pick(&values[mid]),
            pick(&values[0]),
            pick(&values[values.len() - 1])
        ));
    }
    println!("| {name} | {} |", cells.join(" | "));
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    values[mid].0
}

#[tokio::main]
async fn main() {
    let rounds: usize = std::env::args()
        .skip(1)
        .find_map(|a| a.parse().ok())
        .unwrap_or(5);
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
    println!("| one TCP stream | Gbit/s | planes' CPU s per GB |\n|---|---|---|");
    let (host, guest) = (
        row("host to host", by_host),
        row("guest to guest", by_guest),
    );
    println!(
        "\nguest to guest is {:.0} % of host to host",
        guest / host * 100.0
    );
}
