//! Members of the previous release and of this one in one network: each kind of service works
//! between them, VMs move both ways, and what does not work is refused with the reason. A host runs
//! one program, its daemon and its commands alike. One network was founded by each version.

mod common;

use common::{
    FORMER_SETTINGS, address, assert_unbroken, dig, image, is_connected, lab, network, policy_on,
    set_policy, until,
};
use p2pvm_api::{SnapshotState, SnapshotView, TokenRevoked, VmStateView, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// `a` founds the network. `c` and `d` reach each other by a relay only, and are of different
/// versions, so that the relay is of another version than one of them.
const HOSTS: [&str; 5] = ["a", "b", "c", "d", "e"];
const SITES: &str = r#"
seed = 5
[default]
rtt_ms = 10
mbit = 1000
[[site]]
name = "a"
[[site]]
name = "b"
[[site]]
name = "c"
nat = "symmetric"
[[site]]
name = "d"
nat = "symmetric"
[[site]]
name = "e"
"#;
/// How long a step of the network may take.
const STEP: Duration = Duration::from_secs(60);
/// How long a guest takes to boot beside other tests at most.
const BOOT: Duration = Duration::from_secs(120);
/// How many warnings a daemon may log in the whole test. Reason: daemons are killed and a member is
/// expelled, which is worth some lines; a message that is refused each second makes hundreds.
const MAX_WARNINGS: usize = 60;

/// The previous release's program, where `make test-slow` or `scripts/previous.sh` has built it.
fn previous() -> Option<PathBuf> {
    let named = std::env::var("P2PVM_PREVIOUS").unwrap_or_default();
    if named.is_empty() {
        println!(
            "NOT RUN: P2PVM_PREVIOUS does not name the previous release's program: 'make \
             test-slow' builds one, and so does scripts/previous.sh"
        );
        return None;
    }
    let program = PathBuf::from(named);
    assert!(program.is_file(), "no program: {}", program.display());
    Some(program)
}

/// A network in which the hosts of `old` run the previous release.
fn mixed(test: &str, previous: &Path, old: &[&str]) -> Lab {
    let mut lab = lab(test, SITES);
    for host in old {
        lab.use_program(host, previous);
        lab.configure(host, FORMER_SETTINGS).unwrap();
    }
    network(&lab, &HOSTS);
    lab
}

/// Sends bytes to `to` and gets them back.
fn talk(lab: &Lab, from: &str, to: &str) {
    const BYTES: usize = 64 << 10;
    let there: SocketAddr = format!("{}:7100", address(lab, to)).parse().unwrap();
    let bind = || TcpListener::bind(there);
    let listener = lab.testbed().inside(to, bind).unwrap().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; BYTES];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let connect = || TcpStream::connect_timeout(&there, STEP);
    let mut stream = lab.testbed().inside(from, connect).unwrap().unwrap();
    stream.set_read_timeout(Some(STEP)).unwrap();
    let (sent, mut got) = (vec![7; BYTES], vec![0; BYTES]);
    stream.write_all(&sent).unwrap();
    stream.read_exact(&mut got).unwrap();
    assert!(sent == got, "{from} to {to}: other bytes came back");
    echo.join().unwrap();
}

/// Whether a host's `peers` has all others, connected.
fn sees_all(lab: &Lab, host: &str, others: &[&str]) -> bool {
    let Ok(peers) = lab.peers(host) else {
        return false;
    };
    let sees = |name: &str| peers.iter().any(|peer| peer.name == name && peer.connected);
    others.iter().all(|other| *other == host || sees(other))
}

