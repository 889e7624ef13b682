//! One figure: its rounds, and the value that follows from them.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// How many decimals a file keeps of a number.
/// Reason: more than any page shows, and a file stays readable.
const KEPT_DECIMALS: i32 = 6;

/// The result of one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// A number, in the figure's unit.
    Number(f64),
    /// A value that is no number: a version, a path.
    Words(String),
    /// It did not happen within the limit of the measurement.
    Never,
}

impl Amount {
    /// As a page shows it, without the unit.
    pub fn shown(&self, digits: usize) -> String {
        match self {
            Self::Number(number) => format!("{number:.digits$}"),
            Self::Words(words) => words.clone(),
            Self::Never => "never".into(),
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        let rank = |amount: &Self| match amount {
            Self::Number(number) => *number,
            Self::Words(_) | Self::Never => f64::INFINITY,
        };
        rank(self).total_cmp(&rank(other))
    }

    fn kept(self) -> Self {
        let scale = 10f64.powi(KEPT_DECIMALS);
        match self {
            Self::Number(number) if number.is_finite() => {
                Self::Number((number * scale).round() / scale)
            }
            Self::Number(_) => Self::Never,
            other => other,
        }
    }
}

impl From<f64> for Amount {
    fn from(number: f64) -> Self {
        Self::Number(number).kept()
    }
}

impl From<Option<f64>> for Amount {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Never, Self::from)
    }
}

impl From<String> for Amount {
    fn from(words: String) -> Self {
        Self::Words(words)
    }
}

impl From<&str> for Amount {
    fn from(words: &str) -> Self {
        Self::Words(words.into())
    }
}

/// How the value follows from the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Summary {
    /// The median; of an even number of rounds, the greater of the middle two; of words, each word
    /// once.
    #[default]
    Median,
    /// The sum: each round counted something.
    Sum,
}

impl Summary {
    fn is_median(&self) -> bool {
        *self == Self::Median
    }

    /// The value of some rounds; `None` without rounds.
    fn of(self, rounds: &[Amount]) -> Option<Amount> {
        let words = |amount: &Amount| matches!(amount, Amount::Words(_));
        let mut sorted = rounds.to_vec();
        if rounds.iter().any(words) {
            let mut each: Vec<String> = rounds.iter().map(|round| round.shown(0)).collect();
            each.sort();
            each.dedup();
            return Some(Amount::Words(each.join("/")));
        }
        match self {
            Self::Median => {
                sorted.sort_by(Amount::order);
                sorted.get(sorted.len() / 2).cloned()
            }
            Self::Sum => {
                let number = |amount: &Amount| match amount {
                    Amount::Number(number) => Some(*number),
                    _ => None,
                };
                let sum: Option<f64> = rounds.iter().map(number).sum();
                sum.filter(|_| !rounds.is_empty()).map(Amount::from)
            }
        }
    }
}

/// One figure of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Its name for pages: lower case, digits, `-`.
    pub name: String,
    /// The subject, where one name has several: a program, a size, a seed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// Its description.
    pub what: String,
    /// Unit of value and rounds; empty for a count, a ratio, words.
    pub unit: String,
    /// Its target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aim: Option<String>,
    /// The summary of the rounds.
    pub value: Amount,
    /// Every round, in the order in which they were measured.
    pub rounds: Vec<Amount>,
    /// How the value follows from them.
    #[serde(default, skip_serializing_if = "Summary::is_median")]
    pub summary: Summary,
    /// Least and greatest round, where a transcribed page gives no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<[Amount; 2]>,
    /// Decimals that a page shows.
    pub digits: usize,
    /// Which of the set's runs measured it; the set fills it in.
    pub run: usize,
}

impl Figure {
    /// A figure of some rounds. Pages show it as a whole number unless [`Self::digits()`] is used.
    pub fn new<R: Into<Amount>>(
        name: &str,
        what: &str,
        unit: &str,
        rounds: impl IntoIterator<Item = R>,
    ) -> Self {
        let rounds: Vec<Amount> = rounds
            .into_iter()
            .map(|round| round.into().kept())
            .collect();
        Self {
            name: name.into(),
            of: String::new(),
            what: what.into(),
            unit: unit.into(),
            aim: None,
            value: Summary::Median.of(&rounds).unwrap_or(Amount::Never),
            rounds,
            summary: Summary::Median,
            spread: None,
            digits: 0,
            run: 0,
        }
    }

    /// Sets the subject.
    pub fn of(self, of: impl Into<String>) -> Self {
        Self {
            of: of.into(),
            ..self
        }
    }

    /// Sets how many decimals pages show.
    pub fn digits(self, digits: usize) -> Self {
        Self { digits, ..self }
    }

    /// Sets the target.
    pub fn aim(self, aim: &str) -> Self {
        Self {
            aim: Some(aim.into()),
            ..self
        }
    }

