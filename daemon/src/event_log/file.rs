//! The files of the log: each is only appended to, until it is full; the oldest go when the log is
//! too large or they are too old. A file begins with the ends of all VMs' chains, so that a chain
//! goes on when its beginning is deleted. After a crash what is not whole at the end is cut off.

use p2pvm_authority::{Event, EventChains, Frame, KeptEvent, Subject, frames, write_frame};
use p2pvm_overlay::{MemberId, identity::KeyPair};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// How many files the log has when it is as large as it may be.
const FILES: u64 = 8;
/// The suffix of a file's name, which is the number of its first event.
const SUFFIX: &str = "events";

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// How many bytes at most.
    pub bytes: u64,
    /// How old an event is at most, milliseconds.
    pub age_ms: u64,
}

/// One file.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    newest_ms: u64,
}

/// The log, open for writing.
pub(super) struct Log {
    dir: PathBuf,
    bounds: Bounds,
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    file: Option<File>,
    chains: EventChains,
    next: u64,
    members: BTreeSet<MemberId>,
}

/// The files of a log, oldest first.
pub(super) fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            found.push(path);
        }
    }
    // The numbers in the names have leading zeros.
    found.sort();
    Ok(found)
}

/// The events in a file, oldest first, without a half-written one at its end.
pub(super) fn read(path: &Path) -> io::Result<Vec<KeptEvent>> {
    let (found, _) = frames(&fs::read(path)?);
    let events = found.into_iter().filter_map(|frame| match frame {
        Frame::Event(event) => Some(event),
        Frame::Chains(_) => None,
    });
    Ok(events.collect())
}

impl Log {
    /// Opens the log in `dir`, which need not exist, at the time `now_ms`.
    pub fn open(dir: &Path, bounds: Bounds, now_ms: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut log = Self {
            dir: dir.to_owned(),
            bounds,
            segments: Vec::new(),
            file: None,
            chains: EventChains::default(),
            next: 1,
            members: BTreeSet::new(),
        };
        for path in paths(dir)? {
            log.take_up(path)?;
        }
        log.trim(now_ms);
        Ok(log)
    }

    fn take_up(&mut self, path: PathBuf) -> io::Result<()> {
        let bytes = fs::read(&path)?;
        let (found, good) = frames(&bytes);
        let mut newest_ms = 0;
        // The file's name is the number of its first event: after a full disk it may have none.
        let named = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        self.next = self.next.max(named.unwrap_or(0));
        for frame in found {
            match frame {
                Frame::Chains(chains) => self.chains = chains,
                Frame::Event(kept) => {
                    let Ok(event) = kept.event() else { continue };
                    self.chains.note(&event, &kept);
                    self.next = self.next.max(event.seq.saturating_add(1));
                    newest_ms = newest_ms.max(event.at_ms);
                    if let Subject::Member(member, _) = event.subject {
                        self.members.insert(member);
                    }
                }
            }
        }
        if good < bytes.len() {
            tracing::warn!(
                file = %path.display(),
                cut = bytes.len() - good,
                "the end of a file of events was not whole and is cut off"
            );
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(good as u64)?;
            file.sync_all()?;
        }
        self.segments.push(Segment {
            path,
            bytes: good as u64,
            newest_ms,
        });
        Ok(())
    }

    /// The members that its events are about.
    pub fn members(&self) -> impl Iterator<Item = MemberId> {
        self.members.iter().copied()
    }

    /// Appends events with one flush, and returns them with their numbers. After an error nothing
    /// was written.
    pub fn append(&mut self, host: &KeyPair, events: &[Event]) -> io::Result<Vec<Event>> {
        let newest_ms = events.iter().map(|event| event.at_ms).max().unwrap_or(0);
        self.open_for_more()?;
        let (mut chains, mut next) = (self.chains.clone(), self.next);
        let (mut bytes, mut numbered) = (Vec::new(), Vec::new());
        for event in events {
            let mut event = event.clone();
            event.seq = next;
            event.link = event.vm().map(|vm| chains.next(vm));
            let kept = KeptEvent::seal(host, &event);
            chains.note(&event, &kept);
            write_frame(&mut bytes, &Frame::Event(kept));
            next += 1;
            numbered.push(event);
        }
        self.write(&bytes)?;
        (self.chains, self.next) = (chains, next);
        if let Some(last) = self.segments.last_mut() {
            last.newest_ms = last.newest_ms.max(newest_ms);
        }
        Ok(numbered)
    }

    /// Writes to the end of the newest file. After an error the file is as it was.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(file), Some(last)) = (&self.file, self.segments.last_mut()) else {
            return Err(io::Error::other("the log of events has no file"));
        };
        let written = file
            .write_all_at(bytes, last.bytes)
            .and_then(|()| file.sync_data());
        if written.is_err() {
            // What cannot be cut off now is overwritten by the next events, or cut off by the next
            // daemon.
            let _ = file.set_len(last.bytes);
            return written;
        }
        last.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Opens the newest file for more events, or begins another one if that is full.
    fn open_for_more(&mut self) -> io::Result<()> {
        let full = self.bounds.bytes / FILES;
        match self.segments.last() {
            Some(last) if last.bytes < full => {
                if self.file.is_none() {
                    self.file = Some(OpenOptions::new().write(true).open(&last.path)?);
                }
                Ok(())
            }
            _ => self.begin_file(),
        }
    }

    fn begin_file(&mut self) -> io::Result<()> {
        let path = self.dir.join(format!("{:020}.{SUFFIX}", self.next));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path)?;
        let mut head = Vec::new();
        write_frame(&mut head, &Frame::Chains(self.chains.clone()));
        let begun = file
            .write_all_at(&head, 0)
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&self.dir)?.sync_all());
        if let Err(error) = begun {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.file = Some(file);
        self.segments.push(Segment {
            path,
            bytes: head.len() as u64,
            newest_ms: 0,
        });
        Ok(())
    }

    /// Deletes the oldest files while the log is too large or they are too old. The newest stays.
    pub fn trim(&mut self, now_ms: u64) {
        while self.segments.len() > 1 {
            let bytes: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
            let oldest = &self.segments[0];
            let is_old = oldest.newest_ms.saturating_add(self.bounds.age_ms) < now_ms;
            if bytes <= self.bounds.bytes && !is_old {
                return;
            }
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::debug!(%error, "an old file of events cannot be deleted");
            }
            self.segments.remove(0);
        }
    }
}
