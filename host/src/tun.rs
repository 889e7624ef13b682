//! Whether this process can make a TUN interface: it makes one and drops it.
//!
//! Opening `/dev/net/tun` proves little: in a container it opens and the interface is refused, on a
//! minimal host a plain file may be in its place. So every step is made, with a name that the
//! kernel numbers, and each failure has a remedy.

use nix::errno::Errno;
use std::{
    fmt,
    fs::{File, Metadata, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

/// The device.
pub const DEVICE: &str = "/dev/net/tun";
/// Misc device 200 (linux/Documentation/admin-guide/devices.txt).
const NUMBER: (u64, u64) = (10, 200);
/// From linux/if_tun.h; not persistent, so that it goes with its descriptor.
const IFF_TUN_NO_PI: libc::c_short = 0x0001 | 0x1000;
/// The kernel puts a number for `%d`.
const THROW_AWAY: &[u8] = b"p2pvmtry%d";

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no such file.
    Missing,
    /// The file is something else than the device.
    Kind,
    /// The device does not open.
    Open,
    /// It opens, and gives no interface.
    Make,
}

/// What is known of the device's file after a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether this process is root.
    pub is_root: bool,
    /// The mount point of its file system, if devices do not work there (`nodev`).
    pub nodev: Option<PathBuf>,
    /// Whether the kernel has the driver, so that only the file is missing.
    pub has_driver: bool,
    /// The file in its place.
    pub instead: Option<String>,
}

/// Why no TUN interface can be made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunTrouble {
    /// The step that failed.
    pub step: Step,
    /// The kernel's error, if it was asked.
    pub errno: Option<Errno>,
    /// The device's file.
    pub place: Place,
}

impl fmt::Display for TunTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self
            .errno
            .map_or_else(String::new, |errno| format!(": {}", io::Error::from(errno)));
        match (self.step, self.errno) {
            (Step::Missing, None | Some(Errno::ENOENT)) => write!(f, "there is no {DEVICE}{said}"),
            (Step::Missing, _) => write!(f, "{DEVICE} cannot be looked at{said}"),
            (Step::Kind, _) => {
                let instead = self.place.instead.as_deref().unwrap_or("something else");
                write!(f, "{DEVICE} is not the TUN device but {instead}")
            }
            (Step::Open, Some(Errno::EACCES)) => {
                write!(f, "{DEVICE} does not open{said}")?;
                self.place.nodev.as_ref().map_or(Ok(()), |mount| {
                    write!(
                        f,
                        ": no device works on {}, which is mounted with nodev",
                        mount.display()
                    )
                })
            }
            (Step::Open, Some(Errno::EPERM)) => {
                write!(
                    f,
                    "{DEVICE} does not open{said}: the device rules of this process's control \
                        group refuse it"
                )
            }
            (Step::Open, Some(Errno::ENODEV | Errno::ENXIO)) => {
                write!(
                    f,
                    "{DEVICE} does not open{said}: the kernel has no TUN driver loaded"
                )
            }
            (Step::Open, _) => write!(f, "{DEVICE} does not open{said}"),
            (Step::Make, Some(Errno::EPERM)) => {
                write!(
                    f,
                    "this process may not make a network interface, it lacks CAP_NET_ADMIN{said}"
                )
            }
            (Step::Make, _) => write!(f, "{DEVICE} opens, but gives no interface{said}"),
        }
    }
}

impl std::error::Error for TunTrouble {}

/// How a container is given the device.
const CONTAINER: &str = "in a container start it with '--device /dev/net/tun --cap-add \
    NET_ADMIN'; in an unprivileged LXC container add \
    'lxc.cgroup2.devices.allow = c 10:200 rwm' and 'lxc.mount.entry = /dev/net/tun dev/net/tun \
    none bind,create=file' to its configuration";

