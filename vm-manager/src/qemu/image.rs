//! Disk files, by `qemu-img`.
//!
//! An image comes from strangers. One that names a backing file or an external data file would have
//! QEMU open a file of this host's and show it to the guest, so such images are refused.

use crate::{Error, error::io_at};
use p2pvm_overlay::chain;
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

/// How to install QEMU.
pub(crate) const HINT: &str =
    "apt-get install -t bookworm-backports qemu-system-x86 qemu-utils (version 10 or later)";

/// What a disk file's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) format: &'static str,
    pub(crate) virtual_size: u64,
    pub(crate) backing: Option<PathBuf>,
}

/// Reads a disk's header; the disk may be in use.
pub(crate) async fn info(path: &Path) -> Result<Info, Error> {
    fs::metadata(path).map_err(io_at("open the disk image", path))?;
    let text = run(
        "read the disk image",
        &["info", "--output=json", "-U", "--"],
        &[path],
    )
    .await?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Info, Error> {
    let broken = |what: &str| Error::Refused(format!("{}: {what}", path.display()));
    let value: Value = serde_json::from_str(text).map_err(|e| {
        broken(&format!(
            "the answer of qemu-img is not JSON: {}",
            chain(&e)
        ))
    })?;
    let format = match value["format"].as_str() {
        Some("qcow2") => "qcow2",
        Some("raw") => "raw",
        other => {
            return Err(broken(&format!(
                "is {}, not qcow2 or raw; convert it: qemu-img convert -O qcow2",
                other.unwrap_or("unknown")
            )));
        }
    };
    if value["format-specific"]["data"]["data-file"].is_string() {
        return Err(broken(
            "keeps its data in another file, which is not allowed; convert it: qemu-img convert \
                -O qcow2",
        ));
    }
    let virtual_size = value["virtual-size"]
        .as_u64()
        .ok_or_else(|| broken("has no size"))?;
    let backing = value["full-backing-filename"]
        .as_str()
        .or(value["backing-filename"].as_str())
        .map(PathBuf::from);
    Ok(Info {
        format,
        virtual_size,
        backing,
    })
}

/// The same for an image, which must not be based on another file.
pub(crate) async fn standalone(path: &Path) -> Result<Info, Error> {
    let info = info(path).await?;
    match &info.backing {
        None => Ok(info),
        Some(backing) => Err(Error::Refused(format!(
            "{} is based on another file, {}; flatten it first: qemu-img convert -O qcow2",
            path.display(),
            backing.display()
        ))),
    }
}

/// Refuses a qcow2 whose tables point past its end, as those of a broken-off download do.
pub(crate) async fn check_whole(path: &Path, info: &Info) -> Result<(), Error> {
    if info.format != "qcow2" {
        return Ok(());
    }
    match run(
        "check the disk image",
        &["check", "-q", "-U", "-f", "qcow2", "--"],
        &[path],
    )
    .await
    {
        Ok(_) => Ok(()),
        Err(missing @ Error::Missing { .. }) => Err(missing),
        Err(damaged) => Err(Error::Refused(format!(
            "{} is damaged or not whole; copy or download it again ({})",
            path.display(),
            chain(&damaged)
        ))),
    }
}

/// Creates an empty qcow2 over `image`, `size` bytes or as large as it, whichever is more.
pub(crate) async fn create_over(image: &Path, disk: &Path, size: Option<u64>) -> Result<(), Error> {
    let image = fs::canonicalize(image).map_err(io_at("open the disk image", image))?;
    let below = standalone(&image).await?;
    // Whole megabytes: partition tools and the mirror both handle a ragged end badly.
    let size = size
        .unwrap_or(0)
        .max(below.virtual_size)
        .next_multiple_of(1 << 20);
    let size = size.to_string();
    run(
        "create the disk",
        &["create", "-q", "-f", "qcow2", "-F", below.format, "-b"],
        &[&image, disk, Path::new(&size)],
    )
    .await?;
    protect(disk)?;
    flush(disk)
}

/// Creates an empty qcow2 over nothing, in the place of an older file.
pub(crate) async fn create_empty(disk: &Path, size: u64) -> Result<(), Error> {
    let size = size.to_string();
    run(
        "create the disk",
        &["create", "-q", "-f", "qcow2"],
        &[disk, Path::new(&size)],
    )
    .await?;
    protect(disk)
}

/// Names `image` as what `disk` is based on.
pub(crate) async fn rebase(disk: &Path, image: &Path) -> Result<(), Error> {
    let image = fs::canonicalize(image).map_err(io_at("open the disk image", image))?;
    let below = standalone(&image).await?;
    run(
        "rebase the disk",
        &[
            "rebase",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            below.format,
            "-b",
        ],
        &[&image, disk],
    )
    .await?;
    protect(disk)?;
    flush(disk)
}

/// The daemon opens a guest's disk for it: nobody else on the machine reads it.
fn protect(disk: &Path) -> Result<(), Error> {
    fs::set_permissions(disk, fs::Permissions::from_mode(0o600))
        .map_err(io_at("protect the disk", disk))
}

/// Has a file's content survive a power cut.
pub(crate) fn flush(path: &Path) -> Result<(), Error> {
    fs::File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(io_at("flush", path))
}

async fn run(step: &'static str, arguments: &[&str], paths: &[&Path]) -> Result<String, Error> {
    let output = tokio::process::Command::new("qemu-img")
        .args(arguments)
        .args(paths)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(super::not_started("qemu-img", step))?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr)
            .trim()
            .trim_start_matches("qemu-img: ")
            .to_owned();
        return Err(Error::Hypervisor { step, detail });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_points_at_other_files_is_refused() {
        let at = Path::new("i.qcow2");
        let data = r#"{"format":"qcow2","virtual-size":1,
            "format-specific":{"data":{"data-file":"/etc/shadow"}}}"#;
        assert!(parse(at, data).is_err());
        assert!(
            parse(at, r#"{"format":"vmdk","virtual-size":1}"#)
                .unwrap_err()
                .to_string()
                .contains("qemu-img convert")
        );
        let over = r#"{"format":"qcow2","virtual-size":1,"backing-filename":"b",
            "full-backing-filename":"/a/b"}"#;
        let over = parse(at, over).unwrap();
        assert_eq!(over.backing, Some("/a/b".into()));
    }
}
