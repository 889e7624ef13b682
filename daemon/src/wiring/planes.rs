//! Opens the packet plane and the control plane.

use crate::{
    config::Config,
    layout::Layout,
    members::{admission, expelled},
    membership::Membership,
    parts::{MTU, PORT_PATIENCE},
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_host::{chain, owner, tun::try_tun};
use p2pvm_overlay::{
    Fabric,
    control::{Control, ControlConfig, ControlError, ControlEvent},
    identity::{Identity, KeyPair},
    membership::{Certificate, NetworkConfig, Trust},
    network_time::{Exchange as ClockExchange, NetworkTime},
    plane::{self, Plane, PlaneConfig, PlaneEvent},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc};

/// The planes of this member.
pub(super) struct Planes {
    pub identity: Arc<Identity>,
    pub certificate: Certificate,
    pub network: NetworkConfig,
    pub trust: Arc<Trust>,
    pub plane: Plane,
    pub control: Arc<Control>,
    /// Whether this machine founded the network.
    pub founder: bool,
    /// Whether this node received contacts of others when it joined.
    pub has_bootstrap: bool,
}

/// The planes' reports.
pub(super) struct Events {
    pub plane: mpsc::Receiver<PlaneEvent>,
    pub control: broadcast::Receiver<ControlEvent>,
}

/// Opens them. The exchange of clocks lasts as long as the value returned for it.
pub(super) async fn open(
    layout: &Layout,
    config: &Config,
    membership: Membership,
) -> Outcome<(Planes, Events, ClockExchange)> {
    let Membership {
        network,
        certificate,
        identity,
        root,
        bootstrap,
    } = membership;
    let (founder, has_bootstrap) = (root.is_some(), !bootstrap.is_empty());
    let identity = Arc::new(identity);
    free_device(&config.device, &network).await?;
    let (plane_events, from_plane) = mpsc::channel(1024);
    let plane = start_plane(&identity, config, &network, plane_events).await?;
    let trust =
        Arc::new(Trust::load(network.id, &layout.revocations()).doing("reading revocations")?);
    let settings = control_config(
        layout,
        config,
        (&identity, &certificate, &network),
        (&trust, &plane),
        (root, bootstrap),
    );
    let control = start_control(settings, &trust, &certificate).await?;
    let planes = Planes {
        identity,
        certificate,
        network,
        trust,
        plane,
        control,
        founder,
        has_bootstrap,
    };
    let events = Events {
        plane: from_plane,
        control: planes.control.events(),
    };
    // Before anything is signed with a time in it: members are asked as soon as one is connected.
    let time = NetworkTime::of_process();
    time.note_signed(planes.network.created.max(planes.certificate.issued()));
    let fabric: Arc<dyn Fabric> = planes.control.clone();
    let clocks = ClockExchange::start(fabric, time);
    if config.port == 0 {
        tokio::spawn(tell_control_port(
            planes.control.clone(),
            planes.plane.clone(),
        ));
    }
    Ok((planes, events, clocks))
}

/// The settings of the control plane. No joiner is admitted before the records are open.
fn control_config(
    layout: &Layout,
    config: &Config,
    (identity, certificate, network): (&Arc<Identity>, &Certificate, &NetworkConfig),
    (trust, plane): (&Arc<Trust>, &Plane),
    (root, bootstrap): (Option<KeyPair>, Vec<String>),
) -> ControlConfig {
    ControlConfig {
        listen_port: config.port,
        bootstrap,
        issuer_key: root,
        public_addresses: config.public_addresses(),
        map_port: config.upnp && config.reachable_at.is_empty(),
        full_mesh: config.full_mesh,
        underlay: plane.underlay(),
        ..ControlConfig::new(
            identity.clone(),
            certificate.clone(),
            network.clone(),
            trust.clone(),
            layout.dir().to_owned(),
            Arc::new(admission::EarlyAdmission),
        )
    }
}

async fn start_control(
    settings: ControlConfig,
    trust: &Trust,
    certificate: &Certificate,
) -> Outcome<Arc<Control>> {
    Control::start(settings).await.map_err(|e| match e {
        // Restarting changes nothing: the exit code says so to the service manager.
        ControlError::NotAMember(why) => {
            Failure::refused(expelled::sentence(trust, certificate, &why))
        }
        other => Failure::new(
            Kind::Failed,
            format!("starting the control plane: {}", chain(&other)),
        ),
    })
}

/// Waits until the interface of a daemon that is just ending is gone. Another program's interface
/// is a reason not to start.
async fn free_device(name: &str, network: &NetworkConfig) -> Outcome<()> {
    let began = Instant::now();
    loop {
        let whose = match owner::owner(name).doing("looking at this machine's interfaces")? {
            owner::Owner::Nobody | owner::Owner::Waiting => return Ok(()),
            owner::Owner::Network(mark) if mark.network == network.id.to_string() => {
                "another daemon of this network".to_owned()
            }
            owner::Owner::Network(mark) => format!("the p2pvm network {}", mark.network),
            owner::Owner::Other(kind) => format!("another program ({kind})"),
        };
        if began.elapsed() > PORT_PATIENCE {
            let name_another = "choose another name with device = \"...\" in node.toml";
            return Err(Failure::refused(format!(
                "the interface {name} is there already and belongs to {whose}: {name_another}"
            )));
        }
        tokio::time::sleep(PORT_PATIENCE / 50).await;
    }
}

async fn start_plane(
    identity: &Identity,
    config: &Config,
    network: &NetworkConfig,
    events: mpsc::Sender<PlaneEvent>,
) -> Outcome<Plane> {
    let began = Instant::now();
    loop {
        let settings = PlaneConfig {
            me: identity.member_id(),
            link_secret: identity.link_secret(),
            udp_port: config.link_port,
            device: config.device.clone(),
            mtu: MTU,
            traffic: config.traffic,
            network: network.id.to_string(),
            control_port: config.port,
        };
        match Plane::start(settings, events.clone()) {
            Err(plane::Error::Bind { cause, .. })
                if cause.kind() == std::io::ErrorKind::AddrInUse
                    && began.elapsed() < PORT_PATIENCE =>
            {
                tokio::time::sleep(PORT_PATIENCE / 50).await;
            }
            Err(error @ plane::Error::Tun { .. }) => {
                let help = try_tun().err().map_or_else(String::new, |trouble| {
                    format!("; {trouble}: {}", trouble.remedy())
                });
                return Err(error)
                    .doing("starting the packet plane")
                    .map_err(|failure| Failure::new(failure.kind, failure.message + &help));
            }
            started => return started.doing("starting the packet plane"),
        }
    }
}

/// Writes the control plane's port into the interface's mark once it is known, because it may be
/// any.
async fn tell_control_port(control: Arc<Control>, plane: Plane) {
    for _ in 0..100 {
        if let Some(port) = control.listen_port() {
            return plane.set_control_port(port);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
