//! What can go wrong with a claim, each with what to do about it.

use crate::{entry::Subject, subnet::Subnet};
use p2pvm_dht::record::RecordError;
use p2pvm_overlay::Epoch;
use std::net::Ipv4Addr;

/// Why an address or a name could not be claimed, kept or found.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The DHT failed.
    #[error("the address records cannot be reached")]
    Records(#[from] RecordError),
    /// It is no DNS label, or a reserved one.
    #[error(
        "'{0}' cannot be a name: use 1 to 63 lower-case letters, digits and inner hyphens ('vm' \
            is reserved among hosts)"
    )]
    InvalidName(String),
    /// Another subject has the name.
    #[error("the name '{name}' is taken by {by}: choose another")]
    NameTaken {
        /// The name that was asked for.
        name: String,
        /// The subject that has it.
        by: Subject,
    },
    /// No free address was drawn.
    #[error("no free address in {subnet} after {tried} draws: the subnet is full or nearly so")]
    Exhausted {
        /// The network's subnet.
        subnet: Subnet,
        /// How many addresses were tried.
        tried: usize,
    },
    /// Another owner has the address, by a draw or by the rule that decides after a partition.
    #[error("{address} belongs to another owner now: claim a new address")]
    Lost {
        /// The address that was lost.
        address: Ipv4Addr,
    },
    /// A newer epoch holds the VM.
    #[error("the VM is held in a newer epoch ({epoch}): this host holds it no longer")]
    Superseded {
        /// The newest epoch.
        epoch: Epoch,
    },
}

impl Error {
    /// An address record of another owner means that the address is lost to us.
    pub(crate) fn lost_if_exists(self, address: Ipv4Addr) -> Self {
        match self {
            Self::Records(RecordError::Exists(_)) => Self::Lost { address },
            other => other,
        }
    }
}
