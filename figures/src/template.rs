//! Lines of a page with places for figures.
//!
//! A place is `{name}`, `{name@of}` or `{set/name@of}`, optionally followed by `:style` (see
//! [`Style`]) and by `?`, which leaves a missing figure blank. `{of}` is the line's subject,
//! `{runs}` how the set was measured.
//!
//! A line that begins with `* ` is repeated for each subject of the figures in it, except those
//! with `?`; a cell of a table that begins with `* ` is repeated within its row.

use crate::{Amount, Figure, Run, Set, Sets};

/// The part of a figure that is shown.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// The value without its unit.
    Value,
    /// `unit`: the value with its unit.
    Unit,
    /// `spread`: the value, then the least and the greatest round.
    Spread,
    /// `rounds`: value and unit, then all rounds by size.
    Rounds,
    /// `least`, `most`: the least or the greatest round.
    Least,
    Most,
    /// `count`: the number of rounds.
    Count,
    /// `aim`.
    Aim,
    /// `when`: day and commit.
    When,
    /// `command`.
    Command,
    /// `row`: aim, rounds, when and command, as cells of a table.
    Row,
}

impl Style {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Value,
            "unit" => Self::Unit,
            "spread" => Self::Spread,
            "rounds" => Self::Rounds,
            "least" => Self::Least,
            "most" => Self::Most,
            "count" => Self::Count,
            "aim" => Self::Aim,
            "when" => Self::When,
            "command" => Self::Command,
            "row" => Self::Row,
            _ => return None,
        })
    }
}

/// A place for a figure.
struct Place<'a> {
    set: Option<&'a str>,
    name: &'a str,
    of: Option<&'a str>,
    style: Style,
    may_lack: bool,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let (text, may_lack) = text.strip_suffix('?').map_or((text, false), |t| (t, true));
        let (text, style) = text.rsplit_once(':').unwrap_or((text, ""));
        let style = Style::parse(style).ok_or_else(|| format!("there is no style '{style}'"))?;
        let (text, of) = match text.split_once('@') {
            Some((text, of)) => (text, Some(of)),
            None => (text, None),
        };
        let (set, name) = match text.split_once('/') {
            Some((set, name)) => (Some(set), name),
            None => (None, text),
        };
        Ok(Self {
            set,
            name,
            of,
            style,
            may_lack,
        })
    }
}

/// A piece of a line.
enum Piece<'a> {
    Text(&'a str),
    Place(&'a str),
}

fn pieces(line: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = line;
    while let Some((text, behind)) = rest.split_once('{') {
        let Some((place, behind)) = behind.split_once('}') else {
            break;
        };
        pieces.extend([Piece::Text(text), Piece::Place(place)]);
        rest = behind;
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// The values for the places of a block.
pub(crate) struct Filler<'a> {
    pub sets: &'a Sets,
    /// The set of places that name none.
    pub set: &'a str,
}

impl Filler<'_> {
    fn set(&self, name: Option<&str>) -> Result<&Set, String> {
        let name = name.unwrap_or(self.set);
        let there = || format!("there is no docs/figures/{name}.json");
        self.sets.get(name).ok_or_else(there)
    }

    /// The lines that a line of a template becomes.
    pub fn line(&self, line: &str) -> Result<Vec<String>, String> {
        match line.strip_prefix("* ") {
            Some(row) => {
                let each = self.subjects(row)?.into_iter();
                each.map(|of| self.cells(row, Some(&of))).collect()
            }
            None => Ok(vec![self.cells(line, None)?]),
        }
    }

    /// The subjects of the figures in a text, in the set's order.
    fn subjects(&self, text: &str) -> Result<Vec<String>, String> {
        let set = self.set(None)?;
        let mut names = Vec::new();
        for piece in pieces(text) {
            if let Piece::Place(place) = piece
                && place != "of"
            {
                let place = Place::parse(place)?;
                if place.set.is_none() && place.of.is_none() && !place.may_lack {
                    names.push(place.name.to_owned());
                }
            }
        }
        let mut subjects: Vec<String> = Vec::new();
        for figure in &set.figures {
            let named = names.is_empty() || names.contains(&figure.name);
            if named && !figure.of.is_empty() && !subjects.contains(&figure.of) {
                subjects.push(figure.of.clone());
            }
        }
        Ok(subjects)
    }

    fn cells(&self, line: &str, of: Option<&str>) -> Result<String, String> {
        if !line.starts_with('|') {
            return self.fill(line, of);
        }
        let mut cells = Vec::new();
        for cell in line.trim_matches('|').split('|') {
            match cell.trim_start().strip_prefix("* ") {
                Some(cell) => {
                    for of in self.subjects(cell)? {
                        cells.push(self.fill(cell, Some(&of))?);
                    }
                }
                None => cells.push(self.fill(cell, of)?),
            }
        }
        let padded = |cell: &String| match cell.trim() {
            "" => " ".to_owned(),
            rule if rule.bytes().all(|b| b == b'-') => rule.to_owned(),
            text => format!(" {text} "),
        };
        let cells: Vec<String> = cells.iter().map(padded).collect();
        Ok(format!("|{}|", cells.join("|")))
    }

    fn fill(&self, text: &str, of: Option<&str>) -> Result<String, String> {
        let mut filled = String::new();
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => filled += text,
                Piece::Place("of") => filled += of.ok_or("{of} is outside a repeated line")?,
                Piece::Place("runs") => filled += &runs(self.set(None)?),
                Piece::Place(place) => {
                    let shown = self.place(&Place::parse(place)?, of);
                    filled += &shown.map_err(|why| format!("{{{place}}}: {why}"))?;
                }
            }
        }
        Ok(filled)
    }

    fn place(&self, place: &Place<'_>, line_of: Option<&str>) -> Result<String, String> {
        let set = self.set(place.set)?;
        let of = place.of.or(line_of.filter(|_| place.set.is_none()));
        let mut found: Vec<&Figure> = set.called(place.name).collect();
        if found.is_empty() && !place.may_lack {
            return Err("there is no figure of that name".into());
        }
        if let Some(of) = of {
            found.retain(|figure| figure.of == of);
        }
        match found[..] {
            [figure] => shown(figure, &set.runs[figure.run], place.style),
            [] if place.may_lack => Ok(String::new()),
            // A figure may lack some subjects of the others in the line.
            [] if place.of.is_none() => Ok("–".into()),
            [] => Err("it has no such subject".into()),
            _ => Err("several subjects have that figure: name one with @".into()),
        }
    }
}

