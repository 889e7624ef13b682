//! One daemon a state directory: a lock on `daemon.pid` that the kernel drops with the process, so
//! that a killed daemon leaves no stale lock.

use crate::layout::Layout;
use nix::fcntl::{Flock, FlockArg};
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_host::SocketPath;
use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    sync::mpsc,
    time::{Duration, Instant},
};

/// How long to wait for the lock of a killed daemon. Reason: the kernel releases it with a delay.
const DYING: Duration = Duration::from_secs(2);

/// How long a working daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Held while the daemon runs.
pub struct DaemonLock(#[allow(dead_code, reason = "held for its Drop")] Flock<File>);

fn open(layout: &Layout) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(layout.lock())
}

impl DaemonLock {
    /// Takes the lock and writes this process's id beside it.
    pub fn take(layout: &Layout) -> Outcome<Self> {
        let began = Instant::now();
        let mut lock = loop {
            let file =
                open(layout).doing(format_args!("cannot open {}", layout.lock().display()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err(_) if began.elapsed() < DYING => std::thread::sleep(DYING / 50),
                Err(_) => {
                    return Err(taken(layout));
                }
            }
        };
        let write = |file: &mut File| {
            // Written over the old content, so that it needs no room on a full disk.
            let line = format!("{}\n", std::process::id());
            file.rewind()?;
            file.write_all(line.as_bytes())?;
            file.set_len(line.len() as u64)
        };
        write(&mut lock).doing("writing the process id")?;
        Ok(Self(lock))
    }
}

/// The message to a second daemon.
fn taken(layout: &Layout) -> Failure {
    let dir = layout.dir().display();
    if (is_held_still(layout) || !answers(layout))
        && let Some((found, advice)) = silence(layout)
    {
        return Failure::refused(format!(
            "a daemon already runs for {dir} and hangs: {found}: {advice}"
        ));
    }
    let who = holder(layout).map_or("another process".to_owned(), |pid| format!("process {pid}"));
    Failure::refused(format!(
        "a daemon already runs for {dir} ({who}); stop it with 'p2pvm down'"
    ))
}

/// Whether the daemon answers on its socket in time, or has not opened it yet.
fn answers(layout: &Layout) -> bool {
    let (socket, (tell, told)) = (layout.socket(), mpsc::channel());
    // A connection to a socket whose queue is full waits without a limit: the thread then ends with
    // the process.
    std::thread::spawn(move || {
        let heard = || -> io::Result<bool> {
            let mut stream = match UnixStream::connect(SocketPath::to(&socket)?.path()) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Ok(true);
                }
                connected => connected?,
            };
            stream.set_read_timeout(Some(ANSWER))?;
            stream
                .write_all(b"GET /status HTTP/1.1\r\nhost: p2pvm\r\nconnection: close\r\n\r\n")?;
            Ok(stream.read(&mut [0; 16])? > 0)
        };
        let _ = tell.send(heard().unwrap_or(false));
    });
    told.recv_timeout(ANSWER).unwrap_or(false)
}

/// The process id of the daemon that runs for this directory, if one does.
pub fn holder(layout: &Layout) -> Option<u32> {
    let mut file = File::open(layout.lock()).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_free) => None,
        Err(_) => text.trim().parse().ok(),
    }
}

/// Whether a process has not ended, or still holds resources: its leader may be dead while another
/// thread waits for a disk.
pub fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // In a directory shared with a container the number may be another process here.
    let name = |stat: &str| {
        stat.split_once(" (")
            .and_then(|(_, rest)| rest.rsplit_once(')'))
            .map(|(name, _)| name.to_owned())
    };
    let own = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if name(&stat) != name(&own) {
        return false;
    }
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !is_dead(&stat) || threads() > 1
}

/// Whether proc_pid_stat(5) says that the process is a zombie or dead.
fn is_dead(stat: &str) -> bool {
    matches!(state_of(stat), Some('Z' | 'X' | 'x') | None)
}

/// The reason why this directory's daemon does not answer, with the remedy, if one runs. To be
/// called when it has not answered.
pub fn silence(layout: &Layout) -> Option<(String, String)> {
    let pid = holder(layout)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Some(if is_stopped(&stat) {
        (
            format!("the daemon (process {pid}) is stopped"),
            format!(
                "let it go on with 'kill -CONT {pid}', or end it with 'p2pvm down --force'; \
                    guests run on"
            ),
        )
    } else {
        (
            format!("the daemon (process {pid}) does not answer"),
            "end it with 'p2pvm down --force', then 'p2pvm up --detach'; guests run on".to_owned(),
        )
    })
}

/// Whether a signal or a debugger holds the daemon of this directory.
pub fn is_held_still(layout: &Layout) -> bool {
    let stat = holder(layout)
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default());
    stat.is_some_and(|stat| is_stopped(&stat))
}

/// Whether the process with that id here has the directory's lock open. In a container the id is
/// that of another process.
pub fn is_process_here(layout: &Layout, pid: u32) -> bool {
    let Ok(lock) = std::fs::metadata(layout.lock()) else {
        return false;
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let same = |about: std::fs::Metadata| (about.dev(), about.ino()) == (lock.dev(), lock.ino());
    open.filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .any(same)
}

/// Whether a signal or a debugger holds the process, by its line in /proc (proc_pid_stat(5)).
fn is_stopped(stat: &str) -> bool {
    matches!(state_of(stat), Some('T' | 't'))
}

/// The letter of the process's state; the name before it may contain anything, brackets too.
fn state_of(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_told_from_one_that_runs() {
        assert!(is_stopped("7 (p2pvm) T 1 7") && is_stopped("7 (a) S (b) t 1 7"));
        assert!(!is_stopped("7 (p2pvm T) S 1 7") && !is_stopped(""));
    }

    #[test]
    fn a_process_is_dead_before_and_after_it_is_reaped() {
        assert!(is_dead("7 (p2pvm) Z 1 7") && is_dead("") && !is_dead("7 (p2pvm Z) S 1 7"));
        assert!(lives(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!lives(child.id()));
    }

    #[test]
    fn one_daemon_a_directory_and_the_lock_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        assert_eq!(holder(&layout), None);
        let lock = DaemonLock::take(&layout).unwrap();
        assert_eq!(holder(&layout), Some(std::process::id()));
        let refused = DaemonLock::take(&layout).err().unwrap().message;
        assert!(
            refused.contains("already runs")
                && refused.contains("'p2pvm down'")
                && !refused.contains("hangs"),
            "{refused}"
        );
        // It takes connections and says nothing.
        let _socket = std::os::unix::net::UnixListener::bind(layout.socket()).unwrap();
        let refused = DaemonLock::take(&layout).err().unwrap().message;
        assert!(
            refused.contains("does not answer") && refused.contains("p2pvm down --force"),
            "{refused}"
        );
        assert!(is_process_here(&layout, std::process::id()) && !is_process_here(&layout, 1));
        drop(lock);
        assert_eq!(holder(&layout), None);
        DaemonLock::take(&layout).unwrap();
    }
}
