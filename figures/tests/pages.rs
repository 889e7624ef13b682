//! The pages show what was measured: nothing else, and nothing twice.

use p2pvm_figures::{Sets, page};
use std::{
    collections::BTreeSet,
    error::Error as _,
    fs,
    path::{Path, PathBuf},
};

/// Tables with digits in a column that are no figures: page and head.
/// Reason: ports, limits and weights are decided, not measured.
const DECIDED: [(&str, &str); 2] = [
    ("docs/operating.md", "| what | limit |"),
    ("docs/testing.md", "| binary | promises | needs | places |"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sets() -> Sets {
    Sets::read(&root().join("docs/figures")).unwrap_or_else(|error| {
        let cause = error.source().map(ToString::to_string);
        panic!("{error}: {}", cause.unwrap_or_default())
    })
}

/// Name and text of each page.
fn pages() -> Vec<(String, String)> {
    let paths = page::all(&root()).expect("the pages are there");
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(root()).expect("it is below the root");
        let text = fs::read_to_string(path).expect("a page is text");
        (name.to_string_lossy().into_owned(), text)
    };
    paths.iter().map(read).collect()
}

#[test]
fn pages_show_what_their_figures_say() {
    let sets = sets();
    for (name, old) in pages() {
        let new = page::render(&old, &sets).unwrap_or_else(|error| panic!("{name}: {error}"));
        let differs = old
            .lines()
            .zip(new.lines())
            .position(|(old, new)| old != new);
        if old != new {
            let at = differs.unwrap_or_else(|| old.lines().count().min(new.lines().count()));
            panic!(
                "{name}:{}: the page differs from docs/figures/; 'make figures' fills it.\n  page: \
                    {}\n  figures: {}",
                at + 1,
                old.lines().nth(at).unwrap_or("(its end)"),
                new.lines().nth(at).unwrap_or("(its end)")
            );
        }
    }
}

#[test]
fn no_page_has_a_table_of_figures_of_its_own() {
    let mut written = Vec::new();
    let mut decided: BTreeSet<_> = DECIDED.into_iter().collect();
    for (name, text) in pages() {
        for (line, head) in page::tables_outside(&text) {
            let is_known = DECIDED.contains(&(name.as_str(), head.as_str()));
            decided.retain(|known| *known != (name.as_str(), head.as_str()));
            if !is_known {
                written.push(format!("{name}:{line}: {head}"));
            }
        }
    }
    assert!(
        written.is_empty(),
        "a table of figures is made from docs/figures/ (see its README), not written:\n  {}",
        written.join("\n  ")
    );
    assert!(decided.is_empty(), "no longer there: {decided:?}");
}

#[test]
fn every_set_is_shown_by_a_page() {
    let pages = pages();
    for (name, _) in sets().iter() {
        let (begins, named) = (format!("<!-- figures: {name}"), format!("{{{name}/"));
        let shown = pages.iter().any(|(_, text)| {
            let block = |line: &str| {
                let line = line.strip_suffix(" -->").unwrap_or(line);
                line.strip_suffix('?').unwrap_or(line) == begins
            };
            text.lines().any(block) || text.contains(&named)
        });
        assert!(shown, "no page shows docs/figures/{name}.json");
    }
}
