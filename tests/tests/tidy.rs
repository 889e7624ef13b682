//! Style as a test, after TigerBeetle's `tidy`: what a reader of this tree may rely on, held over
//! all its files.
//!
//! Source is read as text: comments and literals are blanked, then braces are counted. Macros are
//! not expanded, and nothing is compiled or run. `cargo fmt`, clippy and `cargo deny` check the
//! rest (`scripts/lint.sh`).

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/exceptions.rs"]
mod exceptions;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/order.rs"]
mod order;

use exceptions::{LONG_FILES, LONG_FUNCTIONS, WIDE_FILES};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// How many lines a Rust file has at most.
/// Reason: one subject, read in one go.
const FILE_LINES: usize = 600;
/// How many lines a function has at most, its signature and last brace included.
/// Reason: it fits on a screen.
const FUNCTION_LINES: usize = 70;
/// How many columns a line of a Rust file has at most.
/// Reason: two files fit beside each other.
const COLUMNS: usize = 100;

/// Directories that are made, not written.
const MADE: [&str; 3] = ["target", "node_modules", "dist"];
/// Suffixes by which a name without a directory on a page is taken for a file.
const ENDS: [&str; 4] = [".rs", ".md", ".toml", ".sh"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every Rust file below a directory, by its path from the root.
fn rust_files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let entry = entry.expect("an entry of a directory that was opened");
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        let kind = entry.file_type().expect("a file's type");
        if kind.is_dir() && !name.starts_with('.') && !MADE.contains(&name.as_str()) {
            rust_files(&path, found);
        } else if kind.is_file() && name.ends_with(".rs") {
            let path = path.strip_prefix(root()).expect("it is below the root");
            found.insert(path.to_string_lossy().into_owned());
        }
    }
}

fn all_rust_files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    rust_files(&root(), &mut found);
    assert!(
        found.len() > 100,
        "the walk from {} finds hardly any Rust file",
        root().display()
    );
    found
}

/// Fails with all that is broken at once.
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}\n", broken.join("\n  "));
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first index from `at` on that satisfies `is_so`, or the end.
fn first(source: &[char], at: usize, is_so: impl Fn(usize) -> bool) -> usize {
    (at..source.len())
        .find(|i| is_so(*i))
        .unwrap_or(source.len())
}

fn is_pair(source: &[char], at: usize, pair: [char; 2]) -> bool {
    source.get(at..at + 2) == Some(pair.as_slice())
}

/// The index behind the block comment at `at`, which may hold others.
fn comment_end(source: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (1, at + 2);
    while i < source.len() && depth > 0 {
        if is_pair(source, i, ['/', '*']) {
            (depth, i) = (depth + 1, i + 2);
        } else if is_pair(source, i, ['*', '/']) {
            (depth, i) = (depth - 1, i + 2);
        } else {
            i += 1;
        }
    }
    i
}

