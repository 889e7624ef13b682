//! The network's time, independent of this machine's wall clock.
//!
//! A wall clock may be years wrong, and may jump while the daemon runs: a machine without a battery
//! starts in 1970 until NTP has answered, a person sets the date. Records, leases and certificates
//! carry absolute times, so two members whose clocks differ would not agree on what has expired.
//! Here time passes by `CLOCK_BOOTTIME`, which neither jumps nor stops while the machine sleeps. To
//! it an offset is added: the wall clock at the start, until members have reported their clocks
//! ([`Exchange`]), and from then on what most of them report ([`judge`]).
//!
//! One process is one member, so there is one clock ([`NetworkTime::of_process`]); tests make their
//! own.

mod exchange;
pub mod judge;

pub use exchange::Exchange;

use crate::id::{MemberId, UnixTime};
use crate::lock;
use judge::{Clocks, MemberClock};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

/// How many milliseconds the time must be wrong to be set. Reason: records live for minutes, and a
/// clock that is set often is useless.
const WORTH_SETTING_MS: i64 = 1000;
/// How long a member's report is believed.
const HEARD_FOR_MS: i64 = 15 * 60 * 1000;
/// How long before a wall clock that jumped is followed if no member can say whether it is right.
const ALONE_FOR_MS: i64 = 60 * 1000;
/// How many members' reports are kept.
const MAX_HEARD: usize = 64;
/// The latest time that a member's clock may show: the end of the year 9999. Reason: sums with it
/// do not overflow.
const LATEST_MS: i64 = 253_402_300_799_000;

/// The two clocks of a machine, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since the machine started, its sleep included.
    pub boot_ms: i64,
    /// The wall clock, since 1970.
    pub wall_ms: i64,
}

impl Reading {
    /// The present values.
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map(Duration::from)
            .unwrap_or_default();
        Self {
            boot_ms: millis(boot),
            wall_ms: wall_ms(),
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    }
}

/// How far this machine's wall clock is from the network's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// How many milliseconds it is ahead; negative if behind.
    pub ahead_ms: i64,
    /// How many members have reported their clocks.
    pub members: usize,
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.ahead_ms.unsigned_abs() / 1000;
        let (amount, unit) = match seconds {
            0..120 => (seconds, "s"),
            120..7200 => (seconds / 60, "min"),
            7200..172_800 => (seconds / 3600, "h"),
            _ => (seconds / 86_400, "days"),
        };
        let side = if self.ahead_ms < 0 {
            "behind"
        } else {
            "ahead of"
        };
        write!(f, "{amount} {unit} {side} the members' clocks")
    }
}

#[derive(Default)]
struct State {
    heard: HashMap<MemberId, (i64, MemberClock)>,
    /// The latest time at which something known was signed: no right clock shows less.
    floor_ms: Option<i64>,
    /// Since when the wall clock differs from the network's time without any report of a member.
    strayed: Option<i64>,
}

/// This member's view of the network's time.
pub struct NetworkTime {
    /// The offset to the time since the machine started.
    offset_ms: AtomicI64,
    /// The offset at the start, which stays.
    first_ms: i64,
    state: Mutex<State>,
    steps: watch::Sender<u64>,
}

impl NetworkTime {
    /// Starts with the wall clock.
    pub fn new(reading: Reading) -> Self {
        let offset = reading.wall_ms - reading.boot_ms;
        Self {
            offset_ms: AtomicI64::new(offset),
            first_ms: offset,
            state: Mutex::default(),
            steps: watch::channel(0).0,
        }
    }