impl TunTrouble {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let place = &self.place;
        match (self.step, self.errno) {
            (Step::Missing, Some(Errno::EACCES)) if !place.is_root => "run as root".to_owned(),
            (Step::Missing, _) if place.has_driver => format!(
                "the kernel has the driver, and only the file is missing: 'mkdir -p /dev/net && \
                    mknod -m 0666 {DEVICE} c 10 200' as \
                 root, or 'p2pvm doctor --fix'; {CONTAINER}"
            ),
            (Step::Missing, _) => format!("'modprobe tun' as root; {CONTAINER}"),
            (Step::Kind, _) => {
                format!(
                    "remove it, then 'modprobe tun && mkdir -p /dev/net && mknod -m 0666 \
                    {DEVICE} c 10 200'; {CONTAINER}"
                )
            }
            (Step::Open, Some(Errno::ENODEV | Errno::ENXIO)) => {
                "'modprobe tun' as root; a kernel without that module has to be built with \
                    CONFIG_TUN"
                    .to_owned()
            }
            (Step::Open, Some(Errno::EACCES)) => self.access(),
            (Step::Open, _) => {
                format!(
                    "allow it outside, where the group is made: {CONTAINER}; under systemd \
                    'DeviceAllow=/dev/net/tun rw' in the unit"
                )
            }
            (Step::Make, Some(Errno::EPERM)) => {
                let root = if place.is_root { "" } else { "run as root; " };
                format!(
                    "{root}in a container start it with '--cap-add NET_ADMIN'; under systemd keep \
                        CAP_NET_ADMIN in \
                     CapabilityBoundingSet"
                )
            }
            (Step::Make, Some(Errno::EBUSY)) => {
                "another program holds an interface of that name: 'ip tuntap' lists them; name \
                    another one with device in node.toml"
                    .to_owned()
            }
            (Step::Make, _) => format!("see 'dmesg' for what the TUN driver says; {CONTAINER}"),
        }
    }

    /// The remedy for a device that may not be opened.
    fn access(&self) -> String {
        match (&self.place.nodev, self.place.is_root) {
            (Some(mount), _) => format!(
                "'mount -o remount,bind,dev {}' as root, and without 'nodev' where it is mounted \
                    at boot (/etc/fstab); {CONTAINER}",
                mount.display()
            ),
            (None, false) => format!("run as root, or 'chmod 0666 {DEVICE}'; {CONTAINER}"),
            (None, true) => format!(
                "this is root, so that the file's mode or a security module refuses it: 'ls -lZ \
                    {DEVICE}' and 'dmesg' tell; 'chmod \
                 0666 {DEVICE}', or allow it in SELinux or AppArmor; {CONTAINER}"
            ),
        }
    }
}

/// Makes and drops an interface in the network namespace of the calling thread.
///
/// # Errors
/// [`TunTrouble`] with the step that failed.
pub fn try_tun() -> Result<(), TunTrouble> {
    let file = opened(Path::new(DEVICE))?;
    make(&file).map_err(|errno| {
        let step = if errno == Errno::ENOTTY {
            Step::Kind
        } else {
            Step::Make
        };
        TunTrouble {
            step,
            errno: Some(errno),
            place: place(Path::new(DEVICE), None),
        }
    })
}

