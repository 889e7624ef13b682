//! Doctor and health tell the truth: what is broken is named with its cause soon after it breaks,
//! and no longer than it lasts.

mod common;

use common::{
    Lan, SETTINGS, image, lab,
    measured::{Measurement, seconds},
    network, public_sites, refused, run,
};
use p2pvm_api::{
    FindingView, Health,
    ReachState::{Answers, Blocked, Silent},
    ReachView, Status, VmView,
};
use p2pvm_host::Level;
use p2pvm_lab::{chain, figures::Figure, lab::Lab};
use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the kernel tells of shows within about two seconds; a loaded machine needs one more.
const SOON: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(100);

/// What measures the figures again.
const COMMAND: &str = "cargo nextest run -p p2pvm --test e2e_truth";

/// How soon a finding came and went, in rounds, for docs/hosts.md.
fn finding(cause: &str, rounds: &[(Duration, Duration)]) -> [Figure; 2] {
    let (came, went): (Vec<_>, Vec<_>) = rounds.iter().copied().unzip();
    [
        seconds("came", "cause to finding", &came),
        seconds("went", "end of the cause to the finding's end", &went),
    ]
    .map(|figure| figure.of(cause).digits(1))
}

fn status(lab: &Lab, host: &str) -> Status {
    lab.status(host).unwrap()
}

fn word(status: &Status) -> &Health {
    &status.health.word
}

fn findings<'a>(status: &'a Status, area: &'a str) -> impl Iterator<Item = &'a FindingView> {
    let all = status.findings.iter();
    all.filter(move |finding| finding.area == area)
}

/// Waits until the status is as wanted; how long that took.
fn until(
    lab: &Lab,
    host: &str,
    what: &str,
    limit: Duration,
    is_so: impl Fn(&Status) -> bool,
) -> Duration {
    common::until(lab, what, limit, || is_so(&status(lab, host)))
}

/// Waits until a host's health is ok.
fn until_well(lab: &Lab, host: &str) {
    let what = format!("{host} to be well");
    until(lab, host, &what, Duration::from_secs(40), |status| {
        *word(status) == Health::Ok
    });
}

