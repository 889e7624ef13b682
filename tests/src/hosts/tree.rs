//! The Debian tree that hosts of the suite have as their root: made once by mmdebstrap, kept below `target/debian`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Debian 13: programs as people have them now.
const SUITE: &str = "trixie";
/// Every program of the suite, and what p2pvm itself needs to run there.
const PACKAGES: &str = "systemd-sysv,systemd-resolved,libnss-resolve,dbus,kmod,iproute2,iputils-ping,nftables,iptables,conntrack,\
    procps,docker.io,firewalld,ufw,libvirt-daemon,libvirt-clients,libvirt-daemon-driver-network,libvirt-daemon-config-network,\
    network-manager,udhcpc,dnsmasq-base,wireguard-go,wireguard-tools,faketime,libcap2-bin,qemu-system-x86,qemu-utils";
/// It conflicts with systemd-resolved, so it is unpacked beside, not installed.
const BESIDE: &str = "cd /tmp && apt-get download openresolv && dpkg -x openresolv_*.deb /opt/openresolv && rm openresolv_*.deb";
/// Languages, manuals and lists of packages, which no test reads.
const LEFT_OUT: [&str; 3] = ["/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/man/*"];

/// The tree's directory; made where it is not there yet, which takes some two minutes.
///
/// # Errors
/// Why none can be made here.
pub fn get() -> Result<PathBuf, String> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debian");
    fs::create_dir_all(&kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    let kept = kept.canonicalize().map_err(|e| e.to_string())?;
    let tree = kept.join(format!("hosts-{SUITE}"));
    // Tests are processes of their own: the first makes it, the others wait.
    let lock = File::create(kept.join("hosts.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    if !tree.exists() {
        make(&tree)?;
    }
    Ok(tree)
}

fn make(tree: &Path) -> Result<(), String> {
    let targets = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output().map_err(|e| e.to_string())?;
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let mirror = targets.lines().find(|line| line.ends_with("/debian/")).ok_or("apt knows no mirror: run apt-get update")?;
    let draft = tree.with_extension("new");
    // What an interrupted run left.
    let _ = fs::remove_dir_all(&draft);
    println!("making {} (once, some two minutes)", tree.display());
    let made = Command::new("mmdebstrap")
        .args(["--quiet", "--mode=root", "--variant=apt", "--format=directory", "--skip=check/empty"])
        .args([&format!("--include={PACKAGES}"), "--aptopt=APT::Install-Recommends \"false\""])
        .args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")))
        .arg(format!("--customize-hook=chroot \"$1\" sh -euc '{BESIDE}'"))
        .args([SUITE, &draft.to_string_lossy(), mirror])
        .output()
        .map_err(|e| format!("mmdebstrap: {e}"))?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).lines().last().unwrap_or_default().to_owned());
    }
    fs::rename(&draft, tree).map_err(|e| e.to_string())
}
