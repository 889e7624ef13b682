//! p2pvm on odd machines: hundreds of addresses, routes and interfaces, other packet sizes, strange
//! environments, read-only roots, containers, hardened services, one family of addresses alone.

mod common;
mod hosts;

use common::{
    lab,
    measured::{Measurement, seconds},
    network, public_sites, refused, until_direct,
};
use hosts::Stage;
use p2pvm_api::Cluster;
use p2pvm_lab::{
    chain,
    figures::Figure,
    hosts::{Flow, InnerMachine, SlowDisk, probe},
    lab::Lab,
};
use std::{
    fmt::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What measures the figures again.
const COMMAND: &str = "cargo nextest run -p p2pvm --test e2e_odd_hosts";

/// Until all works after a start.
const BACK: Duration = Duration::from_secs(20);

/// Where the LAN cannot be reached anyway, nobody waits for it that long.
const SHORT: Duration = Duration::from_secs(6);

/// An odd machine: what is done before p2pvm starts, how it is started, and what is undone when it
/// has gone.
struct Odd {
    name: &'static str,
    before: &'static str,
    /// The words that `p2pvm up --detach` follows in a shell.
    start: &'static str,
    after: &'static str,
    /// What need not work there, if `doctor` says a word about it.
    but: Option<(&'static str, &'static str)>,
}

const fn machine(name: &'static str, before: &'static str, after: &'static str) -> Odd {
    Odd {
        name,
        before,
        start: "",
        after,
        but: None,
    }
}

const fn start(name: &'static str, start: &'static str) -> Odd {
    Odd {
        name,
        before: "",
        start,
        after: "",
        but: None,
    }
}

const NAMES: &str = "names on b";

/// What Docker gives a container that is run with `--cap-add NET_ADMIN --device /dev/net/tun`.
const CONTAINER: &str = "mount --bind -o ro /proc/sys /proc/sys && mount -o remount,ro,bind \
    /proc/sys && exec setpriv --bounding-set \
    -all,+net_admin,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,\
    +audit_write,+setfcap --inh-caps -all";
/// The bounding set of packaging/p2pvm.service.
const HARDENED: &str = "setpriv --no-new-privs --bounding-set \
    -all,+net_admin,+net_raw,+net_bind_service,+sys_admin,+setuid,+setgid,+chown,\
    +fowner,+dac_override,+mknod,+sys_resource,+sys_ptrace,+kill,+sys_nice";

const MACHINES: &[Odd] = &[
    machine(
        "300 addresses on the uplink",
        "for n in $(seq 300); do echo addr add 100.99.$((n / 250)).$((n % 250 + 1))/32 dev eth0; \
            done | ip -batch -",
        "for n in $(seq 300); do echo addr del 100.99.$((n / 250)).$((n % 250 + 1))/32 dev eth0; \
            done | ip -batch -",
    ),
    machine(
        "1000 routes",
        "for n in $(seq 1000); do echo route add unreachable 172.29.$((n / 250)).$((n % 250))/32; \
            done | ip -batch -",
        "for n in $(seq 1000); do echo route del unreachable 172.29.$((n / 250)).$((n % 250))/32; \
            done | ip -batch -",
    ),
    machine(
        "uplink with an MTU of 576",
        "ip link set eth0 mtu 576",
        "ip link set eth0 mtu 1500",
    ),
    machine(
        "uplink with an MTU of 1280",
        "ip link set eth0 mtu 1280",
        "ip link set eth0 mtu 1500",
    ),
    machine(
        "uplink with an MTU of 9000",
        "ip link set eth0 mtu 9000",
        "ip link set eth0 mtu 1500",
    ),
    machine(
        "no IPv6",
        "cd /proc/sys/net/ipv6/conf; cat default/disable_ipv6 lo/disable_ipv6 eth0/disable_ipv6 \
            lan0/disable_ipv6 | paste -s >/var/lib/v6; \
         echo 1 >all/disable_ipv6; echo 1 >default/disable_ipv6",
        "cd /proc/sys/net/ipv6/conf; echo 0 >all/disable_ipv6; read -r d l e n </var/lib/v6; echo \
            $d >default/disable_ipv6; \
         echo $l >lo/disable_ipv6; echo $e >eth0/disable_ipv6; echo $n >lan0/disable_ipv6; rm \
         /var/lib/v6",
    ),
    start("umask 077", "umask 077;"),
    start("languages that are not there", "LANG=xx LC_ALL=tr_TR.UTF-8"),
    start("a time zone far ahead", "TZ=Pacific/Kiritimati"),
    start("a time zone that is not there", "TZ=:/nowhere"),
    start(
        "1 MB of /tmp",
        "unshare -m sh -c 'mount -t tmpfs -o size=1m tmp /tmp && exec \"$@\"' sh",
    ),
    Odd {
        name: "a read-only root",
        before: "",
        start: "unshare -m sh -c 'mount -o remount,ro,bind / && exec \"$@\"' sh",
        after: "",
        but: Some((NAMES, "resolv.conf")),
    },
    Odd {
        name: "a container",
        before: "",
        start: "CONTAINER",
        after: "",
        but: Some((NAMES, "resolv.conf")),
    },
    start("a hardened service", "HARDENED"),
];

impl Odd {
    /// The shell's line that starts p2pvm on it.
    fn line(&self) -> String {
        let program = env!("CARGO_BIN_EXE_p2pvm");
        match self.start {
            "CONTAINER" => {
                format!("unshare -m sh -c '{CONTAINER} \"$@\"' sh {program} up --detach")
            }
            "HARDENED" => format!("{HARDENED} {program} up --detach"),
            start => format!("{start} {program} up --detach"),
        }
    }
}

#[test]
fn on_odd_machines_all_works_and_they_are_as_they_were_afterwards() {
    let Some(stage) = Stage::raise("odd") else {
        return;
    };
    let shell = |text: &str| {
        stage
            .lab
            .testbed()
            .run("b", &["sh", "-euc", text])
            .map(drop)
    };
    let only = std::env::var("P2PVM_TEST_ODD").ok();
    let mut wrong = String::new();
    for odd in MACHINES.iter().filter(|odd| {
        only.as_ref()
            .is_none_or(|only| odd.name.contains(only.as_str()))
    }) {
        println!("{}", odd.name);
        shell(odd.before).unwrap();
        let before = stage.state();
        match shell(&odd.line()) {
            Err(error) => {
                let _ = writeln!(wrong, "{}: {error}", odd.name);
            }
            Ok(()) => {
                let refused = stage.try_offer().err();
                let mut broken = stage.broken(if refused.is_some() { SHORT } else { BACK });
                if let Some(said) = &refused {
                    println!("{}: the offer is refused: {said}", odd.name);
                    if stage.is_offered() || odd.start != "CONTAINER" {
                        let _ = writeln!(wrong, "{}: refused, but published: {said}", odd.name);
                    }
                    broken.retain(|broken| !broken.contains("LAN"));
                }
                if let Some((what, word)) = odd.but
                    && stage
                        .lab
                        .try_p2pvm("b", &["doctor"])
                        .is_ok_and(|(_, out, said)| format!("{out}{said}").contains(word))
                {
                    broken.retain(|broken| !broken.contains(what));
                }
                if !broken.is_empty() {
                    let _ = writeln!(wrong, "{}: {broken:?}\n{}", odd.name, stage.report());
                }
                if refused.is_none() {
                    stage.withdraw();
                }
                stage.down();
            }
        }
        let left = before.difference(&stage.state());
        if !left.is_empty() {
            let _ = writeln!(
                wrong,
                "{}: p2pvm leaves the host changed:\n{left}",
                odd.name
            );
        }
        shell(odd.after).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong}");
    stage.lab.down().unwrap();
}

#[test]
fn a_stream_survives_two_hundred_interfaces_and_a_renamed_uplink() {
    let measurement = Measurement::begin("hosts", COMMAND);
    let Some(stage) = Stage::raise("churn") else {
        return;
    };
    let before = stage.state();
    stage.up();
    stage.offer();
    assert_eq!(
        stage.broken(BACK),
        Vec::<String>::new(),
        "{}",
        stage.report()
    );
    let from = |host: &str| probe::ProbeSource::host(&stage.lab, host).unwrap();
    let stream = Flow::stream("stream", &from("a"), &from("b"), &stage.b, 6000).unwrap();
    let shell = |text: &str| {
        stage
            .lab
            .testbed()
            .run("b", &["sh", "-euc", text])
            .map(drop)
            .unwrap()
    };
    shell("for n in $(seq 200); do echo link add v$n type veth peer name w$n; done | ip -batch -");
    shell("for n in $(seq 200); do echo link set v$n up; echo link set w$n up; done | ip -batch -");
    shell("for n in $(seq 200); do echo link del v$n; done | ip -batch -");
    let flood = stream
        .back_after(Instant::now(), Duration::from_secs(5))
        .unwrap_or_else(|why| panic!("{why}\n{}", stage.report()));
    let gateway = stage.lab.testbed().plan().sites[1].gateway;
    let rename = |from: &str, to: &str| {
        shell(&format!(
            "ip link set {from} down; ip link set {from} name {to}; ip link set {to} up; ip route \
                replace default via {gateway} dev {to}"
        ));
        stream
            .back_after(Instant::now(), BACK)
            .unwrap_or_else(|why| panic!("{from} is {to} now: {why}\n{}", stage.report()))
    };
    let renamed = [rename("eth0", "enp0s31f6"), rename("enp0s31f6", "eth0")];
    let next = |event: &str, times: &[Duration]| {
        let figure = seconds("next-byte", "a stream's next byte after", times);
        figure.of(event).digits(2)
    };
    measurement.end(&[
        next("200 interfaces come and go", &[flood]),
        next("the uplink is renamed", &renamed),
    ]);
    drop(stream);
    stage.withdraw();
    stage.down();
    let left = before.difference(&stage.state());
    assert!(left.is_empty(), "p2pvm leaves the host changed:\n{left}");
    stage.lab.down().unwrap();
}

/// Writes a second on the slow disk: a sync takes some two seconds, a small file put in another's
/// place some four.
const WRITES: u32 = 2;

/// The round trips of pings from `a` to `c`, while `meanwhile` goes on.
fn pinged_while<T>(lab: &Lab, seconds: u32, meanwhile: impl FnOnce() -> T) -> (Vec<f64>, T) {
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| lab.ping("a", "c", seconds * 20, "50ms").unwrap());
        let result = meanwhile();
        (pings.join().expect("no panic").rtts_ms, result)
    })
}

