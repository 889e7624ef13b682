//! The integration against a real systemd-resolved on a message bus of its own, in namespaces of their own: this machine's
//! resolving is not touched. Where systemd-resolved is not installed its Debian packages are downloaded and unpacked beside
//! the test, never installed, as installing them would take over `/etc/resolv.conf`.

use super::*;
use async_trait::async_trait;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use p2pvm_dhcp::{
    NameKind, Named, Resolver, Subject,
    dns::{self, Names, Unavailable},
};
use p2pvm_overlay::VmId;
use std::{
    process::{Child, Command as Process, Stdio},
    sync::Arc,
    time::Instant,
};

const OURS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 80);
const DEVICE: &str = "p2pvm0";
const LIMIT: Duration = Duration::from_secs(30);
/// In the search path; a wrapper is put there in the test's own mount namespace.
const LOCAL: &str = "/usr/local/bin";
/// Everybody may say everything to everybody: only the test is on this bus.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>"#;

/// The network has one VM, "web".
struct Web;

#[async_trait]
impl Names for Web {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<Named>, Unavailable> {
        let known = (kind, label) == (NameKind::Vm, "web");
        Ok(known.then_some(Named { subject: Subject::Vm(VmId([2; 32])), v4: WEB, v6: None }))
    }

    async fn reverse(&self, _: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        Ok(None)
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Process::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{program}: {said}{}", String::from_utf8_lossy(&output.stderr))) }
}

/// Unpacks systemd-resolved below `dir`; or why not.
fn unpack(dir: &Path) -> Result<(), String> {
    run("dbus-daemon", &["--version"]).map_err(|e| format!("{e} (apt-get install dbus-daemon)"))?;
    let script = "cd \"$0\" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=0 -o Acquire::http::Timeout=20 \
                  download systemd-resolved libsystemd-shared && for deb in *.deb; do dpkg-deb -x \"$deb\" .; done";
    run("sh", &["-c", script, &dir.to_string_lossy()]).map(drop)
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str], libraries: &Path) -> Running {
    let mut command = Process::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", libraries).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("it was found before"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "{what} does not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Network and mounts of this thread's own, with an interface and systemd-resolved.
fn set_up(dir: &Path) -> Vec<Running> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    for place in ["/run", LOCAL] {
        mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    // systemd-resolved gives up root for a user that its package would have made.
    for (file, line) in [("/etc/passwd", "systemd-resolve:x:1:1::/:/bin/false\n"), ("/etc/group", "systemd-resolve:x:1:\n")] {
        let mut text = fs::read_to_string(file).unwrap();
        if !text.contains("systemd-resolve:") {
            text.push_str(line);
        }
        let own = format!("/run/{}", file.rsplit('/').next().unwrap());
        fs::write(&own, text).unwrap();
        mount(Some(own.as_str()), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    for link in [&["link", "set", "lo", "up"][..], &["link", "add", DEVICE, "type", "veth", "peer", "name", "other"]] {
        run("ip", link).unwrap();
    }
    run("ip", &["addr", "add", "10.9.0.1/16", "dev", DEVICE]).unwrap();
    for device in [DEVICE, "other"] {
        run("ip", &["link", "set", device, "up"]).unwrap();
    }
    let libraries = dir.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)).join("systemd");
    let wrapper = Path::new(LOCAL).join("resolvectl");
    let text = format!("#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n", libraries.display(), dir.join("usr/bin/resolvectl").display());
    fs::write(&wrapper, text).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all("/run/dbus").unwrap();
    fs::create_dir_all("/run/systemd/resolve").unwrap();
    std::os::unix::fs::chown("/run/systemd/resolve", Some(1), Some(1)).unwrap();
    fs::write("/run/bus.conf", BUS).unwrap();
    let bus = start("dbus-daemon", &["--config-file=/run/bus.conf", "--nofork"], &libraries);
    until("the message bus", || Path::new("/run/dbus/system_bus_socket").exists());
    let resolved =
        ["lib/systemd/systemd-resolved", "usr/lib/systemd/systemd-resolved"].map(|p| dir.join(p)).into_iter().find(|p| p.exists());
    let resolved = start(resolved.expect("the package holds it"), &[], &libraries);
    until("systemd-resolved", || run("resolvectl", &["status"]).is_ok());
    vec![resolved, bus]
}

fn dns_of_the_link() -> String {
    run("resolvectl", &["status", DEVICE, "--no-pager"]).unwrap()
}

#[test]
fn systemd_resolved_asks_us_for_the_networks_names_alone_and_forgets_us_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let why = if !nix::unistd::geteuid().is_root() {
        Some("it needs root".to_owned())
    } else if !std::env::var("PATH").unwrap_or_default().split(':').any(|part| part == LOCAL) || !Path::new(LOCAL).is_dir() {
        Some(format!("{LOCAL} is not in PATH"))
    } else {
        unpack(dir.path()).err()
    };
    if let Some(why) = why {
        println!("NOT RUN: systemd-resolved is not to be had here: {why}");
        return;
    }
    let place = dir.path().to_owned();
    // A thread can have namespaces of its own; what it starts is in them too.
    std::thread::spawn(move || {
        let _running = set_up(&place);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(meet_resolved(&place));
    })
    .join()
    .unwrap();
}

async fn meet_resolved(place: &Path) {
    let layout = Layout::at(place);
    let domains = vec!["lab.p2p".to_owned(), "9.10.in-addr.arpa".to_owned()];
    let ours = Integration { layout, device: DEVICE.into(), domains, on: true, upstream: Upstream::default() };
    let before = dns_of_the_link();
    assert!(!before.contains("10.9.0.1"), "{before}");
    let resolver = Resolver::new("lab.p2p", "10.9.0.0/16".parse().unwrap()).unwrap();
    let socket = tokio::net::UdpSocket::bind((OURS, DNS_PORT)).await.unwrap();
    let serving = tokio::spawn(dns::serve(socket, resolver, Arc::new(Web)));
    let found = async |name: &'static str| {
        let mut query = Command::new("resolvectl");
        let said = query.args(["query", "--legend=no", "--cache=no", name]).output().await.unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    {
        let holding = ours.hold(OURS);
        tokio::pin!(holding);
        let told = async {
            // Three commands, one after the other.
            let wanted = ["-DefaultRoute", "DNS Servers: 10.9.0.1", "DNS Domain: ~lab.p2p ~9.10.in-addr.arpa"];
            while !wanted.iter().all(|line| dns_of_the_link().contains(line)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(found("web.vm.lab.p2p").await.contains(&WEB.to_string()), "a program finds the VM");
            assert!(found("other.vm.lab.p2p").await.is_empty());
        };
        tokio::select! {
            () = &mut holding => unreachable!("it holds until it is dropped"),
            told = tokio::time::timeout(LIMIT, told) => told.unwrap_or_else(|_| panic!("{}", dns_of_the_link())),
        }
    }
    ours.end().await;
    assert_eq!(dns_of_the_link(), before, "as it was");
    assert!(found("web.vm.lab.p2p").await.is_empty(), "nobody is asked any more");
    serving.abort();
}
