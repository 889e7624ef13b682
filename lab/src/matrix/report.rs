//! The report of `nat-matrix` as Markdown: the table, the exceptions, the figures.

use super::{Kind, Outcome, RTT_MS, Theory, theory};
use std::{collections::BTreeMap, fmt::Write};

/// The whole page.
pub(super) fn markdown(
    kinds: &[Kind],
    rounds: u32,
    outcomes: &[Outcome],
    seen: &BTreeMap<Kind, String>,
) -> String {
    let mut text = String::from("# Every NAT against every NAT\n\n");
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    let _ = write!(
        text,
        "Made by `p2pvm testbed nat-matrix --kinds {} --rounds {rounds} --out docs/nat.md`: real \
            daemons on the emulated wide area, real\n\
         NATs (nftables), two sites of each kind and one public bootstrap, {RTT_MS:.0} ms between \
         any two sites. Pairs are pinged from both\n\
         sides. Time to direct is from the first exchange of addresses to the selected direct \
         path, by the daemon's own count.\nBoth ends may begin at once: exchanges within half a \
         second of each other are one try.\n\n",
        names.join(",")
    );
    figures(&mut text, outcomes);
    text.push_str(
        "\n## Paths\n\nD: direct, with the median time to it. R: through another member. S: over \
            a stream (TCP) of the control plane.\n",
    );
    text.push_str(
        "What differs from theory is marked with **!**. Theory says: direct where both sides' \
            mappings are known beforehand or one\n",
    );
    text.push_str(
        "side hears any port of the other's address; by guessing a port where one side's NAT \
            counts; through a relay otherwise.\n\n",
    );
    table(&mut text, kinds, outcomes);
    exceptions(&mut text, outcomes);
    text.push_str(
        "\n## Kinds\n\n| kind | what it is | what its members say of it |\n|---|---|---|\n",
    );
    for kind in kinds {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            kind.name(),
            kind.about(),
            seen.get(kind).map_or("", String::as_str)
        );
    }
    text.push_str(
        "\nAn IPv6-only site and an IPv4-only one have no common address family and no translator \
            between them: theory allows no direct\n\
         path. Only a member with both families can relay for them; here that is the bootstrap.\n",
    );
    text
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

fn percentile(mut times: Vec<f64>, share: f64) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times
        .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
        .copied()
}

fn share(part: usize, whole: usize) -> String {
    if whole == 0 {
        "none".into()
    } else {
        format!(
            "{part} of {whole} ({:.1} %)",
            part as f64 / whole as f64 * 100.0
        )
    }
}

fn figures(text: &mut String, outcomes: &[Outcome]) {
    let of = |verdict: Theory| {
        outcomes
            .iter()
            .filter(|o| theory(o.kinds.0, o.kinds.1) == verdict)
            .collect::<Vec<_>>()
    };
    let (direct, guess) = (of(Theory::Direct), of(Theory::Guess));
    let is_direct = |o: &&&Outcome| o.is_direct();
    // Two members without NAT need no punch.
    let punched: Vec<_> = direct
        .iter()
        .filter(|o| o.kinds != (Kind::None, Kind::None))
        .collect();
    let counted: Vec<_> = punched.iter().filter_map(|o| o.punch).collect();
    let first = counted
        .iter()
        .filter(|(tries, ms)| *tries == 1 && ms.is_some())
        .count();
    let guessed: Vec<_> = guess.iter().filter_map(|o| o.punch).collect();
    let guessed_first = guessed
        .iter()
        .filter(|(tries, ms)| *tries == 1 && ms.is_some())
        .count();
    let times: Vec<f64> = counted.iter().filter_map(|(_, ms)| *ms).collect();
    let answers: Vec<f64> = outcomes
        .iter()
        .map(|o| o.first_answer_ms)
        .filter(|ms| !ms.is_nan())
        .collect();
    let ms = |value: Option<f64>| value.map_or("none".into(), |ms| format!("{ms:.0} ms"));
    for (what, value) in [
        (
            "pairs connected",
            share(
                outcomes.iter().filter(|o| !o.path.is_empty()).count(),
                outcomes.len(),
            ),
        ),
        (
            "direct where theory allows it",
            share(direct.iter().filter(is_direct).count(), direct.len()),
        ),
        (
            "direct where a port has to be guessed",
            share(guess.iter().filter(is_direct).count(), guess.len()),
        ),
        (
            "punches that succeed at the first try, where theory allows it",
            share(first, counted.len()),
        ),
        (
            "the same where a port has to be guessed",
            share(guessed_first, guessed.len()),
        ),
        ("time to direct, median", ms(median(times.clone()))),
        ("time to direct, 95 % within", ms(percentile(times, 0.95))),
        (
            "first answer, by whatever path, from the start of the command: median",
            ms(median(answers.clone())),
        ),
        ("first answer, 95 % within", ms(percentile(answers, 0.95))),
    ] {
        let _ = writeln!(text, "- {what}: {value}");
    }
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

fn table(text: &mut String, kinds: &[Kind], outcomes: &[Outcome]) {
    let _ = writeln!(
        text,
        "| | {} |",
        kinds
            .iter()
            .map(|kind| kind.name())
            .collect::<Vec<_>>()
            .join(" | ")
    );
    let _ = writeln!(text, "|---|{}", "---|".repeat(kinds.len()));
    for (row, a) in kinds.iter().enumerate() {
        let mut cells = vec![String::new(); row];
        for b in &kinds[row..] {
            let of: Vec<_> = outcomes.iter().filter(|o| o.kinds == (*a, *b)).collect();
            let mut letters: Vec<_> = of.iter().map(|o| letter(&o.path)).collect();
            letters.sort_unstable();
            letters.dedup();
            let time = median(
                of.iter()
                    .filter_map(|o| o.punch.and_then(|(_, ms)| ms))
                    .collect(),
            );
            let time = time
                .filter(|_| letters.contains(&"D"))
                .map_or(String::new(), |ms| format!(" {ms:.0} ms"));
            let mark = if of.iter().all(|o| as_theory_says(o)) {
                ""
            } else {
                " **!**"
            };
            cells.push(format!("{}{time}{mark}", letters.join("/")));
        }
        let _ = writeln!(text, "| **{}** | {} |", a.name(), cells.join(" | "));
    }
}

fn exceptions(text: &mut String, outcomes: &[Outcome]) {
    let odd: Vec<_> = outcomes.iter().filter(|o| !as_theory_says(o)).collect();
    if odd.is_empty() {
        text.push_str("\nNo pair differs from theory.\n");
        return;
    }
    text.push_str("\nPairs that differ from theory:\n\n");
    for outcome in odd {
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
        let _ = writeln!(
            text,
            "- {} to {}: {path}; theory: {verdict}",
            outcome.from, outcome.to
        );
    }
}
