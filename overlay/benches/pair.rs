//! Packet planes in namespaces that exist, held until standard input ends: what `p2pvm testbed
//! bench-net --pair` measures, so that a change of the plane can be compared with the plane before
//! it without building the rest. Needs root. `cargo build -p p2pvm-overlay --no-default-features
//! --bench pair`, then `pair NAMESPACE...`; prints the overlay addresses.

#![allow(dead_code, reason = "the tests' world has more than this needs")]

#[path = "../tests/plane/world.rs"]
mod world;

use std::{io::Read, time::Duration};
use world::{Host, World, introduce};

#[tokio::main]
async fn main() {
    let namespaces: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    if namespaces.is_empty() {
        eprintln!("usage: pair NAMESPACE...");
        return;
    }
    let mut world = World::new(Duration::from_micros(100));
    let hosts: Vec<Host> = namespaces
        .into_iter()
        .map(|namespace| world.place(namespace))
        .collect();
    introduce(&hosts.iter().collect::<Vec<_>>());
    println!(
        "{}",
        hosts
            .iter()
            .map(Host::overlay)
            .collect::<Vec<_>>()
            .join(" ")
    );
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
}
