//! The kernel's calls that neither the standard library nor `nix` has, and the two clocks.

use nix::time::{ClockId, clock_gettime};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// `F_SETSIG` of Linux (fcntl(2)): which signal a descriptor sends instead of SIGIO.
const F_SETSIG: libc::c_int = 10;

/// The time since boot, sleep of the machine included: what deadlines are measured by.
pub fn boot_time() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// The wall clock, since 1970.
pub(super) fn wall_time() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        fine => Ok(fine as libc::c_int),
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = checked(result)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// When the live process of that number started, clock ticks after boot (field 22 of
/// `/proc/<pid>/stat`).
pub(super) fn start_of(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything. The state, the first of the rest, is field 3.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    // A zombie has ended.
    let lives = fields.next()? != "Z";
    lives.then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// A descriptor of a process, which no later process with its number takes over.
pub(super) fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal, or with 0 only asks whether the process is there.
pub(super) fn signal(process: &impl AsRawFd, signal: i32) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    let fd = process.as_raw_fd();
    // SAFETY: the descriptor is open, and without siginfo the kernel reads no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, 0) };
    checked(result).map(drop)
}

/// The standard input of another process: the same open file, not a new one.
pub(super) fn input_of(process: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), 0, 0) };
    owned(fd).map(File::from)
}

/// Makes the kernel send SIGSTOP to `pid` when this end of a pipe becomes readable, its other end's
/// closing included.
pub(super) fn stop_at_end(reader: &File, pid: i32) -> io::Result<()> {
    let fd = reader.as_raw_fd();
    // SAFETY: the descriptor is open, and the arguments are numbers.
    unsafe {
        checked(libc::fcntl(fd, libc::F_SETOWN, pid).into())?;
        checked(libc::fcntl(fd, F_SETSIG, libc::SIGSTOP).into())?;
    }
    set_async(reader, true)
}

/// Ends what [`stop_at_end`] began.
pub(super) fn spare_at_end(reader: &File) -> io::Result<()> {
    set_async(reader, false)
}

fn set_async(reader: &File, on: bool) -> io::Result<()> {
    let fd = reader.as_raw_fd();
    // SAFETY: the descriptor is open, and the arguments are numbers.
    unsafe {
        let flags = checked(libc::fcntl(fd, libc::F_GETFL).into())?;
        let flags = if on {
            flags | libc::O_ASYNC
        } else {
            flags & !libc::O_ASYNC
        };
        checked(libc::fcntl(fd, libc::F_SETFL, flags).into()).map(drop)
    }
}

/// Gives the calling thread the real-time class with that priority, and its children the ordinary
/// one.
pub(super) fn become_real_time(priority: i32) -> io::Result<()> {
    // SAFETY: a struct of plain numbers, of which zero is a value.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = priority;
    let class = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // By the system call: a C library may lack the function, as musl does. 0 is this thread.
    // SAFETY: the kernel reads the parameter only.
    let set =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, class, &raw const parameter) };
    checked(set).map(drop)
}

/// Keeps all memory of this process, present and future, from being paged out.
pub(super) fn lock_memory() -> io::Result<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }.into()).map(drop)
}