/// Runs a command on `c` that has to succeed; returns how long it took.
fn timed(lab: &Lab, words: &[&str]) -> Duration {
    let began = Instant::now();
    let (code, _, said) = lab.try_p2pvm("c", words).unwrap();
    assert_eq!(code, 0, "{said}\n{}", lab.log_tail("c", 40));
    began.elapsed()
}

/// Figures of the slow disk, for docs/hosts.md: how long a sync, a join and a start took, and the
/// slowest ping and answer.
fn slow_disk(took: [Duration; 3], ping_ms: f64, answer: f64) -> [Figure; 5] {
    let of = |name, what, took: Duration| seconds(name, what, &[took]).digits(1);
    [
        of("slow-sync", "a sync on the slow disk", took[0]),
        of("slow-join", "a join on it", took[1]),
        of("slow-start", "a start on it", took[2]),
        Figure::new(
            "slow-ping",
            "slowest ping of it, while it writes",
            "ms",
            [ping_ms],
        ),
        Figure::new("slow-answer", "its slowest answers", "s", [answer]).digits(2),
    ]
}

#[test]
fn packets_and_control_do_not_wait_for_a_disks_slow_sync() {
    let measurement = Measurement::begin("hosts", COMMAND);
    let lab = lab("slowdisk", &public_sites(&["a", "b", "c"], 4.0));
    let disk = match SlowDisk::under(&lab.dir("c").unwrap()) {
        Ok(disk) => disk,
        Err(why) => return println!("NOT RUN: {why}"),
    };
    let _lan = common::Lan::new(&lab, "c");
    network(&lab, &["a", "b"]);
    disk.limit(WRITES).unwrap();
    let slow = disk.sync_time().unwrap();
    assert!(
        slow > Duration::from_millis(700),
        "the disk is not slow: {slow:?}"
    );
    let invite = lab.invite("a", 1).unwrap();
    let joined = timed(&lab, &["join", &invite]);
    lab.p2pvm("c", &["down"]).unwrap();
    let started = timed(&lab, &["up", "--detach"]);
    until_direct(&lab, "a", "c", Duration::from_secs(20));
    // What writes: offers, their withdrawal, and what is heard of another's.
    let began = Instant::now();
    let (rtts, (answers, changes)) = pinged_while(&lab, 30, || {
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut changes = 0;
                while began.elapsed() < Duration::from_secs(28) {
                    for word in ["offer", "withdraw"] {
                        lab.p2pvm("c", &["route", word, "192.168.77.0/24"])
                            .unwrap_or_else(|e| panic!("{}", chain(&e)));
                        changes += 1;
                    }
                }
                changes
            });
            let mut answers = Vec::new();
            while began.elapsed() < Duration::from_secs(28) {
                let asked = Instant::now();
                lab.status("c").unwrap();
                // What another member asks c for over the control plane.
                lab.json::<Cluster>("a", &["peers", "--all"]).unwrap();
                answers.push(asked.elapsed().as_secs_f64());
                std::thread::sleep(Duration::from_millis(100));
            }
            (answers, changes.join().expect("no panic"))
        })
    });
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let times = [slow, joined, started];
    measurement.end(&slow_disk(times, worst(&rtts), worst(&answers)));
    assert!(
        changes >= 2 && rtts.len() >= 590,
        "{changes} {}",
        rtts.len()
    );
    assert!(worst(&rtts) < 150.0, "{:.0} ms", worst(&rtts));
    assert!(
        worst(&answers) < 2.5,
        "{:.2} s\n{}",
        worst(&answers),
        lab.log_tail("c", 40)
    );
    disk.limit(0).unwrap();
    lab.p2pvm("c", &["down"]).unwrap();
    drop(disk);
    lab.down().unwrap();
}

