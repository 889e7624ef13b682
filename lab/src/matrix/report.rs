//! The figures of `nat-matrix`: the path and the times of each pair of kinds, in each round.

use super::{Kind, Outcome, Theory, theory};
use crate::figures::Figure;
use std::collections::BTreeMap;

/// All figures. `seen` has the NAT that the members of each kind report.
pub(super) fn figures(
    kinds: &[Kind],
    rounds: &[Vec<Outcome>],
    seen: &BTreeMap<Kind, String>,
) -> Vec<Figure> {
    let mut all = counts(rounds);
    all.extend(times(rounds));
    for a in kinds {
        for b in kinds {
            all.extend(pair(*a, *b, rounds));
        }
    }
    for (number, outcomes) in rounds.iter().enumerate() {
        let odd = outcomes.iter().filter(|o| !as_theory_says(o));
        all.extend(odd.map(|outcome| {
            let (from, to) = (&outcome.from, &outcome.to);
            Figure::new("differs", "differs from theory", "", [describe(outcome)])
                .of(format!("{from} to {to}, round {}", number + 1))
        }));
    }
    all.extend(kinds.iter().filter_map(|kind| {
        let said = seen.get(kind)?.as_str();
        Some(Figure::new("says", "what its members say of it", "", [said]).of(kind.name()))
    }));
    all
}

/// Whether a path needs a punch: between two members without NAT it does not.
fn is_punched(outcome: &Outcome) -> bool {
    outcome.kinds != (Kind::None, Kind::None)
}

fn is_of(outcome: &Outcome, verdict: Theory) -> bool {
    theory(outcome.kinds.0, outcome.kinds.1) == verdict
}

/// How many pairs of each round satisfy `is_so`.
fn count(
    rounds: &[Vec<Outcome>],
    (name, what): (&str, &str),
    is_so: impl Fn(&Outcome) -> bool,
) -> Figure {
    let of = |outcomes: &Vec<Outcome>| outcomes.iter().filter(|o| is_so(o)).count() as f64;
    Figure::new(name, what, "", rounds.iter().map(of)).sum()
}

fn counts(rounds: &[Vec<Outcome>]) -> Vec<Figure> {
    let first = |o: &Outcome| {
        o.punch
            .is_some_and(|(tries, ms)| tries == 1 && ms.is_some())
    };
    let punch = |o: &Outcome| is_of(o, Theory::Direct) && is_punched(o) && o.punch.is_some();
    let guess = |o: &Outcome| is_of(o, Theory::Guess);
    let connected = ("connected", "pairs connected");
    let direct = ("direct", "direct where theory allows it");
    let first_try = (
        "first-try",
        "punches that succeed at the first try, where theory allows it",
    );
    vec![
        count(rounds, ("pairs", "pairs"), |_| true),
        count(rounds, connected, |o| !o.path.is_empty()).aim("100 %"),
        count(
            rounds,
            ("direct-possible", "pairs that theory allows a direct path"),
            |o| is_of(o, Theory::Direct),
        ),
        count(rounds, direct, |o| {
            is_of(o, Theory::Direct) && o.is_direct()
        })
        .aim("100 %"),
        count(
            rounds,
            ("guess-possible", "pairs whose port has to be guessed"),
            guess,
        ),
        count(
            rounds,
            ("guess-direct", "direct where a port has to be guessed"),
            |o| guess(o) && o.is_direct(),
        ),
        count(
            rounds,
            ("punches", "punches, where theory allows it"),
            punch,
        ),
        count(rounds, first_try, |o| punch(o) && first(o)).aim("≥ 97 %"),
        count(
            rounds,
            ("guess-punches", "punches where a port has to be guessed"),
            |o| guess(o) && o.punch.is_some(),
        ),
        count(
            rounds,
            ("guess-first-try", "of these at the first try"),
            |o| guess(o) && first(o),
        ),
    ]
}

/// The value below which a share of the times lies.
fn percentile(mut times: Vec<f64>, share: f64) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied()
}