fn opened(path: &Path) -> Result<File, TunTrouble> {
    let trouble = |step| {
        move |e: io::Error| {
            let errno = e.raw_os_error().map(Errno::from_raw);
            TunTrouble {
                step,
                errno,
                place: place(path, None),
            }
        }
    };
    let about = std::fs::metadata(path).map_err(trouble(Step::Missing))?;
    let number = (
        u64::from(libc::major(about.rdev())),
        u64::from(libc::minor(about.rdev())),
    );
    if !about.file_type().is_char_device() || number != NUMBER {
        return Err(TunTrouble {
            step: Step::Kind,
            errno: None,
            place: place(path, Some(&about)),
        });
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(trouble(Step::Open))
}

fn place(path: &Path, instead: Option<&Metadata>) -> Place {
    let flags = nix::sys::statvfs::statvfs(path).map(|about| about.flags());
    let nodev = flags.is_ok_and(|flags| flags.contains(nix::sys::statvfs::FsFlags::ST_NODEV));
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    Place {
        is_root: nix::unistd::geteuid().is_root(),
        nodev: nodev.then(|| mount_of(path, &mounts)),
        has_driver: Path::new("/sys/class/misc/tun").exists(),
        instead: instead.map(kind_of),
    }
}

/// The mount point of the file system of `path`, by proc_pid_mountinfo(5); of several at one place
/// the last.
fn mount_of(path: &Path, mountinfo: &str) -> PathBuf {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let points = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new);
    let above = points.filter(|point| path.starts_with(point));
    above
        .max_by_key(|point| point.components().count())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// What a file is, in words.
fn kind_of(about: &Metadata) -> String {
    let kind = about.file_type();
    let number = || {
        format!(
            "{}:{}",
            libc::major(about.rdev()),
            libc::minor(about.rdev())
        )
    };
    match () {
        () if kind.is_char_device() => format!("the character device {}", number()),
        () if kind.is_block_device() => format!("the block device {}", number()),
        () if kind.is_dir() => "a directory".to_owned(),
        () if kind.is_file() => "a plain file".to_owned(),
        () => "something else".to_owned(),
    }
}

fn make(file: &File) -> Result<(), Errno> {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: IFF_TUN_NO_PI,
        rest: [0; 22],
    };
    request.name[..THROW_AWAY.len()].copy_from_slice(THROW_AWAY);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, as which `Request` is laid out (40
    // bytes on 64-bit Linux), and the descriptor is open for the whole call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure, and words of its cause and its remedy.
    type Case = (Step, Option<Errno>, Place, &'static str, &'static str);

    fn root() -> Place {
        Place {
            is_root: true,
            ..Place::default()
        }
    }

    fn nodev() -> Place {
        Place {
            nodev: Some("/dev".into()),
            ..root()
        }
    }

    fn driver() -> Place {
        Place {
            has_driver: true,
            ..root()
        }
    }

    fn cases() -> Vec<Case> {
        use Step::{Kind, Make, Missing, Open};
        let plain = Place::default;
        let case = |step, errno, place, cause, remedy| (step, Some(errno), place, cause, remedy);
        let groups = "DeviceAllow=/dev/net/tun rw";
        let mounted = "/dev, which is mounted with nodev";
        let denied = "Permission denied";
        vec![
            case(
                Missing,
                Errno::ENOENT,
                root(),
                "No such file",
                "modprobe tun",
            ),
            case(
                Missing,
                Errno::ENOENT,
                driver(),
                "No such file",
                "mknod -m 0666",
            ),
            case(
                Missing,
                Errno::EACCES,
                plain(),
                "looked at: Permission",
                "run as root",
            ),
            (Kind, None, root(), "not the TUN device", "mknod"),
            case(
                Open,
                Errno::ENODEV,
                root(),
                "no TUN driver loaded",
                "modprobe tun",
            ),
            case(
                Open,
                Errno::EPERM,
                root(),
                "control group refuse it",
                groups,
            ),
            case(
                Open,
                Errno::EACCES,
                nodev(),
                mounted,
                "remount,bind,dev /dev'",
            ),
            case(Open, Errno::EACCES, root(), denied, "SELinux or AppArmor"),
            case(Open, Errno::EACCES, plain(), denied, "run as root"),
            case(
                Make,
                Errno::EPERM,
                root(),
                "CAP_NET_ADMIN",
                "--cap-add NET_ADMIN",
            ),
            case(Make, Errno::EBUSY, root(), "busy", "device in node.toml"),
            case(
                Make,
                Errno::ENOMEM,
                root(),
                "Cannot allocate memory",
                "dmesg",
            ),
        ]
    }

    #[test]
    fn each_step_that_fails_names_its_cause_and_its_own_remedy() {
        for (step, errno, place, cause, remedy) in cases() {
            let (is_root, trouble) = (place.is_root, TunTrouble { step, errno, place });
            assert!(trouble.to_string().contains(cause), "{trouble}");
            assert!(trouble.remedy().contains(remedy), "{}", trouble.remedy());
            assert!(
                !is_root || !trouble.remedy().contains("run as root"),
                "said to root: {}",
                trouble.remedy()
            );
        }
    }

    #[test]
    fn the_mount_that_holds_a_path_is_the_nearest_above_it() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 0:5 / /dev rw,nosuid - devtmpfs \
            udev rw\n\
            24 23 0:6 / /dev/nowhere rw - tmpfs none rw\n";
        assert_eq!(
            mount_of(Path::new("/dev/no/such"), mounts),
            Path::new("/dev")
        );
        assert_eq!(mount_of(Path::new("/srv/no/such"), mounts), Path::new("/"));
    }

    #[test]
    fn what_stands_in_the_devices_place_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tun");
        assert_eq!(opened(&path).unwrap_err().step, Step::Missing);
        std::fs::write(&path, b"").unwrap();
        let trouble = opened(&path).unwrap_err();
        assert!(
            trouble.step == Step::Kind && trouble.to_string().contains("a plain file"),
            "{trouble}"
        );
        let trouble = opened(Path::new("/dev/null")).unwrap_err();
        assert!(
            trouble.step == Step::Kind && trouble.to_string().contains("character device 1:3"),
            "{trouble}"
        );
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        assert_eq!(make(&null), Err(Errno::ENOTTY));
    }
}