#[test]
fn members_with_ipv6_alone_do_all_that_others_do() {
    let cases = [
        ("six", ["dual", "only", "dual"]),
        ("sixes", ["only", "only", "only"]),
    ];
    for (name, families) in cases {
        let sites: String = ["a", "b", "c"]
            .iter()
            .zip(families)
            .map(|(host, ipv6)| format!("[[site]]\nname='{host}'\nipv6='{ipv6}'\n"))
            .collect();
        let lab = lab(
            name,
            &format!("seed=3\n[default]\nrtt_ms=6\nmbit=500\n{sites}"),
        );
        let fail = |e: &dyn std::error::Error, host: &str| -> ! {
            panic!("{name}: {}\n{}", chain(e), lab.log_tail(host, 40))
        };
        network(&lab, &["a", "b", "c"]);
        let lan = InnerMachine::lan(&lab, "b", "lan0", "192.168.77", false).unwrap();
        for (from, to) in [("a", "b"), ("b", "a"), ("b", "c")] {
            lab.wait(
                &format!("{from} to reach {to} directly"),
                BACK,
                Duration::from_millis(300),
                || {
                    let path = lab.ping(from, to, 2, "100ms")?.path;
                    Ok((path.starts_with("direct [2001:2:")
                        || (families[0] == "dual" && path.starts_with("direct")))
                    .then_some(()))
                },
            )
            .unwrap_or_else(|e| fail(&e, from));
            let status = lab.status(to).unwrap();
            for address in [&status.address.expect("an address"), &status.address_v6] {
                lab.testbed()
                    .run(
                        from,
                        &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "3", address],
                    )
                    .unwrap_or_else(|e| fail(&e, from));
            }
        }
        lab.p2pvm("a", &["route", "accept"]).unwrap();
        lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
            .unwrap_or_else(|e| fail(&e, "b"));
        let a = probe::ProbeSource::host(&lab, "a").unwrap();
        assert!(
            probe::within(BACK, || a.pings(&lan.address)).is_some(),
            "{name}: the LAN behind b is not reached"
        );
        let said = refused(&lab, "b", &["route", "offer", "fd77::/64"], 2);
        assert!(said.contains("only IPv4 subnets"), "{said}");
        lab.p2pvm("b", &["down"]).unwrap();
        lab.start("b").unwrap_or_else(|e| fail(&e, "b"));
        lab.wait("b to be back", BACK, Duration::from_millis(300), || {
            Ok(lab.ping("a", "b", 1, "100ms").is_ok().then_some(()))
        })
        .unwrap_or_else(|e| fail(&e, "b"));
        for host in ["a", "b", "c"] {
            let (code, out, said) = lab.try_p2pvm(host, &["doctor"]).unwrap();
            println!("{name}: doctor of {host} ({code}):\n{out}\n{said}");
        }
        lab.down().unwrap();
    }
}

