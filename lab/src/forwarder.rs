//! The core of the wide area: reads what a site's router sends, holds it for the time of the link,
//! writes it to the router of the other site.
//!
//! One thread polls all routers and sleeps until the next packet is due, so an idle testbed costs
//! nothing. Packets are taken with the kernel's offloads (up to 64 KiB of TCP or UDP at once, uncut
//! and unchecksummed) and are cut only where the link tells them apart: when one of them is lost,
//! or when the whole would leave a slow link in one long burst. What is larger than a link carries
//! is fragmented or refused ([`mtu`]).

mod cut;
mod link;
mod mtu;

pub use link::{Counters, Verdict, Wire};

use crate::{plan::Plan, realtime, sites::Shape, testbed::Error};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{eventfd::EventFd, prctl, time::TimeSpec},
    unistd,
};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tun_rs::{SyncDevice, VIRTIO_NET_HDR_LEN};

/// The largest packet of a router: the length limit of IP, and the offload header.
const BUFFER_BYTES: usize = VIRTIO_NET_HDR_LEN + 65536;
/// How many packets are read from one router before packets that are due are sent.
const READ_BATCH: usize = 32;
/// How many packets may wait in one router before the kernel drops more (its `TUN_READQ_SIZE`).
const ROUTER_QUEUE: usize = 500;
/// How many requests may wait for the forwarder before their senders block.
const REQUESTS: usize = 16;

/// A request to a running forwarder.
enum Request {
    SetCut {
        from: usize,
        to: usize,
        cut: bool,
        done: SyncSender<()>,
    },
    Reshape {
        from: usize,
        to: usize,
        shape: Shape,
        done: SyncSender<()>,
    },
    Report(SyncSender<Vec<Vec<Counters>>>),
    Stop,
}

/// A running forwarder; dropping it stops it.
pub struct Forwarder {
    requests: SyncSender<Request>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts forwarding between the routers of `plan`, whose ends `devices` are, in site order.
    pub(crate) fn start(plan: &Plan, devices: Vec<SyncDevice>) -> Result<Forwarder, Error> {
        let failed = |e| Error::Io("start the forwarder".into(), e);
        for device in &devices {
            device.set_nonblocking(true).map_err(failed)?;
        }
        let wake = Arc::new(EventFd::new().map_err(|e| failed(e.into()))?);
        let (requests, receiver) = sync_channel(REQUESTS);
        let wires = plan.shapes.iter().enumerate().map(|(from, row)| {
            row.iter()
                .enumerate()
                .map(|(to, shape)| Wire::new(*shape, plan.seed, from as u64, to as u64))
                .collect()
        });
        let core = Core {
            wires: wires.collect(),
            flights: BinaryHeap::new(),
            devices,
            sequence: 0,
            epoch: Instant::now(),
            scratch: vec![0; BUFFER_BYTES],
            room: Vec::with_capacity(BUFFER_BYTES),
            spare: Vec::new(),
        };
        let inner = wake.clone();
        let thread = thread::Builder::new()
            .name("testbed-forwarder".into())
            .spawn(move || core.run(&receiver, &inner))
            .map_err(failed)?;
        Ok(Forwarder {
            requests,
            wake,
            thread: Some(thread),
        })
    }

    fn ask(&self, request: Request) -> Result<(), Error> {
        self.requests.send(request).map_err(|_| Error::Gone)?;
        self.wake
            .write(1)
            .map_err(|e| Error::Io("wake the forwarder".into(), e.into()))?;
        Ok(())
    }

