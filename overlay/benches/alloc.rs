//! Allocations per packet: a counting allocator around two planes that carry one TCP stream, then
//! UDP datagrams. Needs root and iperf3. `cargo bench -p p2pvm-overlay --no-default-features
//! --bench alloc`. Fails if the planes allocate for packets.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

use p2pvm_figures::{Figure, Recorder};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use world::{Host, Nat, World, introduce, sh};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of a full packet on the TUN.
const PACKET: u64 = 1340;

/// Runs iperf3 with these arguments; allocations and packets of both planes meanwhile.
fn measure(from: &Host, to: &Host, arguments: &str, packet: u64) -> (u64, u64) {
    let mut server = Command::new("ip")
        .args(["netns", "exec", &to.namespace, "iperf3", "-s", "-1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("iperf3 starts");
    std::thread::sleep(Duration::from_millis(500));
    let carried = || {
        let of = |host: &Host| {
            host.plane
                .peers()
                .iter()
                .map(|(_, path)| path.tx_bytes + path.rx_bytes)
                .sum::<u64>()
        };
        of(from) + of(to)
    };
    let (packets, before) = (carried(), ALLOCATIONS.load(Ordering::Relaxed));
    let out = sh(&format!(
        "ip netns exec {} iperf3 -c {} -t 3 {arguments}",
        from.namespace,
        to.overlay()
    ));
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let _ = server.wait();
    (allocations, (carried() - packets) / packet)
}

#[tokio::main]
async fn main() {
    let mut world = World::new(Duration::from_millis(1));
    let (a, b) = (world.host(Nat::None), world.host(Nat::None));
    introduce(&[&a, &b]);
    a.plane
        .ping(b.member, Duration::from_secs(10))
        .await
        .expect("a link");
    let recorder = Recorder::from_environment();
    let (mut wrong, mut figures) = (false, Vec::new());
    for (what, arguments, packet) in [
        ("TCP", "", PACKET),
        ("UDP, 1200 bytes", "-u -b 300M -l 1200", 1228),
        ("UDP, 64 bytes", "-u -b 10M -l 64", 92),
    ] {
        let (allocations, packets) =
            tokio::task::block_in_place(|| measure(&a, &b, arguments, packet));
        let each = allocations as f64 / packets.max(1) as f64;
        println!(
            "{what}: {allocations} allocations for {packets} packets, {each:.5} each (sh and \
                iperf3's start included)"
        );
        // The clock, the connector and this measurement allocate now and then; a packet must not.
        wrong |= each > 0.05;
        let figure = Figure::new("each", "allocations for a packet", "", [each]);
        figures.push(figure.of(what).digits(5).aim("≤ 0.05"));
    }
    let command = "cargo bench --profile dev -p p2pvm-overlay --no-default-features --bench alloc";
    recorder
        .record("allocations", command, &figures)
        .expect("the figures are written");
    assert!(!wrong, "packets are allocated for");
}
