//! `p2pvm simulate` without the rest of p2pvm: builds without libp2p.

use clap::Parser;
use p2pvm_lab::sim::cli::{Simulate, run};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "p2pvm-simulate", about = "The ring in virtual time")]
struct Cli {
    #[command(flatten)]
    simulate: Simulate,
    /// Print results as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    run(&cli.simulate, cli.json)
}