/// Names, pings and TCP between all pairs of different versions, and between NATs by a relay.
fn packets_pass(lab: &Lab) {
    for (from, to) in [("a", "b"), ("b", "a"), ("c", "b"), ("a", "d"), ("d", "e")] {
        until(lab, &format!("{from} to reach {to}"), STEP, || {
            let pinged = lab.ping(from, to, 3, "200ms");
            pinged.is_ok_and(|pinged| !pinged.rtts_ms.is_empty())
        });
        let found = dig(lab, from, &address(lab, from), &format!("{to}.lab.p2p"));
        let found = found.map(|ip| ip.to_string());
        assert_eq!(found, Some(address(lab, to)), "{from} asks for {to}");
        talk(lab, from, to);
    }
    for (from, to) in [("c", "d"), ("d", "c")] {
        until(lab, &format!("a relay from {from} to {to}"), STEP, || {
            let pinged = lab.ping(from, to, 3, "200ms");
            pinged.is_ok_and(|pinged| pinged.path.starts_with("relayed via"))
        });
        talk(lab, from, to);
    }
    for host in HOSTS {
        until(lab, &format!("{host} to see all"), STEP, || {
            sees_all(lab, host, &HOSTS)
        });
        let listed = lab.p2pvm(host, &["peers", "--all"]).unwrap();
        let is_listed = |other: &&str| *other == host || listed.contains(*other);
        assert!(HOSTS.iter().all(is_listed), "{listed}");
        assert_eq!(lab.status(host).unwrap().network, "lab");
    }
}

/// Creates "web" on a host; gives its address when its guest answers.
fn create(lab: &Lab, host: &str) -> String {
    let words = [
        "vm",
        "create",
        "web",
        "--image",
        image(),
        "--memory",
        "128M",
        "--start",
    ];
    let made: VmView = lab
        .json(host, &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    answers(lab, &made.address);
    made.address
}

/// Waits until the guest answers a member.
fn answers(lab: &Lab, vm: &str) {
    lab.wait_for_guest("e", vm, BOOT)
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
}

/// The guest's counter, which grows as long as it is the same guest.
fn counter(lab: &Lab, vm: &str) -> u64 {
    answers(lab, vm);
    let there: SocketAddr = format!("{vm}:7000").parse().unwrap();
    let connect = || TcpStream::connect_timeout(&there, STEP);
    let mut stream = lab.testbed().inside("e", connect).unwrap().unwrap();
    stream.set_read_timeout(Some(STEP)).unwrap();
    stream.write_all(b"x\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let first = line.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).expect(&line)
}

/// Waits until each host shows "web" on `holder`, in this state.
fn is_shown(lab: &Lab, hosts: &[&str], holder: &str, state: &VmStateView) {
    for host in hosts {
        until(lab, &format!("{host} to see web on {holder}"), STEP, || {
            let is_it = |vm: &VmView| vm.host == holder && vm.state == *state;
            let shown = lab.vm(host, "web").is_ok_and(|vm| is_it(&vm));
            let listed = lab.vms(host).is_ok_and(|vms| vms.iter().any(is_it));
            shown && listed
        });
    }
}

/// The VM's records and its guest's name are read by members of both versions.
fn records_are_read(lab: &Lab, holder: &str, vm: &str) {
    is_shown(lab, &HOSTS, holder, &VmStateView::Running);
    for host in HOSTS {
        until(lab, &format!("{host} to resolve web"), STEP, || {
            let found = dig(lab, host, &address(lab, host), "web.lab.p2p");
            found.is_some_and(|ip| ip.to_string() == vm)
        });
    }
}

/// Moves "web" while a member talks to it: no reply is lost.
fn moves(lab: &Lab, from: &str, to: &str, vm: &str) {
    let before = counter(lab, vm);
    let client = lab.client("e", vm, 20).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let moved = lab.migrate(from, "web", to).unwrap_or_else(|e| {
        let logs = [from, to].map(|host| lab.log_tail(host, 60));
        panic!("{}\n{}\n--- {to}\n{}", chain(&e), logs[0], logs[1])
    });
    assert_eq!(moved.host, to);
    std::thread::sleep(Duration::from_secs(2));
    assert_unbroken(&client.finish().unwrap());
    assert!(counter(lab, vm) > before, "the guest began again");
    is_shown(lab, &["a", "b", "e"], to, &VmStateView::Running);
}

/// Takes a snapshot on the VM's host; gives the members that hold it when it is durable.
fn snapshot(lab: &Lab, host: &str, name: &str) -> Vec<String> {
    let words = ["vm", "snapshot", "web", "--name", name];
    lab.p2pvm(host, &words)
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    let holders = || {
        let vm = lab.vm(host, "web").ok()?;
        let is_it = |s: &&SnapshotView| s.name == name;
        let taken = vm.snapshots.iter().find(is_it)?;
        (taken.state == SnapshotState::Durable).then(|| taken.holders.clone())
    };
    until(lab, &format!("{name} to be durable"), BOOT, || {
        holders().is_some()
    });
    holders().expect("it was durable just now")
}

/// Stops "web" and restores it on a host.
fn restores(lab: &Lab, from: &str, to: &str, snapshot: &str, vm: &str) {
    lab.p2pvm(from, &["vm", "stop", "web"]).unwrap();
    restored(lab, to, snapshot, vm);
}

/// Restores "web", which is stopped, on a host.
fn restored(lab: &Lab, to: &str, snapshot: &str, vm: &str) {
    lab.p2pvm(to, &["vm", "restore", &format!("web@{snapshot}")])
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(to, 60)));
    answers(lab, vm);
    is_shown(lab, &["a", "b", "e"], to, &VmStateView::Running);
}

