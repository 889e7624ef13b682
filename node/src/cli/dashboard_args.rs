//! The grammar of `p2pvm dashboard`.

use clap::Args;

/// The examples of `p2pvm dashboard`.
pub const EXAMPLES: &str = "Examples:\n  p2pvm dashboard --enable\n  p2pvm dashboard\n  p2pvm \
    dashboard --role reader     # a link that shows everything and changes nothing\n  p2pvm \
    dashboard --listen 127.0.0.1:4080     # for this machine alone, until Ctrl-C";

/// Arguments of `dashboard`.
#[derive(Args)]
pub struct Dashboard {
    /// Serve the dashboard on this host's address in the network, now and after a restart
    #[arg(long)]
    pub enable: bool,
    /// Do not serve it there
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// Make a new token for the role; the old one becomes invalid
    #[arg(long)]
    pub new_token: bool,
    /// Whose link to print: an operator's, or that of a reader, who sees everything and changes
    /// nothing
    #[arg(
        long,
        value_name = "ROLE",
        value_parser = ["operator", "reader"],
        default_value = "operator"
    )]
    pub role: String,
    /// Serve it on a port of this machine alone while this command runs
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["enable", "disable"])]
    pub listen: Option<std::net::SocketAddr>,
}