#[test]
fn what_the_kernel_tells_shows_within_seconds_and_goes_within_seconds() {
    let (measurement, mut rounds) = (Measurement::begin("hosts", COMMAND), Vec::new());
    let lab = lab("soon", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    until_well(&lab, "b");
    for round in 0..3 {
        // What comes and goes all the time, as containers do, before and meanwhile, changes nothing
        // about that.
        let flood = (round == 2).then(|| {
            let flood = "for i in $(seq 120); do ip link add busy0 type veth peer name busy1; ip \
                link del busy0; sleep 0.1; done";
            lab.testbed()
                .spawn("b", Command::new("sh").args(["-c", flood]))
                .unwrap()
        });
        if flood.is_some() {
            thread::sleep(Duration::from_secs(5));
        }
        // Every link is up, and nothing gets in.
        run(
            &lab,
            "b",
            "nft 'add table inet guard; add chain inet guard in { type filter hook input priority \
                0; }; add rule inet guard in iifname p2pvm0 drop'",
        );
        let came = until(&lab, "b", "the finding", SOON, |status| {
            *word(status) == Health::Degraded && findings(status, "path").count() == 1
        });
        run(&lab, "b", "nft delete table inet guard");
        let went = until(&lab, "b", "the finding's end", SOON, |status| {
            *word(status) == Health::Ok && findings(status, "path").count() == 0
        });
        rounds.push((came, went));
        if let Some(mut flood) = flood {
            assert!(
                flood.try_wait().unwrap().is_none(),
                "the changes were over before"
            );
            flood.wait().unwrap();
        }
    }
    measurement.end(&finding("a chain drops what comes in", &rounds));
    lab.down().unwrap();
}

#[test]
fn members_whose_control_port_alone_is_blocked_are_not_called_unreachable() {
    let lab = lab("control", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    lab.ping("a", "b", 1, "100ms").unwrap();
    until_well(&lab, "b");
    run(
        &lab,
        "b",
        "nft 'add table inet guard; add chain inet guard in { type filter hook input priority 0; \
            }; add chain inet guard out { type filter hook output priority 0; }'",
    );
    for chain in ["in", "out"] {
        for side in ["dport", "sport"] {
            run(
                &lab,
                "b",
                &format!(
                    "nft 'add rule inet guard {chain} oif != lo meta l4proto {{ tcp, udp }} th \
                        {side} 4001 drop'"
                ),
            );
        }
    }
    until(
        &lab,
        "b",
        "the connection to end",
        Duration::from_secs(90),
        |status| status.connected == 0,
    );
    let truth = |status: &Status| {
        let why = &status.health.why;
        why.contains("packets go to 1 of 1") && why.contains("port 4001")
    };
    until(&lab, "b", "true words", Duration::from_secs(3), truth);
    assert!(
        !lab.ping("b", "a", 1, "100ms").unwrap().rtts_ms.is_empty(),
        "packets go"
    );
    let screen = lab.p2pvm("b", &["top", "--once"]).unwrap();
    assert!(
        screen.contains("degraded") && screen.contains("packets go to 1 of 1"),
        "{screen}"
    );
    until(
        &lab,
        "b",
        "the finding",
        Duration::from_secs(20),
        |status| findings(status, "control").count() == 1,
    );
    let (code, page, _) = lab.try_p2pvm("b", &["doctor"]).unwrap();
    assert!(
        code == 1
            && page
                .lines()
                .any(|line| line.starts_with("control") && line.contains("failed")),
        "{page}"
    );
    assert!(
        page.contains("let UDP and TCP port 4001 in and out"),
        "{page}"
    );
    run(&lab, "b", "nft delete table inet guard");
    until(
        &lab,
        "b",
        "b to be well again",
        Duration::from_secs(60),
        |status| *word(status) == Health::Ok,
    );
    lab.down().unwrap();
}

/// What wg-quick makes for a VPN of all addresses, before an interface that takes packets and
/// passes none on: as a VPN does whose server is reached through the very network that it carries.
const VPN: &str = "ip tuntap add vpn0 mode tun && ip link set vpn0 up && ip route add default dev \
    vpn0 table 51820 && \
                   ip rule add not fwmark 51820 table 51820 && ip rule add table main \
                   suppress_prefixlength 0";

#[test]
fn a_vpn_taking_all_packets_is_named_with_rules_that_work() {
    let lab = lab("vpn", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    until_well(&lab, "b");
    run(&lab, "b", VPN);
    let named = |status: &Status| {
        let mut found = findings(status, "control");
        found.any(|finding| finding.found.contains("leave by vpn0, not by"))
    };
    until(
        &lab,
        "b",
        "the VPN to be named",
        Duration::from_secs(60),
        named,
    );
    let status = status(&lab, "b");
    let advice = &findings(&status, "control").next().unwrap().advice;
    run(
        &lab,
        "b",
        advice.split_once(": ").expect("a command stands there").1,
    );
    until(
        &lab,
        "b",
        "b to be well beside the VPN",
        Duration::from_secs(40),
        |status| *word(status) == Health::Ok && !named(status),
    );
    assert!(!lab.ping("b", "a", 2, "100ms").unwrap().rtts_ms.is_empty());
    lab.down().unwrap();
}

#[test]
fn a_member_revoked_while_down_is_told_so_and_stays_down() {
    let lab = lab("revoked", &public_sites(&["a", "b", "c"], 20.0));
    network(&lab, &["a", "b", "c"]);
    lab.p2pvm("b", &["down"]).unwrap();
    lab.p2pvm("c", &["down"]).unwrap();
    lab.p2pvm("a", &["revoke", "b"]).unwrap();
    let said = refused(&lab, "b", &["up", "--detach"], 5);
    let wanted = [
        "has been revoked",
        "by the network's founder on 20",
        "p2pvm leave --force",
    ];
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    // Again, now that the word is on its own disk; and with nobody there to ask.
    lab.p2pvm("a", &["down"]).unwrap();
    let said = refused(&lab, "b", &["up", "--detach"], 5);
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    // A member that finds nobody is up, and says that it found nobody.
    let (code, _, said) = lab.try_p2pvm("c", &["up", "--detach"]).unwrap();
    assert!(
        code == 0 && said.contains("known members answers yet"),
        "{code} {said}"
    );
    lab.down().unwrap();
}

#[test]
fn a_second_daemon_a_taken_port_or_device_is_told_with_holder() {
    let lab = lab("taken", &public_sites(&["a"], 5.0));
    lab.found("a", "lab").unwrap();
    let said = lab.p2pvm("a", &["up", "--detach"]).unwrap();
    assert!(said.contains("already running"), "{said}");
    let said = refused(&lab, "a", &["up"], 5);
    assert!(said.contains("daemon"), "{said}");
    let other = lab.dir("a").unwrap().join("other");
    let dir = other.to_str().unwrap();
    lab.p2pvm("a", &["--dir", dir, "init", "--network", "two"])
        .unwrap();
    fs::write(other.join("node.toml"), SETTINGS).unwrap();
    let said = refused(&lab, "a", &["--dir", dir, "up", "--detach"], 5);
    assert!(
        said.contains("port 4001 cannot be bound (used by") && said.contains("p2pvm"),
        "{said}"
    );
    fs::write(
        other.join("node.toml"),
        format!("{SETTINGS}port = 5001\nlink_port = 5002\n"),
    )
    .unwrap();
    let said = refused(&lab, "a", &["--dir", dir, "up", "--detach"], 5);
    assert!(
        said.contains("the interface p2pvm0 is there already") && said.contains("device = "),
        "{said}"
    );
    lab.down().unwrap();
}

#[test]
fn an_offer_whose_member_answers_again_is_shown_as_used_at_once() {
    let lab = lab("again", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let _lan = Lan::new(&lab, "a");
    lab.p2pvm("a", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    lab.p2pvm("b", &["route", "accept"]).unwrap();
    let note = || {
        let first = lab.routes("b").unwrap().into_iter().next();
        first.map_or(String::new(), |route| route.note)
    };
    let shown = |what: &str, limit: u64, is_so: &dyn Fn(&str) -> bool| {
        lab.wait(what, Duration::from_secs(limit), STEP, || {
            Ok(is_so(&note()).then_some(()))
        })
        .unwrap_or_else(|e| panic!("{}: {}", chain(&e), note()));
    };
    shown("the offer to be used", 20, &|note| note == "used");
    run(
        &lab,
        "b",
        "nft 'add table inet guard; add chain inet guard in { type filter hook input priority 0; \
            }; add rule inet guard in iif != lo drop'",
    );
    shown("the silence", 30, &|note| note.contains("does not answer"));
    run(&lab, "b", "nft delete table inet guard");
    // The link itself is found again first.
    lab.wait("a ping", Duration::from_secs(60), STEP, || {
        Ok(lab
            .ping("b", "a", 1, "100ms")
            .is_ok_and(|p| !p.rtts_ms.is_empty())
            .then_some(()))
    })
    .unwrap();
    shown("the offer to be used again", 3, &|note| note == "used");
    lab.down().unwrap();
}

/// Types a line into a guest's console.
fn type_into(lab: &Lab, host: &str, vm: &str, line: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2pvm"));
    command
        .args(["vm", "console", vm])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut console = lab.testbed().spawn(host, &mut command).unwrap();
    let mut keys = console.stdin.take().unwrap();
    for text in ["\n", line, "\n"] {
        thread::sleep(Duration::from_millis(700));
        keys.write_all(text.as_bytes()).unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    console.kill().unwrap();
    console.wait().unwrap();
}

/// Changes a guest's interface in several ways, and waits each time until the guest answers again;
/// returns how long each took.
fn until_put_back(lab: &Lab, tap: &str, address: &str, answers: impl Fn()) -> Vec<Duration> {
    let mut times = Vec::new();
    for broken in [
        "ip link set TAP down",
        "ip link set TAP name pvother",
        "ip link set TAP carrier off",
        "ip link set TAP mtu 600",
        "ip link del TAP",
    ] {
        let began = Instant::now();
        run(lab, "b", &broken.replace("TAP", tap));
        // Where it was renamed the packets go on, and the next change needs the name.
        lab.wait(
            "the interface to be put back",
            Duration::from_secs(10),
            STEP,
            || {
                let link = run(
                    lab,
                    "b",
                    &format!("ip -o link show dev {tap} 2>/dev/null || true"),
                );
                Ok((link.contains("LOWER_UP") && !link.contains("mtu 600 ")).then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{broken}: {}\n{}", chain(&e), lab.log_tail("b", 30)));
        lab.wait_for_guest("a", address, Duration::from_secs(12))
            .unwrap_or_else(|e| panic!("{broken}: {}\n{}", chain(&e), lab.log_tail("b", 30)));
        times.push(began.elapsed());
        answers();
    }
    times
}

#[test]
fn a_guests_interface_that_passes_nothing_is_named_with_its_cause() {
    let measurement = Measurement::begin("hosts", COMMAND);
    let lab = lab("taps", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    let made: VmView = lab
        .json(
            "b",
            &[
                "vm",
                "create",
                "web",
                "--image",
                image(),
                "--memory",
                "128M",
                "--start",
            ],
        )
        .unwrap();
    let address = made.address;
    let reach = |host: &str| -> ReachView {
        let mut listed = lab.vms(host).unwrap().into_iter();
        let web = listed.find(|vm| vm.name == "web");
        web.and_then(|vm| vm.reach).unwrap_or_default()
    };
    // While it boots it has not answered, which is nobody's fault.
    let early = status(&lab, "b");
    assert!(
        findings(&early, "guests").all(|finding| finding.level == Level::Ok),
        "{early:?}"
    );
    lab.wait_for_guest("a", &address, Duration::from_secs(90))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 40)));
    let answers = |limit| {
        lab.wait(
            "the guest to answer its host",
            Duration::from_secs(limit),
            STEP,
            || Ok((reach("b").state == Answers).then_some(())),
        )
        .unwrap_or_else(|e| panic!("{}: {:?}\n{}", chain(&e), reach("b"), lab.log_tail("b", 40)));
    };
    answers(40);
    assert_eq!(reach("a").state, Answers, "members tell each other");
    assert!(
        lab.p2pvm("b", &["vm", "show", "web"])
            .unwrap()
            .contains("answers its host in ")
    );
    let page = lab.try_p2pvm("b", &["doctor"]).unwrap().1;
    assert!(
        page.lines()
            .any(|line| line.starts_with("guests") && line.contains("1 of 1")),
        "{page}"
    );

    // What is p2pvm's own is put back before anybody can ask.
    let tap = run(&lab, "b", "ls /sys/class/net | grep ^pv")
        .trim()
        .to_owned();
    let times = until_put_back(&lab, &tap, &address, || answers(10));

    // What others do there is named.
    let guard = format!(
        "nft 'add table netdev guard; add chain netdev guard out {{ type filter hook egress \
            device {tap} priority 0; policy drop; }}'"
    );
    let (cause, remedy) = (
        "chain netdev guard out",
        "nft -a list chain netdev guard out",
    );
    run(&lab, "b", &guard);
    let told =
        |status: &Status| findings(status, "guests").any(|found| found.level == Level::Failed);
    let came = until(&lab, "b", "the finding", Duration::from_secs(6), told);
    let (code, page, _) = lab.try_p2pvm("b", &["doctor"]).unwrap();
    assert!(
        code == 1
            && page.contains("packets do not reach the guest web")
            && page.contains(cause)
            && page.contains(remedy),
        "{page}"
    );
    assert_eq!(word(&status(&lab, "b")), &Health::Degraded);
    assert_eq!((reach("b").state, reach("a").state), (Blocked, Blocked));
    run(&lab, "b", "nft delete table netdev guard");
    let went = until(&lab, "b", "its end", Duration::from_secs(8), |status| {
        findings(status, "guests").count() == 0 && *word(status) == Health::Ok
    });
    let what = "change of a guest's interface to the guest's next answer";
    let mut figures = vec![seconds("guest-back", what, &times).digits(1)];
    figures.extend(finding("a chain drops a guest's packets", &[(came, went)]));
    measurement.end(&figures);

    // A guest that takes its packets and says nothing is said as that.
    type_into(
        &lab,
        "b",
        "web",
        "ip addr flush dev eth0; ip link set eth0 arp off",
    );
    lab.wait(
        "the guest to be called silent",
        Duration::from_secs(45),
        STEP,
        || Ok((reach("b").state == Silent).then_some(())),
    )
    .unwrap_or_else(|e| panic!("{}: {:?}\n{}", chain(&e), reach("b"), lab.log_tail("b", 40)));
    assert!(findings(&status(&lab, "b"), "guests").all(|found| found.level != Level::Failed));
    lab.down().unwrap();
}

#[test]
fn two_networks_of_a_machine_tell_of_an_address_in_both() {
    let lab = lab("holds", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let real = lab.testbed().host("b").unwrap().address.to_string();
    let other = lab.dir("a").unwrap().join("other");
    let dir = other.to_str().unwrap();
    // A subnet around the other's real address, and not around this machine's own.
    let subnet = format!("{}.0/24", real.rsplit_once('.').unwrap().0);
    lab.p2pvm(
        "a",
        &[
            "--dir",
            dir,
            "init",
            "--network",
            "two",
            "--subnet",
            &subnet,
        ],
    )
    .unwrap();
    fs::write(
        other.join("node.toml"),
        format!("{SETTINGS}port = 5001\nlink_port = 5002\ndevice = \"two0\"\n"),
    )
    .unwrap();
    lab.p2pvm("a", &["--dir", dir, "up", "--detach"]).unwrap();
    let of = |words: &[&str]| -> Status { lab.json("a", words).unwrap() };
    let told = |words: &[&str], parts: &[&str]| {
        lab.wait(
            &format!("{words:?} to tell"),
            Duration::from_secs(90),
            Duration::from_millis(500),
            || {
                let status = of(words);
                let found = findings(&status, "networks")
                    .any(|finding| parts.iter().all(|part| finding.found.contains(part)));
                Ok(found.then_some(()))
            },
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}: {:?}\n{}\n{}",
                chain(&e),
                of(words),
                lab.log_tail("a", 30),
                lab.p2pvm("a", &["peers"]).unwrap()
            )
        });
    };
    told(&["status"], &[&format!("b has the address {real}"), "two0"]);
    told(
        &["--dir", dir, "status"],
        &[&format!("holds {real}"), "p2pvm0"],
    );
    let (_, page, _) = lab.try_p2pvm("a", &["doctor"]).unwrap();
    assert!(
        page.contains("networks") && page.contains("p2pvm init --subnet"),
        "{page}"
    );
    lab.p2pvm("a", &["--dir", dir, "down"]).unwrap();
    until(
        &lab,
        "a",
        "the end of it",
        Duration::from_secs(60),
        |status| findings(status, "networks").count() == 0,
    );
    lab.down().unwrap();
}