/// A member of the previous release cannot read a sealed snapshot: it says so, and the stopped VM
/// stays where it is.
fn old_does_not_open(lab: &Lab, old: &str, holder: &str, snapshot: &str) {
    lab.p2pvm(holder, &["vm", "stop", "web"]).unwrap();
    let words = ["vm", "restore", &format!("web@{snapshot}")];
    let (code, out, said) = lab.try_p2pvm(old, &words).unwrap();
    assert!(
        code != 0 && said.contains("not a checkpoint of this VM"),
        "{code} {out} {said}"
    );
    is_shown(lab, &["a", "b", "e"], holder, &VmStateView::Stopped);
}

/// A third host of this release restores a sealed snapshot if a majority of the VM's voters can
/// read its request, else it says what to update. Gives the VM's host after that.
fn opens_by_voters(lab: &Lab, old: &[&str], (from, to): (&str, &str), vm: &str) -> String {
    lab.p2pvm(from, &["vm", "stop", "web"]).unwrap();
    let voters = lab.vm(from, "web").unwrap().voters;
    let reads = |voter: &&String| !old.contains(&voter.as_str());
    let can = voters.iter().filter(reads).count() * 2 > voters.len();
    println!("{to} restores with the voters {voters:?}");
    if can {
        restored(lab, to, "sealed", vm);
        return to.to_owned();
    }
    let (code, out, said) = lab.try_p2pvm(to, &["vm", "restore", "web@sealed"]).unwrap();
    assert!(
        code != 0 && said.contains("update those that cannot read the request"),
        "{code} {out} {said}"
    );
    lab.p2pvm(from, &["vm", "start", "web"]).unwrap();
    answers(lab, vm);
    from.to_owned()
}

/// On a host of the previous release a token changes nothing: there every member may do all, and
/// whoever revokes one is told that this host does not know it.
fn tokens_meet_an_old_host(lab: &Lab, vm: &str) {
    let create = ["token", "create", "--vm", "web", "--may", "stop"];
    let rest = ["--for", "1h", "--to", "c"];
    let token = lab.p2pvm("a", &[&create[..], &rest[..]].concat()).unwrap();
    lab.p2pvm("c", &["token", "add", token.trim()]).unwrap();
    lab.p2pvm("c", &["vm", "stop", "web"]).unwrap();
    is_shown(lab, &["a", "b"], "b", &VmStateView::Stopped);
    let words = ["token", "revoke", token.trim()];
    let revoked: TokenRevoked = lab.json("a", &words).unwrap();
    let note = revoked.note.unwrap_or_default();
    assert!(
        revoked.host.is_none() && note.contains("earlier version"),
        "{:?} {note}",
        revoked.host
    );
    lab.p2pvm("c", &["vm", "start", "web"]).unwrap();
    answers(lab, vm);
}

/// `a` is updated under the running VM, which goes on, and later taken back to the previous release
/// without a VM.
fn updated_and_back(lab: &mut Lab, previous: &Path, vm: &str) {
    let (before, was) = (counter(lab, vm), lab.status("a").unwrap());
    let this = lab.program().to_owned();
    lab.use_program("a", &this);
    lab.kill_daemon("a").unwrap();
    let now = lab.start("a").unwrap();
    assert_eq!((now.member, now.address), (was.member, was.address));
    assert!(counter(lab, vm) > before, "the guest began again");
    is_shown(lab, &HOSTS, "a", &VmStateView::Running);
    moves(lab, "a", "b", vm);

    lab.p2pvm("a", &["down"]).unwrap();
    lab.use_program("a", previous);
    lab.start("a").unwrap();
    until(lab, "a to see all again", STEP, || {
        sees_all(lab, "a", &HOSTS)
    });
    moves(lab, "b", "a", vm);
}

