//! Our own programs: the forwarder without encryption, p2pvm, and packet planes without the rest.

use super::{RunningProgram, first, until};
use crate::netbench::stage::{Stage, ThisProgram};
use anyhow::Context;
use p2pvm_api::{InviteAnswer, Status};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

pub(super) fn plain(
    running: &mut RunningProgram,
    own: &ThisProgram,
    stage: &Stage,
) -> anyhow::Result<()> {
    for host in 0..2 {
        let to = stage.reach(host, if stage.hosts.len() > 2 { 2 } else { 1 - host });
        let mut command = own.command("plain-tunnel");
        command.args(["--listen", "0.0.0.0:9000", "--to", &format!("{to}:9000")]);
        running.daemon(
            stage,
            host,
            command.args(["--address", &running.addresses[host].to_string()]),
        )?;
    }
    if stage.hosts.len() > 2 {
        let (a, b) = (
            format!("{}:9000", stage.hosts[0].address),
            format!("{}:9000", stage.hosts[1].address),
        );
        let mut command = own.command("plain-tunnel");
        running.daemon(
            stage,
            2,
            command.args(["--listen", "0.0.0.0:9000", "--to", &a, "--to", &b]),
        )?;
    }
    Ok(())
}

pub(super) fn p2pvm(
    running: &mut RunningProgram,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let program_name = program.to_string_lossy().into_owned();
    let call = |host: usize, words: &[&str]| -> anyhow::Result<String> {
        let argv: Vec<&str> = std::iter::once(&*program_name)
            .chain(words.iter().copied())
            .chain(["--json"])
            .collect();
        stage.run(host, &argv)
    };
    let hub = first(stage);
    // No limit for the relay, and the machine's own resolver is left alone.
    let config = "cpus = 1\naccel = \"tcg\"\nresolver = \"off\"\nupnp = false\nrelay_mbit = 0\n";
    stage
        .hosts
        .iter()
        .try_for_each(|host| fs::write(host.dir.join("node.toml"), config))?;
    let up = |running: &mut RunningProgram, host: usize| {
        running.daemon(stage, host, Command::new(program).arg("up"))
    };
    call(hub, &["init", "--network", "lab"])?;
    up(running, hub)?;
    let invite = until(|| call(hub, &["invite", "--uses", "4"]))?;
    let InviteAnswer { invite, .. } = serde_json::from_str(&invite).context("no invite")?;
    for host in (0..stage.hosts.len()).filter(|host| *host != hub) {
        call(host, &["join", &invite])?;
        up(running, host)?;
    }
    for host in 0..2 {
        let address = until(|| {
            let status: Status = serde_json::from_str(&call(host, &["status"])?)?;
            status.address.context("no address yet")
        })?;
        running.addresses[host] = address
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()
            .context("an invalid address")?;
    }
    Ok(())
}

/// `overlay/benches/pair.rs`: one process with a plane in each namespace.
pub(super) fn pair(
    running: &mut RunningProgram,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command
        .args(stage.hosts.iter().map(|host| &host.namespace))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run the planes")?;
    let stdout = child.stdout.take();
    running.daemons.push((0, child));
    let mut line = String::new();
    stdout
        .map(|out| BufReader::new(out).read_line(&mut line))
        .transpose()?;
    let mut addresses = line.split_whitespace().map(str::parse);
    let mut next = || {
        addresses
            .next()
            .context("the planes did not start")?
            .context("an invalid address")
    };
    running.addresses = [next()?, next()?];
    Ok(())
}
