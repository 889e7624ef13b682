//! Writes the manual pages and shell completions of p2pvm below a directory, from the command
//! line's own grammar: run by `scripts/deb.sh`. An example, so that what makes them is no part of
//! the program.

#[path = "../src/cli/appliance_args.rs"]
#[allow(dead_code, reason = "as above")]
mod appliance_args;
#[path = "../src/cli/args.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the grammar serves the program; here it is only described"
)]
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

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use std::{fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let out = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .ok_or_else(|| io::Error::other("which directory?"))?,
    );
    let (man, completions) = (out.join("man"), out.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let command = args::Cli::command();
    // Completions would offer hidden commands, such as previous names; manual pages leave them out.
    let mut shown = Command::new("p2pvm")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .args(command.get_arguments().cloned())
        .subcommands(
            command
                .get_subcommands()
                .filter(|c| !c.is_hide_set())
                .cloned(),
        );
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut shown, "p2pvm", &completions)?;
    }
    // Not for users, and a page of its own for each of their words.
    let command = command
        .mut_subcommand("testbed", |c| c.hide(true))
        .mut_subcommand("simulate", |c| c.hide(true));
    clap_mangen::generate_to(command, &man)
}
