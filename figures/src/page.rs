//! Pages with blocks of figures.
//!
//! A block begins with a comment, which is not displayed: it names a set and has the block's lines
//! with places for figures (see the module `template`). The filled lines follow, and `<!-- end -->`
//! ends the block:
//!
//! ```text
//! <!-- figures: joins
//! | round trip, ms | first ping, s |
//! |---|---|
//! * | {of} | {first-ping:spread} |
//! -->
//!
//! | round trip, ms | first ping, s |
//! |---|---|
//! | 40 | 0.50 (0.45–0.53) |
//!
//! <!-- end -->
//! ```
//!
//! A comment of one line, `<!-- figures: joins -->`, makes a list of all figures of the set. With
//! `?` after its name the set may be missing.

use crate::{Error, Sets, template::Filler};
use std::{
    fs,
    path::{Path, PathBuf},
};

const BEGIN: &str = "<!-- figures: ";
const CLOSE: &str = "-->";
const END: &str = "<!-- end -->";
/// The content of a block whose set may be missing and is.
const NOT_YET: &str = "Not measured yet.";
/// A column of a table has figures if at least this share of its cells begins with a digit.
const FIGURES_FROM: f64 = 0.6;

/// The pages that may have blocks: the README and those of `docs/`. Decisions keep the figures of
/// their time.
///
/// # Errors
/// If the directory cannot be read.
pub fn all(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let docs = root.join("docs");
    let failed = |source| Error::File {
        path: docs.clone(),
        source,
    };
    let mut pages = vec![root.join("README.md")];
    for entry in fs::read_dir(&docs).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(pages)
}

/// The page with its blocks filled.
///
/// # Errors
/// If a block names a missing figure, or has no end.
pub fn render(page: &str, sets: &Sets) -> Result<String, Error> {
    let lines: Vec<&str> = page.lines().collect();
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let begin = at;
        let wrong = |why: String| Error::Block {
            line: begin + 1,
            why,
        };
        let Some(name) = lines[at].strip_prefix(BEGIN) else {
            text += &format!("{}\n", lines[at]);
            at += 1;
            continue;
        };
        let (name, own) = match name.trim_end().strip_suffix(CLOSE) {
            Some(name) => (name.trim(), None),
            None => {
                let lines = &lines[at + 1..];
                let end = lines.iter().position(|line| line.trim() == CLOSE);
                let end = end.ok_or_else(|| wrong(format!("no {CLOSE} ends the template")))?;
                at += end + 1;
                let template = lines[..end].iter().map(|line| (*line).to_owned());
                (name.trim(), Some(template.collect::<Vec<String>>()))
            }
        };
        let (name, may_lack) = name.strip_suffix('?').map_or((name, false), |n| (n, true));
        let template = match own {
            _ if may_lack && sets.get(name).is_none() => vec![NOT_YET.to_owned()],
            Some(template) => template,
            None => list(name, sets).map_err(wrong)?,
        };
        let end = lines[at..].iter().position(|line| line.trim() == END);
        let end = at + end.ok_or_else(|| wrong(format!("no {END} ends the block")))?;
        let next = lines[at + 1..end]
            .iter()
            .any(|line| line.starts_with(BEGIN));
        if next {
            return Err(wrong(format!("the next block comes before {END}")));
        }
        let filler = Filler { sets, set: name };
        let mut filled = Vec::new();
        for (number, line) in template.iter().enumerate() {
            let of_line = |why| Error::Block {
                line: begin + 2 + number,
                why,
            };
            filled.extend(filler.line(line).map_err(of_line)?);
        }
        if filled.is_empty() {
            filled.push("None.".into());
        }
        let comment = lines[begin..=at].join("\n");
        text += &format!("{comment}\n\n{}\n\n{END}\n", filled.join("\n"));
        at = end + 1;
    }
    Ok(text)
}

/// The template of a block that has none: every figure of the set.
fn list(name: &str, sets: &Sets) -> Result<Vec<String>, String> {
    let set = sets.get(name);
    let set = set.ok_or_else(|| format!("there is no docs/figures/{name}.json"))?;
    let mut lines = vec![
        "| figure | aim | measured |".to_owned(),
        "|---|---|---|".to_owned(),
    ];
    for figure in &set.figures {
        let (at, of) = if figure.of.is_empty() {
            (String::new(), String::new())
        } else {
            (format!("@{}", figure.of), format!(", {}", figure.of))
        };
        let (what, name) = (&figure.what, &figure.name);
        lines.push(format!(
            "| {what}{of} | {{{name}{at}:aim}} | {{{name}{at}:rounds}} |"
        ));
    }
    Ok(lines)
}

