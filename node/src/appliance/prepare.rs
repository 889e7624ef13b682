//! The appliance's steps before its daemon starts: state, network, membership.
//! p2pvm-prepare.service runs them once a boot.
//!
//! The state is on the partition labelled P2PVM-STATE if there is one, otherwise in memory, and the
//! console says which. A machine that is a member already reads no place for an invite. Messages
//! for the user go to standard output, which the unit shows on the console.

use super::{
    install,
    sources::{self, Places},
    volumes,
};
use nix::{
    mount::{MsFlags, mount},
    unistd::sethostname,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_daemon::{
    layout::{Layout, write_atomically},
    membership,
    naming::HostName,
};
use p2pvm_overlay::UnixTime;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The label of the partition for state.
pub const STATE_LABEL: &str = "P2PVM-STATE";
/// The labels of volumes that may have an invite, in order.
const INVITE_LABELS: [&str; 2] = ["P2PVM", "CIDATA"];
/// The kernel parameter with a disk to install on.
const INSTALL: &str = "p2pvm.install=";
/// The directory of facts that hold until the next boot.
const RUN: &str = "/run/p2pvm";
/// The name of a network that an appliance founds.
const OWN_NETWORK: &str = "p2pvm";
/// How long to wait between two attempts to join while no member answers.
const RETRY: Duration = Duration::from_secs(5);
/// How much memory the state may take without a disk. The memory is taken only as it is used.
const STATE_IN_MEMORY: &str = "mode=711,size=75%";

/// The file with a typed invite for the next attempt.
pub fn typed() -> PathBuf {
    Path::new(RUN).join("typed-invite")
}

/// The file with the reason why the last invite was rejected.
pub fn refusal() -> PathBuf {
    Path::new(RUN).join("refused")
}

/// This machine's places for an invite, with its volumes mounted.
fn places() -> Outcome<Places> {
    let known = volumes::all()?;
    let mut mounted = Vec::new();
    for label in INVITE_LABELS {
        for volume in volumes::labelled(&known, label) {
            let at = Path::new(RUN)
                .join("volumes")
                .join(volume.device.trim_start_matches("/dev/"));
            if fs::read_dir(&at).is_ok_and(|mut entries| entries.next().is_some()) {
                mounted.push((label.to_owned(), at));
                continue;
            }
            volume.mount(&at, false)?;
            mounted.push((label.to_owned(), at));
        }
    }
    Ok(Places {
        typed: typed(),
        cmdline: "/proc/cmdline".into(),
        volumes: mounted,
        room: Path::new(RUN).join("medium/p2pvm/invite"),
        serial: "/sys/class/dmi/id/product_serial".into(),
    })
}

/// Makes this machine a member, or says why it cannot become one.
pub async fn prepare(layout: &Layout) -> Outcome<()> {
    fs::create_dir_all(RUN).doing("making /run/p2pvm")?;
    let tried = attempt(layout).await;
    if let Err(failure) = &tried {
        write_atomically(&refusal(), failure.message.as_bytes(), 0o644)?;
    }
    tried
}

async fn attempt(layout: &Layout) -> Outcome<()> {
    let cmdline = fs::read_to_string("/proc/cmdline").doing("reading the kernel command line")?;
    if let Some(disk) = sources::word(&cmdline, INSTALL) {
        unattended(Path::new(&disk))?;
    }
    mount_state(layout)?;
    become_member(layout).await?;
    // Every appliance has the same host name until it is a member; later queries of the host name
    // get the member's name.
    let name = membership::load(layout)?.certificate.name().to_owned();
    sethostname(&name).doing(format_args!("calling this machine {name}"))
}

/// Handles `p2pvm.install=DISK`. If the disk has the appliance already, there is nothing to do,
/// because the machine boots again and again with the same command line.
fn unattended(disk: &Path) -> Outcome<()> {
    if install::is_installed(disk)? {
        say(format_args!("{} has the appliance already", disk.display()));
        return Ok(());
    }
    say(format_args!("installing on {}", disk.display()));
    install::install(disk, None, false)?;
    say(format_args!(
        "{} boots by itself from now on",
        disk.display()
    ));
    Ok(())
}

fn mount_state(layout: &Layout) -> Outcome<()> {
    let dir = layout.dir();
    let mounts = fs::read_to_string("/proc/mounts").doing("reading /proc/mounts")?;
    if mounts
        .lines()
        .any(|line| line.split_whitespace().nth(1) == dir.to_str())
    {
        return Ok(());
    }
    let known = volumes::all()?;
    let mut found = volumes::labelled(&known, STATE_LABEL);
    let note = match (found.next(), found.next()) {
        (Some(volume), None) => {
            volume.mount(dir, true)?;
            format!("identity and VMs are on {}", volume.device)
        }
        (None, _) => {
            fs::create_dir_all(dir).doing(format_args!("making {}", dir.display()))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some("p2pvm-state"),
                dir,
                Some("tmpfs"),
                flags,
                Some(STATE_IN_MEMORY),
            )
            .doing("mounting memory for the state")?;
            format!(
                "identity and VMs are in MEMORY and gone at power off: no partition is labelled \
                    {STATE_LABEL} ('p2pvm install DISK' makes one)"
            )
        }
        (Some(a), Some(b)) => {
            return Err(Failure::refused(format!(
                "{} and {} are both labelled {STATE_LABEL}: remove one of the disks, so that this \
                    machine's identity is unambiguous",
                a.device, b.device
            )));
        }
    };
    say(&note);
    Ok(())
}

async fn become_member(layout: &Layout) -> Outcome<()> {
    if layout.is_member() {
        say("this machine is a member already");
        return Ok(());
    }
    let found = sources::find(&places()?, UnixTime::now())
        .map_err(|bad| Failure::refused(bad.to_string()))?;
    // Random, because every appliance is the same. The name stays with the identity.
    let derived = found.name.is_none();
    let name = found
        .name
        .unwrap_or_else(|| format!("node-{:04x}", rand::random::<u16>()));
    let called = HostName {
        derived,
        ..HostName::given(&name)
    };
    let Some((source, invite)) = found.invite else {
        let founded = membership::found(layout, (OWN_NETWORK, None), (&name, &[]), false)?;
        say(format_args!(
            "no invite anywhere: this machine, {name}, founded a network of its own, subnet {}",
            founded.subnet
        ));
        return Ok(());
    };
    say(format_args!("joining by {source}"));
    loop {
        match membership::join(layout, &invite, None, &called).await {
            // No member answers yet, or too few members that decide on admissions: neither says
            // anything about the invite.
            Err(failure) if matches!(failure.kind, Kind::TimedOut | Kind::NotNow) => {
                say(format_args!("{failure}; trying again"))
            }
            Err(failure) => return Err(Failure::new(failure.kind, format!("{source}: {failure}"))),
            Ok(welcome) => {
                say(format_args!("admitted as {}", welcome.called.label));
                return Ok(());
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Forgets the last rejection and stores a typed invite, if there is one, where the next attempt
/// reads it first.
pub fn retry_with(invite: &str) -> Outcome<()> {
    if !invite.is_empty() {
        write_atomically(&typed(), invite.as_bytes(), 0o600)?;
    }
    fs::remove_file(refusal()).doing("forgetting the last rejection")
}

fn say(what: impl std::fmt::Display) {
    println!("p2pvm: {what}");
}
