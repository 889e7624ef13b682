//! What is found wrong with this machine, and what to do about it.
//!
//! Each part of the daemon that watches the host owns one area of the [`Board`] and replaces its
//! findings whenever they change. `p2pvm doctor`, the health word, the status screen and the page
//! read the same board.

use crate::lock;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Something does not work until this is fixed.
    Failed,
}

impl Level {
    /// The level in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was found, with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave it is.
    pub level: Level,
    /// What was found, with its cause: a sentence without a full stop.
    pub found: String,
    /// What to do about it: a command if there is one; empty if nothing is to be done.
    pub advice: String,
}

impl Finding {
    /// Something that is as it should be, and worth knowing.
    pub fn note(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// Something that works less well than it could.
    pub fn warning(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// Something that does not work.
    pub fn failed(found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Failed,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// How long before a finding that comes and goes is logged again.
const QUIET: Duration = Duration::from_secs(60);

/// Called when findings come or go.
type NewsListener = Box<dyn Fn() + Send + Sync>;

/// What is wrong now, by area ("names", "routes", "firewall", ...). Clones share it.
#[derive(Clone, Default)]
pub struct Board(Arc<Shared>);

#[derive(Default)]
struct Shared {
    findings: Mutex<BoardState>,
    on_news: Mutex<Vec<NewsListener>>,
}

#[derive(Debug, Default)]
struct BoardState {
    areas: BTreeMap<&'static str, Vec<Finding>>,
    /// When each finding of the last [`QUIET`] was logged.
    said: BTreeMap<(&'static str, String), Instant>,
    /// Findings on the board that were not logged, because they came again too soon.
    unsaid: BTreeSet<(&'static str, String)>,
}

impl BoardState {
    /// Replaces an area. Returns the findings to log: those that came and those that went.
    fn set(
        &mut self,
        area: &'static str,
        findings: Vec<Finding>,
        now: Instant,
    ) -> (Vec<Finding>, Vec<Finding>) {
        self.said.retain(|_, at| now.duration_since(*at) < QUIET);
        let before = self.areas.remove(area).unwrap_or_default();
        let key = |finding: &Finding| (area, finding.found.clone());
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for finding in &findings {
            if before.contains(finding) && !self.unsaid.contains(&key(finding)) {
                continue;
            }
            match self.said.entry(key(finding)) {
                Entry::Occupied(_) => {
                    self.unsaid.insert(key(finding));
                }
                Entry::Vacant(saying) => {
                    saying.insert(now);
                    self.unsaid.remove(&key(finding));
                    came.push(finding.clone());
                }
            }
        }
        for gone in before.into_iter().filter(|gone| !findings.contains(gone)) {
            if !self.unsaid.remove(&key(&gone)) {
                went.push(gone);
            }
        }
        if !findings.is_empty() {
            self.areas.insert(area, findings);
        }
        (came, went)
    }
}

impl Board {
    /// The areas whose findings come from proofs. A change there does not start further proofs.
    pub const PROVED: [&'static str; 2] = ["path", "guests"];

    /// Calls `tell` from now on whenever findings outside [`Self::PROVED`] come or go, and when the
    /// kernel reports a change. It must not block, nor call this board.
    pub fn on_news(&self, tell: NewsListener) {
        lock(&self.0.on_news).push(tell);
    }

    /// Reports that this machine has changed, so that earlier proofs may no longer hold.
    pub fn stir(&self) {
        lock(&self.0.on_news).iter().for_each(|tell| tell());
    }

    fn lock(&self) -> MutexGuard<'_, BoardState> {
        lock(&self.0.findings)
    }

    /// Replaces the findings of an area; none means that all is well. Each finding is logged once
    /// when it comes and once when it goes, however often this is called; one that comes and goes
    /// is logged once a minute.
    pub fn set(&self, area: &'static str, findings: Vec<Finding>) {
        let mut board = self.lock();
        let is_news = board.areas.get(area).map_or(&[][..], Vec::as_slice) != findings
            && !Self::PROVED.contains(&area);
        let (came, went) = board.set(area, findings, Instant::now());
        drop(board);
        for new in came {
            match new.level {
                Level::Ok => tracing::info!(area, "{}", new.found),
                Level::Warning | Level::Failed => {
                    tracing::warn!(area, advice = %new.advice, "{}", new.found)
                }
            }
        }
        for gone in went.iter().filter(|gone| gone.level != Level::Ok) {
            tracing::info!(area, "settled: {}", gone.found);
        }
        if is_news {
            self.stir();
        }
    }

    /// What is wrong, by area.
    pub fn all(&self) -> Vec<(&'static str, Finding)> {
        let board = self.lock();
        board
            .areas
            .iter()
            .flat_map(|(area, findings)| findings.iter().map(|finding| (*area, finding.clone())))
            .collect()
    }

    /// The gravest level on the board.
    pub fn worst(&self) -> Level {
        self.all()
            .iter()
            .map(|(_, finding)| finding.level)
            .max()
            .unwrap_or(Level::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn changed_findings_are_news_and_those_of_proofs_are_not() {
        let (board, told) = (Board::default(), Arc::new(AtomicUsize::new(0)));
        let counter = told.clone();
        board.on_news(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        let news = |area, findings| {
            let before = told.load(Ordering::Relaxed);
            board.set(area, findings);
            told.load(Ordering::Relaxed) - before
        };
        let one = || vec![Finding::failed("a", "do b")];
        assert_eq!(
            [
                news("firewall", one()),
                news("firewall", one()),
                news("firewall", Vec::new())
            ],
            [1, 0, 1]
        );
        assert_eq!(
            [
                news("path", one()),
                news("guests", one()),
                news("path", Vec::new())
            ],
            [0, 0, 0]
        );
    }

    #[test]
    fn an_area_is_replaced_as_a_whole_and_the_worst_finding_counts() {
        let board = Board::default();
        assert_eq!(board.worst(), Level::Ok);
        board.set(
            "names",
            vec![Finding::warning("a", "do b"), Finding::failed("c", "do d")],
        );
        board.set("routes", vec![Finding::warning("e", "")]);
        assert_eq!((board.all().len(), board.worst()), (3, Level::Failed));
        board.set("names", Vec::new());
        assert_eq!(board.all(), [("routes", Finding::warning("e", ""))]);
    }

    #[test]
    fn a_flapping_finding_is_logged_once_a_minute_a_lasting_one_once() {
        let (mut kept, start, bad) = (
            BoardState::default(),
            Instant::now(),
            vec![Finding::warning("a", "do b")],
        );
        let mut said = 0;
        let mut at = |second: u64, findings: &[Finding]| {
            let (came, went) = kept.set(
                "names",
                findings.to_vec(),
                start + Duration::from_secs(second),
            );
            (came.len(), went.len())
        };
        for second in 0..122 {
            let (came, went) = at(second, if second % 2 == 0 { &bad } else { &[] });
            said += came + went;
        }
        assert_eq!(said, 6, "it came and went once in each minute that began");
        assert_eq!(at(150, &bad), (0, 0), "too soon");
        assert_eq!(at(185, &bad), (1, 0), "but it has stayed");
        assert_eq!(at(186, &[]), (0, 1));
    }
}
