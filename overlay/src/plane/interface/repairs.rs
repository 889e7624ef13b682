//! Which repairs are worth a log line: of a change that is made again and again, only the first
//! few.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How many repairs within [`PERIOD`] count as few: later ones are made slowly and not logged.
pub(crate) const MAX_REPAIRS: usize = 5;
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// When repairs were last logged, by kind of change. Each kind is logged a few times within
/// [`PERIOD`], then no more.
#[derive(Default)]
pub(crate) struct RepairLog(BTreeMap<String, VecDeque<Instant>>);

/// Whether a repair is worth a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RepairLine {
    NoLine,
    /// It is, and the next ones are not: there were many.
    LastLine,
    Line,
}

impl RepairLog {
    /// Notes these repairs and returns whether they are worth a line. Each kind is worth `times`
    /// lines.
    pub fn worth(&mut self, mended: &[String], times: usize, now: Instant) -> RepairLine {
        self.0.retain(|_, at| {
            at.retain(|at| now.saturating_duration_since(*at) <= PERIOD);
            !at.is_empty()
        });
        let worth = mended.iter().map(|what| {
            let at = self.0.entry(kind(what).to_owned()).or_default();
            if at.len() >= times {
                return RepairLine::NoLine;
            }
            at.push_back(now);
            if at.len() == times && times > 1 {
                RepairLine::LastLine
            } else {
                RepairLine::Line
            }
        });
        worth.max().unwrap_or(RepairLine::NoLine)
    }
}

/// The kind of change that a text describes: names and numbers in it vary.
fn kind(what: &str) -> &str {
    let varies = ["it was renamed", "its MTU was"];
    varies
        .into_iter()
        .find(|kind| what.starts_with(kind))
        .unwrap_or(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kind_of_repair_is_told_also_after_a_repeated_one() {
        let (mut log, now) = (RepairLog::default(), Instant::now());
        let mut worth = |what: &str, after| {
            log.worth(
                &[what.to_owned()],
                MAX_REPAIRS,
                now + Duration::from_secs(after),
            )
        };
        let down: Vec<RepairLine> = (0..8).map(|at| worth("it was down", at)).collect();
        assert_eq!(down[..MAX_REPAIRS - 1], [RepairLine::Line; MAX_REPAIRS - 1]);
        assert_eq!(
            down[MAX_REPAIRS - 1..],
            [
                RepairLine::LastLine,
                RepairLine::NoLine,
                RepairLine::NoLine,
                RepairLine::NoLine
            ]
        );
        assert_eq!(
            [worth("its MTU was 1400", 9), worth("it was renamed x", 9)],
            [RepairLine::Line; 2]
        );
        let renamed: Vec<RepairLine> = (0..6)
            .map(|n| worth(&format!("it was renamed x{n}"), 10))
            .collect();
        assert_eq!(
            renamed.last(),
            Some(&RepairLine::NoLine),
            "another name is no other kind"
        );
        assert_eq!(worth("it was down", 100), RepairLine::Line);
    }
}