fn shown(figure: &Figure, run: &Run, style: Style) -> Result<String, String> {
    let alone = |amount: &Amount| amount.shown(figure.digits);
    let value = alone(&figure.value);
    let has_unit = !figure.unit.is_empty() && matches!(figure.value, Amount::Number(_));
    let with_unit = if has_unit {
        format!("{value} {}", figure.unit)
    } else {
        value.clone()
    };
    let extremes = || figure.extremes().ok_or("its rounds are not known");
    Ok(match style {
        Style::Value => value,
        Style::Unit => with_unit,
        Style::Spread => match (figure.rounds.len(), figure.extremes()) {
            (0 | 2.., Some([least, most])) => {
                format!("{value} ({}–{})", alone(&least), alone(&most))
            }
            _ => value,
        },
        Style::Rounds => match (figure.rounds.len(), figure.extremes()) {
            (0, Some([least, most])) => {
                format!("{with_unit} ({} to {})", alone(&least), alone(&most))
            }
            (2.., _) => {
                let each: Vec<String> = figure.sorted().iter().map(alone).collect();
                format!("{with_unit} ({})", each.join(", "))
            }
            _ => with_unit,
        },
        Style::Least => alone(&extremes()?[0]),
        Style::Most => alone(&extremes()?[1]),
        Style::Count => figure.rounds.len().to_string(),
        Style::Aim => figure.aim.clone().unwrap_or_default(),
        Style::When => format!("{}, {}", run.date, commits(&run.commit)),
        Style::Command => format!("`{}`", run.command),
        Style::Row => {
            let cells = [Style::Aim, Style::Rounds, Style::When, Style::Command];
            let cells = cells.map(|style| shown(figure, run, style));
            cells
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?
                .join(" | ")
        }
    })
}

/// A commit between backquotes, with the words that follow it unchanged.
fn commits(commit: &str) -> String {
    match commit.split_once(' ') {
        Some((commit, words)) => format!("`{commit}` {words}"),
        None => format!("`{commit}`"),
    }
}

