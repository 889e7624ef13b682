//! Opens the network's records and the access to members, and makes the parts that the services
//! share.

use super::planes::Planes;
use crate::{
    config::Config,
    event_log::EventLog,
    layout::Layout,
    members::{admission::SlotAdmission, book::Book},
    parts::Parts,
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::{Addresses, Names, Subject, dns::CachedNames};
use p2pvm_dht::{
    Dht, DhtOptions, MemoryStore, Store,
    store::SledStore,
    votes::{Voter, VoterLog},
};
use p2pvm_host::{Board, chain};
use p2pvm_overlay::{
    Fabric,
    connect::{ConnectOptions, Connector, Credentials},
    notices::{Notices, Spread},
    ring_driver::RingDriver,
    ring_net::RingNet,
};
use std::sync::Arc;

/// Opens the parts. The place on the ring is kept as long as the returned driver.
pub(super) fn open(
    layout: &Layout,
    config: &Config,
    planes: Planes,
) -> Outcome<(Arc<Parts>, RingDriver)> {
    let fabric: Arc<dyn Fabric> = planes.control.clone();
    let records = Dht::start(fabric.clone(), tables(layout)?, DhtOptions::default());
    Voter::start(
        &fabric,
        planes.identity.clone(),
        VoterLog::open(&layout.votes()).doing("opening the voter's log")?,
    );
    let addresses = addresses(layout, &planes, records.clone());
    planes.control.set_admission(Arc::new(SlotAdmission::open(
        records.clone(),
        addresses.clone(),
        &layout.admissions(),
    )?));
    let notices = Notices::load(planes.trust.clone(), &layout.notices())
        .doing("reading the network's notices")?;
    let notices = Arc::new(notices);
    let spread = Spread::start(fabric.clone(), notices.clone());
    let book = Book::new(planes.control.clone());
    let names: Arc<dyn Names> = Arc::new(CachedNames::new(addresses.clone()));
    let ring = RingNet::new(planes.plane.clone());
    let connector = connector(config, &planes, ring.clone());
    let driver = RingDriver::start(
        ring.clone(),
        connector.clone(),
        fabric,
        config.ring.options(),
    );
    let events = EventLog::open(layout, &config.events, planes.identity.clone())?;
    let parts = Arc::new(Parts {
        control: planes.control,
        identity: planes.identity,
        certificate: planes.certificate,
        network: planes.network,
        plane: planes.plane,
        records,
        addresses,
        connector,
        ring,
        book,
        names,
        notices,
        spread,
        trust: planes.trust,
        events,
        board: Board::default(),
        has_bootstrap: planes.has_bootstrap,
    });
    Ok((parts, driver))
}

fn addresses(layout: &Layout, planes: &Planes, records: Arc<Dht>) -> Arc<Addresses> {
    let network = planes.network.clone();
    let subnet = (network.subnet.addr, network.subnet.prefix).into();
    let addresses = Addresses::new(records, subnet, layout.leases());
    Arc::new(addresses.with_v6(Arc::new(move |subject| match subject {
        Subject::Member(member) => network.member_v6(member),
        Subject::Vm(vm) => network.vm_v6(vm),
    })))
}

fn connector(config: &Config, planes: &Planes, ring: Arc<RingNet>) -> Arc<Connector> {
    let options = ConnectOptions {
        stun: true,
        upnp: config.upnp,
        outside: config.outside(),
        relay: config.relay(),
    };
    let papers = Credentials {
        certificate: planes.certificate.clone(),
        trust: planes.trust.clone(),
    };
    let fabric: Arc<dyn Fabric> = planes.control.clone();
    Connector::start_with_ring(planes.plane.clone(), fabric, options, ring, papers)
}

/// The node's tables; in memory if the disk has no room to open them, because peers hold the
/// records too.
fn tables(layout: &Layout) -> Outcome<Arc<dyn Store>> {
    match SledStore::open(&layout.tables()) {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) if error.is_full() => {
            tracing::error!(error = %chain(&error), "the node's tables are kept in memory until \
                the daemon is started with room on its disk");
            Ok(Arc::new(MemoryStore::default()))
        }
        Err(error) => Err(error).doing("opening the node's tables"),
    }
}
