//! Whether this process can make a TUN interface: by making one and letting it go again.
//!
//! Opening `/dev/net/tun` proves little: in a container it opens and the interface is refused, on a minimal host a plain file
//! may stand in its place. So the whole way is gone, with a name that the kernel numbers, and each step's refusal has a remedy.

use nix::errno::Errno;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

/// The device.
pub const DEVICE: &str = "/dev/net/tun";
/// Misc device 200 (linux/Documentation/admin-guide/devices.txt).
const NUMBER: (u64, u64) = (10, 200);
/// From linux/if_tun.h; not persistent, so that it goes with its descriptor.
const IFF_TUN_NO_PI: libc::c_short = 0x0001 | 0x1000;
/// The kernel puts a number for `%d`.
const THROW_AWAY: &[u8] = b"p2pvmtry%d";

/// At which step it failed.
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

/// Why no TUN interface can be made here, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunTrouble {
    /// At which step.
    pub step: Step,
    /// What the kernel said, where it was asked.
    pub errno: Option<Errno>,
}

impl fmt::Display for TunTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.errno.map_or_else(String::new, |errno| format!(": {}", io::Error::from(errno)));
        match self.step {
            Step::Missing => write!(f, "there is no {DEVICE}{said}"),
            Step::Kind => write!(f, "{DEVICE} is not the TUN device but something else"),
            Step::Open => write!(f, "{DEVICE} does not open{said}"),
            Step::Make if self.errno == Some(Errno::EPERM) => {
                write!(f, "this process may not make a network interface, it lacks CAP_NET_ADMIN{said}")
            }
            Step::Make => write!(f, "{DEVICE} opens, but gives no interface{said}"),
        }
    }
}

impl std::error::Error for TunTrouble {}

/// How a container is given the device.
const CONTAINER: &str = "in a container start it with '--device /dev/net/tun --cap-add NET_ADMIN'; in an unprivileged LXC container add \
    'lxc.cgroup2.devices.allow = c 10:200 rwm' and 'lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file' to its configuration";

impl TunTrouble {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match (self.step, self.errno) {
            (Step::Missing, _) => format!("'modprobe tun' as root; {CONTAINER}"),
            (Step::Kind, _) => {
                format!("remove it, then 'modprobe tun && mkdir -p /dev/net && mknod -m 0666 {DEVICE} c 10 200'; {CONTAINER}")
            }
            (Step::Open, Some(Errno::ENODEV | Errno::ENXIO)) => {
                "'modprobe tun' as root: the kernel has no TUN driver loaded (CONFIG_TUN)".to_owned()
            }
            (Step::Open, Some(Errno::EACCES)) => format!("run as root, or 'chmod 0666 {DEVICE}'; {CONTAINER}"),
            (Step::Open, _) => format!("let this process use the device: {CONTAINER}; under systemd 'DeviceAllow=/dev/net/tun rw'"),
            (Step::Make, Some(Errno::EPERM)) => {
                "run as root; in a container start it with '--cap-add NET_ADMIN'; under systemd keep CAP_NET_ADMIN in \
                 CapabilityBoundingSet"
                    .to_owned()
            }
            (Step::Make, Some(Errno::EBUSY)) => {
                "another program holds an interface of that name: 'ip tuntap' lists them; name another one with device in node.toml"
                    .to_owned()
            }
            (Step::Make, _) => format!("see 'dmesg' for what the TUN driver says; {CONTAINER}"),
        }
    }
}

/// Tries it in the network namespace of the calling thread. Nothing is left.
///
/// # Errors
/// Where it ended.
pub fn try_tun() -> Result<(), TunTrouble> {
    let file = opened(Path::new(DEVICE))?;
    make(&file).map_err(|errno| TunTrouble { step: if errno == Errno::ENOTTY { Step::Kind } else { Step::Make }, errno: Some(errno) })
}

fn opened(path: &Path) -> Result<File, TunTrouble> {
    let trouble = |step| move |e: io::Error| TunTrouble { step, errno: e.raw_os_error().map(Errno::from_raw) };
    let about = std::fs::metadata(path).map_err(trouble(Step::Missing))?;
    let number = (u64::from(libc::major(about.rdev())), u64::from(libc::minor(about.rdev())));
    if !about.file_type().is_char_device() || number != NUMBER {
        return Err(TunTrouble { step: Step::Kind, errno: None });
    }
    OpenOptions::new().read(true).write(true).open(path).map_err(trouble(Step::Open))
}

fn make(file: &File) -> Result<(), Errno> {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: IFF_TUN_NO_PI, rest: [0; 22] };
    request.name[..THROW_AWAY.len()].copy_from_slice(THROW_AWAY);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, as which `Request` is laid out (40 bytes on 64-bit Linux), and the
    // descriptor is open for the whole call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_that_fails_names_its_cause_and_its_own_remedy() {
        let trouble = |step, errno: Option<Errno>| TunTrouble { step, errno };
        let cases = [
            (trouble(Step::Missing, Some(Errno::ENOENT)), "No such file", "modprobe tun"),
            (trouble(Step::Kind, None), "not the TUN device", "mknod"),
            (trouble(Step::Open, Some(Errno::ENODEV)), "No such device", "modprobe tun"),
            (trouble(Step::Open, Some(Errno::EPERM)), "Operation not permitted", "--device /dev/net/tun"),
            (trouble(Step::Open, Some(Errno::EACCES)), "Permission denied", "run as root"),
            (trouble(Step::Make, Some(Errno::EPERM)), "CAP_NET_ADMIN", "--cap-add NET_ADMIN"),
            (trouble(Step::Make, Some(Errno::EBUSY)), "busy", "device in node.toml"),
            (trouble(Step::Make, Some(Errno::ENOMEM)), "Cannot allocate memory", "dmesg"),
        ];
        for (trouble, cause, remedy) in cases {
            assert!(trouble.to_string().contains(cause), "{trouble}");
            assert!(trouble.remedy().contains(remedy), "{}", trouble.remedy());
        }
    }

    #[test]
    fn what_stands_in_the_devices_place_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tun");
        assert_eq!(opened(&path).unwrap_err().step, Step::Missing);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(opened(&path).unwrap_err().step, Step::Kind);
        assert_eq!(opened(Path::new("/dev/null")).unwrap_err().step, Step::Kind);
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        assert_eq!(make(&null), Err(Errno::ENOTTY));
    }
}
