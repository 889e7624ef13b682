//! A guest on `b`, what is asked of it, and what it asks by its own shell.

use super::{PORT, Stage};
use p2pvm_api::VmView;
use p2pvm_lab::{
    chain,
    hosts::probe::{self, ProbeSource, within},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// How long a guest may take to boot where it runs translated.
const BOOT: Duration = Duration::from_secs(120);
/// No command that is asked of the guest takes longer.
const COMMAND: Duration = Duration::from_secs(15);

/// A running guest, at whose console somebody sits.
pub struct Guest {
    /// Its address.
    pub address: String,
    console: Child,
    keys: Mutex<ChildStdin>,
    screen: Arc<Mutex<String>>,
}

impl Guest {
    /// Creates a guest on `b` and waits until it answers.
    pub fn boot(stage: &Stage, image: &str) -> Self {
        let words = [
            "vm", "create", "web", "--image", image, "--memory", "128M", "--start",
        ];
        let made: VmView = stage
            .lab
            .json("b", &words)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), stage.report()));
        let address = made.address;
        stage
            .lab
            .wait_for_guest("a", &address, BOOT)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), stage.report()));
        let mut command = Command::new(stage.lab.program());
        command
            .args(["vm", "console", "web"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut console = stage.lab.testbed().spawn("a", &mut command).unwrap();
        let (keys, mut output) = (
            console.stdin.take().unwrap(),
            console.stdout.take().unwrap(),
        );
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                shown
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self {
            address,
            console,
            keys: Mutex::new(keys),
            screen,
        }
    }

    /// Whether a command in the guest succeeds.
    pub fn does(&self, command: &str) -> bool {
        static ASKED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let number = ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // What is typed is echoed: only the shell knows the product.
        let line =
            format!("({command}) >/dev/null 2>&1; echo \"ended-$(({number} * 7919))-$?-\"\n");
        let ended = format!("ended-{}-", number * 7919);
        let began = Instant::now();
        let mut typed = 0;
        while began.elapsed() < COMMAND * 3 {
            // What was typed before the console was there is typed again: no command here does harm
            // twice.
            if began.elapsed() >= COMMAND * typed {
                self.keys
                    .lock()
                    .unwrap()
                    .write_all(line.as_bytes())
                    .unwrap();
                typed += 1;
            }
            let screen = self.screen.lock().unwrap().clone();
            if let Some((_, rest)) = screen.split_once(&ended)
                && let Some((code, _)) = rest.split_once('-')
            {
                return code == "0";
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!(
            "the guest does not end '{command}'; its console:\n{}",
            self.screen.lock().unwrap()
        );
    }

    /// What of a guest's promises does not hold within the limit.
    pub fn broken(&self, stage: &Stage, limit: Duration) -> Vec<String> {
        let from = |host: &str| ProbeSource::host(&stage.lab, host).unwrap();
        let target: SocketAddr = format!("{}:7000", self.address).parse().unwrap();
        let connects = |host: &str| {
            let connect =
                || TcpStream::connect_timeout(&target, Duration::from_millis(1500)).is_ok();
            stage.lab.testbed().inside(host, connect).unwrap()
        };
        let asks =
            |address: &str| self.does(&format!("nc -w 2 {address} {PORT} </dev/null | grep -q !"));
        let finds = |name: &str, address: &str| {
            self.does(&format!("nslookup {name} | grep -q 'Address.*{address}$'"))
        };
        let checks: [(&str, &dyn Fn() -> bool); 10] = [
            ("ping from a to the guest", &|| {
                from("a").pings(&self.address)
            }),
            ("ping from b to the guest", &|| {
                from("b").pings(&self.address)
            }),
            ("TCP from a to the guest", &|| connects("a")),
            ("TCP from b to the guest", &|| connects("b")),
            ("ping from the guest to a", &|| {
                self.does(&format!("ping -c 2 -W 1 {}", stage.a))
            }),
            ("TCP from the guest to a", &|| asks(&stage.a)),
            (super::GUEST_TCP, &|| asks(&stage.b)),
            ("the network's names in the guest", &|| {
                finds("a.lab.p2p", &stage.a)
            }),
            ("a lease for the guest", &|| {
                self.does("udhcpc -i eth0 -n -q -t 3 -T 1 -s /bin/true")
            }),
            ("the guest's name on b", &|| {
                let found = probe::look_up(&stage.lab, "b", "web.vm.lab.p2p");
                found.first().is_some_and(|found| *found == self.address)
            }),
        ];
        let began = Instant::now();
        let left = || limit.saturating_sub(began.elapsed());
        checks
            .into_iter()
            .filter(|(_, works)| within(left(), works).is_none())
            .map(|(what, _)| what.to_owned())
            .collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.console.kill();
        let _ = self.console.wait();
    }
}
