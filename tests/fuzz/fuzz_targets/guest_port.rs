//! Frames of a guest: DHCP, ARP, neighbour discovery, DNS.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_dhcp::{PortConfig, Responder, Subnet};
use std::{net::Ipv4Addr, time::Instant};

fuzz_target!(|bytes: &[u8]| {
    let Ok(subnet) = "10.83.0.0/16".parse::<Subnet>() else { return };
    let config = PortConfig::new(
        [2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 83, 0, 9), subnet, "web", "lab.p2p", 1340
    );
    let mut responder = Responder::new(config.with_v6("fd00:1:2:3::".parse().expect("a literal")));
    let _ = responder.handle(Instant::now(), bytes);
    if let Some(question) = responder.dns_question(bytes) {
        let _ = responder.dns_answer(&question, bytes);
    }
});
