//! What packet threads look up: snapshots that are replaced as a whole and read without a lock.

use super::{
    guest::port::Ports,
    path::peer::{Peer, Peers},
    routes::{Route, Routes},
};
use crate::link::Session;
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::IpAddr,
    sync::Arc,
};

#[derive(Default)]
pub(crate) struct Tables {
    pub routes: ArcSwap<Routes>,
    /// Where guests that have left this host are now.
    pub forwards: ArcSwap<HashMap<IpAddr, Route>>,
    /// This host's overlay addresses with their prefix lengths.
    pub hosts: ArcSwap<Vec<(IpAddr, u8)>>,
    pub ports: ArcSwap<Ports>,
    pub peers: ArcSwap<Peers>,
    pub sessions: ArcSwap<Sessions>,
}

/// Sessions by local index. This node draws the indices, so no peer can choose keys that collide.
pub(crate) type Sessions = HashMap<u32, (Arc<Session>, Arc<Peer>), BuildHasherDefault<ByIndex>>;

/// Passes a session's index on as its hash.
#[derive(Default)]
pub(crate) struct ByIndex(u64);

impl Hasher for ByIndex {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|b| self.0 = self.0 << 8 | u64::from(*b));
    }

    fn write_u32(&mut self, index: u32) {
        // The table takes the upper seven bits as well as the lower ones.
        self.0 = u64::from(index) << 32 | u64::from(index);
    }
}
