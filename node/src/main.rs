//! The program: one binary that is the daemon and the command line which talks to it.

#![deny(missing_docs)]

mod api;
mod appliance;
mod bench;
mod bugreport;
mod cli;
mod clock;
mod config;
mod daemon;
mod demo;
mod doctor;
mod failure;
mod guardian;
mod layout;
mod membership;
mod naming;
mod preflight;
mod service;
mod shown;
mod sigpipe;
mod succession;
mod top;
mod traces;
mod web;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::misused(&error, std::env::args_os().any(|word| word == "--json")),
    };
    if !cli.is_daemon() {
        sigpipe::restore_default();
    }
    cli::run(cli)
}
