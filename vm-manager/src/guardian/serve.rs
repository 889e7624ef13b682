//! The guardian's own process: one loop over its timer, its socket and the ends of its processes.
//! All that it decides is in [`super::rule`].
//!
//! It starts with nothing to hold, ends when it holds nothing and no daemon is connected, and never
//! otherwise: neither with the daemon nor at an upgrade. A new daemon takes the place of the
//! previous one on the socket.

use super::{
    grip::Grip,
    kernel::{boot_time, wall_time},
    message::{Ask, Cause, Refusal, Reply},
    place::{self, Place, Received},
    rule::{Deed, MOST, Offer, Rule},
    standing::{self, Lacks},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
            socket,
        },
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use p2pvm_overlay::VmId;
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

/// How long it waits for its daemon before it ends without having held anything, milliseconds.
const GRACE_MS: u16 = 10_000;
/// How long between two looks at the clocks and at what others did to the guests.
const TICK: Duration = Duration::from_secs(1);
/// How far the wall clock may stray within a tick before it counts as a jump. Reason: the kernel
/// slews by less, and a lease's guard is 1 s.
const STRAY: Duration = Duration::from_secs(1);
/// How many messages of the daemon are read in a row before the timer is looked at again.
const IN_A_ROW: usize = 32;
/// How many times the lock is tried, and how long between two tries. Reason: a previous guardian
/// may just be ending.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// What the kernel says when the machine that this host runs in has become another (Linux 6.10).
const NEW_GENERATION: &[u8] = b"NEW_VMGENID=1";

/// Runs the guardian of the state directory `dir` until there is nothing left to guard. Another one
/// that lives already makes this one end at once.
///
/// # Errors
/// The directory, the socket or the timer cannot be made.
pub fn serve(dir: &Path) -> io::Result<()> {
    let place = Place::make(dir)?;
    let Some(_lock) = locked(&place)? else {
        return Ok(());
    };
    let lacks = standing::take();
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let mut guardian = Serving {
        rule: Rule::new(),
        timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?,
        listener: place.listen()?,
        client: None,
        was_connected: false,
        generations: generations().ok(),
        ended: Vec::with_capacity(MOST),
        space: place::space(),
        lacks,
        clocks: Clocks::default(),
    };
    while guardian.turn()? {}
    Ok(())
}

/// The lock; none if another guardian lives on.
fn locked(place: &Place) -> io::Result<Option<nix::fcntl::Flock<File>>> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = place.lock()? {
            return Ok(Some(lock));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Ok(None)
}

struct Serving {
    rule: Rule<Grip>,
    timer: TimerFd,
    listener: OwnedFd,
    client: Option<OwnedFd>,
    /// A daemon has been there.
    was_connected: bool,
    /// Where the kernel reports a new generation of this machine.
    generations: Option<OwnedFd>,
    /// VMs whose processes ended, or were stopped by others, of one look.
    ended: Vec<VmId>,
    space: Vec<u8>,
    lacks: Lacks,
    clocks: Clocks,
}

/// What became ready.
#[derive(Default)]
struct Ready {
    listener: bool,
    client: bool,
    generation: bool,
}

impl Serving {
    /// Waits for something, and does it; false if nothing is left to do.
    fn turn(&mut self) -> io::Result<bool> {
        self.set_timer()?;
        let Some(ready) = self.wait()? else {
            return Ok(false);
        };
        // The time before the requests.
        self.strike(boot_time(), Cause::Deadline);
        self.forget_ended();
        if self.clocks.is_due() {
            self.tick();
        }
        if ready.generation && self.is_new_generation() {
            let now = boot_time();
            self.rule.alarm(now);
            self.strike(now, Cause::NewGeneration);
        }
        if ready.listener {
            self.accept();
        }
        if ready.client {
            self.hear();
        }
        let is_idle = self.client.is_none() && self.rule.is_empty();
        if self.was_connected && is_idle {
            // The next daemon may be waiting already.
            self.accept();
            return Ok(self.client.is_some());
        }
        Ok(true)
    }

