//! The command line: its grammar, and the commands, which ask the daemon and print the answer.
//! Results go to standard output, everything else to standard error. Which command is run is
//! decided in [`crate::dispatch`].

pub(crate) mod appliance;
mod appliance_args;
mod args;
pub(crate) mod dashboard;
mod dashboard_args;
pub(crate) mod drain;
pub(crate) mod events;
mod events_args;
pub(crate) mod explain;
pub(crate) mod lab;
pub mod limit;
pub(crate) mod members;
pub mod netcheck;
pub(crate) mod network;
pub(crate) mod offer;
mod offer_args;
pub(crate) mod policy;
mod policy_args;
pub mod print;
mod progress;
pub(crate) mod ring;
mod silent;
mod snapshot;
mod snapshot_args;
pub(crate) mod stop;
pub(crate) mod store;
mod store_args;
pub(crate) mod token;
mod token_args;
pub(crate) mod traffic;
pub(crate) mod up;
pub(crate) mod usage;
mod usage_args;
pub(crate) mod user;
mod user_args;
pub(crate) mod vm;
mod vm_args;

pub use args::{Cli, Command, Top as TopArgs};
pub use progress::Progress;

use p2pvm_api::{Doing, Failed, Failure, Kind, Outcome, Sorted, client::Client};
use p2pvm_daemon::{layout::Layout, shown};
use std::{fs, io::Read, process::ExitCode};

/// Says what is wrong with an invalid command line, or prints the requested help.
pub fn misused(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        println!("{}", failed(misuse(error)));
    }
    // A failed write means that nobody reads the output, so it cannot be reported.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Kind::Usage as u8))
}

/// What a failure is with `--json`.
fn failed(error: Failure) -> String {
    serde_json::to_string(&Sorted(Failed { error })).expect("a failure can be written as JSON")
}

/// The sentence of the parser's page: up to its first empty line.
fn misuse(error: &clap::Error) -> Failure {
    let page = error.to_string();
    let lines: Vec<&str> = page
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    Failure::usage(lines.join(" ").trim_start_matches("error: ").to_owned())
}

/// Prints why a command failed.
pub(crate) fn say(failure: &Failure, json: bool) {
    if json {
        println!("{}", failed(failure.clone()));
    }
    eprintln!("p2pvm: {}", shown::text(&failure.message));
}

/// Up to `most` bytes of text from a file, or from standard input for `-`.
fn read_text(from: &str, most: u64, what: &str) -> Outcome<String> {
    let mut text = String::new();
    if from == "-" {
        std::io::stdin()
            .take(most)
            .read_to_string(&mut text)
            .doing(format_args!("reading the {what} from standard input"))?;
    } else {
        let file = fs::File::open(from).doing(format_args!("cannot read {from}"))?;
        file.take(most)
            .read_to_string(&mut text)
            .doing(format_args!("reading {from}"))?;
    }
    Ok(text)
}

/// A command's context: what it needs besides its arguments.
pub struct Context {
    /// This node's state.
    pub layout: Layout,
    /// Whether results are printed as JSON.
    pub json: bool,
}

impl Context {
    /// A connection to this node's daemon, on which it has answered.
    pub async fn daemon(&self) -> Outcome<Client> {
        let signer = p2pvm_daemon::user_key::signer(&self.layout)?;
        Ok(silent::connect(&self.layout).await?.signed_by(signer))
    }

    /// As above; `None` if no daemon runs.
    pub async fn daemon_if_any(&self) -> Outcome<Option<Client>> {
        match silent::connect(&self.layout).await {
            Ok(client) => Ok(Some(client)),
            Err(silent::ConnectFailure::NotRunning(_)) => Ok(None),
            Err(missing) => Err(missing.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_command_line_that_is_not_understood_is_one_sentence_for_programs() {
        for (words, said) in [
            (
                "p2pvm --json ping",
                "the following required arguments were not provided: <MEMBER>",
            ),
            (
                "p2pvm --json ping lab1 -c 0",
                "invalid value '0' for '--count <COUNT>': 0 is not in 1..=1000000",
            ),
            ("p2pvm --json nosuch", "unrecognized subcommand 'nosuch'"),
        ] {
            let Err(error) = Cli::try_parse_from(words.split(' ')) else {
                panic!("{words} is understood")
            };
            assert_eq!(misuse(&error), Failure::usage(said), "{words}");
            assert_eq!(error.exit_code(), Kind::Usage as i32);
        }
    }
}
