//! The Debian tree that hosts of the suite have as their root: made once by mmdebstrap, kept below
//! `target/debian`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Debian 13: the current versions of the programs.
pub const SUITE: &str = "trixie";
/// All programs of the suite, and the packages that p2pvm needs.
const PACKAGES: &str = "systemd-sysv,systemd-resolved,libnss-resolve,dbus,kmod,iproute2,\
    iputils-ping,nftables,iptables,conntrack,procps,docker.io,firewalld,ufw,libvirt-daemon,\
    libvirt-clients,libvirt-daemon-driver-network,libvirt-daemon-config-network,network-manager,\
    udhcpc,dnsmasq-base,wireguard-go,wireguard-tools,faketime,libcap2-bin,qemu-system-x86,\
    qemu-utils,netavark";
/// Unpacks openresolv beside the installed packages, since it conflicts with systemd-resolved.
const BESIDE: &str = "cd /tmp && apt-get download openresolv && dpkg -x openresolv_*.deb \
    /opt/openresolv && rm openresolv_*.deb";
/// Languages, manuals and package lists are left out: no test reads them.
const LEFT_OUT: [&str; 3] = [
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/man/*",
];

/// The tree's directory; if it is missing it is made, which takes about two minutes.
///
/// # Errors
/// Why it cannot be made on this machine.
pub fn get() -> Result<PathBuf, String> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debian");
    fs::create_dir_all(&kept).map_err(|e| format!("{}: {}", kept.display(), crate::chain(&e)))?;
    let kept = kept.canonicalize().map_err(|e| e.to_string())?;
    let tree = kept.join(format!("hosts-{SUITE}-{:08x}", fingerprint(PACKAGES)));
    // Each test is a process: the first makes the tree, the others wait.
    let lock = File::create(kept.join("hosts.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    if !tree.exists() {
        make(&tree)?;
    }
    Ok(tree)
}

/// A program beside the tree that looks a name up with musl's `getaddrinfo`; compiled if it is
/// missing.
///
/// # Errors
/// Why it cannot be compiled here.
pub fn musl_lookup() -> Result<PathBuf, String> {
    let tree = get()?;
    let kept = tree.parent().unwrap_or(&tree);
    let (source, program) = (kept.join("lookup.c"), kept.join("lookup-musl"));
    let lock = File::create(kept.join("lookup.lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    if !program.exists() {
        fs::write(&source, include_str!("lookup.c")).map_err(|e| e.to_string())?;
        let made = Command::new("musl-gcc")
            .args(["-static", "-o"])
            .args([&program, &source])
            .output();
        let made = made.map_err(|e| format!("musl-gcc: {}", crate::chain(&e)))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).trim().to_owned());
        }
    }
    Ok(program)
}

/// 32 bits of FNV-1a over the packages. It is part of the tree's name, so that an outdated tree is
/// not used.
fn fingerprint(packages: &str) -> u32 {
    packages.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn make(tree: &Path) -> Result<(), String> {
    println!("making {} (once; about two minutes)", tree.display());
    let mut options = vec!["--format=directory".to_owned()];
    options.extend(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    options.push(format!("--customize-hook=chroot \"$1\" sh -euc '{BESIDE}'"));
    make_debian(PACKAGES, &options, tree)
}

/// Makes a Debian with these packages by mmdebstrap. Its `options` or the suffix of `into` choose
/// the form: a directory, or an archive.
///
/// # Errors
/// Why it cannot be made on this machine.
pub fn make_debian(packages: &str, options: &[String], into: &Path) -> Result<(), String> {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .output()
        .map_err(|e| e.to_string())?;
    let targets = String::from_utf8_lossy(&targets.stdout).into_owned();
    let mirror = targets
        .lines()
        .find(|line| line.ends_with("/debian/"))
        .ok_or("apt lists no Debian mirror: run apt-get update")?;
    let name = into.file_name().unwrap_or_default().to_string_lossy();
    let draft = into.with_file_name(format!("new-{name}"));
    // Removes what an interrupted run left.
    let _ = fs::remove_dir_all(&draft);
    let made = Command::new("mmdebstrap")
        .args([
            "--quiet",
            "--mode=root",
            "--variant=apt",
            "--skip=check/empty",
        ])
        .args([
            &format!("--include={packages}"),
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .args(options)
        .args([SUITE, &draft.to_string_lossy(), mirror])
        .output()
        .map_err(|e| format!("mmdebstrap: {}", crate::chain(&e)))?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr)
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned());
    }
    fs::rename(&draft, into).map_err(|e| e.to_string())
}