    fn accept(&mut self) {
        if let Ok(client) = place::accept(&self.listener) {
            self.client = Some(client);
            self.was_connected = true;
        }
    }

    /// Sets the timer to the next deadline or tick, whichever is first.
    fn set_timer(&mut self) -> io::Result<()> {
        let Some(deadline) = self.rule.next() else {
            if self.rule.is_empty() {
                self.clocks = Clocks::default();
                return Ok(self.timer.unset()?);
            }
            return self.set_to(self.clocks.next());
        };
        self.set_to(deadline.min(self.clocks.next()))
    }

    fn set_to(&self, time: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let time = TimeSpec::from(time.max(Duration::from_nanos(1)));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        Ok(self.timer.set(Expiration::OneShot(time), flags)?)
    }

    /// Waits; none if the daemon that it was started for does not come.
    fn wait(&mut self) -> io::Result<Option<Ready>> {
        let listener = self.listener.as_fd();
        let client = self.client.as_ref().map_or(listener, |fd| fd.as_fd());
        let generations = self.generations.as_ref().map_or(listener, |fd| fd.as_fd());
        let read = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // On the stack: nothing is allocated while guests are held.
        let mut fds = std::array::from_fn::<_, { 4 + MOST }, _>(|_| read(listener));
        let fixed = [self.timer.as_fd(), listener, client, generations];
        let held = self.rule.holds().map(|(_, grip)| grip.as_fd());
        let mut count = 0;
        for (place, fd) in fds.iter_mut().zip(fixed.into_iter().chain(held)) {
            *place = read(fd);
            count += 1;
        }
        let is_idle = self.client.is_none() && self.rule.is_empty();
        let limit = match is_idle {
            true => PollTimeout::from(GRACE_MS),
            false => PollTimeout::NONE,
        };
        match poll(&mut fds[..count], limit) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| fds[at].any().unwrap_or(false);
        self.ended.clear();
        let ends = self.rule.holds().zip(&fds[4..]);
        let ended = ends.filter(|(_, fd)| fd.any().unwrap_or(false));
        self.ended.extend(ended.map(|((vm, _), _)| vm));
        Ok(Some(Ready {
            listener: is_ready(1),
            client: self.client.is_some() && is_ready(2),
            generation: self.generations.is_some() && is_ready(3),
        }))
    }

    /// Freezes every guest whose time is over at `now`, the longest first, then reports.
    fn strike(&mut self, now: Duration, cause: Cause) {
        while let Some(due) = self.rule.due(now) {
            due.hold.freeze();
            let done = boot_time().saturating_sub(due.deadline);
            let report = Reply::Froze {
                vm: due.vm,
                cause,
                woke_late: now.saturating_sub(due.deadline),
                done,
            };
            self.report(report);
        }
    }

    /// Tells the daemon something unasked. One that does not listen learns it when it asks.
    fn report(&self, report: Reply) {
        if let Some(client) = &self.client {
            let _ = place::send(client, &report.to_bytes(0), &[]);
        }
    }

    fn forget_ended(&mut self) {
        while let Some(vm) = self.ended.pop() {
            self.rule.ended(vm);
        }
    }

    /// Looks for jumps of the clock, and for guests that others stopped.
    fn tick(&mut self) {
        if let Some(by) = self.clocks.jumped() {
            self.report(Reply::Jumped { by });
        }
        let stand = self.rule.holds().filter(|(_, grip)| grip.stands());
        self.ended.extend(stand.map(|(vm, _)| vm));
        while let Some(vm) = self.ended.pop() {
            if self.rule.stopped(vm) {
                self.report(Reply::Froze {
                    vm,
                    cause: Cause::Stopped,
                    woke_late: Duration::ZERO,
                    done: Duration::ZERO,
                });
            }
        }
    }

