//! A small file system for a host's state directory.

use std::{path::PathBuf, process::Command};

/// A host's state directory on a file system of its own, of so many MiB.
pub struct Small(PathBuf);

impl Small {
    /// Mounts it at `dir` until it is dropped.
    pub fn at(dir: PathBuf, mib: u32) -> Self {
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}M,mode=711"),
                "p2pvm",
            ])
            .arg(&dir)
            .output();
        let mounted = mounted.unwrap();
        assert!(
            mounted.status.success(),
            "{}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
