//! Wakes the keeper when a list of name servers may have changed.
//!
//! Directories are watched, because most programs replace a file by another, and the files too: one
//! that is mounted by itself changes without its directory. For a missing file, its nearest
//! existing directory is watched.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long to wait after a change.
/// Reason: a program writes a file in pieces.
const SETTLE: Duration = Duration::from_millis(40);

/// A watch over some files.
pub struct Watch {
    inotify: Inotify,
    /// What is watched, and the names in it that count; none for a file itself.
    watched: HashMap<WatchDescriptor, (PathBuf, BTreeSet<OsString>)>,
    wanted: BTreeSet<PathBuf>,
}

impl Watch {
    /// A watch over no files yet.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            inotify,
            watched: HashMap::new(),
            wanted: BTreeSet::new(),
        })
    }

    /// Watches over these files from now on.
    pub fn over(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        self.wanted = files.into_iter().collect();
        let old: Vec<WatchDescriptor> = self
            .watched
            .drain()
            .map(|(descriptor, _)| descriptor)
            .collect();
        // One that is wanted again keeps its descriptor: it is added before the others go.
        for file in self.wanted.clone() {
            self.add(&file);
        }
        for descriptor in old
            .into_iter()
            .filter(|descriptor| !self.watched.contains_key(descriptor))
        {
            let _ = self.inotify.rm_watch(descriptor);
        }
    }

    fn add(&mut self, file: &Path) {
        let directory = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        let itself =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let mut child = file.to_owned();
        while let (Some(parent), Some(name)) = (
            child.parent().map(Path::to_owned),
            child.file_name().map(OsString::from),
        ) {
            if let Ok(descriptor) = self.inotify.add_watch(&parent, directory) {
                let (_, names) = self
                    .watched
                    .entry(descriptor)
                    .or_insert_with(|| (parent.clone(), BTreeSet::new()));
                names.insert(name);
                break;
            }
            child = parent;
        }
        if file.is_file()
            && let Ok(descriptor) = self.inotify.add_watch(file, itself)
        {
            self.watched
                .entry(descriptor)
                .or_insert_with(|| (file.to_owned(), BTreeSet::new()));
        }
    }

    /// Reads the events. Returns whether any counts.
    fn drain(&mut self) -> bool {
        let mut counts = false;
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                counts |= match (self.watched.get(&event.wd), &event.name) {
                    (Some((_, names)), Some(name)) => names.contains(name),
                    (Some(_), None) => true,
                    // Events were lost (IN_Q_OVERFLOW).
                    (None, _) => event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW),
                };
            }
        }
        counts
    }

    /// Waits until one of the files may have changed or `bell` can be read, at most `limit`.
    /// Returns whether a file may have changed.
    pub fn wait(&mut self, bell: BorrowedFd<'_>, limit: Duration) -> bool {
        let began = std::time::Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let rung = poll(&[self.inotify.as_fd(), bell], left);
            if rung[0] && self.drain() {
                std::thread::sleep(SETTLE);
                self.drain();
                let wanted = std::mem::take(&mut self.wanted);
                self.over(wanted);
                return true;
            }
            if rung[1] || began.elapsed() >= limit {
                return false;
            }
        }
    }
}

/// Which of the descriptors can be read, as soon as one can or `limit` is over.
fn poll(descriptors: &[BorrowedFd<'_>; 2], limit: Duration) -> [bool; 2] {
    let entry = |fd: &BorrowedFd<'_>| nix::libc::pollfd {
        fd: fd.as_raw_fd(),
        events: nix::libc::POLLIN,
        revents: 0,
    };
    let mut entries = [entry(&descriptors[0]), entry(&descriptors[1])];
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array is ours and has two entries, whose descriptors live as long as the borrows.
    unsafe { nix::libc::poll(entries.as_mut_ptr(), 2, millis) };
    entries.map(|entry| entry.revents != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::net::UnixStream};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(150);

    #[test]
    fn every_way_to_change_a_file_wakes_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("resolv.conf"), dir.path().join("other"));
        let (bell, ring) = UnixStream::pair().unwrap();
        let mut watch = Watch::new().unwrap();
        watch.over([file.clone(), dir.path().join("run/resolve/socket")]);
        let mut wakes = |what: &str, change: &dyn Fn()| {
            change();
            assert!(watch.wait(bell.as_fd(), LONG), "{what}");
            assert!(!watch.wait(bell.as_fd(), SHORT), "{what}: once");
        };
        wakes("made", &|| fs::write(&file, "a").unwrap());
        wakes("written", &|| fs::write(&file, "b").unwrap());
        wakes("replaced", &|| {
            fs::write(&other, "c").unwrap();
            fs::rename(&other, &file).unwrap();
        });
        wakes("written after it was replaced", &|| {
            fs::write(&file, "d").unwrap()
        });
        wakes("gone", &|| fs::remove_file(&file).unwrap());
        wakes("a directory far above", &|| {
            fs::create_dir(dir.path().join("run")).unwrap()
        });
        wakes("the next one", &|| {
            fs::create_dir(dir.path().join("run/resolve")).unwrap()
        });
        wakes("the file in it", &|| {
            fs::write(dir.path().join("run/resolve/socket"), "").unwrap()
        });
        fs::write(&other, "x").unwrap();
        assert!(!watch.wait(bell.as_fd(), SHORT), "another file");
        std::io::Write::write_all(&mut &ring, b"!").unwrap();
        assert!(!watch.wait(bell.as_fd(), LONG), "the bell");
    }
}
