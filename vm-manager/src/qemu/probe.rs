//! Whether this host's KVM really runs guests.
//!
//! `/dev/kvm` proves nothing: on a host that is itself a guest without nested paging, KVM makes a
//! VM, the firmware runs, and Linux hangs right after it. So a small Linux is booted on KVM once
//! per boot of the host, and the verdict is kept.

use super::{PROGRAM, not_started, path_of_programs};
use crate::{Error, error::io_at, hypervisor::Accel};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::ChildStdout};

/// The device.
pub(crate) const KVM: &str = "/dev/kvm";
/// How long the probe guest may take to boot before KVM counts as broken. Reason: a real KVM needs
/// about two seconds, more on a loaded host.
const PATIENCE: Duration = Duration::from_secs(12);
/// The verdict's file in the state directory.
const FILE: &str = "accel.json";

/// The guest that the probe boots.
#[derive(Clone, Debug)]
pub enum Probe {
    /// A bootable disk image that prints `says` on its serial console once user space runs.
    Image {
        /// The image.
        path: PathBuf,
        /// The text that proves it.
        says: String,
    },
    /// A Linux kernel alone; that it complains about the missing root file system proves that it
    /// ran.
    Kernel(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Verdict {
    boot_id: String,
    accel: Accel,
}

/// The verdict of this boot: remembered, or found now.
pub(crate) async fn verdict(state_dir: &Path, probe: Option<&Probe>) -> Result<Accel, Error> {
    if !Path::new(KVM).exists() {
        return Ok(Accel::Tcg);
    }
    let path = state_dir.join(FILE);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Verdict>(&bytes).ok());
    if let Some(known) = known.filter(|v| v.boot_id == boot_id) {
        return Ok(known.accel);
    }
    let Some(probe) = probe else {
        tracing::info!("there is /dev/kvm, but nothing to probe it with: guests run translated");
        return Ok(Accel::Tcg);
    };
    let accel = if boots(probe, "kvm").await? {
        Accel::Kvm
    } else {
        Accel::Tcg
    };
    tracing::info!(?accel, "probed this host's KVM");
    fs::create_dir_all(state_dir).map_err(io_at("remember the probe's verdict", state_dir))?;
    let bytes = serde_json::to_vec(&Verdict { boot_id, accel }).unwrap_or_default();
    fs::write(&path, bytes).map_err(io_at("remember the probe's verdict", &path))?;
    Ok(accel)
}

/// Whether the probe guest comes up on `accel`.
async fn boots(probe: &Probe, accel: &str) -> Result<bool, Error> {
    let (mut command, says) = command(probe, accel);
    let mut child = command
        .spawn()
        .map_err(not_started(PROGRAM, "probe this host's KVM"))?;
    let Some(output) = child.stdout.take() else {
        return Ok(false);
    };
    let came_up = tokio::time::timeout(PATIENCE, prints(output, &says))
        .await
        .unwrap_or(false);
    let _ = child.kill().await;
    Ok(came_up)
}

/// QEMU's command line for a probe, and the text that proves that the guest runs.
fn command(probe: &Probe, accel: &str) -> (tokio::process::Command, String) {
    let mut command = tokio::process::Command::new(PROGRAM);
    command
        .env_clear()
        .env("PATH", path_of_programs())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
        .args(["-machine", "q35", "-accel", accel, "-m", "128M"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-snapshot"])
        .args(["-sandbox", crate::jail::SECCOMP]);
    let says = match probe {
        Probe::Image { path, says } => {
            let path = path.display().to_string().replace(',', ",,");
            command.arg("-drive").arg(format!("if=virtio,file={path}"));
            says.clone()
        }
        Probe::Kernel(path) => {
            command
                .arg("-kernel")
                .arg(path)
                .args(["-append", "console=ttyS0 panic=-1"]);
            "VFS: ".to_owned()
        }
    };
    (command, says)
}

/// Whether the text comes before the output ends.
async fn prints(mut output: ChildStdout, says: &str) -> bool {
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match output.read(&mut buffer).await {
            Ok(n) if n > 0 => heard.extend_from_slice(&buffer[..n]),
            _ => return false,
        }
        if String::from_utf8_lossy(&heard).contains(says) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verdict_holds_until_the_host_boots_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = |boot_id: String| {
            fs::write(
                dir.path().join(FILE),
                serde_json::to_vec(&Verdict {
                    boot_id,
                    accel: Accel::Kvm,
                })
                .unwrap(),
            )
        };
        store(fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()).unwrap();
        let expected = if Path::new(KVM).exists() {
            Accel::Kvm
        } else {
            Accel::Tcg
        };
        assert_eq!(verdict(dir.path(), None).await.unwrap(), expected);
        store("another boot".into()).unwrap();
        assert_eq!(verdict(dir.path(), None).await.unwrap(), Accel::Tcg);
    }
}