    /// This process's clock.
    pub fn of_process() -> &'static Self {
        static CLOCK: OnceLock<NetworkTime> = OnceLock::new();
        CLOCK.get_or_init(|| Self::new(Reading::now()))
    }

    /// The network's time as this process knows it.
    pub fn now() -> UnixTime {
        UnixTime(u64::try_from(Self::of_process().millis_at(Reading::now())).unwrap_or(0) / 1000)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The network's time in milliseconds since 1970.
    pub fn millis_at(&self, reading: Reading) -> i64 {
        reading
            .boot_ms
            .saturating_add(self.offset_ms.load(Ordering::Relaxed))
    }

    /// The time at the start plus the time since: it never jumps, whatever members report.
    fn steady_ms_at(&self, reading: Reading) -> i64 {
        reading.boot_ms.saturating_add(self.first_ms)
    }

    /// Notified whenever the time was set.
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }

    /// How many times the time was set: a signature with an earlier time in it must then be
    /// renewed.
    pub fn times_set(&self) -> u64 {
        *self.steps.borrow()
    }

    /// Notes a signature of the time `signed`: no clock that shows less is right.
    pub fn note_signed(&self, signed: UnixTime) {
        let signed = i64::try_from(signed.0)
            .unwrap_or(i64::MAX)
            .saturating_mul(1000);
        let mut state = self.state();
        state.floor_ms = Some(state.floor_ms.map_or(signed, |floor| floor.max(signed)));
    }

    /// Takes a member's report, made now: its wall clock, and its view of the network's time with
    /// the number of clocks behind it.
    pub fn hear(&self, from: MemberId, said: ClockReport, reading: Reading) {
        let heard = MemberClock {
            wall_offset_ms: said.wall_ms.clamp(0, LATEST_MS) - reading.boot_ms,
            net_offset_ms: said.net_ms.clamp(0, LATEST_MS) - reading.boot_ms,
            clocks: usize::from(said.clocks),
        };
        {
            let mut state = self.state();
            state
                .heard
                .retain(|_, (at, _)| reading.boot_ms.saturating_sub(*at) < HEARD_FOR_MS);
            if state.heard.len() < MAX_HEARD || state.heard.contains_key(&from) {
                state.heard.insert(from, (reading.boot_ms, heard));
            }
        }
        self.settle(reading);
    }

    /// This member's own report.
    pub fn say(&self, reading: Reading) -> ClockReport {
        let clocks = self.state().heard.len() + 1;
        ClockReport {
            wall_ms: reading.wall_ms,
            net_ms: self.millis_at(reading),
            clocks: u16::try_from(clocks).unwrap_or(u16::MAX),
        }
    }

    /// The members with a recent report.
    fn heard_from(&self) -> Vec<MemberId> {
        self.state().heard.keys().copied().collect()
    }

    /// Sets the time by the clocks known now, if it differs by much; to be called now and then.
    pub fn settle(&self, reading: Reading) {
        let own = reading.wall_ms - reading.boot_ms;
        let (now, set) = {
            let mut state = self.state();
            state
                .heard
                .retain(|_, (at, _)| reading.boot_ms.saturating_sub(*at) < HEARD_FOR_MS);
            let heard: Vec<MemberClock> = state.heard.values().map(|(_, heard)| *heard).collect();
            let floor = state.floor_ms.map(|floor| floor - reading.boot_ms);
            let wanted = Clocks {
                own_offset_ms: own,
                heard: &heard,
                floor_offset_ms: floor,
            }
            .offset_ms();
            let before = self.offset_ms.load(Ordering::Relaxed);
            let differs = (wanted - before).abs() > WORTH_SETTING_MS;
            let due = if heard.is_empty() && differs {
                let since = *state.strayed.get_or_insert(reading.boot_ms);
                reading.boot_ms.saturating_sub(since) >= ALONE_FOR_MS
            } else {
                state.strayed = None;
                differs
            };
            if due {
                self.offset_ms.store(wanted, Ordering::Relaxed);
                state.strayed = None;
            }
            (wanted - before, due)
        };
        if set {
            let wall_clock = Skew {
                ahead_ms: own - self.offset_ms.load(Ordering::Relaxed),
                members: 0,
            };
            tracing::info!(by_seconds = now as f64 / 1e3, %wall_clock, "the network's time \
                was set");
            self.steps.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// How far the wall clock is from the network's time, once a member has reported its own.
    pub fn skew(&self) -> Option<Skew> {
        self.skew_at(Reading::now())
    }

    /// As [`Self::skew`], for a reading.
    pub fn skew_at(&self, reading: Reading) -> Option<Skew> {
        let members = self.state().heard.len();
        (members > 0).then(|| Skew {
            ahead_ms: reading.wall_ms - self.millis_at(reading),
            members,
        })
    }
}

/// A member's report of its clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockReport {
    /// Its wall clock, milliseconds since 1970.
    pub wall_ms: i64,
    /// Its view of the network's time.
    pub net_ms: i64,
    /// How many clocks that is based on, its own among them.
    pub clocks: u16,
}

/// Milliseconds that never decrease or jump within this process: the wall clock at the start plus
/// the time since.
pub fn steady_millis() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(NetworkTime::of_process().steady_ms_at(Reading::now())).unwrap_or(0);
    LAST.fetch_max(now, Ordering::Relaxed).max(now)
}

/// A number for a statement that replaces `newest`, the newest of its kind known anywhere: the
/// network's time in milliseconds, or `newest` plus one if a clock that was ahead has made that
/// larger (as OSPF does with an own advertisement that comes back newer than the last one sent, RFC
/// 2328 §13.4).
pub fn next_number(newest: Option<u64>) -> u64 {
    let now = u64::try_from(NetworkTime::of_process().millis_at(Reading::now())).unwrap_or(0);
    newest.map_or(now, |newest| now.max(newest.saturating_add(1)))
}

impl UnixTime {
    /// The network's time ([`NetworkTime`]): the wall clock at the start of the process until
    /// members have reported theirs. It does not jump with the wall clock.
    pub fn now() -> Self {
        NetworkTime::now()
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