    /// Sends a request and waits for the answer, so that the change holds for every packet sent
    /// afterwards.
    fn ask_and_wait<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request) -> Result<T, Error> {
        let (sender, receiver) = sync_channel(1);
        self.ask(request(sender))?;
        receiver.recv().map_err(|_| Error::Gone)
    }

    /// Drops (or no longer drops) all packets from site `from` to site `to`, those on their way
    /// included.
    pub fn set_cut(&self, from: usize, to: usize, cut: bool) -> Result<(), Error> {
        self.ask_and_wait(|done| Request::SetCut {
            from,
            to,
            cut,
            done,
        })
    }

    /// Gives a link another shape; packets already on their way keep their time.
    pub fn reshape(&self, from: usize, to: usize, shape: Shape) -> Result<(), Error> {
        self.ask_and_wait(|done| Request::Reshape {
            from,
            to,
            shape,
            done,
        })
    }

    /// The counts of each link, `[from][to]`.
    pub fn report(&self) -> Result<Vec<Vec<Counters>>, Error> {
        self.ask_and_wait(Request::Report)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.ask(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet on its way, ordered by when it is due, then by when it came.
struct Flight {
    due: Duration,
    sequence: u64,
    from: usize,
    to: usize,
    packet: Vec<u8>,
}

impl Flight {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.sequence)
    }
}
impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

struct Core {
    wires: Vec<Vec<Wire>>,
    flights: BinaryHeap<Reverse<Flight>>,
    devices: Vec<SyncDevice>,
    sequence: u64,
    epoch: Instant,
    scratch: Vec<u8>,
    /// Where parts of joined packets are built.
    room: Vec<u8>,
    /// Small buffers for reuse.
    spare: Vec<Vec<u8>>,
}

/// How many bytes a buffer may have to be kept for reuse.
/// Reason: ordinary packets fit; larger buffers go back to the allocator.
const SPARE_BYTES: usize = 2048;
/// How many buffers are kept for reuse.
const SPARE_BUFFERS: usize = 4096;