/// How a set was measured, in a sentence for each run. Runs that differ only in the machine's other
/// load share one: the tests of one command.
fn runs(set: &Set) -> String {
    let mut each: Vec<(Run, Vec<&str>)> = Vec::new();
    for run in &set.runs {
        let beside = String::new();
        let alike = Run {
            beside,
            ..run.clone()
        };
        match each.iter_mut().find(|(other, _)| *other == alike) {
            Some((_, beside)) => beside.push(&run.beside),
            None => each.push((alike, vec![&run.beside])),
        }
    }
    let said = each.iter().map(|(run, beside)| {
        let (command, date, commit) = (&run.command, &run.date, commits(&run.commit));
        let place = format!("{}; beside it: {}", run.machine, beside.join("; "));
        if run.transcribed {
            format!("Copied from this page as of {date} ({commit}), by `{command}` ({place}).")
        } else {
            format!("Measured {date} at {commit} by `{command}` ({place}).")
        }
    });
    said.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::tests::run;

    fn sets() -> Sets {
        let rate = |of: &str, rounds: &[f64]| {
            Figure::new("rate", "a rate", "Gbit/s", rounds.iter().copied())
                .of(of)
                .digits(1)
        };
        let mut speed = Set::default();
        speed.take(
            run("bench-net"),
            vec![
                rate("raw", &[3.0, 1.0, 2.0]),
                rate("p2pvm", &[1.0]).aim("≥ 1"),
                Figure::new("memory", "memory", "MB", [33.0]).of("p2pvm"),
            ],
            true,
        );
        let mut joins = Set::default();
        let first = Figure::new("first", "first ping", "ms", [3.0, 1.0, 2.0]);
        joins.take(run("joins"), vec![first], true);
        Sets::of([("speed", speed), ("joins", joins)])
    }

    fn line(text: &str) -> Result<Vec<String>, String> {
        let sets = sets();
        let filler = Filler {
            sets: &sets,
            set: "speed",
        };
        filler.line(text)
    }

    fn one(text: &str) -> String {
        line(text).unwrap().join("\n")
    }

    #[test]
    fn a_figure_is_shown_in_every_style() {
        for (template, expected) in [
            ("{rate@raw}", "2.0"),
            ("{rate@raw:unit}", "2.0 Gbit/s"),
            ("{rate@raw:spread}", "2.0 (1.0–3.0)"),
            ("{rate@raw:rounds}", "2.0 Gbit/s (1.0, 2.0, 3.0)"),
            ("{rate@raw:least} to {rate@raw:most}", "1.0 to 3.0"),
            ("{rate@raw:count}", "3"),
            ("{rate@p2pvm:spread}", "1.0"),
            ("{rate@p2pvm:rounds}", "1.0 Gbit/s"),
            ("{rate@p2pvm:aim}|{rate@raw:aim}", "≥ 1|"),
            ("{rate@raw:when}", "2026-11-30, `0123456`"),
            ("{rate@raw:command}", "`bench-net`"),
            ("{joins/first:unit}", "2 ms"),
            (
                "| first | {joins/first:row} |",
                "| first | | 2 ms (1, 2, 3) | 2026-11-30, `0123456` | `joins` |",
            ),
        ] {
            assert_eq!(one(template), expected, "{template}");
        }
    }

    #[test]
    fn a_row_is_repeated_for_each_subject_of_its_figures() {
        let rows = line("* | {of} | {rate} | {memory} |").unwrap();
        assert_eq!(rows, ["| raw | 2.0 | – |", "| p2pvm | 1.0 | 33 |"]);
        assert_eq!(line("* - {of}: {memory}").unwrap(), ["- p2pvm: 33"]);
        assert_eq!(line("* - {memory} {rate?}").unwrap(), ["- 33 1.0"]);
        assert_eq!(line("* - {of}: {failed}").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_cell_is_repeated_within_its_row() {
        assert_eq!(one("| what | * {of} |"), "| what | raw | p2pvm |");
        assert_eq!(one("|---| * --- |"), "|---|---|---|");
        assert_eq!(one("| a | {memory@raw?} {nothing?} |"), "| a | |");
        assert_eq!(
            one("| rate | * {rate:unit} |"),
            "| rate | 2.0 Gbit/s | 1.0 Gbit/s |"
        );
    }

    #[test]
    fn a_missing_figure_is_an_error_unless_it_may_lack() {
        for bad in [
            "{nothing}",
            "{rate}",
            "{rate@tinc}",
            "{rate@raw:bold}",
            "{other/rate}",
            "{of}",
        ] {
            assert!(line(bad).is_err(), "{bad}");
        }
        assert_eq!(one("a{nothing?}b{memory@raw?}"), "ab");
    }

    #[test]
    fn runs_are_sentences_that_tell_copied_figures_apart() {
        assert!(one("{runs}").starts_with("Measured 2026-11-30 at `0123456` by `bench-net`"));
        let mut set = sets().get("speed").unwrap().clone();
        set.runs[0].transcribed = true;
        assert!(runs(&set).starts_with("Copied from this page as of 2026-11-30"));
    }

    #[test]
    fn runs_that_differ_in_the_machines_other_load_share_a_sentence() {
        let mut set = sets().get("speed").unwrap().clone();
        let busy = Run {
            beside: "rustc 90 %".into(),
            ..set.runs[0].clone()
        };
        set.runs.push(busy);
        let said = runs(&set);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("beside it: nothing; rustc 90 %)"), "{said}");
    }
}
