//! The load on the programs and its measurement: TCP streams, paced UDP datagrams and pings.
//!
//! Senders and receivers are threads of this process that work on sockets made in the hosts'
//! namespaces, the same for every program. They share the processors with what is measured, as the
//! programs of a real host do.

use super::stage::Stage;
use anyhow::{Context, bail};
use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use serde::Serialize;
use std::{
    ffi::OsString,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a TCP connection may take before the measurement fails.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a stream runs before it is measured.
/// Reason: slow start.
pub(super) const WARM_UP: Duration = Duration::from_millis(400);
/// Bytes of one write or read of a stream.
const CHUNK: usize = 256 << 10;
/// How many datagrams one system call carries.
const BURST: usize = 32;

/// The kernel chooses a free port in the namespace.
const ANY: u16 = 0;

/// TCP streams under way from one host to another.
pub(super) struct Bulk {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sockets: Vec<TcpStream>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Bulk {
    /// Starts `streams` from host `from` to `address` on host `to`.
    pub fn start(
        stage: &Stage,
        from: usize,
        to: usize,
        address: IpAddr,
        streams: usize,
    ) -> anyhow::Result<Self> {
        let listener = stage
            .inside(to, || TcpListener::bind((address, ANY)))?
            .context("listening on the overlay")?;
        let there = listener.local_addr()?;
        let (received, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut bulk = Self {
            received,
            stop,
            sockets: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..streams {
            let mut sender = stage
                .inside(from, || TcpStream::connect_timeout(&there, CONNECT))?
                .context("no TCP connection")?;
            let (mut reader, _) = listener.accept()?;
            bulk.sockets
                .extend([sender.try_clone()?, reader.try_clone()?]);
            let stop = bulk.stop.clone();
            bulk.threads.push(thread::spawn(move || {
                let chunk = vec![0x5a; CHUNK];
                while !stop.load(Ordering::Relaxed) && sender.write(&chunk).is_ok_and(|n| n > 0) {}
            }));
            let (stop, received) = (bulk.stop.clone(), bulk.received.clone());
            bulk.threads.push(thread::spawn(move || {
                let mut chunk = vec![0; CHUNK];
                while !stop.load(Ordering::Relaxed) {
                    match reader.read(&mut chunk) {
                        Ok(n) if n > 0 => received.fetch_add(n as u64, Ordering::Relaxed),
                        _ => break,
                    };
                }
            }));
        }
        Ok(bulk)
    }

    /// Switches to CUBIC, which most hosts use and which yields to loss. With BBR, the default of
    /// some machines, the raw path would be filled.
    pub fn use_cubic(&self) -> anyhow::Result<()> {
        let cubic = OsString::from("cubic");
        self.sockets
            .iter()
            .try_for_each(|s| setsockopt(s, TcpCongestion, &cubic))
            .context("this kernel has no CUBIC")
    }

    /// Bytes that the receivers have read so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Ends the calls of the threads; an error means that the connection has ended.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The total rate of these streams over `time`, after the warm-up, in Gbit/s; `mark` is called at
/// the start and at the end.
pub(super) fn rate(
    bulks: &[Bulk],
    warm_up: Duration,
    time: Duration,
    mut mark: impl FnMut(),
) -> f64 {
    let sum = || bulks.iter().map(Bulk::received).sum::<u64>();
    thread::sleep(warm_up);
    mark();
    let (began, before) = (Instant::now(), sum());
    thread::sleep(time);
    let (after, took) = (sum(), began.elapsed());
    mark();
    (after - before) as f64 * 8.0 / took.as_secs_f64() / 1e9
}

/// One point of the loss curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Point {
    /// Datagrams a second that were wanted.
    pub wanted: f64,
    /// Datagrams a second that the interface took from the sender.
    pub offered: f64,
    /// Datagrams a second that the receiver's socket got.
    pub received: f64,
}

/// Sends datagrams of `bytes` of payload at `wanted` a second for `time`.
pub(super) fn datagrams(
    stage: &Stage,
    address: IpAddr,
    bytes: usize,
    wanted: f64,
    time: Duration,
) -> anyhow::Result<Point> {
    let receiver = stage
        .inside(1, || UdpSocket::bind((address, ANY)))?
        .context("binding UDP on the overlay")?;
    let there = receiver.local_addr()?;
    let sender = stage.inside(0, || -> std::io::Result<UdpSocket> {
        let any: SocketAddr = if there.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(there)?;
        Ok(socket)
    })?;
    let sender = sender.context("sending UDP into the overlay")?;
    grow(&receiver);
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (sent, got) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let point = thread::scope(|scope| {
        scope.spawn(|| {
            let mut many = MessageBuffers::new(bytes.max(2048));
            while !stop.load(Ordering::Relaxed) {
                got.fetch_add(many.receive(&receiver) as u64, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let mut many = MessageBuffers::new(bytes);
            let began = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * wanted) as u64;
                let behind = due.saturating_sub(sent.load(Ordering::Relaxed));
                if behind == 0 {
                    thread::sleep(Duration::from_micros(100));
                    continue;
                }
                // Datagrams that the kernel refuses for lack of buffers do not count as offered;
                // the pace stays.
                let taken = many.send(&sender, (behind as usize).min(BURST));
                if taken == 0 {
                    thread::sleep(Duration::from_micros(20));
                }
                sent.fetch_add(taken as u64, Ordering::Relaxed);
            }
        });
        thread::sleep(time / 4);
        let (began, sent_0, got_0) = (
            Instant::now(),
            sent.load(Ordering::Relaxed),
            got.load(Ordering::Relaxed),
        );
        thread::sleep(time);
        let took = began.elapsed().as_secs_f64();
        let (sent_1, got_1) = (sent.load(Ordering::Relaxed), got.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        Point {
            wanted,
            offered: (sent_1 - sent_0) as f64 / took,
            received: (got_1 - got_0) as f64 / took,
        }
    });
    Ok(point)
}

/// Enlarges the receive buffer, so that the receiver itself loses no datagrams.
fn grow(socket: &UdpSocket) {
    let bytes: libc::c_int = 16 << 20;
    // SAFETY: the option's value is a c_int that outlives the call. Refused (not root), the default
    // remains.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        );
    }
}

/// Buffers for `sendmmsg` and `recvmmsg`.
struct MessageBuffers {
    // The headers point into the other two fields, which no other code touches.
    headers: Vec<libc::mmsghdr>,
    _vectors: Vec<libc::iovec>,
    _bytes: Vec<u8>,
}

impl MessageBuffers {
    fn new(bytes: usize) -> Self {
        let mut buffer = vec![0u8; bytes * BURST];
        let mut vectors: Vec<libc::iovec> = buffer
            .chunks_mut(bytes)
            .map(|c| libc::iovec {
                iov_base: c.as_mut_ptr().cast(),
                iov_len: c.len(),
            })
            .collect();
        let headers = vectors.iter_mut().map(|vector| {
            // SAFETY: an mmsghdr of zeros is valid: no name, no vector, no control data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (vector, 1);
            header
        });
        Self {
            headers: headers.collect(),
            _vectors: vectors,
            _bytes: buffer,
        }
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> usize {
        // SAFETY: the first `count` headers point at vectors and buffers that `self` owns.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).unwrap_or(0)
    }

    fn receive(&mut self, socket: &UdpSocket) -> usize {
        // SAFETY: as above. Without a name or control data the kernel changes nothing that a later
        // call reads.
        let got = unsafe {
            let headers = self.headers.as_mut_ptr();
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers,
                BURST as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(got).unwrap_or(0)
    }
}

/// Round trips in microseconds, ascending, of `count` pings, one each `every`.
pub(super) fn pings(
    stage: &Stage,
    address: IpAddr,
    count: u32,
    every: Duration,
) -> anyhow::Result<Vec<f64>> {
    let (count, every, address) = (
        count.to_string(),
        format!("{:.3}", every.as_secs_f64()),
        address.to_string(),
    );
    // -W: the last may be answered late. The exit status is 0 as long as one ping was answered.
    let said = stage.run(
        0,
        &[
            "ping", "-n", "-c", &count, "-i", &every, "-W", "1", &address,
        ],
    )?;
    let times = said.lines().filter_map(|line| {
        line.split_once("time=")?
            .1
            .split_whitespace()
            .next()?
            .parse::<f64>()
            .ok()
    });
    let mut times: Vec<f64> = times.map(|ms| ms * 1000.0).collect();
    times.sort_by(f64::total_cmp);
    if times.is_empty() {
        bail!("no ping was answered")
    } else {
        Ok(times)
    }
}

/// Waits until `address` answers host `from`.
pub(super) fn until_reached(
    stage: &Stage,
    from: usize,
    address: IpAddr,
    limit: Duration,
) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match stage.run(
            from,
            &[
                "ping",
                "-n",
                "-q",
                "-c",
                "1",
                "-W",
                "1",
                &address.to_string(),
            ],
        ) {
            Ok(_) => return Ok(()),
            Err(_) if began.elapsed() < limit => thread::sleep(Duration::from_millis(50)),
            Err(_) => bail!("{address} did not answer within {} s", limit.as_secs()),
        }
    }
}

/// Whether a call is to be retried.
pub(super) fn is_transient(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused
    )
}