    fn is_new_generation(&self) -> bool {
        let Some(socket) = &self.generations else {
            return false;
        };
        let mut is_new = false;
        let mut text = [0; 4096];
        for _ in 0..IN_A_ROW {
            let Ok(length) = recv(socket.as_raw_fd(), &mut text, MsgFlags::MSG_DONTWAIT) else {
                break;
            };
            is_new |= text[..length]
                .split(|byte| *byte == 0)
                .any(|line| line == NEW_GENERATION);
        }
        is_new
    }

    /// Reads and answers what the daemon has sent.
    fn hear(&mut self) {
        for _ in 0..IN_A_ROW {
            let Some(client) = &self.client else { return };
            match place::receive(client, &mut self.space) {
                Ok(Some(received)) => self.answer(received),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The daemon ended: the deadlines stand.
                Ok(None) | Err(_) => self.client = None,
            }
        }
    }

    fn answer(&mut self, received: Received) {
        let now = boot_time();
        self.strike(now, Cause::Deadline);
        let Some((serial, ask)) = Ask::from_bytes(&received.bytes[..received.length]) else {
            // Not of this format: there is no serial to answer.
            self.client = None;
            return;
        };
        let reply = match ask {
            None => Reply::Refused {
                why: Refusal::Unheard,
            },
            Some(Ask::Hello) => Reply::Ready {
                lacks: self.lacks.0,
            },
            Some(ask) => {
                let offer = self.offer(&ask, received.fds);
                let ruling = self.rule.ask(now, ask, offer);
                match ruling.deed {
                    Deed::Nothing => {}
                    Deed::Thaw(grip) => grip.thaw(),
                    Deed::Release(grip) => grip.release(),
                }
                ruling.reply
            }
        };
        if let Some(client) = &self.client
            && place::send(client, &reply.to_bytes(serial), &[]).is_err()
        {
            self.client = None;
        }
    }

    /// The hold on a process that a request to arm brings.
    fn offer(&self, ask: &Ask, fds: Vec<OwnedFd>) -> Option<Offer<Grip>> {
        let &Ask::Arm {
            vm, pid, started, ..
        } = ask
        else {
            return None;
        };
        if self.rule.has(vm, (pid, started)) {
            return None;
        }
        let mut fds = fds.into_iter();
        let process = fds.next()?;
        let hold = Grip::new(process, fds.next().map(File::from), pid).ok()?;
        let stands = hold.stands();
        Some(Offer { hold, stands })
    }
}

/// The socket on which the kernel reports what becomes of its devices (uevents).
fn generations() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let kind = SockType::Datagram;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let socket = socket(AddressFamily::Netlink, kind, flags, protocol)?;
    // Group 1: the kernel's own reports.
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(socket)
}

/// The wall clock beside the time since boot: it is set, or another machine's pause moves it.
#[derive(Default)]
struct Clocks {
    looked: Duration,
    wall_ahead: Option<Duration>,
}

impl Clocks {
    fn next(&self) -> Duration {
        self.looked + TICK
    }

    fn is_due(&self) -> bool {
        boot_time() >= self.next()
    }

    fn jumped(&mut self) -> Option<i64> {
        self.look(boot_time(), wall_time())
    }

    /// By how much the wall clock jumped since the last look, nanoseconds.
    fn look(&mut self, boot: Duration, wall: Duration) -> Option<i64> {
        self.looked = boot;
        let ahead = wall.saturating_sub(boot);
        let before = self.wall_ahead.replace(ahead)?;
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let by = nanoseconds(ahead) - nanoseconds(before);
        (ahead.abs_diff(before) > STRAY).then_some(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_is_seen_a_slew_is_not() {
        let seconds = Duration::from_secs;
        let mut clocks = Clocks::default();
        assert_eq!(clocks.look(seconds(10), seconds(1010)), None);
        let slewed = Duration::from_millis(1_011_001);
        assert_eq!(clocks.look(seconds(11), slewed), None);
        let ahead = clocks.look(seconds(12), slewed + seconds(3));
        assert_eq!(ahead, Some(2_000_000_000));
        let back = clocks.look(seconds(13), slewed + seconds(1));
        assert_eq!(back, Some(-3_000_000_000));
    }
}
