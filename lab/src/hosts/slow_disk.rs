//! A disk under one directory that takes seconds for each sync: a file system on a loop device that
//! the kernel limits to a few writes a second. It has no journal, so that a sync is as many writes
//! as it has blocks.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The kernel's limit of writes a second for a device, for all processes (control groups, version
/// 1).
const LIMIT: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";
/// How many bytes the disk has.
const BYTES: u64 = 256 << 20;

/// The disk; dropping it unmounts it.
pub struct SlowDisk {
    directory: PathBuf,
    image: PathBuf,
    device: Option<String>,
    number: Option<String>,
}

fn run(program: &str, arguments: &[&OsStr]) -> io::Result<String> {
    let done = Command::new(program).args(arguments).output()?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
    }
    Err(io::Error::other(format!(
        "{program}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    )))
}

impl SlowDisk {
    /// Mounts one on a directory and copies the directory's files to it.
    ///
    /// # Errors
    /// Why this machine cannot make it: no loop devices, no such control group.
    pub fn under(directory: &Path) -> io::Result<Self> {
        if !Path::new(LIMIT).exists() {
            return Err(io::Error::other(format!("{LIMIT} is not there")));
        }
        let image = directory.with_extension("disk");
        let mut disk = Self {
            directory: directory.to_owned(),
            image,
            device: None,
            number: None,
        };
        fs::File::create(&disk.image)?.set_len(BYTES)?;
        let (image, into) = (disk.image.as_os_str(), directory.as_os_str());
        run(
            "mkfs.ext4",
            &["-q".as_ref(), "-O".as_ref(), "^has_journal".as_ref(), image],
        )?;
        let device = run("losetup", &["--find".as_ref(), "--show".as_ref(), image])?;
        disk.device = Some(device.clone());
        let name = Path::new(&device)
            .file_name()
            .unwrap_or_default()
            .to_owned();
        disk.number = Some(
            fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?
                .trim()
                .to_owned(),
        );
        let aside = directory.with_extension("before");
        fs::rename(directory, &aside)?;
        fs::create_dir(directory)?;
        run("mount", &[device.as_ref(), into])?;
        run("cp", &["-a".as_ref(), aside.join(".").as_os_str(), into])?;
        fs::remove_dir_all(&aside)?;
        Ok(disk)
    }

    /// Sets the limit of writes a second; 0 is none.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn limit(&self, writes: u32) -> io::Result<()> {
        let number = self.number.as_deref().unwrap_or_default();
        fs::write(LIMIT, format!("{number} {writes}"))
    }

    /// How long it takes to write and sync a small file.
    ///
    /// # Errors
    /// The file system's error.
    pub fn sync_time(&self) -> io::Result<std::time::Duration> {
        let (path, began) = (self.directory.join("sync-time"), std::time::Instant::now());
        let file = fs::File::create(&path)?;
        io::Write::write_all(&mut &file, b"a few bytes")?;
        file.sync_all()?;
        let took = began.elapsed();
        fs::remove_file(path)?;
        Ok(took)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Errors are ignored: not all of it may exist, and a failed test may have files open there.
        if self.number.is_some() {
            let _ = self.limit(0);
        }
        if let Some(device) = &self.device {
            let _ = run("umount", &["--lazy".as_ref(), self.directory.as_os_str()]);
            let _ = run("losetup", &["--detach".as_ref(), device.as_ref()]);
        }
        let _ = fs::remove_file(&self.image);
    }
}
