//! What the daemon changes on this machine beyond its own interface: forwarding into an offered LAN and, where there is
//! no systemd-resolved, `/etc/resolv.conf`. Each change is written down before it is made, so that whoever comes next
//! (this daemon at its end, the next one after a kill, or `p2pvm down`) can put things back.

use super::resolver::{self, NamesChanged};
use crate::{
    failure::{Doing, Failure, Kind, Outcome},
    layout::{Layout, read_if_there, write_atomically},
};
use p2pvm_overlay::membership::Cidr;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// What is written down is read, changed and written by one at a time.
static BUSY: Mutex<()> = Mutex::new(());
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What has to be put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Forwarding was set up.
    #[serde(default)]
    pub forwarding: Option<Forwarding>,
    /// This file names our resolver, as the previous release wrote it.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// What was changed of this machine's name servers.
    #[serde(default)]
    pub names: NamesChanged,
}

/// How forwarding was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// The nftables table that is ours.
    pub table: String,
    /// Whether the kernel did not forward before.
    pub switched_on: bool,
}

impl Changes {
    /// What is written down; a file that cannot be read counts as nothing, and says so.
    pub fn load(layout: &Layout) -> Self {
        match read_if_there(&layout.undo()) {
            Ok(None) => Self::default(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %layout.undo().display(), "what was changed on this machine is not known");
                Self::default()
            }),
            Err(failure) => {
                tracing::warn!(%failure, "what was changed on this machine is not known");
                Self::default()
            }
        }
    }

    /// Writes it down.
    pub fn save(&self, layout: &Layout) -> Outcome<()> {
        if *self == Self::default() {
            return match fs::remove_file(layout.undo()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).doing("forgetting what was changed"),
                _ => Ok(()),
            };
        }
        write_atomically(&layout.undo(), &serde_json::to_vec_pretty(self).doing("encoding")?, 0o600)
    }
}

/// Puts everything back that is written down. What cannot be put back is logged and stays written down.
pub fn undo(layout: &Layout) {
    let _alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changes = Changes::load(layout);
    if changes == Changes::default() {
        return;
    }
    if let Some(forwarding) = &changes.forwarding {
        match stop_forwarding(forwarding) {
            Ok(()) => changes.forwarding = None,
            Err(failure) => tracing::warn!(%failure, "forwarding is still set up"),
        }
    }
    changes.names.resolv_conf = changes.names.resolv_conf.take().or(changes.resolv_conf.take());
    if let Err(failure) = resolver::undo(&mut changes.names) {
        tracing::warn!(%failure, "the list of name servers still names ours");
    }
    if let Err(failure) = changes.save(layout) {
        tracing::warn!(%failure, "not noted that the changes are undone");
    }
}

fn nft(rules: &str) -> Outcome<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Failure::new(Kind::Failed, format!("offering a subnet needs nft (apt-get install nftables): {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes its input; its exit status says more than our EPIPE.
        let _ = stdin.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().doing("running nft")?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, format!("nft refused the rules: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// The rules of a host that forwards from its overlay interface into `subnets`. New connections go inward only, and a host
/// that did not forward before forwards nothing else now.
fn rules(table: &str, device: &str, overlay: &str, subnets: &[Cidr], guard: bool) -> String {
    let list = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // Adding before deleting makes deleting no error; the whole text is one transaction.
    let mut text = format!("add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
    let _ = write!(
        text,
        "chain outward {{ type nat hook postrouting priority srcnat; policy accept;
            ip saddr {overlay} ip daddr {{ {list} }} oifname != \"{device}\" masquerade
        }}
        chain through {{ type filter hook forward priority filter; policy accept;
            iifname \"{device}\" oifname != \"{device}\" ip daddr {{ {list} }} accept
            iifname \"{device}\" drop
            oifname \"{device}\" ct state established,related accept
            oifname \"{device}\" drop
            {}
        }}\n}}\n",
        if guard { "drop" } else { "" }
    );
    text
}

/// Writes down what is about to be changed of this machine's name servers.
pub fn note_names(layout: &Layout, change: impl FnOnce(&mut NamesChanged)) -> Outcome<()> {
    let _alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changes = Changes::load(layout);
    change(&mut changes.names);
    changes.save(layout)
}

/// Forwards from `device` into `subnets`, replacing what was forwarded before; none ends it.
pub fn forward(layout: &Layout, device: &str, overlay: &str, subnets: &[Cidr]) -> Outcome<()> {
    let _alone = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changes = Changes::load(layout);
    if subnets.is_empty() {
        if let Some(forwarding) = changes.forwarding.take() {
            stop_forwarding(&forwarding)?;
            changes.save(layout)?;
        }
        return Ok(());
    }
    let forwarding = match &changes.forwarding {
        Some(known) => known.clone(),
        None => {
            let before = fs::read_to_string(IP_FORWARD).doing(format_args!("reading {IP_FORWARD}"))?;
            let table = format!("p2pvm_{}", device.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
            Forwarding { table, switched_on: before.trim() == "0" }
        }
    };
    changes.forwarding = Some(forwarding.clone());
    changes.save(layout)?;
    nft(&rules(&forwarding.table, device, overlay, subnets, forwarding.switched_on))?;
    if forwarding.switched_on {
        fs::write(IP_FORWARD, "1").doing(format_args!("switching on forwarding in {IP_FORWARD}"))?;
    }
    Ok(())
}

fn stop_forwarding(forwarding: &Forwarding) -> Outcome<()> {
    if forwarding.switched_on {
        fs::write(IP_FORWARD, "0").doing(format_args!("switching off forwarding in {IP_FORWARD}"))?;
    }
    let table = &forwarding.table;
    nft(&format!("add table ip {table}\ndelete table ip {table}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_remembered_until_it_is_undone_and_damage_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let changes = Changes { resolv_conf: Some("/etc/resolv.conf".into()), ..Changes::default() };
        changes.save(&layout).unwrap();
        assert_eq!(Changes::load(&layout), changes);
        assert!(layout.undo().exists());
        Changes::default().save(&layout).unwrap();
        assert!(!layout.undo().exists());
        fs::write(layout.undo(), b"{").unwrap();
        assert_eq!(Changes::load(&layout), Changes::default());
    }

    #[test]
    fn only_a_host_that_did_not_forward_drops_what_is_not_ours() {
        let subnets = ["192.168.7.0/24".parse().unwrap()];
        let guarded = |guard| rules("t", "p2pvm0", "10.9.0.0/16", &subnets, guard).lines().any(|line| line.trim() == "drop");
        assert!(guarded(true) && !guarded(false));
    }
}