/// The index behind the next quote that no backslash escapes.
fn quoted_end(source: &[char], at: usize, quote: char) -> usize {
    let mut i = at;
    while i < source.len() && source[i] != quote {
        i += if source[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The index behind the raw string whose `r` is at `at`, if there is one.
fn raw_end(source: &[char], at: usize) -> Option<usize> {
    let open = first(source, at + 1, |i| source[i] != '#');
    let hashes = open - at - 1;
    let closes = |i: usize| {
        let marks = source.get(i + 1..i + 1 + hashes);
        source[i] == '"' && marks.is_some_and(|marks| marks.iter().all(|c| *c == '#'))
    };
    (source.get(open) == Some(&'"')).then(|| first(source, open + 1, closes) + 1 + hashes)
}

/// The index behind the comment, string or character that begins at `at`, if one does.
fn blank_end(source: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map_or(' ', |i| source[i]);
    let ahead = |n: usize| source.get(at + n).copied().unwrap_or_default();
    let end = match (source[at], ahead(1)) {
        ('/', '/') => first(source, at, |i| source[i] == '\n'),
        ('/', '*') => comment_end(source, at),
        ('"', _) => quoted_end(source, at + 1, '"'),
        ('r', '"' | '#') if !is_word(before) || ['b', 'c'].contains(&before) => {
            raw_end(source, at)?
        }
        ('\'', '\\') => quoted_end(source, at + 1, '\''),
        // Not a lifetime.
        ('\'', _) if ahead(2) == '\'' => at + 3,
        _ => return None,
    };
    Some(end.min(source.len()))
}

/// The text with comments, strings and characters blanked; lines stay where they are.
fn code_only(text: &str) -> Vec<char> {
    let source: Vec<char> = text.chars().collect();
    let mut code = Vec::with_capacity(source.len());
    while code.len() < source.len() {
        let at = code.len();
        match blank_end(&source, at) {
            Some(end) => code.extend(
                source[at..end]
                    .iter()
                    .map(|c| if *c == '\n' { '\n' } else { ' ' }),
            ),
            None => code.push(source[at]),
        }
    }
    code
}

/// The name and the lines of the function whose `fn` stands at `at`, if one with a body does.
fn function_at(code: &[char], at: usize) -> Option<(String, usize)> {
    let begins_a_word = at.checked_sub(1).is_none_or(|i| !is_word(code[i]));
    if !begins_a_word
        || !is_pair(code, at, ['f', 'n'])
        || code.get(at + 2).is_none_or(|c| !c.is_whitespace())
    {
        return None;
    }
    let begin = first(code, at + 2, |i| !code[i].is_whitespace());
    let name: String = code[begin..].iter().take_while(|c| is_word(**c)).collect();
    if name.is_empty() {
        return None;
    }
    // An array's length has a semicolon too.
    let (mut brackets, mut braces) = (0, 0);
    for (i, c) in code.iter().enumerate().skip(begin) {
        match c {
            '(' | '[' if braces == 0 => brackets += 1,
            ')' | ']' if braces == 0 => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' if braces > 0 || brackets == 0 => braces += 1,
            '}' if braces > 0 => braces -= 1,
            _ => continue,
        }
        if *c == '}' && braces == 0 {
            let lines = 1 + code[at..i].iter().filter(|c| **c == '\n').count();
            return Some((name, lines));
        }
    }
    panic!(
        "the braces of fn {name} do not close: tidy.rs misreads a literal or a comment of this file"
    )
}

/// Every function of a text that has a body, those in others and in tests too.
fn functions(text: &str) -> Vec<(String, usize)> {
    let code = code_only(text);
    (0..code.len())
        .filter_map(|at| function_at(&code, at))
        .collect()
}

/// The paths in the tables of a page that do not exist. A path may be relative to the root, or to a
/// directory on an earlier path of its row.
fn missing_paths(page: &str, is_there: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    for (n, line) in page
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('|'))
    {
        let mut places = BTreeSet::from([PathBuf::new()]);
        for name in line.split('`').skip(1).step_by(2) {
            let looks_like_one = name.contains('/') || ENDS.iter().any(|end| name.ends_with(end));
            // Patterns, placeholders and commands are no paths, and what begins at the machine's
            // root is not of this tree.
            if !looks_like_one || name.starts_with('/') || name.contains([' ', '*', '<', ':']) {
                continue;
            }
            let found = places
                .iter()
                .rev()
                .map(|place| place.join(name))
                .find(|path| is_there(path));
            match found {
                Some(path) => {
                    let dir = if name.ends_with('/') {
                        Some(path.as_path())
                    } else {
                        path.parent()
                    };
                    places.extend(
                        dir.into_iter()
                            .flat_map(Path::ancestors)
                            .map(Path::to_owned),
                    );
                }
                None => missing.push(format!("line {}: {name}", n + 1)),
            }
        }
    }
    missing
}

/// One sentence for each name that has more than `most` lines and is not listed, and for each entry
/// of the list that is not exact.
fn too_long(
    most: usize,
    listed: &[(&str, usize)],
    found: impl Iterator<Item = (String, usize)>,
) -> Vec<String> {
    let mut long: BTreeMap<String, usize> = BTreeMap::new();
    for (name, lines) in found.filter(|(_, lines)| *lines > most) {
        let longest = long.entry(name).or_default();
        *longest = lines.max(*longest);
    }
    let judge = |(name, before): &(&str, usize), now: Option<usize>| match now {
        None => Some(format!(
            "{name} is no exception any more: remove it from the list"
        )),
        Some(now) if now < *before => Some(format!(
            "{name} has shrunk: write {now} for {before} in the list"
        )),
        Some(now) if now > *before => Some(format!(
            "{name} has grown from {before} to {now} lines: split it, or move out what was added"
        )),
        Some(_) => None,
    };
    let mut broken: Vec<String> = listed
        .iter()
        .filter_map(|entry| judge(entry, long.remove(entry.0)))
        .collect();
    broken.extend(
        long.into_iter()
            .map(|(name, lines)| format!("{name} has {lines} lines: split it")),
    );
    broken
}

#[test]
fn no_rust_file_is_longer_than_one_subject_needs() {
    let files = all_rust_files()
        .into_iter()
        .map(|path| (path.clone(), read(&path).lines().count()));
    let broken = too_long(FILE_LINES, LONG_FILES, files);
    none(
        &format!(
            "A Rust file has one subject and at most {FILE_LINES} lines (exceptions: LONG_FILES \
                in tests/tests/tidy/exceptions.rs):"
        ),
        &broken,
    );
}

#[test]
fn no_line_is_wider_than_100_columns_and_exceptions_only_shrink() {
    let wide = |path: String| {
        let text = read(&path);
        let wide = text.lines().filter(|line| line.chars().count() > COLUMNS);
        let count = wide.count();
        (path, count)
    };
    let broken = too_long(0, WIDE_FILES, all_rust_files().into_iter().map(wide));
    none(
        &format!(
            "A line has at most {COLUMNS} columns (exceptions, by the number of wider lines: \
                WIDE_FILES in tests/tests/tidy/exceptions.rs):"
        ),
        &broken,
    );
}

#[test]
fn no_function_is_longer_than_a_screen_and_exceptions_only_shrink() {
    let of = |path: String| {
        functions(&read(&path))
            .into_iter()
            .map(move |(name, lines)| (format!("{path}: fn {name}"), lines))
    };
    let broken = too_long(
        FUNCTION_LINES,
        LONG_FUNCTIONS,
        all_rust_files().into_iter().flat_map(of),
    );
    none(
        &format!(
            "A function has at most {FUNCTION_LINES} lines (exceptions: LONG_FUNCTIONS in \
                tests/tests/tidy/exceptions.rs):"
        ),
        &broken,
    );
}

/// Whether a file has only tests.
fn is_test(path: &Path) -> bool {
    let named = |part: &std::ffi::OsStr| {
        let name = part.to_string_lossy();
        name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
    };
    path.iter().any(named)
}

/// The code of a text without its tests, which stand at its end.
fn own_code(text: &str) -> String {
    let own = text.find("\n#[cfg(test)]\nmod tests {");
    code_only(&text[..own.unwrap_or(text.len())])
        .into_iter()
        .collect()
}

#[test]
fn no_circle_of_files_spans_folders() {
    let mut broken = Vec::new();
    for order::Member { dir, .. } in order::members() {
        let src = root().join(&dir).join("src");
        let mut paths = BTreeSet::new();
        if src.is_dir() {
            rust_files(&src, &mut paths);
        }
        let files = paths.iter().filter_map(|path| {
            let inside = Path::new(path).strip_prefix(Path::new(&dir).join("src"));
            let inside = inside.expect("it is in src");
            let mut module: circles::Module = inside
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            if matches!(module.last()?.as_str(), "mod" | "lib" | "main") {
                module.pop();
            }
            (!is_test(inside)).then(|| (module, own_code(&read(path))))
        });
        for circle in circles::circles(&files.collect()) {
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            broken.push(format!("{dir}: {}", names.join(", ")));
        }
    }
    none(
        "Files of different folders import each other in a circle. Move what both need into a \
            third, or hand it in:",
        &broken,
    );
}

#[test]
fn every_path_in_the_tables_of_architecture_exists() {
    let page = read("docs/ARCHITECTURE.md");
    let is_there = |path: &Path| root().join(path).exists();
    let broken = missing_paths(&page, is_there);
    none(
        "docs/ARCHITECTURE.md names paths that do not exist. Write where each is now, from the \
            root or from a path before it:",
        &broken,
    );
}

#[test]
fn crates_depend_only_on_crates_above_them_in_architecture() {
    let rows = order::rows(&read("docs/ARCHITECTURE.md"));
    none(
        "Crates build only on those above them in the first table of docs/ARCHITECTURE.md:",
        &order::broken(&rows, &order::members()),
    );
}

#[test]
fn braces_in_comments_and_literals_do_not_count() {
    let text = r##"
fn one(a: [u8; 2], f: fn(u8) -> u8) -> &'static str {
    // } and "
    /* } /* } */ } */
    let _ = ('}', '\'', '"', b'{', "}\"}", r#"}"}"#, '\u{7d}');
    "}"
}
trait T { fn without(&self) -> [u8; 3]; fn two<'a>(&'a self) {
    fn within() {}
} }
"##;
    let found = functions(text);
    let wanted = [("one", 6), ("two", 3), ("within", 1)];
    assert_eq!(found, wanted.map(|(name, lines)| (name.to_owned(), lines)));
}