    /// Makes the value the sum of the rounds.
    pub fn sum(self) -> Self {
        let value = Summary::Sum.of(&self.rounds).unwrap_or(Amount::Never);
        Self {
            summary: Summary::Sum,
            value,
            ..self
        }
    }

    /// The rounds by size.
    pub fn sorted(&self) -> Vec<Amount> {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(Amount::order);
        sorted
    }

    /// Its least and its greatest round.
    pub fn extremes(&self) -> Option<[Amount; 2]> {
        let sorted = self.sorted();
        match (sorted.first(), sorted.last()) {
            (Some(least), Some(most)) => Some([least.clone(), most.clone()]),
            _ => self.spread.clone(),
        }
    }

    /// What is wrong with it, if anything. A figure of a transcribed run may lack its rounds.
    pub(crate) fn fault(&self, transcribed: bool) -> Option<String> {
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || !self.name.chars().all(named) {
            return Some("a name has lower case letters, digits and - only".into());
        }
        if self.of.contains(['|', '{', '}', ':', '\n']) {
            return Some(format!("'{}' does not fit into a table", self.of));
        }
        if self.rounds.is_empty() {
            return (!transcribed).then(|| "it was measured, and has no rounds".into());
        }
        if self.spread.is_some() {
            return Some("it has rounds, so its spread must not be given".into());
        }
        let follows = self.summary.of(&self.rounds);
        let same = match (&follows, &self.value) {
            (Some(Amount::Number(a)), Amount::Number(b)) => (a - b).abs() <= 1e-5 * (1.0 + a.abs()),
            (Some(a), b) => a == b,
            (None, _) => false,
        };
        (!same).then(|| {
            let of = follows.map_or("nothing".into(), |value| value.shown(self.digits));
            let is = self.value.shown(self.digits);
            format!("its value is {is}, its rounds give {of}")
        })
    }
}

/// Figures for a terminal: one below the other, each with its subject.
pub(crate) fn overview(figures: &[Figure]) -> String {
    let mut text = String::new();
    let mut before = "";
    for figure in figures {
        let head = match (figure.unit.as_str(), &figure.aim) {
            ("", None) => figure.what.clone(),
            (unit, None) => format!("{}, {unit}", figure.what),
            ("", Some(aim)) => format!("{} (aim: {aim})", figure.what),
            (unit, Some(aim)) => format!("{}, {unit} (aim: {aim})", figure.what),
        };
        if figure.name != before {
            text += &format!("{head}\n");
        }
        before = &figure.name;
        let rounds: Vec<String> = figure
            .rounds
            .iter()
            .map(|round| round.shown(figure.digits))
            .collect();
        let value = figure.value.shown(figure.digits);
        text += &format!("  {:28} {value:>10}  ({})\n", figure.of, rounds.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(rounds: &[f64]) -> Figure {
        Figure::new("rate", "a rate", "Gbit/s", rounds.iter().copied())
    }

    #[test]
    fn the_value_is_the_median_and_the_rounds_keep_their_order() {
        let figure = rates(&[3.0, 1.0, 2.0]);
        assert_eq!(figure.value, Amount::Number(2.0));
        assert_eq!(figure.rounds[0], Amount::Number(3.0));
        assert_eq!(rates(&[4.0, 1.0]).value, Amount::Number(4.0));
        let never = Figure::new("x", "x", "s", [Some(1.0), None, None]);
        assert_eq!(never.value, Amount::Never);
        assert_eq!(rates(&[1.0, f64::NAN]).value, Amount::Never);
    }

    #[test]
    fn counts_are_summed_and_words_are_named_once() {
        let pairs = Figure::new("pairs", "pairs", "", [121.0, 121.0, 120.0]).sum();
        assert_eq!(pairs.value, Amount::Number(362.0));
        let paths = Figure::new("path", "path", "", ["R", "D", "R"]);
        assert_eq!(paths.value, Amount::from("D/R"));
    }

    #[test]
    fn a_value_that_its_rounds_do_not_give_is_a_fault() {
        let good = rates(&[3.0, 1.0, 2.0]);
        assert_eq!(good.fault(false), None);
        let mut better = good.clone();
        better.value = Amount::Number(2.5);
        assert!(better.fault(false).is_some() && better.fault(true).is_some());
        let mut written = good.clone();
        written.rounds.clear();
        assert!(written.fault(false).is_some(), "no rounds, no figure");
        assert_eq!(written.fault(true), None, "a page may have had none");
        assert!(rates(&[]).fault(false).is_some());
        let shouting = Figure {
            name: "Rate".into(),
            ..good
        };
        assert!(shouting.fault(false).is_some());
    }

    #[test]
    fn an_overview_shows_each_name_once() {
        let figures = [rates(&[3.0]).of("raw"), rates(&[1.0]).of("p2pvm").digits(1)];
        let text = overview(&figures);
        assert_eq!(text.matches("a rate, Gbit/s").count(), 1, "{text}");
        assert!(text.contains("p2pvm") && text.contains("(1.0)"), "{text}");
    }
}