/// A policy reaches all; so does the revocation of `e`, also members that were away then.
fn notices_and_revocations_spread(lab: &Lab) {
    set_policy(lab, "a", &HOSTS, "default = \"allow\"\n");
    for host in ["c", "d"] {
        lab.kill_daemon(host).unwrap();
    }
    set_policy(lab, "a", &["a", "b", "e"], "# two\ndefault = \"allow\"\n");
    lab.p2pvm("a", &["revoke", "e"]).unwrap();
    let without_e = |host: &str| is_connected(lab, host, "e").is_ok_and(|connected| !connected);
    for host in ["a", "b"] {
        until(lab, &format!("{host} to cut e off"), STEP, || {
            without_e(host)
        });
    }
    let rest = ["a", "b", "c", "d"];
    for host in ["c", "d"] {
        lab.start(host).unwrap();
    }
    for host in rest {
        until(lab, &format!("{host} to see the rest"), STEP, || {
            sees_all(lab, host, &rest) && without_e(host)
        });
        let version = |host: &str| policy_on(lab, host).map(|policy| policy.version).ok();
        until(lab, &format!("{host} to have the policy"), STEP, || {
            version(host).is_some() && version(host) == version("a")
        });
    }
}

/// No daemon panicked, or wrote its log full.
fn logs_are_quiet(lab: &Lab) {
    let mut loud = Vec::new();
    for host in HOSTS {
        let log = fs::read_to_string(lab.dir(host).unwrap().join("daemon.log")).unwrap();
        assert!(!log.contains("panicked at"), "{host}:\n{log}");
        let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        let lines: Vec<_> = log.lines().filter(is_warning).collect();
        println!("{host} warned {} times", lines.len());
        if lines.len() > MAX_WARNINGS {
            loud.push(format!("{host}:\n{}", lines.join("\n")));
        }
    }
    assert!(loud.is_empty(), "{}", loud.join("\n"));
}

#[test]
fn members_of_this_release_join_and_serve_a_network_of_the_previous() {
    let Some(previous) = previous() else { return };
    let old = ["a", "c", "e"];
    let mut lab = mixed("versions-old", &previous, &old);
    packets_pass(&lab);
    let vm = create(&lab, "a");
    records_are_read(&lab, "a", &vm);
    moves(&lab, "a", "b", &vm);
    moves(&lab, "b", "a", &vm);

    snapshot(&lab, "a", "plain");
    restores(&lab, "a", "b", "plain", &vm);
    // Two of a, c, d and e hold it, so that one of them is of the previous release.
    let holders = snapshot(&lab, "b", "sealed");
    let is_old = |holder: &String| old.contains(&holder.as_str());
    assert!(holders.iter().any(is_old), "{holders:?}");
    old_does_not_open(&lab, "a", "b", "sealed");
    restored(&lab, "b", "sealed", &vm);
    moves(&lab, "b", "a", &vm);

    updated_and_back(&mut lab, &previous, &vm);
    notices_and_revocations_spread(&lab);
    logs_are_quiet(&lab);
    lab.down().unwrap();
}

#[test]
fn members_of_the_previous_release_join_and_serve_a_network_of_this() {
    let Some(previous) = previous() else { return };
    let old = ["b", "d"];
    let lab = mixed("versions-new", &previous, &old);
    packets_pass(&lab);
    let vm = create(&lab, "a");
    records_are_read(&lab, "a", &vm);
    moves(&lab, "a", "b", &vm);
    moves(&lab, "b", "a", &vm);

    snapshot(&lab, "a", "sealed");
    old_does_not_open(&lab, "b", "a", "sealed");
    restored(&lab, "a", "sealed", &vm);
    let host = opens_by_voters(&lab, &old, ("a", "e"), &vm);
    // Asked of a member that may not have it.
    lab.migrate("a", "web", "b")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(&host, 60)));
    answers(&lab, &vm);

    tokens_meet_an_old_host(&lab, &vm);
    moves(&lab, "b", "a", &vm);
    for host in ["a", "c", "e"] {
        lab.p2pvm(host, &["usage"]).unwrap();
    }
    notices_and_revocations_spread(&lab);
    logs_are_quiet(&lab);
    lab.down().unwrap();
}