/// Tables of figures outside of blocks: line of the head, from 1, and the head. A table counts if
/// most cells of a column begin with a digit, so a table of limits or ports counts too.
pub fn tables_outside(page: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = page.lines().collect();
    let (mut found, mut inside, mut fenced) = (Vec::new(), false, false);
    for (at, line) in lines.iter().enumerate() {
        fenced ^= line.starts_with("```");
        inside = (inside || line.starts_with(BEGIN)) && line.trim() != END;
        let is_rule = line.starts_with("|--") || line.starts_with("| --");
        if fenced || inside || !is_rule || at == 0 {
            continue;
        }
        let rows: Vec<Vec<&str>> = lines[at + 1..]
            .iter()
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        // The first cell is the text before the first bar, and the second names the row.
        let has_figures = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let digits = cells.filter(|cell| cell.starts_with(|c: char| c.is_ascii_digit()));
            digits.count() as f64 >= rows.len() as f64 * FIGURES_FROM
        };
        if !rows.is_empty() && (2..columns).any(has_figures) {
            found.push((at, lines[at - 1].to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Figure, Set, set::tests::run};

    fn sets() -> Sets {
        let mut joins = Set::default();
        joins.take(
            run("joins"),
            vec![
                Figure::new("first", "first ping", "s", [0.5])
                    .of("40")
                    .aim("≤ 1"),
                Figure::new("first", "first ping", "s", [1.0]).of("100"),
            ],
            true,
        );
        Sets::of([("joins", joins)])
    }

    const PAGE: &str = "# Joins\n\n<!-- figures: joins\n| rtt | first |\n|---|---|\n* | {of} | \
        {first:unit} |\n-->\nold\n<!-- end -->\n\nwords\n";

    #[test]
    fn a_block_is_filled_and_the_rest_stays() {
        let once = render(PAGE, &sets()).unwrap();
        let table =
            "-->\n\n| rtt | first |\n|---|---|\n| 40 | 0 s |\n| 100 | 1 s |\n\n<!-- end -->\n";
        assert!(once.contains(table), "{once}");
        assert!(once.starts_with("# Joins\n\n<!-- figures: joins\n| rtt"));
        assert!(once.ends_with("<!-- end -->\n\nwords\n") && !once.contains("old"));
        assert_eq!(render(&once, &sets()).unwrap(), once, "a second time");
    }

    #[test]
    fn a_block_without_a_template_lists_the_set() {
        let page = "<!-- figures: joins -->\n<!-- end -->\n";
        let page = render(page, &sets()).unwrap();
        assert!(page.contains("| first ping, 40 | ≤ 1 | 0 s |"), "{page}");
    }

    #[test]
    fn a_block_may_be_the_output_of_a_program() {
        let page = "<!-- figures: joins\n```\njoin of 40   {first@40:unit} (1 of 2)\n```\n\n\
            {runs}\n-->\n<!-- end -->\n";
        let filled = render(page, &sets()).unwrap();
        let output = "-->\n\n```\njoin of 40   0 s (1 of 2)\n```\n\nMeasured 2026-11-30";
        assert!(filled.contains(output), "{filled}");
        assert_eq!(render(&filled, &sets()).unwrap(), filled, "a second time");
    }

    #[test]
    fn a_block_with_an_optional_set_tells_that_it_is_missing() {
        let page = "<!-- figures: other?\n{nothing} here\n-->\n<!-- end -->\n";
        let filled = render(page, &sets()).unwrap();
        assert!(
            filled.contains("-->\n\nNot measured yet.\n\n<!-- end -->"),
            "{filled}"
        );
        let page = "<!-- figures: joins? -->\n<!-- end -->\n";
        let filled = render(page, &sets()).unwrap();
        assert!(
            filled.contains("| first ping, 40 | ≤ 1 | 0 s |"),
            "{filled}"
        );
    }

    #[test]
    fn a_block_that_cannot_be_filled_names_its_line() {
        for (page, line) in [
            ("x\n<!-- figures: joins\n{first@40}\n-->\n", 2),
            ("x\n<!-- figures: joins\nwords\n", 2),
            ("<!-- figures: other -->\n<!-- end -->\n", 1),
            ("<!-- figures: joins\na\n{nothing}\n-->\n<!-- end -->\n", 3),
            (
                "<!-- figures: joins -->\n<!-- figures: joins -->\n<!-- end -->\n",
                1,
            ),
        ] {
            match render(page, &sets()) {
                Err(Error::Block { line: at, .. }) => assert_eq!(at, line, "{page}"),
                other => panic!("{page}: {other:?}"),
            }
        }
    }

    #[test]
    fn tables_of_figures_are_seen_outside_of_blocks_only() {
        let table = "| a | b |\n|---|---|\n| x | 1 ms |\n| y | 2 (1–3) |\n| z | never |\n";
        assert_eq!(tables_outside(table), [(1, "| a | b |".into())]);
        let block = format!("<!-- figures: x\n-->\n{table}<!-- end -->\n");
        assert_eq!(tables_outside(&block), []);
        let words = "| a | b |\n|---|---|\n| 1 | one |\n| 2 | two |\n";
        assert_eq!(tables_outside(words), [], "numbered rows");
        assert_eq!(tables_outside(&format!("```\n{table}```\n")), []);
    }
}
