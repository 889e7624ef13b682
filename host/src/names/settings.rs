//! What the daemon tells the keeper, and what the keeper tells the resolver: plain data and one
//! trait.

use super::scene::Places;
use crate::Finding;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

/// The resolver for this machine's programs: it answers for the network's names and forwards
/// questions about other names.
pub trait Forwarder: Send + Sync + 'static {
    /// Sets the servers for other names: those that the machine had before, and the resolvers of
    /// its other networks.
    fn lead(&self, servers: Vec<SocketAddr>, neighbours: Vec<Neighbour>);

    /// Whether the last question about another name found no answer.
    fn is_stuck(&self) -> bool;

    /// When a server last answered a question about another name.
    fn answered(&self) -> Option<Instant>;
}

/// The resolver of another network of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Where it answers.
    pub server: SocketAddr,
    /// The domain of its names.
    pub domain: String,
    /// The network's addresses.
    pub subnets: Vec<(IpAddr, u8)>,
}

/// What stays the same while the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The paths of files and sockets.
    pub places: Places,
    /// A word that is unique among this machine's daemons.
    pub id: String,
    /// The network's interface.
    pub device: String,
    /// The domain of its names.
    pub domain: String,
    /// The zones of the reverse names of its addresses.
    pub reverse: Vec<String>,
    /// The network's addresses.
    pub subnets: Vec<(IpAddr, u8)>,
}

/// What is wanted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameSettings {
    /// The resolver's address on port 53 for the list of name servers, if it has one.
    pub server: Option<Ipv4Addr>,
    /// The resolver's address for systemd-resolved.
    pub link: Option<SocketAddr>,
    /// A name that this resolver must know, and its address.
    pub probe: (String, Ipv4Addr),
    /// Why the resolver lacks one of these addresses.
    pub trouble: Vec<Finding>,
}