#[test]
fn an_exception_may_shrink_and_go_and_nothing_else() {
    let of = |found: &[(&str, usize)]| {
        too_long(
            5,
            &[("a", 9)],
            found
                .iter()
                .map(|(name, lines)| ((*name).to_owned(), *lines)),
        )
    };
    assert_eq!(of(&[("a", 9), ("a", 6), ("b", 5)]), Vec::<String>::new());
    for (now, said) in [
        (10, "a has grown from 9 to 10"),
        (7, "write 7 for 9"),
        (5, "remove it"),
    ] {
        let broken = of(&[("a", now)]);
        assert!(broken.len() == 1 && broken[0].contains(said), "{broken:?}");
    }
    assert_eq!(of(&[("a", 9), ("b", 6)]), ["b has 6 lines: split it"]);
}

#[test]
fn a_path_of_a_table_is_found_from_the_paths_before_it() {
    let there = ["a/src", "a/src/x.rs", "a/src/deep/y.rs", "b/z.rs"];
    let is_there = |path: &Path| there.iter().any(|known| path == Path::new(known));
    let page = "`no/table.rs`\n| x | `a/src/`: `x.rs`, `deep/y.rs` (`handle`, `slow_*.rs`); \
        `b/z.rs` |\n| y | `x.rs`, `b/gone.rs` |\n";
    assert_eq!(
        missing_paths(page, is_there),
        ["line 3: x.rs", "line 3: b/gone.rs"]
    );
}
