//! The guardian's hold on one process: everything is open before it is needed, so that a freeze is
//! two system calls.
//!
//! **Freeze.** Version 2's freezer marks and wakes every thread at once. SIGSTOP alone reaches one
//! thread, and the others run on until that one had a processor; it is the second lock.
//!
//! **The guardian's own end.** A guest's standard input is the reading end of a pipe that nobody
//! writes to ([`crate::qemu`]). The guardian opens a writing end, and has the kernel send SIGSTOP
//! to the guest when the last writing end is closed: however the guardian ends. That open file is
//! the guest's own, so it lives exactly as long as the guest, whatever becomes of the daemon.

use super::kernel;
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, FileTypeExt},
    },
};

/// A guarded process.
#[derive(Debug)]
pub(super) struct Grip {
    process: OwnedFd,
    /// Its `/proc/<pid>/stat`.
    stat: File,
    freezer: Option<File>,
    end: Option<End>,
}

/// Both ends of the pipe whose closing stops the guest.
#[derive(Debug)]
struct End {
    reader: File,
    _writer: File,
}

impl Grip {
    /// Takes hold of the process; `freezer` is its group's `cgroup.freeze`.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn new(process: OwnedFd, freezer: Option<File>, pid: i32) -> io::Result<Self> {
        // A guest that an earlier version started has no such pipe.
        let end = End::of(&process, pid).ok();
        let stat = File::open(format!("/proc/{pid}/stat"))?;
        // After it: had the process ended, the pipe's owner might be another one.
        kernel::signal(&process, 0)?;
        Ok(Self {
            process,
            stat,
            freezer,
            end,
        })
    }

    /// Whether it stands frozen or stopped now.
    pub(super) fn stands(&self) -> bool {
        let mut text = [0; 1];
        let frozen = self.freezer.as_ref().is_some_and(|file| {
            file.read_at(&mut text, 0).is_ok_and(|length| length == 1) && text == *b"1"
        });
        frozen || self.is_stopped()
    }

    /// Whether a signal stopped it: state T.
    fn is_stopped(&self) -> bool {
        let mut text = [0; 512];
        let length = self.stat.read_at(&mut text, 0).unwrap_or(0);
        // The name before the state may hold anything, parentheses too.
        let text = &text[..length];
        let name_end = text.iter().rposition(|byte| *byte == b')');
        name_end.is_some_and(|at| text.get(at + 2) == Some(&b'T'))
    }

    /// Freezes it. Whatever of it fails, the rest is done.
    pub(super) fn freeze(&mut self) {
        if let Some(file) = &self.freezer {
            let _ = file.write_at(b"1", 0);
        }
        let _ = kernel::signal(&self.process, libc::SIGSTOP);
    }

    /// Lets it run.
    pub(super) fn thaw(&mut self) {
        let _ = kernel::signal(&self.process, libc::SIGCONT);
        if let Some(file) = &self.freezer {
            let _ = file.write_at(b"0", 0);
        }
    }

    /// Lets go of it: the guardian's end does not stop it any more.
    pub(super) fn release(self) {
        if let Some(end) = &self.end {
            let _ = kernel::spare_at_end(&end.reader);
        }
    }
}

impl AsFd for Grip {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl End {
    fn of(process: &OwnedFd, pid: i32) -> io::Result<Self> {
        let reader = kernel::input_of(process)?;
        if !reader.metadata()?.file_type().is_fifo() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let writer = OpenOptions::new().write(true).open(path)?;
        kernel::stop_at_end(&reader, pid)?;
        Ok(Self {
            reader,
            _writer: writer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        process::{Child, Command, Stdio},
        thread,
        time::Duration,
    };

    /// A process as a guest is one, ended with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            let mut command = Command::new("sleep");
            let mut child = command.arg("1000").stdin(Stdio::piped()).spawn().unwrap();
            drop(child.stdin.take());
            Self(child)
        }

        fn grip(&self) -> Grip {
            let pid = self.0.id() as i32;
            Grip::new(kernel::open_process(pid).unwrap(), None, pid).unwrap()
        }

        fn is_stopped(&self) -> bool {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()));
            stat.unwrap().contains(") T ")
        }

        fn becomes(&self, stopped: bool) {
            for _ in 0..2000 {
                if self.is_stopped() == stopped {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            panic!("not stopped = {stopped} within 20 s");
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_stops_goes_on_and_stops_at_its_guardians_end() {
        let guest = Sleeper::start();
        let mut grip = guest.grip();
        assert!(!grip.stands());
        grip.freeze();
        guest.becomes(true);
        assert!(grip.stands());
        grip.thaw();
        guest.becomes(false);
        // As the guardian's end does.
        drop(grip);
        guest.becomes(true);
    }

    #[test]
    fn a_released_process_runs_on_when_the_guardian_ends() {
        let guest = Sleeper::start();
        guest.grip().release();
        // A signal that was sent would be there before that of this grip's own freeze.
        assert!(!guest.is_stopped());
        let mut again = guest.grip();
        assert!(!again.stands());
        again.freeze();
        guest.becomes(true);
        again.release();
    }

    #[test]
    fn an_ended_process_cannot_be_held() {
        let guest = Sleeper::start();
        let pid = guest.0.id() as i32;
        let process = kernel::open_process(pid).unwrap();
        drop(guest);
        Grip::new(process, None, pid).unwrap_err();
    }
}
