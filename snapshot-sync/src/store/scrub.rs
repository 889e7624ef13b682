//! Reading stored chunks to find damage before they are needed: a pass reads every chunk once, in
//! the order of their names, a portion at a time. The position of a pass is in the file `scrub` of
//! the store's directory, so that a restart continues it.

use super::ChunkStore;
use crate::{ChunkId, Error, error::io_at};
use p2pvm_overlay::{UnixTime, durable::write_atomically};
use serde::{Deserialize, Serialize};
use std::{fs, sync::atomic::Ordering, time::Duration};

/// The first byte of the file with the position.
const FORMAT: u8 = 1;

/// How much one portion reads at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Chunks.
    pub chunks: usize,
    /// Their bytes on disk; the chunk that reaches it is still read.
    pub bytes: u64,
}

/// What one portion read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The last chunk read; `None` once all are read.
    pub last: Option<ChunkId>,
    /// How many chunks were read.
    pub chunks: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// How many of them were damaged, and are removed.
    pub damaged: u64,
}

/// How far the present pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubState {
    /// The last chunk that the pass has read; `None` before the first.
    pub(crate) after: Option<ChunkId>,
    /// When the pass began.
    pub began: UnixTime,
    /// How many chunks were here then.
    pub total: u64,
    /// How many the pass has read.
    pub read: u64,
    /// How many damaged chunks all passes have found.
    pub damaged: u64,
    /// When the last whole pass ended.
    pub finished: Option<UnixTime>,
    /// When that pass began: the next one begins a period later.
    pub(crate) last_began: Option<UnixTime>,
}

impl ScrubState {
    /// How much a round reads, so that a pass takes about `period` with a round `every` so often.
    pub fn portion(&self, period: Duration, every: Duration, bytes_per_second: u64) -> Portion {
        let rounds = (period.as_secs() / every.as_secs().max(1)).max(1);
        let chunks = self.total.div_ceil(rounds).max(1);
        Portion {
            chunks: usize::try_from(chunks).unwrap_or(usize::MAX),
            bytes: bytes_per_second.saturating_mul(every.as_secs().max(1)),
        }
    }

    /// Takes up what a portion read.
    pub(crate) fn advance(&mut self, report: &ScrubReport, now: UnixTime) {
        (self.after, self.read) = (report.last, self.read + report.chunks);
        self.damaged += report.damaged;
        if report.last.is_none() {
            *self = Self {
                damaged: self.damaged,
                finished: Some(now),
                last_began: Some(self.began),
                ..Self::default()
            };
        }
    }

    /// Whether the next pass waits: the last one began less than a period ago. A clock that was
    /// ahead delays none.
    pub(crate) fn waits(&self, now: UnixTime, period: Duration) -> bool {
        let is_recent = |began: UnixTime| began <= now && now < began.plus(period.as_secs());
        !self.is_under_way() && self.last_began.is_some_and(is_recent)
    }

    /// Whether a pass is under way.
    pub fn is_under_way(&self) -> bool {
        self.began.0 > 0
    }

    fn to_bytes(self) -> Vec<u8> {
        postcard::to_extend(&self, vec![FORMAT]).expect("plain fields always serialize into memory")
    }

