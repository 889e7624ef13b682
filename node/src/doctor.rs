//! `p2pvm doctor`: checks whether this machine has what p2pvm needs. Each check says what was found
//! and, if that is not good, what to do. If a daemon runs, the doctor lets it repeat its tests and
//! adds its findings; all else works without a daemon.
//!
//! A check has one of three levels: fine, works less well than it could, and cannot work. Only the
//! last one makes the command fail. `probes` examines the machine and [`judge`] has the rules, so
//! that they are tested without a machine of each kind. `fix` repairs p2pvm's own leftovers and
//! files, and nothing else.

mod fix;
mod judge;
mod probes;

pub use probes::in_ram;

use crate::cli::{Context, print};
use p2pvm_api::{DoctorPage, FindingView, NetCheckView, Outcome, Status};
use p2pvm_host::Level;
use std::{process::ExitCode, time::Duration};
use tokio::time::timeout;

/// The running daemon's answers. The one about its NAT may be missing.
struct DaemonAnswers {
    status: Status,
    net: Option<NetCheckView>,
    findings: Vec<FindingView>,
}

/// How long the daemon may take to answer with its status.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// How long the daemon may take to repeat its tests.
const PROOF_LIMIT: Duration = Duration::from_secs(30);

async fn daemon(context: &Context) -> Option<DaemonAnswers> {
    let asked = async {
        let mut client = context.daemon().await.ok()?;
        let status: Status = client.get("/status").await.ok()?;
        Some((client, status))
    };
    let (mut client, mut status) = timeout(STATUS_LIMIT, asked).await.ok()??;
    let net = timeout(PROOF_LIMIT, client.get("/netcheck"))
        .await
        .ok()
        .and_then(Result::ok);
    // Last, because the server may close the connection with it. A daemon of a previous version
    // has neither this request nor findings in its status.
    let proved = timeout(PROOF_LIMIT, client.post("/findings", &()))
        .await
        .ok()
        .and_then(Result::ok);
    let findings = proved.unwrap_or_else(|| status.findings.clone());
    // The tests' results are newer than the first status.
    let again = async { context.daemon().await.ok()?.get("/status").await.ok() };
    if let Ok(Some(now)) = timeout(STATUS_LIMIT, again).await {
        status = now;
    }
    Some(DaemonAnswers {
        status,
        net,
        findings,
    })
}

/// Runs all checks.
pub async fn examine(context: &Context) -> DoctorPage {
    let layout = &context.layout;
    let running = daemon(context).await;
    let status = running.as_ref().map(|running| &running.status);
    let config = p2pvm_daemon::config::Config::load(layout);
    let ports = config
        .as_ref()
        .map_or((4001, 4002), |c| (c.port, c.link_port));
    let device = config.as_ref().map_or("p2pvm0", |c| c.device.as_str());
    // A daemon that does not answer has the ports too.
    let has_ports = status.is_some() || p2pvm_daemon::lock::holder(layout).is_some();
    let mut checks = vec![
        judge::root(nix::unistd::geteuid().is_root()),
        judge::settings(config.as_ref().map(|c| c.renamed.as_deref())),
        judge::kvm(&probes::kvm(config.as_ref().ok()).await),
        judge::tun(p2pvm_host::tun::try_tun()),
        judge::qemu(&probes::qemu().await),
        judge::nft(&probes::nft().await),
        judge::sysctl(&probes::sysctl()),
        judge::cgroups(&probes::cgroups()),
        judge::clock(&probes::clock(layout).await),
        judge::disk(&probes::disk(layout)),
        judge::memory(probes::memory_mib()),
        judge::udp(
            &probes::udp(ports, has_ports),
            running.as_ref().and_then(|running| running.net.as_ref()),
        ),
        judge::ipv6(probes::has_ipv6(), probes::v6_off_on(device)),
        judge::mtu(&probes::uplinks()),
        judge::name_servers(&probes::name_servers()),
        judge::membership(layout, status),
    ];
    if nix::unistd::geteuid().is_root() {
        let outlook = p2pvm_vm_manager::guardian::outlook(layout.dir());
        checks.push(judge::guardian(&outlook));
    }
    checks.extend(status.and_then(judge::guests));
    if running.is_none() {
        checks.extend(p2pvm_host::names::without_daemon().map(judge::of_machine));
    }
    let findings = running
        .as_ref()
        .map_or(&[][..], |running| &running.findings);
    let checks = judge::together(checks, findings);
    DoctorPage {
        ok: checks.iter().all(|c| c.level != Level::Failed),
        fixed: Vec::new(),
        checks,
    }
}

/// Runs the checks, prints them, and fails if one failed; with `fix` repairs first.
pub async fn run(context: &Context, fix: bool) -> Outcome<ExitCode> {
    let fixed = if fix {
        fix::all(context).await?
    } else {
        Vec::new()
    };
    let page = DoctorPage {
        fixed,
        ..examine(context).await
    };
    if context.json {
        print::json(&page)?;
    } else {
        if fix && page.fixed.is_empty() {
            println!("{:10}  nothing of p2pvm's own needs repair", "fixed");
        }
        for done in &page.fixed {
            println!("{:10}  {done}", "fixed");
        }
        for check in &page.checks {
            println!(
                "{:10}  {:7}  {}",
                check.check,
                check.level.word(),
                check.found
            );
            if !check.advice.is_empty() {
                println!("{:21}{}", "", check.advice);
            }
        }
    }
    Ok(if page.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
