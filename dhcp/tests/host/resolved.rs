//! Hosts with systemd-resolved: a real one on a message bus of its own, alive, dead, hanging,
//! coming and going. Where it is not installed its Debian packages are downloaded and unpacked
//! beside the test, never installed, as installing them would take over the list of name servers.

use crate::{
    machine::{Machine, OTHER, glibc, on, run, until},
    not_run,
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const NSSWITCH: (&str, &str) = ("nsswitch.conf", "hosts: files dns\n");
const LIST: (&str, &str) = ("resolv.conf", "nameserver 192.0.2.53\n");
/// In the search path; a wrapper is put there in the test's own mounts.
const LOCAL: &str = "/usr/local/bin";
const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
/// Everybody may say everything to everybody: only the test is on this bus.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>"#;

#[test]
fn a_socket_without_systemd_resolved_behind_it_keeps_nobody_from_names() {
    on(&[NSSWITCH, LIST], false, |machine| {
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        let listener = UnixListener::bind(SOCKET).unwrap();
        let network = machine.network("lab", 9);
        until("the VM, though it hangs", || network.is_found());
        assert_eq!(glibc(OTHER.0).0, [OTHER.1]);
        drop(listener);
        machine.rewrite(LIST.1);
        until("the VM, though it is dead", || network.is_found());
        assert!(network.findings().is_empty(), "{:?}", network.findings());
        // Programs that ask systemd-resolved first do wait for one that hangs.
        fs::remove_file(SOCKET).unwrap();
        let _listener = UnixListener::bind(SOCKET).unwrap();
        fs::write(
            "/etc/nsswitch.conf",
            "hosts: files resolve [!UNAVAIL=return] dns\n",
        )
        .unwrap();
        network.says(&[
            "systemd-resolved takes questions and does not answer",
            "systemctl restart systemd-resolved",
        ]);
        network.end();
        assert_eq!(machine.resolv_conf(), LIST.1);
    });
}

/// Unpacks systemd-resolved below `dir`; or why not.
fn unpack(dir: &Path) -> Result<(), String> {
    if !std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .any(|part| part == LOCAL)
        || !Path::new(LOCAL).is_dir()
    {
        return Err(format!("{LOCAL} is not in PATH"));
    }
    run("dbus-daemon", &["--version"]).map_err(|e| format!("{e} (apt-get install dbus-daemon)"))?;
    let script = "cd \"$0\" && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=0 -o \
        Acquire::http::Timeout=20 \
                  download systemd-resolved libsystemd-shared && for deb in *.deb; do dpkg-deb \
                  -x \"$deb\" .; done";
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

impl Running {
    fn start(program: impl AsRef<OsStr>, arguments: &[&str], libraries: &Path) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LD_LIBRARY_PATH", libraries)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("it was found before"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

/// systemd-resolved's files, and the bus that it is on.
struct Resolved {
    program: PathBuf,
    libraries: PathBuf,
    _bus: Running,
}

impl Resolved {
    /// Makes everything ready for it on this thread's host.
    fn ready(dir: &Path) -> Self {
        mount(
            Some("none"),
            LOCAL,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        // It gives up root for a user that its package would have made.
        fs::write(
            "/etc/passwd",
            "root:x:0:0::/:/bin/sh\nsystemd-resolve:x:1:1::/:/bin/false\n",
        )
        .unwrap();
        fs::write("/etc/group", "root:x:0:\nsystemd-resolve:x:1:\n").unwrap();
        let libraries = dir
            .join("usr/lib")
            .join(format!("{}-linux-gnu", std::env::consts::ARCH))
            .join("systemd");
        let wrapper = Path::new(LOCAL).join("resolvectl");
        let text = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
            libraries.display(),
            dir.join("usr/bin/resolvectl").display()
        );
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all("/run/dbus").unwrap();
        fs::write("/run/bus.conf", BUS).unwrap();
        let bus = Running::start(
            "dbus-daemon",
            &["--config-file=/run/bus.conf", "--nofork"],
            &libraries,
        );
        until("the message bus", || {
            Path::new("/run/dbus/system_bus_socket").exists()
        });
        let program = [
            "lib/systemd/systemd-resolved",
            "usr/lib/systemd/systemd-resolved",
        ]
        .map(|p| dir.join(p));
        let program = program
            .into_iter()
            .find(|p| p.exists())
            .expect("the package holds it");
        Self {
            program,
            libraries,
            _bus: bus,
        }
    }

    fn start(&self, settings: &str) -> Running {
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        std::os::unix::fs::chown("/run/systemd/resolve", Some(1), Some(1)).unwrap();
        fs::create_dir_all("/etc/systemd").unwrap();
        fs::write(
            "/etc/systemd/resolved.conf",
            format!("[Resolve]\nDNS=192.0.2.53\nFallbackDNS=\n{settings}"),
        )
        .unwrap();
        let running = Running::start(&self.program, &[], &self.libraries);
        until("systemd-resolved", || {
            run("resolvectl", &["status"]).is_ok()
        });
        running
    }
}

fn on_with_resolved(files: &[(&str, &str)], test: impl FnOnce(&Machine, &Resolved) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return not_run("it needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    if let Err(why) = unpack(dir.path()) {
        return not_run(&format!("systemd-resolved is not to be had here: {why}"));
    }
    on(files, false, |machine| {
        test(machine, &Resolved::ready(dir.path()))
    });
}

fn of_the_link() -> String {
    run("resolvectl", &["status", "lab0", "--no-pager"]).unwrap()
}

#[test]
fn systemd_resolved_asks_us_for_our_names_only_and_forgets_us() {
    on_with_resolved(&[NSSWITCH], |machine, resolved| {
        symlink(
            "../run/systemd/resolve/stub-resolv.conf",
            "/etc/resolv.conf",
        )
        .unwrap();
        let running = resolved.start("DNSSEC=yes\n");
        let stub = machine.resolv_conf();
        let network = machine.network("lab", 9);
        until("the VM, though names have to be signed", || {
            network.is_found()
        });
        let said = of_the_link();
        for line in [
            "-DefaultRoute",
            "DNS Servers: 10.9.0.1",
            "DNS Domain: ~lab.p2p ~9.10.in-addr.arpa",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert_eq!(
            machine.resolv_conf(),
            stub,
            "the list leads to systemd-resolved, which knows"
        );
        assert!(network.findings().is_empty(), "{:?}", network.findings());
        // Somebody takes away what it was told.
        run("resolvectl", &["revert", "lab0"]).unwrap();
        until("the VM again", || network.is_found());
        // It hangs, and goes on.
        running.signal(Signal::SIGSTOP);
        fs::write("/run/systemd/resolve/stub-resolv.conf", &stub).unwrap();
        until("the VM without it", || network.is_found());
        running.signal(Signal::SIGCONT);
        until("the list as it was", || machine.resolv_conf() == stub);
        until("the VM through it", || network.is_found());
        network.end();
        assert!(!of_the_link().contains("10.9.0.1"), "as it was");
        drop(running);
    });
}

#[test]
fn systemd_resolved_may_come_and_go_and_come_again() {
    on_with_resolved(&[NSSWITCH, LIST], |machine, resolved| {
        let network = machine.network("lab", 9);
        until("the VM by the list", || network.is_found());
        // It comes, and the list leads to it, as when its package is installed.
        let first = resolved.start("DNSSEC=no\n");
        fs::remove_file("/etc/resolv.conf").unwrap();
        symlink(
            "../run/systemd/resolve/stub-resolv.conf",
            "/etc/resolv.conf",
        )
        .unwrap();
        until("it to be told", || of_the_link().contains("lab.p2p"));
        until("the VM by it", || {
            network.is_found() && glibc(OTHER.0).0 == [OTHER.1]
        });
        until("the list without our lines", || {
            !machine.resolv_conf().contains("p2pvm")
        });
        // It goes: nothing but our own names can be found, and that is said.
        drop(first);
        until("the VM without it", || network.is_found());
        network.says(&["outside"]);
        // It comes again, knowing nothing.
        let _ = fs::remove_dir_all("/run/systemd/resolve/netif");
        let second = resolved.start("DNSSEC=no\n");
        until("both", || {
            network.is_found() && glibc(OTHER.0).0 == [OTHER.1]
        });
        until("nothing to say", || network.findings().is_empty());
        network.end();
        assert!(!machine.resolv_conf().contains("p2pvm"));
        drop(second);
    });
}

#[test]
fn a_list_that_leads_past_systemd_resolved_leads_to_us_too() {
    on_with_resolved(&[NSSWITCH], |machine, resolved| {
        symlink("../run/systemd/resolve/resolv.conf", "/etc/resolv.conf").unwrap();
        let running = resolved.start("DNSStubListener=no\nDNSSEC=no\n");
        until("its list", || {
            machine.resolv_conf().contains("nameserver 192.0.2.53")
        });
        let network = machine.network("lab", 9);
        until("the VM by the list", || network.is_found());
        until("the VM by systemd-resolved", || {
            run(
                "resolvectl",
                &["query", "--legend=no", "--cache=no", "web.vm.lab.p2p"],
            )
            .is_ok_and(|said| said.contains("10.9.0.80"))
        });
        // It writes its list anew, with our server of the link in it.
        run("resolvectl", &["dns", "lab1", "192.0.2.54"]).unwrap();
        until("the VM by the list again", || network.is_found());
        let _ = glibc(OTHER.0);
        assert_eq!(glibc(OTHER.0).0, [OTHER.1]);
        network.end();
        until("its own list alone", || {
            !machine.resolv_conf().contains("p2pvm")
        });
        drop(running);
    });
}
