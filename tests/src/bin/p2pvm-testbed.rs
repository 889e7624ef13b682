//! `p2pvm testbed` without the rest of p2pvm: for tests of the emulated wide area itself.

use clap::Parser;
use p2pvm_lab::cli::{TestbedCommand, run_as};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "p2pvm-testbed",
    about = "An emulated wide area on this machine"
)]
struct Cli {
    #[command(subcommand)]
    command: TestbedCommand,
}

fn main() -> anyhow::Result<ExitCode> {
    run_as(&[], Cli::parse().command)
}
