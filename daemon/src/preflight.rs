//! Checks of this machine before a command changes anything, uses an invite or tells other members.
//! An error names the system's error and the remedy; after it the invite is still valid and the
//! state directory unchanged.

use crate::{clock, config::Config, layout::Layout};
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_host::{
    chain, holders,
    run::{RunError, run},
    tun::{TunTrouble, try_tun},
};
use p2pvm_overlay::{UnixTime, membership::Ipv4Subnet};
use std::{
    fs::OpenOptions,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

/// How long to wait for a port. Reason: the kernel needs a moment to clean up a killed daemon.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// How many inodes a start needs in the state directory, with a reserve.
const FILES_NEEDED: u64 = 100;
/// How many open files a daemon needs to start.
const OPEN_FILES_NEEDED: u64 = 64;
/// How many free bytes a new member's state directory needs.
const ROOM_NEEDED: u64 = 1 << 20;

/// Checks what the daemon needs to run: root, the TUN device, its ports, the state directory.
///
/// # Errors
/// The first missing requirement, with its cause and remedy; `what` is the action that needs it
/// ("joining").
pub fn for_daemon(
    layout: &Layout,
    what: &str,
    (port, link_port): (Option<u16>, Option<u16>),
) -> Outcome<()> {
    for_machine(layout, what)?;
    let config = Config::load(layout)?;
    free_ports(
        port.unwrap_or(config.port),
        link_port.unwrap_or(config.link_port),
    )
}

/// Waits a moment until both ports are free.
///
/// # Errors
/// The port that is still in use, and by which process.
pub fn free_ports(port: u16, link_port: u16) -> Outcome<()> {
    let began = Instant::now();
    loop {
        match ports(port, link_port) {
            // A killed daemon releases its ports a moment after its lock.
            Err(_) if began.elapsed() < PORT_PATIENCE => std::thread::sleep(PORT_PATIENCE / 50),
            checked => return checked,
        }
    }
}

/// [`for_daemon`] without the ports, because the daemon may get other ones later.
///
/// # Errors
/// As [`for_daemon`].
pub fn for_machine(layout: &Layout, what: &str) -> Outcome<()> {
    root(what)?;
    directory(layout.dir())?;
    open_files(what)?;
    tun(what)
}

/// Rejects a limit of open files that is too low for a daemon that inherits it.
fn open_files(what: &str) -> Outcome<()> {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let (soft, _) = limit.doing("asking for the limit of open files")?;
    enough_files(what, soft)
}

fn enough_files(what: &str, limit: u64) -> Outcome<()> {
    if limit >= OPEN_FILES_NEEDED {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{what} needs {OPEN_FILES_NEEDED} open files at least, and this process may have {limit}: \
            'ulimit -n 1024', or LimitNOFILE in a \
         systemd unit; nothing has been done"
    )))
}

/// Rejects a user other than root.
pub fn root(what: &str) -> Outcome<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{what} needs root, for the network interface and the guests: run it with sudo; nothing \
            has been done"
    )))
}

fn tun(what: &str) -> Outcome<()> {
    try_tun().map_err(|trouble| no_tun(what, &trouble))
}

fn no_tun(what: &str, trouble: &TunTrouble) -> Failure {
    Failure::refused(format!(
        "{what} needs a TUN interface: {trouble}; {}; nothing has been done",
        trouble.remedy()
    ))
}

/// Rejects a directory that cannot be made or written.
fn directory(dir: &Path) -> Outcome<()> {
    let there = dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let advice = "choose another state directory with --dir";
    if !there.is_dir() {
        return Err(Failure::refused(format!(
            "{} is not a directory: {advice}",
            there.display()
        )));
    }
    nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).map_err(|errno| {
        Failure::refused(format!(
            "{} cannot be written: {}; {advice}",
            there.display(),
            io::Error::from(errno)
        ))
    })?;
    let room =
        nix::sys::statvfs::statvfs(there).doing(format_args!("looking at {}", there.display()))?;
    // A member starts on a full disk too, because the network needs its guests and votes; it then
    // reports the full disk.
    if room.blocks_available() * room.fragment_size() < ROOM_NEEDED && !Layout::at(dir).is_member()
    {
        return Err(Failure::refused(format!(
            "the file system of {} is full: make room, or {advice}",
            there.display()
        )));
    }
    if !has_files(room.files(), room.files_available()) {
        return Err(Failure::refused(format!(
            "the file system of {} has no room for more files (inodes): remove small ones ('df \
                -i' shows them), or {advice}",
            there.display()
        )));
    }
    Ok(())
}

/// Whether a file system has free inodes. One without inodes, such as btrfs, reports zero of zero.
fn has_files(all: u64, free: u64) -> bool {
    all == 0 || free >= FILES_NEEDED
}

/// Rejects ports that cannot be bound.
pub fn ports(port: u16, link_port: u16) -> Outcome<()> {
    let wanted = [("udp", port), ("tcp", port), ("udp", link_port)];
    let busy = wanted
        .into_iter()
        .filter(|(_, port)| *port != 0)
        .find_map(|(protocol, port)| Some((protocol, port, taken(protocol, port)?)));
    let Some((protocol, port, error)) = busy else {
        return Ok(());
    };
    let by = holders::holder(protocol, port)
        .map_or_else(String::new, |holder| format!(" (used by {holder})"));
    Err(Failure::refused(format!(
        "{} port {port} cannot be bound{by}: {}; end that program, or choose other ports with \
            --port and --link-port (port and link_port in node.toml)",
        protocol.to_uppercase(),
        chain(&error)
    )))
}