    /// Reads what [`Self::to_bytes`] wrote; a pass begins again for anything else.
    fn from_bytes(bytes: &[u8]) -> Self {
        let state = match bytes.split_first() {
            Some((&FORMAT, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        };
        state.unwrap_or_default()
    }
}

impl ChunkStore {
    /// Reads the next `portion` of chunks after `after`, in the order of their names; damaged ones
    /// are removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scrub(&self, after: Option<ChunkId>, portion: Portion) -> Result<ScrubReport, Error> {
        let before = self.0.damaged.load(Ordering::Relaxed);
        let mut report = ScrubReport {
            last: after,
            ..ScrubReport::default()
        };
        let damaged = || self.0.damaged.load(Ordering::Relaxed) - before;
        let first_shard = after.map_or(0, |id| id.0[0]);
        for shard in first_shard..=u8::MAX {
            let mut ids = Vec::new();
            self.each_in_shard(shard, &mut |id, _| ids.push(id))?;
            ids.retain(|id| after.is_none_or(|after| *id > after));
            ids.sort();
            for id in ids {
                if report.chunks >= portion.chunks as u64 || report.bytes >= portion.bytes {
                    report.damaged = damaged();
                    return Ok(report);
                }
                match self.get_stored(id) {
                    Ok(stored) => report.bytes += stored.len() as u64,
                    Err(Error::NotFound(_) | Error::Corrupt { .. }) => {}
                    Err(other) => return Err(other),
                }
                (report.last, report.chunks) = (Some(id), report.chunks + 1);
            }
        }
        (report.last, report.damaged) = (None, damaged());
        Ok(report)
    }

    /// How many chunks are here.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn count(&self) -> Result<u64, Error> {
        let mut count = 0;
        self.each_file(|_, _| count += 1)?;
        Ok(count)
    }

    /// The position of the scrub, as it was last written; at its beginning if the file cannot be
    /// read.
    pub(crate) fn scrub_state(&self) -> ScrubState {
        fs::read(self.scrub_file()).map_or_else(
            |_| ScrubState::default(),
            |bytes| ScrubState::from_bytes(&bytes),
        )
    }

    pub(crate) fn write_scrub_state(&self, state: ScrubState) -> Result<(), Error> {
        let file = self.scrub_file();
        write_atomically(&file, &state.to_bytes(), 0o600)
            .map_err(io_at("writing how far chunks were checked", &file))
    }

    fn scrub_file(&self) -> std::path::PathBuf {
        self.0.dir.join("scrub")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_reads_all_in_its_period_within_the_rate() {
        let state = ScrubState {
            total: 100_000,
            ..ScrubState::default()
        };
        let (month, minute) = (Duration::from_secs(30 * 86_400), Duration::from_secs(60));
        let portion = state.portion(month, minute, 1 << 20);
        assert_eq!(portion.bytes, 60 << 20);
        assert!(portion.chunks as u64 * 30 * 1440 >= state.total);
        assert_eq!(ScrubState::default().portion(month, minute, 0).chunks, 1);
        assert_eq!(state.portion(Duration::ZERO, minute, 1).chunks, 100_000);
    }

    #[test]
    fn a_scrubs_position_survives_and_junk_begins_a_pass() {
        let directory = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(directory.path()).unwrap();
        let state = ScrubState {
            after: Some(ChunkId([7; 32])),
            began: UnixTime(9),
            total: 5,
            read: 2,
            damaged: 1,
            finished: Some(UnixTime(3)),
            last_began: Some(UnixTime(2)),
        };
        store.write_scrub_state(state).unwrap();
        drop(store);
        let store = ChunkStore::open(directory.path()).unwrap();
        assert_eq!(store.scrub_state(), state);
        for junk in [&b""[..], b"\x01", b"\x02junk", &[0xff; 200]] {
            fs::write(directory.path().join("scrub"), junk).unwrap();
            assert_eq!(store.scrub_state(), ScrubState::default());
        }
    }

    #[test]
    fn a_pass_that_ends_keeps_its_count_of_damage() {
        let mut state = ScrubState {
            began: UnixTime(1),
            total: 9,
            read: 8,
            damaged: 1,
            ..ScrubState::default()
        };
        let report = ScrubReport {
            chunks: 1,
            damaged: 2,
            ..ScrubReport::default()
        };
        state.advance(&report, UnixTime(5));
        assert_eq!((state.damaged, state.finished), (3, Some(UnixTime(5))));
        assert!(!state.is_under_way());
        let period = Duration::from_secs(10);
        assert!(state.waits(UnixTime(10), period) && !state.waits(UnixTime(11), period));
        assert!(!state.waits(UnixTime(0), period), "its clock was ahead");
    }
}
