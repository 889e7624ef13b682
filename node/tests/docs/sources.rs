//! What pages say in passing: commands in running text have to be ones that the program takes, and
//! messages that are quoted without a command have to stand in its sources.

use super::page::Page;
use crate::args::Cli;
use clap::{Parser, error::ErrorKind};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A mention may leave out what follows: `p2pvm vm ...`.
const INCOMPLETE: [ErrorKind; 6] = [
    ErrorKind::MissingRequiredArgument,
    ErrorKind::MissingSubcommand,
    ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ErrorKind::DisplayHelp,
    ErrorKind::DisplayVersion,
    ErrorKind::TooFewValues,
];
/// What ends a command in a shell.
const ENDS: [&str; 8] = ["|", ">", ">>", "<", "&&", "||", ";", "&"];

/// The p2pvm commands in a line of a shell, each as words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let (mut inside, mut first) = (false, true);
    for word in line.replace("\\\n", " ").split_whitespace() {
        if word.starts_with('#') {
            break;
        }
        if word == "p2pvm" && first {
            found.push(vec!["p2pvm".to_owned()]);
            (inside, first) = (true, false);
        } else if ENDS.contains(&word) {
            (inside, first) = (false, true);
        } else if inside {
            let (word, ends) = word.strip_suffix(';').map_or((word, false), |w| (w, true));
            found
                .last_mut()
                .expect("it was begun")
                .push(word.trim_matches(['"', '\'']).to_owned());
            if ends {
                (inside, first) = (false, true);
            }
        } else {
            first = word == "sudo" || word.ends_with(';');
        }
    }
    found
}

/// `p2pvm vm list | show web`, as the README writes several in one line.
fn alternatives(line: &str) -> Vec<String> {
    let plain = line.split(" #").next().unwrap_or_default().trim();
    let mut parts = plain.split(" | ");
    let first = parts.next().unwrap_or_default().to_owned();
    let group: Vec<&str> = first.split(' ').take(2).collect();
    let rest = parts.map(|part| match group.as_slice() {
        ["p2pvm", group @ ("vm" | "acl" | "route" | "iso")] => format!("p2pvm {group} {part}"),
        _ => format!("p2pvm {part}"),
    });
    std::iter::once(first.clone()).chain(rest).collect()
}

/// Why the program would not take these words.
fn refusal(words: &[String]) -> Option<String> {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !["...", "…"].contains(word))
        .collect();
    let error = Cli::try_parse_from(&words).err()?;
    // N, TIME, SIZE: a place for a value, not a value.
    let placeholder = words
        .iter()
        .any(|w| w.len() < 12 && !w.is_empty() && w.chars().all(|c| c.is_ascii_uppercase()));
    let is_place = placeholder && error.kind() == ErrorKind::ValueValidation;
    (!INCOMPLETE.contains(&error.kind()) && !is_place)
        .then(|| format!("{}: {error}", words.join(" ")))
}

/// What in a page is no command of the program. In a block of no kind a bar separates alternatives;
/// elsewhere it is the shell's.
pub fn unknown_commands(page: &Page) -> Vec<String> {
    let mut lines: Vec<String> = page.inline_code();
    for block in page.blocks() {
        let text = block.lines.join("\n").replace("\\\n", " ");
        lines.extend(text.lines().flat_map(|line| match line.split_once("# ") {
            // A prompt.
            Some((host, command)) if !host.contains(' ') && !host.is_empty() => {
                vec![command.to_owned()]
            }
            _ if block.kind.is_empty() => alternatives(line),
            _ => vec![line.trim_start_matches("$ ").to_owned()],
        }));
    }
    lines.retain(|line| {
        line.starts_with("p2pvm ") || line.contains("| p2pvm ") || line.starts_with("sudo p2pvm ")
    });
    lines
        .iter()
        .flat_map(|line| commands(line))
        .filter_map(|words| refusal(&words))
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All sources of the program as one text, without the breaks that a long string has.
fn sources() -> String {
    fn add(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                add(&path, text);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap_or_default());
            }
        }
    }
    let mut text = String::new();
    for part in [
        "host",
        "overlay",
        "dht",
        "dhcp",
        "snapshot-sync",
        "vm-manager",
        "autonomic",
        "console",
        "api",
        "daemon",
        "node",
    ] {
        add(&root().join(part).join("src"), &mut text);
    }
    let breaks = regex::Regex::new(r"\\\n\s*").expect("the pattern is sound");
    breaks.replace_all(&text, "").replace("\\\"", "\"")
}

/// Names of figures that the program exports and the page does not explain, and the other way
/// round.
pub fn metrics_that_differ(page: &Page) -> Vec<String> {
    let name = regex::Regex::new(r"p2pvm_[a-z_]+[a-z]").expect("the pattern is sound");
    let source =
        fs::read_to_string(root().join("daemon/src/node/metrics.rs")).expect("the metrics' source");
    let families = regex::Regex::new(r#"(?:gauge|counter)\(\s*"(p2pvm_[a-z_]+)""#)
        .expect("the pattern is sound");
    let exported: std::collections::BTreeSet<String> = families
        .captures_iter(&source)
        .map(|found| found[1].to_owned())
        .collect();
    assert!(
        exported.len() > 10,
        "the families are not found in the source any more"
    );
    let explained = page
        .lines
        .iter()
        .flat_map(|line| name.find_iter(line))
        .map(|found| found.as_str().to_owned())
        .collect();
    exported.symmetric_difference(&explained).cloned().collect()
}

/// What a page quotes (blocks of kind `text` marked `message`) and the program does not say. `…`
/// stands for what differs.
pub fn unknown_messages(page: &Page) -> Vec<String> {
    let sources = sources();
    let quoted = page
        .blocks()
        .filter(|b| b.kind == "text" && b.info == "message")
        .flat_map(|b| &b.lines);
    let pieces = quoted.flat_map(|line| line.trim().trim_start_matches("p2pvm: ").split('…'));
    let pieces = pieces.map(str::trim).filter(|piece| piece.len() >= 8);
    pieces
        .filter(|piece| !sources.contains(piece))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_misspelt_command_is_found_wherever_it_stands() {
        let good = "`p2pvm vm list` and `p2pvm vm ...`, `p2pvm invite --uses \
            N`\n```console\nattic# p2pvm invite --uses 2 > invite.txt\n\
                    attic# p2pvm metrics | grep links\n```\n```\np2pvm status | peers | ping \
                    lab2\n```\n";
        assert_eq!(
            unknown_commands(&Page::parse("x", good)),
            Vec::<String>::new()
        );
        for bad in [
            "`p2pvm vms list`",
            "`p2pvm invite --use 3`",
            "```console\nattic# p2pvm migrate web\n```",
            "```\np2pvm status | peer\n```",
        ] {
            assert_eq!(unknown_commands(&Page::parse("x", bad)).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_quoted_message_has_to_stand_in_the_sources() {
        let page = |text: &str| Page::parse("x", &format!("```text message\n{text}\n```\n"));
        assert!(
            unknown_messages(&page("p2pvm: the invite has expired: ask for a new one")).is_empty()
        );
        assert_eq!(
            unknown_messages(&page("p2pvm: the invite has gone sour")).len(),
            1
        );
    }
}
