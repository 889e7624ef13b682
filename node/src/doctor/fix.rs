//! `p2pvm doctor --fix`: repairs p2pvm's own leftovers and files and says what it did. It is
//! idempotent.

use crate::cli::Context;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use p2pvm_api::{Doing, Failure, FindingView, Outcome};
use p2pvm_daemon::{changes, layout::Layout, lock, preflight};
use p2pvm_host::tun::{DEVICE, Step, try_tun};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

/// How long loading a module may take.
const MODPROBE_LIMIT: Duration = Duration::from_secs(10);
/// The state directory's mode: guests can pass to their own part of it, but not list it.
const DIRECTORY_MODE: u32 = 0o711;
/// A key's mode: its owner alone can read it.
const SECRET_MODE: u32 = 0o600;

/// Repairs, in an order in which each step can use the results of the previous ones.
///
/// # Errors
/// The user is not root.
pub(super) async fn all(context: &Context) -> Outcome<Vec<String>> {
    preflight::root("repairing")?;
    let layout = &context.layout;
    let mut done = Vec::new();
    done.extend(directory(layout)?);
    done.extend(permissions(layout)?);
    done.extend(leftovers(layout));
    done.extend(tun().await);
    done.extend(mend(context).await);
    Ok(done)
}

fn directory(layout: &Layout) -> Outcome<Option<String>> {
    if layout.dir().is_dir() {
        return Ok(None);
    }
    layout.create()?;
    Ok(Some(format!(
        "made the state directory {}",
        layout.dir().display()
    )))
}

fn permissions(layout: &Layout) -> Outcome<Vec<String>> {
    let wanted = [
        (layout.dir().to_owned(), DIRECTORY_MODE),
        (layout.identity(), SECRET_MODE),
        (layout.root_key(), SECRET_MODE),
        (layout.user_key(), SECRET_MODE),
        (layout.dashboard_token(), SECRET_MODE),
        (layout.dashboard_reader_token(), SECRET_MODE),
        (layout.dashboard_certificate(), SECRET_MODE),
    ];
    let mut done = Vec::new();
    for (path, mode) in wanted {
        done.extend(permit(&path, mode).doing(format_args!(
            "setting the permissions of {}",
            path.display()
        ))?);
    }
    Ok(done)
}

fn permit(path: &PathBuf, mode: u32) -> std::io::Result<Option<String>> {
    let before = match fs::metadata(path) {
        Ok(about) => about.permissions().mode() & 0o7777,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if before == mode {
        return Ok(None);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(Some(format!(
        "set the permissions of {} to {mode:o}; they were {before:o}",
        path.display()
    )))
}

/// Removes a killed daemon's leftovers, if no daemon runs now.
fn leftovers(layout: &Layout) -> Vec<String> {
    if lock::holder(layout).is_some() {
        return Vec::new();
    }
    let mut done = Vec::new();
    if layout.undo().exists() {
        changes::undo(layout);
        if !layout.undo().exists() {
            done.push("undid a killed daemon's changes to this machine".to_owned());
        }
    }
    let revived = changes::remove_revived();
    if revived > 0 {
        done.push(format!(
            "removed {revived} firewall rules or tables of p2pvm that were loaded again after \
            its end"
        ));
    }
    for socket in [layout.socket(), layout.dashboard_socket()] {
        if fs::remove_file(&socket).is_ok() {
            done.push(format!(
                "removed the socket {}, on which no daemon listens",
                socket.display()
            ));
        }
    }
    done
}

/// Loads the driver and makes its device, if they are missing.
async fn tun() -> Vec<String> {
    let mut done = Vec::new();
    let Err(trouble) = try_tun() else { return done };
    if !matches!(trouble.step, Step::Missing | Step::Open) {
        return done;
    }
    let loading = Command::new("modprobe")
        .arg("tun")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    let loaded = tokio::time::timeout(MODPROBE_LIMIT, loading)
        .await
        .is_ok_and(|status| status.is_ok_and(|status| status.success()));
    if loaded && try_tun().is_ok() {
        done.push("loaded the kernel's TUN driver (modprobe tun)".to_owned());
        return done;
    }
    if trouble.step == Step::Missing && Path::new("/sys/class/misc/tun").exists() {
        done.extend(
            make_device(Path::new(DEVICE))
                .map(|()| format!("made the device {DEVICE}"))
                .ok(),
        );
    }
    done
}

fn make_device(path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    mknod(
        path,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(10, 200),
    )?;
    // The umask applies to mknod's mode.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// Lets the running daemon repair its own state.
async fn mend(context: &Context) -> Option<String> {
    let mut client = context.daemon().await.ok()?;
    let asked: Result<Vec<FindingView>, Failure> = client.post("/mend", &()).await;
    let settled = asked.ok()?;
    let words: Vec<String> = settled
        .into_iter()
        .map(|finding| format!("{}: {}", finding.area, finding.found))
        .collect();
    (!words.is_empty()).then(|| format!("the daemon repaired: {}", words.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_corrected_once_and_what_is_not_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path().join("state"));
        assert!(directory(&layout).unwrap().unwrap().contains("state"));
        assert_eq!(directory(&layout).unwrap(), None);
        fs::write(layout.identity(), b"secret").unwrap();
        fs::write(layout.user_key(), b"secret").unwrap();
        for secret in [layout.identity(), layout.user_key()] {
            fs::set_permissions(secret, fs::Permissions::from_mode(0o644)).unwrap();
        }
        fs::set_permissions(layout.dir(), fs::Permissions::from_mode(0o777)).unwrap();
        let done = permissions(&layout).unwrap();
        assert!(
            done.len() == 3 && done[1].contains("identity") && done[1].contains("644"),
            "{done:?}"
        );
        assert!(done[2].contains("user.key"), "{done:?}");
        assert_eq!(
            fs::metadata(layout.identity())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        assert_eq!(permissions(&layout).unwrap(), Vec::<String>::new());
        fs::write(layout.socket(), b"").unwrap();
        assert_eq!(leftovers(&layout).len(), 1);
        assert_eq!(leftovers(&layout), Vec::<String>::new());
    }
}
