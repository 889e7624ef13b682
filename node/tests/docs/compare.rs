//! Whether two outputs say the same. Times, sizes, ids, keys and addresses differ from run to run;
//! the words around them do not, and an address that a page names twice is one address in the run
//! too.

use regex::Regex;
use std::{collections::HashMap, sync::OnceLock};

/// Kinds of values that differ between runs. Those marked name something, so that what they stand
/// for is remembered.
const KINDS: [(&str, bool, &str); 13] = [
    ("invite", true, r"p2pvm1[a-z2-7]{6,}(…[a-z2-7]+)?"),
    ("key", true, r"\b[a-z2-7]{52}\b"),
    ("peer", true, r"\b12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\b"),
    // Before times: one of six pairs of digits begins like one.
    ("mac", true, r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b"),
    (
        "time",
        false,
        r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?|\b\d\d:\d\d:\d\d\b",
    ),
    (
        "ipv6",
        true,
        r"\b[0-9a-f]{1,4}:[0-9a-f:]*:[0-9a-f:]*[0-9a-f]\b",
    ),
    ("ipv4", true, r"\b\d{1,3}(\.\d{1,3}){3}\b"),
    ("port", false, r":\d{2,5}\b"),
    ("hash", true, r"\b[0-9a-f]{12,64}\b"),
    ("version", false, r"\b\d+\.\d+\.\d+\b"),
    (
        "span",
        false,
        r"\b\d+(days|day|h|m|s|ms|us)( \d+(h|m|s|ms|us|ns))*\b",
    ),
    (
        "amount",
        false,
        r"\b\d+(\.\d+)?(/\d+(\.\d+)?)*( ?%| (KiB|MiB|GiB|TiB|B|µs|ms|s))(\W|$)",
    ),
    ("id", true, r"\b[a-z2-7]{10}\b"),
];
/// Letters of an invite that a page shows, of its beginning (the network's, the same in all) and of
/// its end.
const INVITE_SHOWN: (usize, usize) = (12, 8);

fn kinds() -> &'static Regex {
    static ALL: OnceLock<Regex> = OnceLock::new();
    ALL.get_or_init(|| {
        let each: Vec<String> = KINDS
            .iter()
            .map(|(name, _, pattern)| format!("(?P<{name}>{pattern})"))
            .collect();
        Regex::new(&each.join("|")).expect("the patterns are sound")
    })
}

/// Values that name something, with their kind, in the order in which they stand.
type Values = Vec<(&'static str, String)>;

/// A line with a word for each value that may differ, and the values that name something. With
/// `numbers`, any number may differ.
fn normal(line: &str, numbers: bool) -> (String, Values) {
    static NUMBER: OnceLock<Regex> = OnceLock::new();
    let mut values = Values::new();
    let text = kinds().replace_all(line, |found: &regex::Captures<'_>| {
        let (name, remembered, _) = KINDS
            .iter()
            .find(|(name, ..)| found.name(name).is_some())
            .expect("one of them was found");
        let whole = &found[0];
        if *remembered {
            values.push((name, whole.to_owned()));
        }
        // An amount's pattern takes in what ends it.
        let end = whole
            .chars()
            .last()
            .filter(|c| *name == "amount" && ")],;:./".contains(*c));
        format!(
            "<{name}>{}",
            end.map_or_else(|| " ".to_owned(), String::from)
        )
    });
    // What ping adds when an answer took longer than its interval.
    let text = text.split(", pipe ").next().unwrap_or_default();
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if numbers {
        let number =
            NUMBER.get_or_init(|| Regex::new(r"\d+(\.\d+)?").expect("the pattern is sound"));
        text = number.replace_all(&text, "<number>").into_owned();
    }
    // Members are named in no order: "durable on attic, cellar".
    static NAMES: OnceLock<Regex> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        Regex::new(r"\b[a-z0-9-]+(, [a-z0-9-]+)+\b").expect("the pattern is sound")
    });
    let text = names.replace_all(&text, |found: &regex::Captures<'_>| {
        let mut each: Vec<&str> = found[0].split(", ").collect();
        each.sort_unstable();
        each.join(", ")
    });
    (text.replace(" ,", ","), values)
}

/// What the values of a page stand for in this run.
#[derive(Default)]
pub struct Bindings(HashMap<String, String>);

impl Bindings {
    /// Compares what a page shows with what came; remembers the values if it is the same.
    pub fn same(&mut self, shown: &[String], came: &[String], numbers: bool) -> Result<(), String> {
        let of = |lines: &[String]| -> (Vec<String>, Values) {
            let (texts, values): (Vec<_>, Vec<_>) =
                lines.iter().map(|line| normal(line, numbers)).unzip();
            (
                texts.into_iter().filter(|text| !text.is_empty()).collect(),
                values.concat(),
            )
        };
        let ((shown_texts, shown_values), (came_texts, came_values)) = (of(shown), of(came));
        if shown_texts != came_texts {
            return Err(format!(
                "the page shows\n  {}\nbut it is\n  {}\n({})",
                shown.join("\n  "),
                came.join("\n  "),
                differs(&shown_texts, &came_texts)
            ));
        }
        for ((_, page), (kind, run)) in shown_values.iter().zip(&came_values) {
            if let Some(before) = self.0.get(page).filter(|before| *before != run) {
                return Err(format!(
                    "the page says {page} ({kind}) for what was {before} before and is {run} now"
                ));
            }
        }
        self.remember(shown_values, came_values);
        Ok(())
    }

