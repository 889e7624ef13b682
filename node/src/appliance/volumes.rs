//! Lists labelled volumes with `blkid` (util-linux), and mounts them.

use nix::mount::{MsFlags, mount};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use std::{fs, path::Path, process::Command};

/// A volume with a file system on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub device: String,
    pub label: String,
    pub kind: String,
}

/// All labelled volumes of this machine, with floppies and optical drives that have a medium.
pub fn all() -> Outcome<Vec<Volume>> {
    let mut volumes = Vec::new();
    let devices = fs::read_dir("/sys/class/block").doing("listing this machine's disks")?;
    let mut names: Vec<String> = devices
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    for name in names.iter().filter(|name| {
        !["loop", "ram", "zram"]
            .iter()
            .any(|other| name.starts_with(other))
    }) {
        let device = format!("/dev/{name}");
        let output = Command::new("blkid")
            .args(["-p", "-o", "export", &device])
            .output()
            .doing("running blkid")?;
        // blkid also answers for a device without a file system or a medium.
        volumes.extend(parse(&device, &String::from_utf8_lossy(&output.stdout)));
    }
    Ok(volumes)
}

/// Reads blkid's `KEY=value` lines.
fn parse(device: &str, text: &str) -> Option<Volume> {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.replace('\\', ""))
    };
    Some(Volume {
        device: device.to_owned(),
        label: value("LABEL")?,
        kind: value("TYPE")?,
    })
}

/// The volumes labelled `label` in any case: FAT has upper case only, cloud-init's tools write
/// lower case.
pub fn labelled<'a>(volumes: &'a [Volume], label: &str) -> impl Iterator<Item = &'a Volume> {
    let label = label.to_owned();
    volumes
        .iter()
        .filter(move |volume| volume.label.eq_ignore_ascii_case(&label))
}

impl Volume {
    /// Mounts it at `at`, which it creates.
    pub fn mount(&self, at: &Path, writable: bool) -> Outcome<()> {
        fs::create_dir_all(at).doing(format_args!("making {}", at.display()))?;
        let flags = MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | if writable {
                MsFlags::MS_NOATIME
            } else {
                MsFlags::MS_RDONLY
            };
        mount(
            Some(&*self.device),
            at,
            Some(&*self.kind),
            flags,
            None::<&str>,
        )
        .map_err(|e| {
            Failure::new(
                Kind::Failed,
                format!(
                    "the volume {} on {} ({}) cannot be mounted: {}",
                    self.label,
                    self.device,
                    self.kind,
                    p2pvm_host::chain(&e)
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blkid_is_understood_and_labels_fit_in_any_case() {
        let text = "DEVNAME=/dev/fd0\nLABEL=cidata\nUUID=1\nTYPE=vfat\nUSAGE=filesystem\n";
        let volume = parse("/dev/fd0", text).unwrap();
        assert_eq!(
            volume,
            Volume {
                device: "/dev/fd0".into(),
                label: "cidata".into(),
                kind: "vfat".into()
            }
        );
        assert_eq!(labelled(&[volume], "CIDATA").count(), 1);
        assert_eq!(parse("/dev/sda", "DEVNAME=/dev/sda\nPTTYPE=dos\n"), None);
        assert_eq!(parse("/dev/sda", ""), None);
    }
}
