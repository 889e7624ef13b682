//! p2pvm in the comparison. The bootstrap founds the network and all join by one invite beforehand,
//! so that only a member's start is timed: the other overlays have their keys beforehand too.

use super::Overlay;
use crate::{answers, testbed::Testbed};
use anyhow::{Context, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(super) struct P2pvm {
    program: PathBuf,
}

impl P2pvm {
    pub(super) fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
        }
    }

    pub(super) fn call(&self, bed: &Testbed, host: &str, words: &[&str]) -> anyhow::Result<Value> {
        let program = self.program.to_string_lossy();
        let argv: Vec<&str> = std::iter::once(&*program)
            .chain(words.iter().copied())
            .chain(["--json"])
            .collect();
        let output = bed.exec(host, &argv)?;
        if !output.status.success() {
            bail!(
                "p2pvm {} on {host}: {}",
                words.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }
}

impl Overlay for P2pvm {
    fn version(&self) -> String {
        format!("p2pvm {}", env!("CARGO_PKG_VERSION"))
    }

    fn prepare(&mut self, bed: &Testbed) -> anyhow::Result<()> {
        for host in super::HOSTS {
            let dir = bed.host(host)?.dir.clone();
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("node.toml"), "cpus = 1\naccel = \"tcg\"\n")?;
        }
        self.call(bed, "boot", &["init", "--network", "lab"])?;
        self.call(bed, "boot", &["up", "--detach"])?;
        let invite = self.call(bed, "boot", &["invite", "--uses", "4"])?;
        let invite = answers::invite(&invite).context("no invite")?.to_owned();
        for host in &super::HOSTS[1..] {
            self.call(bed, host, &["join", &invite])?;
        }
        for host in super::HOSTS {
            self.call(bed, host, &["down"])?;
        }
        Ok(())
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.call(bed, host, &["up", "--detach"]).map(drop)
    }

    fn stop(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.call(bed, host, &["down"]).map(drop)
    }

    fn address(&self, bed: &Testbed, host: &str) -> anyhow::Result<String> {
        let began = std::time::Instant::now();
        loop {
            let status = self.call(bed, host, &["status"])?;
            if let Some(address) = answers::address(&status) {
                return Ok(address.to_owned());
            }
            if began.elapsed() > super::NEVER {
                bail!("{host} got no address");
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
