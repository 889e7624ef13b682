//! p2pvm in the comparison. The bootstrap founds the network and all join by one invite beforehand,
//! so that only a member's start is timed: the other overlays have their keys beforehand too.

use super::Overlay;
use crate::testbed::Testbed;
use anyhow::{Context, bail};
use p2pvm_api::{InviteAnswer, Status};
use serde::de::DeserializeOwned;
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

    /// Runs a command whose answer does not matter.
    pub(super) fn call(&self, bed: &Testbed, host: &str, words: &[&str]) -> anyhow::Result<()> {
        self.output(bed, host, words).map(drop)
    }

    /// Runs a command and reads its answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        bed: &Testbed,
        host: &str,
        words: &[&str],
    ) -> anyhow::Result<T> {
        serde_json::from_slice(&self.output(bed, host, words)?)
            .with_context(|| format!("the answer of p2pvm {} on {host}", words.join(" ")))
    }

    fn output(&self, bed: &Testbed, host: &str, words: &[&str]) -> anyhow::Result<Vec<u8>> {
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
        Ok(output.stdout)
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
        let words = ["invite", "--uses", "4"];
        let InviteAnswer { invite, .. } = self.ask(bed, "boot", &words)?;
        for host in &super::HOSTS[1..] {
            self.call(bed, host, &["join", &invite])?;
        }
        for host in super::HOSTS {
            self.call(bed, host, &["down"])?;
        }
        Ok(())
    }

    fn start(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.call(bed, host, &["up", "--detach"])
    }

    fn stop(&mut self, bed: &Testbed, host: &str) -> anyhow::Result<()> {
        self.call(bed, host, &["down"])
    }

    fn address(&self, bed: &Testbed, host: &str) -> anyhow::Result<String> {
        let began = std::time::Instant::now();
        loop {
            let status: Status = self.ask(bed, host, &["status"])?;
            if let Some(address) = status.address {
                return Ok(address);
            }
            if began.elapsed() > super::NEVER {
                bail!("{host} got no address");
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