fn times(rounds: &[Vec<Outcome>]) -> Vec<Figure> {
    type Getter = fn(&Outcome) -> Option<f64>;
    let direct: Getter = |o| {
        let punch = o
            .punch
            .filter(|_| is_of(o, Theory::Direct) && is_punched(o));
        punch.and_then(|(_, ms)| ms)
    };
    let answer: Getter = |o| Some(o.first_answer_ms).filter(|ms| !ms.is_nan());
    let all: [(&str, &str, Getter, f64); 4] = [
        ("time-median", "time to direct, median", direct, 0.5),
        ("time-p95", "time to direct, 95 % within", direct, 0.95),
        (
            "answer-median",
            "first answer, by any path, from the start of the command: median",
            answer,
            0.5,
        ),
        ("answer-p95", "first answer, 95 % within", answer, 0.95),
    ];
    let figure = |(name, what, of, share): (&str, &str, Getter, f64)| {
        let each =
            |outcomes: &Vec<Outcome>| percentile(outcomes.iter().filter_map(of).collect(), share);
        Figure::new(name, what, "ms", rounds.iter().map(each))
    };
    all.into_iter().map(figure).collect()
}

fn letter(path: &str) -> &'static str {
    match path.split(' ').next() {
        Some("direct") => "D",
        Some("relayed" | "ring") => "R",
        Some("stream") => "S",
        _ => "none",
    }
}

fn as_theory_says(outcome: &Outcome) -> bool {
    match theory(outcome.kinds.0, outcome.kinds.1) {
        Theory::Direct | Theory::Guess => outcome.is_direct(),
        // Theory only says that the path is not direct, not which one it is.
        Theory::Relay | Theory::Stream => !outcome.path.is_empty() && !outcome.is_direct(),
    }
}

/// Path and time to a direct one of a pair of kinds, each as `path-B` and `time-B` of A.
fn pair(a: Kind, b: Kind, rounds: &[Vec<Outcome>]) -> Vec<Figure> {
    let outcomes = rounds.iter().flatten().filter(|o| o.kinds == (a, b));
    let (mut paths, mut times) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        let mark = if as_theory_says(outcome) { "" } else { "!" };
        paths.push(format!("{}{mark}", letter(&outcome.path)));
        let direct = outcome.punch.filter(|_| outcome.is_direct());
        times.extend(direct.and_then(|(_, ms)| ms));
    }
    let paths = Figure::new(&format!("path-{}", b.name()), "path", "", paths);
    let times = Figure::new(&format!("time-{}", b.name()), "time to direct", "ms", times);
    let measured = [paths, times].into_iter().filter(|f| !f.rounds.is_empty());
    measured.map(|figure| figure.of(a.name())).collect()
}

fn describe(outcome: &Outcome) -> String {
    let path = if outcome.path.is_empty() {
        "not connected"
    } else {
        &outcome.path
    };
    let verdict = match theory(outcome.kinds.0, outcome.kinds.1) {
        Theory::Direct => "direct",
        Theory::Guess => "direct by a guessed port",
        Theory::Relay => "not direct",
        Theory::Stream => "a stream",
    };
    format!("{path}; theory: {verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_figures::Amount;

    fn outcome(kinds: (Kind, Kind), path: &str, punch: Option<(u32, Option<f64>)>) -> Outcome {
        Outcome {
            kinds,
            from: format!("{}-a", kinds.0.name()),
            to: format!("{}-b", kinds.1.name()),
            path: path.into(),
            rtt_ms: 40.0,
            first_answer_ms: 50.0,
            punch,
        }
    }

    #[test]
    fn rounds_are_counted_apart_and_what_theory_does_not_say_is_marked() {
        let (cone, sequential) = (Kind::PortRestricted, Kind::Sequential);
        let direct = outcome((cone, cone), "direct 1.2.3.4:5", Some((1, Some(80.0))));
        let guessed = outcome((cone, sequential), "relayed via x", Some((3, None)));
        let rounds = [vec![direct.clone(), guessed], vec![direct]];
        let figures = figures(&[cone, sequential], &rounds, &BTreeMap::new());
        let value = |name: &str, of: &str| {
            let figure = figures.iter().find(|f| f.name == name && f.of == of);
            figure.map(|f| (f.value.clone(), f.rounds.len()))
        };
        assert_eq!(value("pairs", ""), Some((Amount::Number(3.0), 2)));
        assert_eq!(value("direct", ""), Some((Amount::Number(2.0), 2)));
        assert_eq!(value("guess-direct", ""), Some((Amount::Number(0.0), 2)));
        assert_eq!(value("first-try", ""), Some((Amount::Number(2.0), 2)));
        let of = "port-restricted";
        assert_eq!(
            value("path-port-restricted", of),
            Some(("D".into(), 2)),
            "{figures:?}"
        );
        assert_eq!(
            value("path-symmetric-sequential", of),
            Some(("R!".into(), 1))
        );
        assert_eq!(value("time-symmetric-sequential", of), None);
        let differs = "port-restricted-a to symmetric-sequential-b, round 1";
        assert!(value("differs", differs).is_some());
    }
}
