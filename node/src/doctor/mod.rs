//! `p2pvm doctor`: looks whether this machine has what p2pvm needs. Each check says what was found and, where that is not good,
//! what to do. With a daemon it also says how the network looks from there; everything else works without one.
//!
//! Three levels: what is fine, what works less well than it could, and what makes something impossible. Only the last one makes
//! the command fail. `probes` asks the machine, [`judge`] holds the rules: the rules are tested without a machine of each kind.

mod judge;
mod probes;

pub use probes::in_ram;

use crate::{
    api::types::{NetCheckView, Status},
    cli::{Context, print},
    failure::Outcome,
};
use serde::Serialize;
use std::process::ExitCode;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Something is impossible like this.
    Failed,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One line of the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    pub advice: String,
}

/// The whole page.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Whether nothing that is needed is missing.
    pub ok: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// What the running daemon says, if one runs. One that cannot say what its NAT does is there all the same.
async fn daemon(context: &Context) -> Option<(Status, Option<NetCheckView>)> {
    let mut client = context.daemon().await.ok()?;
    Some((client.get("/status").await.ok()?, client.get("/netcheck").await.ok()))
}

/// Looks at everything.
pub async fn examine(context: &Context) -> Page {
    let layout = &context.layout;
    let running = daemon(context).await;
    let (status, net) = running.as_ref().map_or((None, None), |(status, net)| (Some(status), net.as_ref()));
    let config = crate::config::Config::load(layout);
    let ports = config.as_ref().map_or((4001, 4002), |c| (c.port, c.link_port));
    let checks = vec![
        judge::root(nix::unistd::geteuid().is_root()),
        judge::settings(config.as_ref().err()),
        judge::kvm(&probes::kvm(config.as_ref().ok()).await),
        judge::tun(probes::tun()),
        judge::qemu(&probes::qemu().await),
        judge::clock(&probes::clock(layout).await),
        judge::disk(&probes::disk(layout)),
        judge::memory(probes::memory_mib()),
        judge::udp(&probes::udp(ports, status.is_some()), net),
        judge::membership(layout, status),
    ];
    Page { ok: checks.iter().all(|c| c.level != Level::Failed), checks }
}

/// Looks, prints, and fails if something needed is missing.
pub async fn run(context: &Context) -> Outcome<ExitCode> {
    let page = examine(context).await;
    if context.json {
        print::json(&page)?;
    } else {
        for check in &page.checks {
            println!("{:10}  {:7}  {}", check.check, check.level.word(), check.found);
            if !check.advice.is_empty() {
                println!("{:21}{}", "", check.advice);
            }
        }
    }
    Ok(if page.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
