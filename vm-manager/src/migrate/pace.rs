//! Carries one of QEMU's streams between two hosts without letting it queue up on the way.
//!
//! QEMU stops the guest when the rest of RAM goes out within the planned downtime at the rate at
//! which its socket took bytes so far. A transport that buffers megabytes makes that rate too high:
//! the guest then stands still while the buffers drain. So what may be under way is bounded here by
//! delay, as TCP Vegas does it (Brakmo and Peterson 1995): the far side acknowledges what its QEMU
//! has taken, and the window grows while the round trip stays near the smallest seen and shrinks
//! when it rises above.
//!
//! The wire is frames both ways: data, acknowledgement of all bytes so far, end. One task writes,
//! so that neither side ever waits for the other's acknowledgement to be written.

use p2pvm_overlay::lock;
use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

/// The largest data frame, bytes.
const MAX_FRAME: usize = 64 << 10;
/// The smallest window, bytes. Reason: two frames keep a slow path busy.
const MIN_WINDOW: u64 = 128 << 10;
/// The largest window, bytes. Reason: 200 ms at 10 Gbit/s.
const MAX_WINDOW: u64 = 256 << 20;
/// How much queueing is allowed on a path without delay. Reason: the scheduling of two busy hosts.
const MIN_QUEUEING: Duration = Duration::from_millis(15);

const DATA: u8 = 0;
const ACK: u8 = 1;
const END: u8 = 2;

/// How many bytes may be under way, and how many are.
#[derive(Debug)]
pub struct Pace {
    sent: u64,
    acked: u64,
    window: u64,
    /// Where each frame ended and when it was sent.
    under_way: VecDeque<(u64, Instant)>,
    smallest: Option<Duration>,
    /// The window is not shrunk again before what was sent at the last shrinking is acknowledged.
    shrunk_at: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            sent: 0,
            acked: 0,
            window: 2 * MIN_WINDOW,
            under_way: VecDeque::new(),
            smallest: None,
            shrunk_at: 0,
        }
    }
}

impl Pace {
    /// Bytes that may be sent now.
    pub fn room(&self) -> usize {
        usize::try_from(self.window.saturating_sub(self.sent - self.acked)).unwrap_or(usize::MAX)
    }

    /// `bytes` were sent.
    pub fn sent(&mut self, now: Instant, bytes: usize) {
        self.sent += bytes as u64;
        self.under_way.push_back((self.sent, now));
    }

    /// The far side has taken `total` bytes in all. An impossible figure counts as the nearest
    /// possible one.
    pub fn acked(&mut self, now: Instant, total: u64) {
        let total = total.clamp(self.acked, self.sent);
        let fresh = total - self.acked;
        // The window was in use if what was under way filled most of it.
        let used = self.sent - self.acked >= self.window - self.window / 4;
        self.acked = total;
        let mut trip = None;
        while self.under_way.front().is_some_and(|(end, _)| *end <= total) {
            trip = self
                .under_way
                .pop_front()
                .map(|(_, at)| now.saturating_duration_since(at));
        }
        let Some(trip) = trip else { return };
        let smallest = self.smallest.map_or(trip, |s| s.min(trip));
        self.smallest = Some(smallest);
        let queueing = (smallest / 4).max(MIN_QUEUEING);
        let bound = smallest + queueing;
        if trip > bound {
            if total >= self.shrunk_at {
                let scaled = self.window as f64 * bound.as_secs_f64() / trip.as_secs_f64();
                self.window = (scaled as u64).max(MIN_WINDOW);
                self.shrunk_at = self.sent;
            }
        } else if used && trip < smallest + queueing / 2 {
            // Doubling each round trip until the path is known, then an eighth more.
            let more = if self.shrunk_at == 0 {
                fresh
            } else {
                fresh / 8
            };
            self.window = (self.window + more).min(MAX_WINDOW);
        }
    }
}

struct Shared {
    pace: Mutex<Pace>,
    /// Bytes taken from the far side and given to the local one; and whether it has ended.
    taken: Mutex<(u64, bool)>,
    news: Notify,
}

impl Shared {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        lock(&self.pace)
    }

    fn taken(&self) -> MutexGuard<'_, (u64, bool)> {
        lock(&self.taken)
    }
}

/// Joins a local socket to the same function on the far side, until both directions have ended.
///
/// # Errors
/// The error of either side, or `InvalidData` for invalid frames.
pub async fn join(
    local: impl AsyncRead + AsyncWrite,
    remote: impl AsyncRead + AsyncWrite,
) -> io::Result<()> {
    let (local_in, local_out) = tokio::io::split(local);
    let (remote_in, remote_out) = tokio::io::split(remote);
    let shared = Shared {
        pace: Mutex::default(),
        taken: Mutex::new((0, false)),
        news: Notify::new(),
    };
    tokio::try_join!(
        write(&shared, local_in, remote_out),
        read(&shared, remote_in, local_out)
    )
    .map(|_| ())
}

