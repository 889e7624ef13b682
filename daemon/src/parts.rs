//! The parts that the services share: this member's identity, its control and packet planes, the
//! network's records, and common constants.

use crate::{event_log::EventLog, members::book::Book};
use p2pvm_dhcp::{Addresses, Names};
use p2pvm_dht::{Dht, Records};
use p2pvm_host::Board;
use p2pvm_overlay::{
    Fabric, MemberId,
    connect::Connector,
    control::Control,
    identity::Identity,
    membership::{Certificate, NetworkConfig, Trust},
    notices::{Notices, Spread},
    plane::Plane,
    ring_net::RingNet,
};
use std::{sync::Arc, time::Duration};

/// The packet plane's MTU. Reason: a path with IPv6's minimum MTU still carries it with our
/// headers, and one of 1500 does easily.
pub(crate) const MTU: u16 = 1340;

/// How long to wait for a port or interface in use. Reason: the kernel may release a killed
/// daemon's lock before its port.
pub(crate) const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// The directory in which the result of the KVM probe is kept until the host boots again.
pub const HOST_FACTS: &str = "/run/p2pvm";

/// The parts that the daemon's services share.
pub(crate) struct Parts {
    pub(crate) control: Arc<Control>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) certificate: Certificate,
    pub(crate) network: NetworkConfig,
    pub(crate) plane: Plane,
    pub(crate) records: Arc<Dht>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) connector: Arc<Connector>,
    /// The owner of each address.
    pub(crate) book: Arc<Book>,
    /// The names of `addresses`, cached.
    pub(crate) names: Arc<dyn Names>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) spread: Arc<Spread>,
    pub(crate) trust: Arc<Trust>,
    pub(crate) ring: Arc<RingNet>,
    /// The log of what happened.
    pub(crate) events: Arc<EventLog>,
    /// The findings about this machine.
    pub(crate) board: Board,
    /// Whether this node received contacts of others when it joined.
    pub(crate) has_bootstrap: bool,
}

impl Parts {
    pub(crate) fn me(&self) -> MemberId {
        self.identity.member_id()
    }

    pub(crate) fn fabric(&self) -> Arc<dyn Fabric> {
        self.control.clone()
    }

    pub(crate) fn records(&self) -> &dyn Records {
        self.records.as_ref()
    }

    /// The network's DNS domain.
    pub(crate) fn domain(&self) -> String {
        format!("{}.p2p", self.network.name)
    }
}