    /// Remembers what can be, while the page is being written anew: the n-th value of a kind for
    /// the n-th.
    pub fn learn(&mut self, shown: &[String], came: &[String]) {
        let of = |lines: &[String]| {
            lines
                .iter()
                .flat_map(|line| normal(line, false).1)
                .collect::<Values>()
        };
        let (shown, came) = (of(shown), of(came));
        for (kind, ..) in KINDS {
            let distinct = |values: &Values| {
                let mut kept: Vec<String> = Vec::new();
                values
                    .iter()
                    .filter(|(k, _)| *k == kind)
                    .for_each(|(_, v)| {
                        if !kept.contains(v) {
                            kept.push(v.clone())
                        }
                    });
                kept
            };
            self.0
                .extend(distinct(&shown).into_iter().zip(distinct(&came)));
        }
    }

    fn remember(&mut self, shown: Values, came: Values) {
        self.0.extend(
            shown
                .into_iter()
                .zip(came)
                .map(|((_, page), (_, run))| (page, run)),
        );
    }

    /// A command of the page with this run's values.
    pub fn apply(&self, command: &str) -> String {
        let text = kinds().replace_all(command, |found: &regex::Captures<'_>| {
            let whole = &found[0];
            self.0
                .get(whole)
                .cloned()
                .unwrap_or_else(|| whole.to_owned())
        });
        text.into_owned()
    }

    /// What an abbreviated invite stands for.
    pub fn note_invite(&mut self, whole: &str) {
        self.0.insert(abbreviated(whole), whole.to_owned());
    }

    /// The whole of what a value of this run was abbreviated from.
    pub fn whole(&self, text: &str) -> String {
        kinds()
            .replace_all(text, |found: &regex::Captures<'_>| {
                self.0
                    .get(&found[0])
                    .cloned()
                    .unwrap_or_else(|| found[0].to_owned())
            })
            .into_owned()
    }
}

fn differs(shown: &[String], came: &[String]) -> String {
    match shown.iter().zip(came).find(|(a, b)| a != b) {
        Some((a, b)) => format!("'{a}' against '{b}'"),
        None => format!("{} lines against {}", shown.len(), came.len()),
    }
}

/// A line as a page shows it: invites are hundreds of letters long.
pub fn abbreviated(line: &str) -> String {
    static INVITE: OnceLock<Regex> = OnceLock::new();
    let invite =
        INVITE.get_or_init(|| Regex::new(r"p2pvm1[a-z2-7]{60,}").expect("the pattern is sound"));
    invite
        .replace_all(line, |found: &regex::Captures<'_>| shortened(&found[0]))
        .into_owned()
}

fn shortened(invite: &str) -> String {
    let (begin, end) = INVITE_SHOWN;
    format!("{}…{}", &invite[..begin], &invite[invite.len() - end..])
}

/// The invites in a text.
pub fn invites(text: &str) -> Vec<String> {
    let invite = Regex::new(r"p2pvm1[a-z2-7]{60,}").expect("the pattern is sound");
    invite
        .find_iter(text)
        .map(|found| found.as_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn values_may_differ_and_words_may_not() {
        let mut bindings = Bindings::default();
        let page = lines(
            "web is running, address 10.1.2.3\nrtt 23.4 ms, direct 198.18.3.1:4002, up 1m 3s, 0 %",
        );
        let run = lines(
            "web is running, address 10.9.8.7\nrtt   9.25 ms, direct 198.18.3.1:63412, up 59s, \
                12 %",
        );
        bindings.same(&page, &run, false).unwrap();
        assert_eq!(bindings.apply("ping -c 1 10.1.2.3"), "ping -c 1 10.9.8.7");
        for other in [
            "web is stopped, address 10.9.8.7",
            "web is running, address -",
            "",
        ] {
            assert!(
                Bindings::default()
                    .same(&page[..1], &lines(other), false)
                    .is_err(),
                "{other}"
            );
        }
        let said = bindings
            .same(
                &page[..1],
                &lines("web is running, address 10.9.8.6"),
                false,
            )
            .unwrap_err();
        assert!(
            said.contains("10.9.8.7 before"),
            "an address that stays in the page stays in the run: {said}"
        );
        assert!(
            Bindings::default()
                .same(&lines("2 connected"), &lines("3 connected"), false)
                .is_err()
        );
        assert!(
            Bindings::default()
                .same(&lines("2 connected"), &lines("3 connected"), true)
                .is_ok()
        );
    }

    #[test]
    fn a_mac_address_whose_letters_are_all_digits_is_no_time() {
        let run = |mac: &str| lines(&format!("mac {mac} since 21:30:42"));
        let page = run("6a:7f:c7:9c:f1:b8");
        for mac in ["86:00:72:65:fb:c3", "86:00:72:65:10:23"] {
            Bindings::default().same(&page, &run(mac), false).unwrap();
        }
    }

    #[test]
    fn an_invite_is_shown_by_its_beginning_and_used_whole() {
        let invite = format!("p2pvm1{}", "abcdefgh23".repeat(30));
        let shown = abbreviated(&format!("p2pvm join {invite}"));
        assert!(shown.len() < 50 && shown.contains('…'), "{shown}");
        let mut bindings = Bindings::default();
        bindings.note_invite(&invite);
        assert_eq!(bindings.whole(&shown), format!("p2pvm join {invite}"));
        assert_eq!(invites(&invite), [invite]);
    }
}
