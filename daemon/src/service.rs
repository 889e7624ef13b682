//! The daemon as a systemd service, if the package installed the unit: the commands then start it
//! through systemd, so that the unit's limits hold and it starts at boot, and its log is the
//! journal.

use crate::layout::Layout;
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use std::{io::SeekFrom, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    process::Command,
};

const UNIT: &str = "p2pvm.service";
/// The paths of the unit's file in a package.
const UNIT_FILES: [&str; 2] = [
    "/usr/lib/systemd/system/p2pvm.service",
    "/lib/systemd/system/p2pvm.service",
];
/// The state directory that the unit is for.
pub const STATE_DIR: &str = "/var/lib/p2pvm";
/// How many of the log's last lines are searched for the daemon's last message.
const LAST_LINES: usize = 20;
/// How long systemctl may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How much of a log file is read, bytes.
const LOG_BYTES: u64 = 256 << 10;

/// Whether systemd starts the daemon of this state directory: systemd runs and has the unit. On an
/// emulated host, which shares its files with others, it never does.
pub fn manages(layout: &Layout) -> bool {
    layout.dir() == Path::new(STATE_DIR)
        && std::env::var_os("P2PVM_HOST").is_none()
        && Path::new("/run/systemd/system").is_dir()
        && UNIT_FILES.iter().any(|file| Path::new(file).exists())
}

/// Starts the unit and enables it at boot.
pub async fn start() -> Outcome<()> {
    systemctl(&["enable", "--quiet", UNIT]).await?;
    let Err(failure) = systemctl(&["restart", UNIT]).await else {
        return Ok(());
    };
    Err(own_words().await.unwrap_or(failure))
}

/// Lets systemd stop the daemon of this state directory, if it starts it, so that it does not
/// restart it. Does not wait for the end.
pub async fn stop_soon(layout: &Layout) {
    if manages(layout) {
        // If systemd does not answer in time, the caller ends the daemon without it.
        let _ = tokio::time::timeout(STOP_LIMIT, systemctl(&["stop", "--no-block", UNIT])).await;
    }
}

/// Why the daemon of this state directory ended, if systemd starts it and it has ended.
pub async fn ended(layout: &Layout) -> Option<Failure> {
    if manages(layout) {
        own_words().await
    } else {
        None
    }
}

/// Why the daemon ended: its own message and exit code, which systemctl does not give.
async fn own_words() -> Option<Failure> {
    let words = ["show", "--property", "ExecMainStatus", "--value", UNIT];
    let output = Command::new("systemctl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .await
        .ok()?;
    let kind = Kind::of_exit_code(
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .ok()?,
    )?;
    let sentence = last_sentence(&journal(LAST_LINES).await)?;
    Some(Failure::new(
        kind,
        format!("the daemon did not start: {sentence}"),
    ))
}

/// The program's last message in the journal's lines.
fn last_sentence(journal: &str) -> Option<String> {
    journal
        .lines()
        .rev()
        .find_map(|line| Some(line.split_once("]: p2pvm: ")?.1.to_owned()))
}

/// Runs systemctl.
pub async fn systemctl(words: &[&str]) -> Outcome<()> {
    let output = Command::new("systemctl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .await;
    let output = output.doing("cannot run systemctl")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(
        Kind::Failed,
        format!("systemctl {}: {said}", words.join(" ")),
    ))
}

/// The daemon's last lines: from the journal if it is a service, otherwise from its log file.
pub async fn log_tail(layout: &Layout, lines: usize) -> Vec<String> {
    let text = if manages(layout) {
        journal(lines).await
    } else {
        file_tail(&layout.log()).await
    };
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

async fn journal(lines: usize) -> String {
    let count = lines.to_string();
    let words = [
        "--unit",
        UNIT,
        "--no-pager",
        "--quiet",
        "--output",
        "short-iso",
        "--lines",
        &count,
    ];
    let output = Command::new("journalctl")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .await;
    output.map_or_else(
        |e| format!("cannot run journalctl: {}", p2pvm_host::chain(&e)),
        |o| String::from_utf8_lossy(&o.stdout).into_owned(),
    )
}

async fn file_tail(path: &Path) -> String {
    let read = async {
        let mut file = tokio::fs::File::open(path).await?;
        let length = file.metadata().await?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))
            .await?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    // A missing log has no lines.
    read.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_last_sentence_is_found_in_the_journal() {
        let journal = "2026-01-01T00:00:00+0000 attic p2pvm[7]: p2pvm: \
            first\n2026-01-01T00:00:01+0000 attic p2pvm[9]: p2pvm: no TUN: why\n\
            2026-01-01T00:00:01+0000 attic systemd[1]: p2pvm.service: Main process exited";
        assert_eq!(last_sentence(journal).as_deref(), Some("no TUN: why"));
        assert_eq!(
            last_sentence("2026-01-01T00:00:01+0000 attic systemd[1]: Starting p2pvm"),
            None
        );
    }

    #[tokio::test]
    async fn the_end_of_a_log_is_read_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        assert!(!manages(&layout));
        assert!(log_tail(&layout, 3).await.is_empty());
        std::fs::write(layout.log(), b"one\ntwo\nth\xffree\nfour\n").unwrap();
        assert_eq!(log_tail(&layout, 2).await, ["th\u{fffd}ree", "four"]);
    }
}
