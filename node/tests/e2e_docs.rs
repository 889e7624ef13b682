//! The documentation: every command that its pages show is run on real daemons on the emulated wide
//! area, in order, and what they show is what comes. `P2PVM_DOCS=write cargo nextest run -p p2pvm
//! --test e2e_docs` writes what comes into the pages instead.

mod common;
mod docs;

#[path = "../src/cli/appliance_args.rs"]
#[allow(
    dead_code,
    reason = "the grammar serves the program; here it only reads commands"
)]
mod appliance_args;
#[path = "../src/cli/args.rs"]
#[allow(dead_code, unused_imports, reason = "as above")]
mod args;
#[path = "../src/cli/dashboard_args.rs"]
#[allow(dead_code, reason = "as above")]
mod dashboard_args;
#[path = "../src/cli/events_args.rs"]
#[allow(dead_code, reason = "as above")]
mod events_args;
#[path = "../src/cli/offer_args.rs"]
#[allow(dead_code, reason = "as above")]
mod offer_args;
#[path = "../src/cli/policy_args.rs"]
#[allow(dead_code, reason = "as above")]
mod policy_args;
#[path = "../src/cli/snapshot_args.rs"]
#[allow(dead_code, reason = "as above")]
mod snapshot_args;
#[path = "../src/cli/store_args.rs"]
#[allow(dead_code, reason = "as above")]
mod store_args;
#[path = "../src/cli/token_args.rs"]
#[allow(dead_code, reason = "as above")]
mod token_args;
#[path = "../src/cli/usage_args.rs"]
#[allow(dead_code, reason = "as above")]
mod usage_args;
#[path = "../src/cli/user_args.rs"]
#[allow(dead_code, reason = "as above")]
mod user_args;
#[path = "../src/cli/vm_args.rs"]
#[allow(dead_code, reason = "as above")]
mod vm_args;

use docs::{page::Page, session, sources};
use std::{fs, path::Path};

/// Pages whose every command is run.
const RUN: [&str; 3] = [
    "docs/guide.md",
    "docs/operating.md",
    "docs/troubleshooting.md",
];
/// Pages whose commands are at least ones that the program takes.
const READ: [&str; 7] = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/appliance.md",
    "docs/console.md",
    "docs/SPECIFICATION.md",
    "docs/testing.md",
    "docs/traces.md",
];
/// Blocks of the pages that may stay unrun at most: needing another machine is no habit.
const NOT_RUN_AT_MOST: usize = 12;

fn holds(name: &str) {
    let page = Page::read(name);
    if let Some(text) = session::run(&page) {
        fs::write(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name),
            text,
        )
        .unwrap();
    }
}

#[test]
fn the_guide_does_what_it_shows() {
    holds(RUN[0]);
}

#[test]
fn the_operators_guide_does_what_it_shows() {
    holds(RUN[1]);
}

#[test]
fn the_troubleshooting_page_shows_what_the_program_says() {
    holds(RUN[2]);
}

#[test]
fn every_command_in_the_pages_is_valid_and_run_or_excused() {
    let mut not_run = 0;
    for name in RUN {
        let page = Page::read(name);
        for block in page.blocks() {
            let at = format!("{name}:{}", block.place.start);
            not_run += usize::from(block.not_run().is_some());
            let is_file = block.info.starts_with("file=");
            let is_text = ["text", "toml", "yaml"].contains(&block.kind.as_str())
                && ["", "message"].contains(&block.info.as_str());
            assert!(
                block.kind == "console" || is_file || is_text,
                "{at}: what is this block? console, text, or a file=HOST:NAME"
            );
            if is_text {
                let command = block
                    .lines
                    .iter()
                    .find(|line| line.starts_with("p2pvm ") || line.contains("# p2pvm "));
                assert_eq!(
                    command, None,
                    "{at}: a command belongs into a console block, which is run"
                );
            }
        }
        assert_eq!(
            sources::unknown_messages(&page),
            Vec::<String>::new(),
            "{name} quotes what the program does not say"
        );
    }
    assert_eq!(
        sources::metrics_that_differ(&Page::read(RUN[1])),
        Vec::<String>::new(),
        "exported, or explained, but not both"
    );
    assert!(not_run <= NOT_RUN_AT_MOST, "{not_run} blocks are not run");
    for name in RUN.iter().chain(&READ) {
        assert_eq!(
            sources::unknown_commands(&Page::read(name)),
            Vec::<String>::new(),
            "{name}"
        );
    }
}