/// In a rootless container p2pvm is root of a user namespace alone, and opens a TUN device that
/// anybody may open.
#[test]
fn a_member_in_a_rootless_container_joins_and_doctor_tells_the_truth() {
    const CONTAINER: &str = "
ip link add up0 type veth peer name up1 && ip addr add 10.66.0.1/24 dev up0 && ip link set up0 up
sysctl -qw net.ipv4.ip_forward=1
nft 'table ip rootless { chain p { type nat hook postrouting priority 100; oifname eth0 \
masquerade; }; }'
mkdir -p $STATE && cp $P2PVM_DIR/node.toml $STATE && chown -R 65534:65534 $STATE
mknod -m 0666 $STATE.tun c 10 200
exec unshare -m sh -euc 'mount --bind $STATE.tun /dev/net/tun
exec setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urnm sleep 600'";
    let lab = lab("rootless", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a"]);
    // Below a directory that another user may pass.
    let state = format!("/var/tmp/p2pvm-rootless-{}", std::process::id());
    let script = CONTAINER.replace("$STATE", &state);
    let mut command = Command::new("sh");
    command
        .args(["-euc", &script])
        .env("P2PVM_DIR", lab.dir("b").unwrap())
        .stdin(Stdio::null());
    let mut container = lab.testbed().spawn("b", &mut command).unwrap();
    let pid = container.id();
    let inside = |words: &[&str]| {
        let enter = [
            "nsenter",
            "-t",
            &pid.to_string(),
            "-U",
            "-m",
            "-n",
            "-S",
            "0",
            "-G",
            "0",
        ];
        let output = Command::new(enter[0])
            .args(&enter[1..])
            .args(words)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    lab.wait("the container", BACK, Duration::from_millis(100), || {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok((comm.trim() == "sleep").then_some(()))
    })
    .unwrap();
    lab.testbed()
        .run(
            "b",
            &["ip", "link", "set", "up1", "netns", &pid.to_string()],
        )
        .unwrap();
    let uplink = "ip addr add 10.66.0.2/24 dev up1; ip link set up1 up; ip link set lo up; \
                  ip route add default via 10.66.0.1";
    assert_eq!(inside(&["sh", "-euc", uplink]), (true, String::new()));

    let program = env!("CARGO_BIN_EXE_p2pvm");
    let p2pvm = |words: &[&str]| inside(&[&[program, "--dir", &state], words].concat());
    let invite = lab.invite("a", 1).unwrap();
    let (joined, said) = p2pvm(&["join", &invite, "--name", "rootless"]);
    assert!(joined, "{said}");
    let a = common::address(&lab, "a");
    lab.wait("a to answer", BACK, Duration::from_millis(200), || {
        Ok(inside(&["ping", "-c", "1", "-W", "1", &a]).0.then_some(()))
    })
    .unwrap();
    let (_, page) = p2pvm(&["doctor"]);
    assert!(
        page.contains("up1 1500 bytes") && !page.contains("failed "),
        "{page}"
    );
    let (ended, said) = p2pvm(&["down"]);
    assert!(ended, "{said}");
    let (_, left) = inside(&["sh", "-c", "ip -o link | grep p2pvm0; nft list tables"]);
    assert_eq!(left, "", "p2pvm leaves this behind");
    container.kill().unwrap();
    container.wait().unwrap();
    lab.down().unwrap();
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::remove_file(format!("{state}.tun")).unwrap();
}
