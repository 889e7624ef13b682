//! Names: how long a test's is, and where a module that has a folder is written.

use super::{all_rust_files, code_only, exceptions::LONG_NAMES, is_word, none, read};
use std::collections::BTreeSet;

/// How many words a test's name has at most.
/// Reason: it is read as a sentence, in one line of a report.
const WORDS: usize = 12;

/// The names of a text's tests.
fn tests(text: &str) -> Vec<String> {
    let code: String = code_only(text).into_iter().collect();
    let (mut found, mut is_marked) = (Vec::new(), false);
    for line in code.lines().map(str::trim) {
        let marks = ["#[test]", "#[tokio::test"];
        if marks.iter().any(|mark| line.starts_with(mark)) {
            is_marked = true;
        } else if is_marked
            && !line.starts_with('#')
            && let Some((_, rest)) = line.split_once("fn ")
        {
            found.push(rest.chars().take_while(|c| is_word(*c)).collect());
            is_marked = false;
        }
    }
    found
}

/// One sentence for each name with too many words that is not listed, and for each listed name that
/// is none.
fn too_long(listed: &[&str], found: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut listed: BTreeSet<&str> = listed.iter().copied().collect();
    let mut broken = Vec::new();
    for (path, name) in found {
        let words = name.split('_').count();
        if words > WORDS && !listed.remove(name.as_str()) {
            broken.push(format!("{path}: {name} has {words} words"));
        }
    }
    broken.extend(
        listed
            .into_iter()
            .map(|name| format!("{name} is no exception any more: remove it from the list")),
    );
    broken
}

#[test]
fn no_tests_name_has_more_than_twelve_words() {
    let of = |path: String| {
        let names = tests(&read(&path));
        names.into_iter().map(move |name| (path.clone(), name))
    };
    none(
        &format!(
            "A test's name says its promise in at most {WORDS} words (exceptions: LONG_NAMES in \
                tests/tests/tidy/exceptions.rs):"
        ),
        &too_long(LONG_NAMES, all_rust_files().into_iter().flat_map(of)),
    );
}

#[test]
fn a_module_with_a_folder_is_written_beside_it() {
    let is_inside = |path: &String| path.contains("/src/") && path.ends_with("/mod.rs");
    let broken: Vec<String> = all_rust_files().into_iter().filter(is_inside).collect();
    none(
        "A module is NAME.rs beside its folder NAME, not mod.rs in it; only a tests' folder, whose \
            files cargo would take for tests, has a mod.rs:",
        &broken,
    );
}

#[test]
fn names_are_read_by_their_attributes_and_counted_by_words() {
    let text = "
#[test]
#[should_panic(expected = \"fn in a text\")]
// A comment about fn.
fn one() {}
#[tokio::test(start_paused = true)]
async fn two_words() {}
fn is_no_test() {}
";
    assert_eq!(tests(text), ["one", "two_words"]);
    let long = ["word"; WORDS + 1].join("_");
    let at = |name: &str| [("a.rs".to_owned(), name.to_owned())].into_iter();
    assert_eq!(too_long(&[], at("two_words")), [""; 0]);
    assert_eq!(too_long(&[], at(&long)).len(), 1);
    assert_eq!(too_long(&[&long], at(&long)), [""; 0]);
    assert_eq!(too_long(&["two_words"], at("two_words")).len(), 1);
}