async fn write(
    shared: &Shared,
    mut local: impl AsyncRead + Unpin,
    mut remote: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_FRAME];
    let (mut told, mut ended) = (0, false);
    loop {
        let (taken, far_ended) = *shared.taken();
        if taken > told {
            told = taken;
            remote.write_u8(ACK).await?;
            remote.write_u64(taken).await?;
            remote.flush().await?;
        }
        if ended && far_ended {
            return remote.shutdown().await;
        }
        let room = shared.pace().room().min(MAX_FRAME);
        tokio::select! {
            () = shared.news.notified() => {}
            read = local.read(&mut buffer[..room]), if room > 0 && !ended => {
                let n = read?;
                if n == 0 {
                    ended = true;
                    remote.write_u8(END).await?;
                } else {
                    shared.pace().sent(Instant::now(), n);
                    remote.write_u8(DATA).await?;
                    remote.write_u32(n as u32).await?;
                    remote.write_all(&buffer[..n]).await?;
                }
                remote.flush().await?;
            }
        }
    }
}

async fn read(
    shared: &Shared,
    mut remote: impl AsyncRead + Unpin,
    mut local: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let kind = match remote.read_u8().await {
            Ok(kind) => kind,
            // The far side has sent its end, received this side's, and closed.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && shared.taken().1 => return Ok(()),
            Err(e) => return Err(e),
        };
        match kind {
            DATA => {
                let len = remote.read_u32().await? as usize;
                let Some(data) = buffer.get_mut(..len) else {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a frame of {len} bytes"),
                    ));
                };
                remote.read_exact(data).await?;
                local.write_all(data).await?;
                shared.taken().0 += len as u64;
            }
            ACK => {
                let total = remote.read_u64().await?;
                shared.pace().acked(Instant::now(), total);
            }
            END => {
                local.shutdown().await?;
                shared.taken().1 = true;
            }
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("no frame of kind {other}"),
                ));
            }
        }
        shared.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of `rate` bytes a second with `delay` each way and an endless queue; gives the
    /// largest queueing seen after the first two seconds, and the bytes delivered in ten.
    fn run(rate: f64, delay: Duration) -> (Duration, u64) {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let (mut acks, mut free_at, mut delivered, mut worst) =
            (VecDeque::new(), start, 0u64, Duration::ZERO);
        for ms in 0..10_000 {
            let now = at(ms);
            while acks.front().is_some_and(|(when, _)| *when <= now) {
                let (_, total) = acks.pop_front().unwrap();
                delivered = total;
                pace.acked(now, total);
            }
            while pace.room() >= MAX_FRAME {
                pace.sent(now, MAX_FRAME);
                let queueing = free_at.saturating_duration_since(now);
                if ms > 2000 {
                    worst = worst.max(queueing);
                }
                free_at = free_at.max(now) + Duration::from_secs_f64(MAX_FRAME as f64 / rate);
                acks.push_back((free_at + 2 * delay, pace.sent));
            }
        }
        (worst, delivered)
    }

    #[test]
    fn a_long_path_is_filled_and_its_queue_stays_short() {
        let (worst, delivered) = run(60e6, Duration::from_millis(100));
        assert!(worst < Duration::from_millis(120), "{worst:?}");
        assert!(delivered > 400_000_000, "{delivered}");
    }

    #[test]
    fn a_short_path_is_filled_and_its_queue_stays_short() {
        let (worst, delivered) = run(100e6, Duration::from_micros(100));
        assert!(worst < Duration::from_millis(40), "{worst:?}");
        assert!(delivered > 800_000_000, "{delivered}");
    }

    #[test]
    fn an_acknowledgement_that_cannot_be_changes_nothing_for_the_worse() {
        let mut pace = Pace::default();
        pace.sent(Instant::now(), 1000);
        pace.acked(Instant::now(), u64::MAX);
        assert_eq!((pace.acked, pace.sent), (1000, 1000));
        pace.acked(Instant::now(), 3);
        assert_eq!(pace.acked, 1000);
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_at_once_and_each_end_ends_its_own() {
        let ((left, left_far), (right_far, right)) =
            (tokio::io::duplex(4096), tokio::io::duplex(4096));
        let (wire_a, wire_b) = tokio::io::duplex(8192);
        let joined = async { tokio::try_join!(join(left_far, wire_a), join(right_far, wire_b)) };
        let talk = |end: tokio::io::DuplexStream, byte: u8| async move {
            let (mut reading, mut writing) = tokio::io::split(end);
            let send = async {
                writing.write_all(&vec![byte; 3_000_000]).await.unwrap();
                writing.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(send, reading.read_to_end(&mut got));
            read.unwrap();
            got
        };
        let (joined, at_left, at_right) = tokio::join!(joined, talk(left, 1), talk(right, 2));
        joined.unwrap();
        assert!(at_left.len() == 3_000_000 && at_left.iter().all(|b| *b == 2));
        assert!(at_right.len() == 3_000_000 && at_right.iter().all(|b| *b == 1));
    }

    #[tokio::test]
    async fn invalid_frames_are_an_error() {
        let (local, _near) = tokio::io::duplex(64);
        let (remote, mut far) = tokio::io::duplex(64);
        far.write_all(&[DATA, 0xff, 0xff, 0xff, 0xff])
            .await
            .unwrap();
        assert_eq!(
            join(local, remote).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
