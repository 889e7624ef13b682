//! WireGuard in user space: wireguard-go, gotatun, boringtun. All are configured with `wg`.

use super::{ProgramName, RunningProgram, octet, until};
use crate::netbench::stage::Stage;
use anyhow::{Context, bail};
use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

const DEVICE: &str = "wgbench0";

/// Starts `which` on each host of the stage and connects them.
pub(super) fn wireguard(
    running: &mut RunningProgram,
    which: ProgramName,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let public_keys = stage
        .hosts
        .iter()
        .map(|host| {
            let secret = output_of("wg", &["genkey"], "")?;
            fs::write(host.dir.join("secret"), &secret)?;
            output_of("wg", &["pubkey"], &secret)
        })
        .collect::<anyhow::Result<Vec<String>>>()?;
    for host in 0..stage.hosts.len() {
        let pid = start(running, which, program, stage, host)?;
        configure(stage, host, pid, &public_keys)?;
        set_device_up(stage, host)?;
    }
    Ok(())
}

/// Starts the program on one host; returns its process id.
fn start(
    running: &mut RunningProgram,
    which: ProgramName,
    program: &Path,
    stage: &Stage,
    host: usize,
) -> anyhow::Result<u32> {
    let mut command = Command::new(program);
    match which {
        ProgramName::WireguardGo => command.args(["-f", DEVICE]),
        // Otherwise they drop root, which some sandboxes do not allow.
        _ => command.args(["--foreground", "--disable-drop-privileges", DEVICE]),
    };
    // All network namespaces share the directory of the control socket: each program gets its own.
    let inside = "mkdir -p run && mount --bind run /var/run/wireguard && exec \"$0\" \"$@\"";
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "sh", "-c", inside])
        .arg(command.get_program())
        .args(command.get_args());
    fs::create_dir_all("/var/run/wireguard")?;
    running.daemon(stage, host, &mut shell)?;
    let last = running.daemons.last().map(|(_, child)| child.id());
    Ok(last.unwrap_or_default())
}

/// Gives the host's device its key and its peers.
fn configure(stage: &Stage, host: usize, pid: u32, public_keys: &[String]) -> anyhow::Result<()> {
    let pid = pid.to_string();
    let wg = |words: &[&str]| {
        let argv: Vec<&str> = ["nsenter", "-m", "-t", &pid, "wg", "set", DEVICE]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        stage.run(host, &argv)
    };
    let secret = stage.hosts[host].dir.join("secret");
    let secret = secret.to_string_lossy();
    until(|| wg(&["listen-port", "51820", "private-key", &secret]))?;
    let others: Vec<(usize, String)> = match (stage.hosts.len(), host) {
        (2, host) => vec![(1 - host, format!("10.90.0.{}/32", octet(1 - host)))],
        (_, 2) => vec![(0, "10.90.0.1/32".into()), (1, "10.90.0.2/32".into())],
        _ => vec![(2, "10.90.0.0/24".into())],
    };
    for (other, allowed) in others {
        let address = if host == 2 {
            stage.hosts[other].address
        } else {
            stage.reach(host, other)
        };
        let (key, endpoint) = (&public_keys[other], format!("{address}:51820"));
        wg(&["peer", key, "allowed-ips", &allowed, "endpoint", &endpoint])?;
    }
    Ok(())
}

fn set_device_up(stage: &Stage, host: usize) -> anyhow::Result<()> {
    let address = format!("10.90.0.{}/24", octet(host));
    stage.run(host, &["ip", "addr", "add", &address, "dev", DEVICE])?;
    stage.run(host, &["ip", "link", "set", DEVICE, "mtu", "1420", "up"])?;
    if host == 2 {
        // It routes between its two tunnels, and still not between its two cables.
        let forwarding = format!("/proc/sys/net/ipv4/conf/{DEVICE}/forwarding");
        stage.inside(host, || fs::write(forwarding, "1"))??;
    }
    Ok(())
}

/// Runs a program on this machine with `input`; returns what it prints.
fn output_of(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| {
        format!("{program} is not installed (scripts/bench-peers.sh installs it)")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let mut text = String::new();
    if let Some(stdout) = child.stdout.as_mut() {
        stdout.read_to_string(&mut text)?;
    }
    if !child.wait()?.success() {
        bail!("{program} {} failed", arguments.join(" "));
    }
    Ok(text.trim().to_owned())
}