impl Core {
    fn run(mut self, requests: &Receiver<Request>, wake: &EventFd) {
        if let Err(error) = realtime::prefer_this_thread() {
            tracing::warn!(
                error = %crate::chain(&error),
                "forwarder runs at ordinary priority: delays are exact only on an idle machine"
            );
        }
        // The default slack of 50 µs would be added to every delay.
        let _ = prctl::set_timerslack(1);
        let mut ready = vec![false; self.devices.len()];
        loop {
            self.deliver();
            let timeout = self.flights.peek().map(|Reverse(next)| {
                TimeSpec::from_duration(next.due.saturating_sub(self.epoch.elapsed()))
            });
            let mut fds: Vec<PollFd> = self
                .devices
                .iter()
                .map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN))
                .collect();
            fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
            match ppoll(&mut fds, timeout, None) {
                Ok(0) | Err(Errno::EINTR | Errno::EAGAIN) => continue,
                Ok(_) => {}
                Err(error) => {
                    return tracing::error!(
                        error = %crate::chain(&error),
                        "forwarder cannot wait for packets and stops"
                    );
                }
            }
            let woken = fds.pop().and_then(|fd| fd.any()).unwrap_or(false);
            for (ready, fd) in ready.iter_mut().zip(&fds) {
                *ready = fd.any().unwrap_or(false);
            }
            drop(fds);
            for (site, ready) in ready.iter().enumerate() {
                if *ready {
                    self.read_router(site, READ_BATCH);
                }
            }
            if woken {
                // A packet that came while the routers were being polled was sent before the
                // request and meets the link as it was.
                (0..self.devices.len()).for_each(|site| self.read_router(site, ROUTER_QUEUE));
                let _ = wake.read();
                while let Ok(request) = requests.try_recv() {
                    if !self.serve(request) {
                        return;
                    }
                }
            }
        }
    }

    /// Carries out a request; returns whether the forwarder goes on.
    fn serve(&mut self, request: Request) -> bool {
        match request {
            Request::SetCut {
                from,
                to,
                cut,
                done,
            } => {
                if let Some(wire) = self.wires.get_mut(from).and_then(|row| row.get_mut(to)) {
                    wire.cut = cut;
                    if cut {
                        self.flights.retain(|Reverse(flight)| {
                            let stays = (flight.from, flight.to) != (from, to);
                            if !stays {
                                wire.landed(flight.packet.len());
                                wire.counters.cut += cut::pieces(&flight.packet).count as u64;
                            }
                            stays
                        });
                    }
                }
                let _ = done.send(());
            }
            Request::Reshape {
                from,
                to,
                shape,
                done,
            } => {
                if let Some(wire) = self.wires.get_mut(from).and_then(|row| row.get_mut(to)) {
                    wire.shape = shape;
                }
                let _ = done.send(());
            }
            Request::Report(reply) => {
                let _ = reply.send(
                    self.wires
                        .iter()
                        .map(|row| row.iter().map(|wire| wire.counters).collect())
                        .collect(),
                );
            }
            Request::Stop => return false,
        }
        true
    }

    /// Sends all packets that are due.
    fn deliver(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let now = self.epoch.elapsed();
        while self
            .flights
            .peek()
            .is_some_and(|Reverse(next)| next.due <= now)
        {
            let Some(Reverse(flight)) = self.flights.pop() else {
                return;
            };
            let wire = &mut self.wires[flight.from][flight.to];
            wire.landed(flight.packet.len());
            if unistd::write(&self.devices[flight.to], &flight.packet).is_err() {
                wire.counters.refused += 1;
            }
            if flight.packet.capacity() <= SPARE_BYTES && self.spare.len() < SPARE_BUFFERS {
                self.spare.push(flight.packet);
            }
        }
    }

    /// Takes up to `most` packets from a router and puts each on its link.
    fn read_router(&mut self, site: usize, most: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..most {
            let Ok(length) = unistd::read(&self.devices[site], &mut scratch) else {
                break;
            };
            self.route(site, &scratch[..length]);
        }
        self.scratch = scratch;
    }

    fn route(&mut self, from: usize, packet: &[u8]) {
        let Some(to) = destination(packet).filter(|to| *to < self.devices.len() && *to != from)
        else {
            return;
        };
        let limit = self.wires[from][to].shape.mtu;
        if mtu::is_too_large(packet, limit) {
            return self.refuse(from, to, limit, packet);
        }
        let now = self.epoch.elapsed();
        let wire = &mut self.wires[from][to];
        let pieces = cut::pieces(packet);
        match wire.offer(now, packet.len() - VIRTIO_NET_HDR_LEN, pieces) {
            Verdict::Whole(due) => self.launch(from, to, due, packet),
            Verdict::Pieces(dues) => {
                let mut room = std::mem::take(&mut self.room);
                cut::runs(packet, &dues, link::LONGEST_BURST, &mut room, |due, run| {
                    self.launch(from, to, due, run)
                });
                self.room = room;
            }
            Verdict::Nothing => {}
        }
    }

    /// Handles a packet that is larger than the link's MTU.
    fn refuse(&mut self, from: usize, to: usize, limit: u16, packet: &[u8]) {
        let fragments = mtu::fragments(packet, limit);
        if !fragments.is_empty() {
            return fragments
                .iter()
                .for_each(|fragment| self.route(from, fragment));
        }
        let wire = &mut self.wires[from][to];
        wire.counters.too_large += cut::pieces(packet).count.max(1) as u64;
        let (cut, shape) = (wire.cut, wire.shape);
        if let (Some(message), false) = (mtu::icmp_error(packet, limit), cut || shape.black_hole) {
            // Half the way there and half the way back.
            self.launch(to, from, self.epoch.elapsed() + shape.delay, &message);
        }
    }

    fn launch(&mut self, from: usize, to: usize, due: Duration, bytes: &[u8]) {
        let mut packet = if bytes.len() <= SPARE_BYTES {
            self.spare
                .pop()
                .unwrap_or_else(|| Vec::with_capacity(SPARE_BYTES))
        } else {
            Vec::with_capacity(bytes.len())
        };
        packet.clear();
        packet.extend_from_slice(bytes);
        self.wires[from][to].launched(packet.len());
        self.sequence += 1;
        self.flights.push(Reverse(Flight {
            due,
            sequence: self.sequence,
            from,
            to,
            packet,
        }));
    }
}

/// The site an IP packet (behind its offload header) is for.
fn destination(packet: &[u8]) -> Option<usize> {
    let packet = packet.get(VIRTIO_NET_HDR_LEN..)?;
    let address: IpAddr = match packet.first()? >> 4 {
        4 => Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into(),
        6 => Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Plan::site_of(address)
}
