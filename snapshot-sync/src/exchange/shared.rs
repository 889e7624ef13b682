//! What the tasks of an exchange share: the fabric, the store and the settings.

use super::{pace::Pace, wire};
use crate::{ChunkStore, Error};
use p2pvm_overlay::{Fabric, MemberId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The name of this crate's service.
pub const SERVICE: &str = "chunk";

/// The limits and timeouts of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// How many bytes one provider owes at most. 16 MiB fill a path of 80 MB/s with a round trip of
    /// 200 ms.
    pub window_bytes: u64,
    /// How long a provider that owes chunks may be silent before its stream is closed.
    pub stall: Duration,
    /// How long a fetch or push makes no progress before it fails.
    pub patience: Duration,
    /// How long to wait for the answer to a request.
    pub call_timeout: Duration,
    /// How many bytes the file system has free before this member keeps a replica for another.
    pub reserve_bytes: u64,
    /// How many percent of the file system the replicas of one other member take at most.
    pub replica_percent: u8,
    /// How many replicas for one member wait or are fetched at a time; one of them is fetched.
    pub max_keeping: usize,
    /// How many streams are served at once.
    pub max_streams: usize,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self {
            window_bytes: 16 << 20,
            stall: Duration::from_secs(8),
            patience: Duration::from_secs(30),
            call_timeout: Duration::from_secs(15),
            reserve_bytes: 256 << 20,
            replica_percent: 50,
            max_keeping: 64,
            max_streams: 64,
        }
    }
}

/// What the tasks of an exchange share; they do not keep the exchange itself alive.
#[derive(Clone)]
pub(super) struct Core {
    pub(super) fabric: Arc<dyn Fabric>,
    pub(super) store: ChunkStore,
    pub(super) options: ExchangeOptions,
    /// A member's replicas are fetched one after the other, so that each sees what the ones before
    /// it take.
    pub(super) turns: Turns,
    /// Which chunks are sent at a limited rate.
    pub(super) pace: Arc<Pace>,
}

/// One lock for each member.
pub(super) type Turns = Arc<Mutex<HashMap<MemberId, Arc<tokio::sync::Mutex<()>>>>>;

impl Core {
    pub(super) async fn ask(
        &self,
        member: MemberId,
        step: &'static str,
        request: &wire::Request,
        timeout: Duration,
    ) -> Result<wire::Answer, Error> {
        let answer = self
            .fabric
            .call(member, SERVICE, request.to_bytes(), timeout)
            .await;
        wire::Answer::parse(&answer.map_err(|source| Error::Peer { step, source })?)
    }
}
