//! Overlays that relay: EasyTier, nebula, tinc, n2n.

use super::{RunningProgram, first, octet};
use crate::{
    n2n,
    netbench::stage::{Stage, Topology},
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

pub(super) fn easytier(
    running: &mut RunningProgram,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let hub = first(stage);
    for host in 0..stage.hosts.len() {
        let mut command = Command::new(program);
        let address = format!("10.90.0.{}", octet(host));
        command.args([
            "--ipv4",
            &address,
            "--network-name",
            "lab",
            "--network-secret",
            "a secret of the lab",
            "--multi-thread",
        ]);
        command.args([
            "--dev-name",
            "et0",
            "--rpc-portal",
            "0",
            "-l",
            "udp://0.0.0.0:11010",
            "--hostname",
            stage.hosts[host].name,
        ]);
        if host != hub {
            command.args(["-p", &format!("udp://{}:11010", stage.reach(host, hub))]);
        }
        running.daemon(stage, host, &mut command)?;
    }
    Ok(())
}

pub(super) fn nebula(
    running: &mut RunningProgram,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let (hub, middle) = (first(stage), stage.topology == Topology::Middle);
    let ca = stage.hosts[hub].dir.to_string_lossy().into_owned();
    let cert = program
        .with_file_name("nebula-cert")
        .to_string_lossy()
        .into_owned();
    stage.run(hub, &[&cert, "ca", "-name", "lab"])?;
    for (host, there) in stage.hosts.iter().enumerate() {
        let (crt, key) = (there.dir.join("host.crt"), there.dir.join("host.key"));
        let (crt, key) = (crt.to_string_lossy(), key.to_string_lossy());
        let address = format!("10.90.0.{}/24", octet(host));
        stage.run(
            hub,
            &[
                &cert, "sign", "-name", there.name, "-ip", &address, "-out-crt", &crt, "-out-key",
                &key,
            ],
        )?;
        let hub_address = format!("10.90.0.{}", octet(hub));
        let is_hub = host == hub;
        let known = if is_hub {
            "{}".into()
        } else {
            format!(
                "{{ \"{hub_address}\": [\"{}:4242\"] }}",
                stage.reach(host, hub)
            )
        };
        let hubs = if is_hub {
            "[]".into()
        } else {
            format!("[\"{hub_address}\"]")
        };
        let config = format!(
            "pki: {{ ca: {ca}/ca.crt, cert: {crt}, key: {key} }}\nstatic_host_map: {known}\n\
             lighthouse: {{ am_lighthouse: {is_hub}, interval: 60, hosts: {hubs} }}\nlisten: {{ \
             host: 0.0.0.0, port: 4242, batch: 64 }}\n\
             relay: {{ am_relay: {am_relay}, use_relays: {middle}, relays: {relays} }}\ncipher: \
             aes\n\
             tun: {{ dev: nebula1, mtu: 1300 }}\nlogging: {{ level: warning }}\n\
             firewall:\n  outbound: [ {{ port: any, proto: any, host: any }} ]\n  inbound: [ {{ \
             port: any, proto: any, host: any }} ]\n",
            am_relay = middle && is_hub,
            relays = if middle { hubs.clone() } else { "[]".into() },
        );
        fs::write(there.dir.join("nebula.yml"), config)?;
        running.daemon(
            stage,
            host,
            Command::new(program)
                .arg("-config")
                .arg(there.dir.join("nebula.yml")),
        )?;
    }
    Ok(())
}

pub(super) fn tinc(
    running: &mut RunningProgram,
    program: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let hub = first(stage);
    let mut keys = Vec::new();
    for (host, there) in stage.hosts.iter().enumerate() {
        let (dir, name) = (&there.dir, there.name);
        fs::create_dir_all(dir.join("hosts"))?;
        let connect = if host == hub {
            String::new()
        } else {
            format!("ConnectTo = {}\n", stage.hosts[hub].name)
        };
        fs::write(
            dir.join("tinc.conf"),
            format!("Name = {name}\nInterface = tinc0\nMode = router\n{connect}"),
        )?;
        let address = format!("10.90.0.{}", octet(host));
        fs::write(
            dir.join("tinc-up"),
            format!(
                "#!/bin/sh\nip link set tinc0 up mtu 1400\nip addr add {address}/24 dev tinc0\n"
            ),
        )?;
        fs::set_permissions(dir.join("tinc-up"), fs::Permissions::from_mode(0o755))?;
        fs::write(
            dir.join("hosts").join(name),
            format!("Subnet = {address}/32\n"),
        )?;
        stage.run(
            host,
            &[
                &program.to_string_lossy(),
                "-c",
                &dir.to_string_lossy(),
                "-K",
                "2048",
            ],
        )?;
        keys.push((name, fs::read_to_string(dir.join("hosts").join(name))?));
    }
    for (host, there) in stage.hosts.iter().enumerate() {
        for (other, (name, key)) in keys.iter().enumerate() {
            let known = if other == hub && host != hub {
                format!("Address = {}\n", stage.reach(host, hub))
            } else {
                String::new()
            };
            fs::write(there.dir.join("hosts").join(name), format!("{known}{key}"))?;
        }
    }
    for (host, there) in stage.hosts.iter().enumerate() {
        let pidfile = format!("--pidfile={}", there.dir.join("tinc.pid").display());
        running.daemon(
            stage,
            host,
            Command::new(program)
                .arg("-c")
                .arg(&there.dir)
                .args([&pidfile, "-D"]),
        )?;
    }
    Ok(())
}

pub(super) fn n2n(
    running: &mut RunningProgram,
    program: &Path,
    supernode: &Path,
    stage: &Stage,
) -> anyhow::Result<()> {
    let hub = first(stage);
    running.daemon(stage, hub, &mut n2n::supernode(supernode))?;
    for host in 0..2 {
        let address = format!("10.90.0.{}", octet(host));
        let mut command = n2n::edge(program, &address, &stage.reach(host, hub).to_string());
        // Without a mask, edge does not set the TAP's address alike on every kernel.
        command.args(["-s", "255.255.255.0"]);
        running.daemon(stage, host, &mut command)?;
    }
    Ok(())
}
