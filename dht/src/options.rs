//! What a caller of the DHT may set, each with its default and the reason.

use crate::limits::Limits;
use p2pvm_overlay::UnixTime;
use std::{sync::Arc, time::Duration};

/// The source of the wall-clock time.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// The settings of a [`crate::Dht`].
#[derive(Clone)]
pub struct DhtOptions {
    /// How many members hold a key: the k closest ones.
    pub replicas: usize,
    /// How long one replica may take to answer.
    pub call_timeout: Duration,
    /// How often all records are compared with the other replicas.
    pub republish_every: Duration,
    /// What this node keeps for one owner, for one member and for all.
    pub limits: Limits,
    /// The wall clock.
    pub clock: Clock,
    /// The seed of waits and attempt names, so that a simulation can be repeated; a random one if
    /// `None`.
    pub seed: Option<u64>,
}

impl Default for DhtOptions {
    /// 5 replicas (two may be dead for a read or a renewal, one for a create); 3 s for a call,
    /// which covers a dial over a 200 ms path and a flush; 30 min between comparisons; the system's
    /// clock and random numbers.
    fn default() -> Self {
        Self {
            replicas: 5,
            call_timeout: Duration::from_secs(3),
            republish_every: Duration::from_secs(30 * 60),
            limits: Limits::default(),
            clock: Arc::new(UnixTime::now),
            seed: None,
        }
    }
}
