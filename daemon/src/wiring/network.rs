//! Opens the parts that change this machine for the network: access rules, the kernel's settings,
//! subnet routes, names and this host's address.

use crate::{
    access::policy::Policies,
    addresses::{kept::SavedLease, ports::Ports, reach::Reach, resolver::Integration},
    config::Config,
    layout::Layout,
    machine::changes,
    parts::Parts,
    routes::subnets::Subnets,
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::Resolver;
use p2pvm_host::{Keeper, NetworkNeeds};
use std::sync::Arc;

/// The services of the network on this machine.
pub(super) struct Network {
    pub policies: Arc<Policies>,
    pub keeper: Arc<Keeper>,
    pub subnets: Arc<Subnets>,
    pub resolver: Resolver,
    pub integration: Integration,
    pub reach: Arc<Reach>,
    pub ports: Arc<Ports>,
}

/// Opens them.
pub(super) fn open(
    layout: &Layout,
    config: &Config,
    parts: &Arc<Parts>,
    founder: bool,
) -> Outcome<Network> {
    let policies = Policies::start(parts.clone(), founder);
    let bare = wanted(parts, config);
    let keeper = Keeper::start(bare.clone(), changes::journal(layout), parts.board.clone())
        .doing("watching this machine's network")?;
    let keeper = Arc::new(keeper);
    let subnets = Subnets::open(
        parts.clone(),
        policies.clone(),
        layout,
        (keeper.clone(), bare),
        config.multicast,
    )?;
    let resolver = Resolver::new(&parts.domain(), parts.addresses.subnet())
        .doing("the network's name")?
        .with_v6(parts.network.ula_prefix(), 48);
    let integration = Integration::start(
        layout,
        config,
        &parts.network,
        resolver.upstream(),
        parts.board.clone(),
    )?;
    let reach = Reach::start(parts.clone(), SavedLease::new(layout.lease()));
    let ports = Ports::new(parts.clone(), reach.clone(), resolver.clone());
    Ok(Network {
        policies,
        keeper,
        subnets,
        resolver,
        integration,
        reach,
        ports,
    })
}

/// The settings of this machine's kernel wanted for the network, before any subnet is offered or
/// accepted.
fn wanted(parts: &Parts, config: &Config) -> NetworkNeeds {
    let port = |address: &String| {
        address
            .split_once("/udp/")?
            .1
            .split('/')
            .next()?
            .parse()
            .ok()
    };
    let control_port = match config.port {
        0 => parts
            .control
            .listen_addrs()
            .iter()
            .find_map(port)
            .unwrap_or(0),
        port => port,
    };
    let subnet = parts.network.subnet;
    NetworkNeeds {
        device: config.device.clone(),
        network: parts.network.id.to_string(),
        link_port: parts.plane.udp_port(),
        control_port,
        overlay: Some(p2pvm_host::Net::new(subnet.addr, subnet.prefix)),
        open_firewalls: config.firewall == "auto",
        ..NetworkNeeds::default()
    }
}
