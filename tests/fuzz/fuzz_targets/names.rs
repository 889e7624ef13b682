//! The DHT's records of addresses and names, and DNS questions from anyone.
#![no_main]
use async_trait::async_trait;
use libfuzzer_sys::fuzz_target;
use p2pvm_dhcp::{
    NameEntry, NameKind, Resolver, Subnet,
    dns::{Names, Unavailable},
    entry,
};
use std::net::IpAddr;

/// Every address is "web", and no name is known.
struct Everywhere;

#[async_trait]
impl Names for Everywhere {
    async fn forward(&self, _: NameKind, _: &str) -> Result<Option<NameEntry>, Unavailable> {
        Ok(None)
    }
    async fn reverse(&self, _: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        Ok(Some((NameKind::Vm, "web".into())))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = entry::parse(bytes);
    let Ok(subnet) = "10.83.0.0/16".parse::<Subnet>() else {
        return;
    };
    let Ok(resolver) = Resolver::new("lab.p2p", subnet) else {
        return;
    };
    let resolver = resolver.with_v6("fd00:1:2:3::".parse().expect("a literal"), 64);
    let answer = futures::executor::block_on(resolver.answer(bytes, &Everywhere));
    assert!(answer.len() <= bytes.len().max(12) + 1232);
});