/// Why a port cannot be bound, if it cannot. Without IPv6 the IPv4 port alone counts.
pub fn taken(protocol: &str, port: u16) -> Option<io::Error> {
    let bind = |at: SocketAddr| match protocol {
        "tcp" => TcpListener::bind(at).map(drop),
        _ => UdpSocket::bind(at).map(drop),
    };
    bind((Ipv4Addr::UNSPECIFIED, port).into())
        .err()
        .or_else(|| {
            // A socket that is bound to IPv6 and takes IPv4 too was found above.
            let v6 = bind((Ipv6Addr::UNSPECIFIED, port).into()).err()?;
            (v6.kind() == io::ErrorKind::AddrInUse
                && bind((Ipv4Addr::UNSPECIFIED, port).into()).is_err())
            .then_some(v6)
        })
}

/// Checks what offering a subnet needs, before other members learn of the offer: the kernel's
/// firewall rules and forwarding.
///
/// # Errors
/// The missing requirement, with its cause and remedy.
pub fn for_offer() -> Outcome<()> {
    const NOT_OFFERED: &str = "nothing has been offered";
    let settings = "/proc/sys/net/ipv4/conf/all/forwarding";
    // Nothing has to be written if the machine forwards already, as in a container started with
    // --sysctl.
    let forwards = std::fs::read_to_string(settings).is_ok_and(|text| text.trim() == "1");
    let writable = OpenOptions::new().write(true).open(settings);
    if let (false, Err(e)) = (forwards, writable) {
        return Err(Failure::refused(format!(
            "offering a subnet needs the kernel to forward, and its settings cannot be written: \
                {settings}: {e}; in a container mount \
             /proc/sys writable, or start it with --sysctl net.ipv4.ip_forward=1; {NOT_OFFERED}"
        )));
    }
    let rules = "add table ip p2pvm_try\nadd chain ip p2pvm_try try { type nat hook postrouting \
        priority srcnat; }\n";
    nft_takes(rules).map_err(|why| {
        Failure::refused(format!(
            "offering a subnet needs nft: {}; {NOT_OFFERED}",
            chain(&why)
        ))
    })
}

/// Checks whether nft and the kernel would accept these rules, without adding them.
fn nft_takes(rules: &str) -> Result<(), RunError> {
    run("nft", &["-c", "-f", "-"], rules).map(drop)
}

/// The programs without which no guest starts.
const GUEST_PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "qemu-img", "qemu-storage-daemon"];

/// Checks what starting a guest needs, before an image is copied for it.
///
/// # Errors
/// The missing programs and how to install them.
pub fn for_guests() -> Outcome<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<&str> = GUEST_PROGRAMS
        .into_iter()
        .filter(|program| !is_there(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "a guest needs {}, which this host lacks: apt-get install qemu-system-x86 qemu-utils (on \
            Debian 12: -t bookworm-backports); nothing \
         has been made",
        missing.join(", ")
    )))
}

/// Rejects a network whose subnet overlaps networks that this machine uses.
pub fn subnet(subnet: Ipv4Subnet, advice: &str) -> Outcome<()> {
    match p2pvm_host::overlap((subnet.addr, subnet.prefix))
        .doing("reading this machine's routes and name servers")?
    {
        Some(conflict) => Err(Failure::refused(format!(
            "the network's subnet {conflict}: {advice}"
        ))),
        None => Ok(()),
    }
}

/// Rejects a clock that cannot be right.
pub fn clock() -> Outcome<()> {
    clock::impossible(UnixTime::wall())
        .map_or(Ok(()), |impossible| Err(Failure::refused(impossible)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Kind;
    use p2pvm_host::tun::{Place, Step};

    #[test]
    fn a_refusal_names_the_cause_the_remedy_and_that_nothing_was_done() {
        let failure = no_tun(
            "joining",
            &TunTrouble {
                step: Step::Missing,
                errno: Some(nix::errno::Errno::ENOENT),
                place: Place::default(),
            },
        );
        assert_eq!(failure.kind, Kind::Refused);
        for part in [
            "joining",
            "/dev/net/tun",
            "No such file",
            "modprobe tun",
            "nothing has been done",
        ] {
            assert!(failure.message.contains(part), "{failure}");
        }
    }

    #[test]
    fn a_port_that_somebody_has_is_refused_with_its_holder() {
        let held = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let failure = ports(0, port).unwrap_err();
        let pid = format!("(process {})", std::process::id());
        assert!(
            failure.message.contains(&port.to_string()) && failure.message.contains(&pid),
            "{failure}"
        );
        assert!(
            failure.message.contains("in use") && failure.message.contains("link_port"),
            "{failure}"
        );
        drop(held);
        ports(0, 0).unwrap();
    }

    #[test]
    fn too_few_files_open_or_on_disk_are_refused_with_what_helps() {
        let failure = enough_files("joining", 20).unwrap_err();
        assert!(
            failure.kind == Kind::Refused
                && failure.message.contains("ulimit -n")
                && failure.message.contains("20"),
            "{failure}"
        );
        enough_files("joining", 64).unwrap();
        assert!(has_files(0, 0) && has_files(1_000_000, 100) && !has_files(3, 0));
    }

    #[test]
    fn a_state_directory_that_cannot_be_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(
            directory(&file.join("state"))
                .unwrap_err()
                .message
                .contains("--dir")
        );
        assert!(
            directory(Path::new("/proc/nothing/here")).is_err() || nix::unistd::geteuid().is_root()
        );
        directory(&dir.path().join("a/b/c")).unwrap();
        assert!(!dir.path().join("a").exists());
    }
}
