//! The grammar of `p2pvm store`.

use clap::{Args, Subcommand};

/// The examples of `p2pvm store`.
pub const EXAMPLE: &str = "A chunk that several use counts once: for images, then for this host's \
    snapshots, then for other members.\n\nExamples:\n  p2pvm store\n  p2pvm store gc --dry-run";

/// Arguments of `store`.
#[derive(Args)]
pub struct StoreArgs {
    /// What to do; without it what uses the disk is shown
    #[command(subcommand)]
    pub verb: Option<StoreVerb>,
}

/// `p2pvm store ...`
#[derive(Subcommand)]
pub enum StoreVerb {
    /// Remove the chunks that nothing uses, if they are an hour old
    #[command(
        after_help = "The daemon does so by itself every hour.\n\nExample:\n  p2pvm store gc \
        --dry-run"
    )]
    Gc(Gc),
}

/// Arguments of `store gc`.
#[derive(Args)]
pub struct Gc {
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}
