//! Makes a plane: its TUN device, its socket and its threads.

use super::{
    access::Access,
    clock,
    core::Inner,
    error::Error,
    guest::multicast::Multicast,
    interface::{answers::Proofs, loops::Loops, wanted::WantedDevice, watch},
    io::{
        device,
        udp::{MAX_BATCH_BYTES, Udp},
        wake::{Stop, Waker},
    },
    path::{moves::Moves, pending::OpenPings, relaying::Relaying, ring_port::RingPort},
    receive,
    reports::Reports,
    tables::Tables,
    tasks::Tasks,
    traffic::Traffic,
    tun,
    types::{PlaneConfig, PlaneEvent},
    waiting::WaitingPackets,
};
use crate::{
    link::{Keys, cookie::Doorman, session::OVERHEAD},
    underlay::Underlay,
};
use p2pvm_host::links::{Mark, set_alias};
use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};
use tokio::sync::{Notify, mpsc};
use tun_rs::{DeviceBuilder, SyncDevice};

impl Inner {
    pub fn start(
        config: PlaneConfig,
        events: mpsc::Sender<PlaneEvent>,
    ) -> Result<Arc<Self>, Error> {
        let udp = bind(&config)?;
        let failed = |cause| Error::Tun {
            device: config.device.clone(),
            cause,
        };
        let mark = mark(&config, &udp);
        let largest = device::largest_packet(usize::from(config.mtu), OVERHEAD, MAX_BATCH_BYTES);
        let tun = make_device(&config, &mark, largest).map_err(failed)?;
        let name = tun.name().map_err(failed)?;
        let wanted = WantedDevice::new(name, config.mtu, largest, mark);
        let inner = Self::new(config, udp, (Some(tun), wanted), events)?;
        inner.start_threads()?;
        Ok(inner)
    }

    /// A plane without a device and threads, which carries no packets.
    pub fn start_idle(
        config: PlaneConfig,
        events: mpsc::Sender<PlaneEvent>,
    ) -> Result<Arc<Self>, Error> {
        let udp = bind(&config)?;
        let mark = mark(&config, &udp);
        let mut wanted = WantedDevice::new(config.device.clone(), config.mtu, 0, mark);
        // There is nothing to put back.
        wanted.closed = true;
        Self::new(config, udp, (None, wanted), events)
    }

    fn new(
        config: PlaneConfig,
        udp: Udp,
        (device, wanted): (Option<SyncDevice>, WantedDevice),
        events: mpsc::Sender<PlaneEvent>,
    ) -> Result<Arc<Self>, Error> {
        let now = Instant::now();
        let underlay = Underlay::default();
        underlay.set_device(&wanted.name, &[]);
        Ok(Arc::new(Self {
            me: config.me,
            keys: Arc::new(Keys::new(config.link_secret)),
            udp,
            joins_datagrams: device.as_ref().is_some_and(|tun| tun.udp_gso()),
            device,
            mtu: config.mtu,
            device_wanted: Mutex::new(wanted),
            access: Access::default(),
            multicast: Multicast::default(),
            tables: Tables::default(),
            waiting: WaitingPackets::default(),
            pending: OpenPings::default(),
            reports: Reports::new(events),
            doorman: Mutex::new(Doorman::new(now)),
            stream_scratch: Mutex::default(),
            path_changed: Notify::new(),
            underlay,
            loops: Loops::new(),
            proofs: Proofs::default(),
            tasks: Tasks::new().map_err(Error::Thread)?,
            ring: RingPort::new(config.me),
            moves: Moves::default(),
            relaying: Relaying::new(now),
            traffic: Traffic::new(now, config.traffic),
            clock: Waker::default(),
            stop: Stop::new().map_err(Error::Thread)?,
        }))
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), Error> {
        type Body = fn(&Arc<Inner>);
        let threads: [(&str, Body); 4] = [
            ("p2pvm-tun", |inner| tun::run(inner)),
            ("p2pvm-udp", |inner| receive::run(inner)),
            ("p2pvm-clock", |inner| clock::run(inner)),
            ("p2pvm-host", watch::run),
        ];
        for (name, body) in threads {
            let shared = self.clone();
            let started = thread::Builder::new()
                .name(name.into())
                .spawn(move || body(&shared));
            if let Err(cause) = started {
                self.stop();
                return Err(Error::Thread(cause));
            }
        }
        Ok(())
    }
}

fn bind(config: &PlaneConfig) -> Result<Udp, Error> {
    Udp::bind(config.udp_port).map_err(|cause| Error::Bind {
        port: config.udp_port,
        cause,
    })
}

/// The mark of the device of this plane.
fn mark(config: &PlaneConfig, udp: &Udp) -> Mark {
    Mark {
        network: config.network.clone(),
        link_port: udp.port(),
        control_port: config.control_port,
        misses: None,
    }
}

/// Makes the TUN device, marked, with TSO packets of at most `largest` bytes.
fn make_device(config: &PlaneConfig, mark: &Mark, largest: usize) -> io::Result<SyncDevice> {
    let tun = DeviceBuilder::new()
        .name(&config.device)
        .mtu(config.mtu)
        .offload(true)
        .build_sync()?;
    tun.set_nonblocking(true)?;
    let index = tun.if_index()?;
    if let Err(error) = device::limit_packets(index, largest) {
        tracing::debug!(error = %p2pvm_host::chain(&error), "cannot limit TSO packets to one send");
    }
    // Marked before it has an address, so that no daemon of this machine offers that address as
    // its own.
    if let Err(error) = set_alias(index, &mark.to_string()) {
        tracing::warn!(
            error = %p2pvm_host::chain(&error),
            "cannot mark the interface {}: other networks of this machine may mistake it",
            config.device
        );
    }
    Ok(tun)
}
