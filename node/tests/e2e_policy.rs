//! Access rules, subnet routes and names, as programs on the hosts meet them.

mod common;

use common::{
    Lan, SETTINGS, address, image, lab, network, policy_on, public_sites, refused, set_policy,
    write_policy,
};
use p2pvm_api::{AclVerdict, VmView};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

/// A packet that is dropped is missed by then; one that is delivered takes some milliseconds here.
const SILENCE: Duration = Duration::from_millis(1200);

/// Answers each TCP connection with one byte.
fn listen(lab: &Lab, host: &str, port: u16) {
    let listener = lab
        .testbed()
        .inside(host, || TcpListener::bind(("0.0.0.0", port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        listener
            .incoming()
            .flatten()
            .for_each(|mut stream| drop(stream.write_all(b"!")))
    });
}

/// Whether a TCP connection comes about and an answer comes back.
fn connects(lab: &Lab, from: &str, to: &str, port: u16) -> bool {
    let to: SocketAddr = format!("{to}:{port}").parse().unwrap();
    lab.testbed()
        .inside(from, || {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, SILENCE) else {
                return false;
            };
            let _ = stream.set_read_timeout(Some(SILENCE));
            stream.read_exact(&mut [0]).is_ok()
        })
        .unwrap()
}

fn pings(lab: &Lab, from: &str, to: &str) -> bool {
    lab.testbed()
        .exec(from, &["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", to])
        .unwrap()
        .status
        .success()
}

fn check(lab: &Lab, asked: &str, from: &str, to: &str, traffic: &str) -> AclVerdict {
    lab.json(asked, &["acl", "check", from, to, traffic])
        .unwrap()
}

/// Founds the network on the first host and lets each other join in its groups.
fn grouped(lab: &Lab, members: &[(&str, &[&str])]) {
    lab.found(members[0].0, "lab").unwrap();
    for (host, groups) in &members[1..] {
        let mut words = vec!["invite", "--expires", "1h"];
        groups
            .iter()
            .for_each(|group| words.extend(["--group", group]));
        let invite = lab.p2pvm(members[0].0, &words).unwrap();
        lab.join(host, &invite)
            .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 40)));
    }
    for (host, _) in members {
        lab.wait(
            &format!("{host} to be connected"),
            Duration::from_secs(20),
            Duration::from_millis(100),
            || Ok((lab.status(host)?.connected == members.len() - 1).then_some(())),
        )
        .unwrap();
    }
}

const RULES: &str = r#"
default = "deny"

[[rule]]
action = "allow"
from = "ops"
to = "servers"
ports = ["tcp/2222", "udp/5300"]

[[rule]]
action = "allow"
from = "member:a"
to = "*"
ports = "icmp"
"#;

#[test]
fn rules_hold_where_packets_arrive_and_acl_check_says_what_happens() {
    let lab = lab("acl", &public_sites(&["a", "b", "c"], 10.0));
    grouped(
        &lab,
        &[("a", &[]), ("b", &["servers", "lab"]), ("c", &["ops"])],
    );
    let hosts = ["a", "b", "c"];
    let ip = |host: &str| address(&lab, host);
    for host in hosts {
        [2222, 3333]
            .into_iter()
            .for_each(|port| listen(&lab, host, port));
    }
    assert!(
        connects(&lab, "a", &ip("b"), 3333),
        "without a policy everything is allowed"
    );
    assert!(check(&lab, "c", "a", "b", "tcp/3333").allowed);

    set_policy(&lab, "a", &hosts, RULES);
    let mut allowed = 0;
    for from in hosts {
        for to in hosts.into_iter().filter(|to| *to != from) {
            for port in [2222, 3333] {
                // Asked of a third party: every member knows the rules and the groups.
                let said = check(&lab, "c", from, to, &format!("tcp/{port}"));
                assert_eq!(
                    said.allowed,
                    connects(&lab, from, &ip(to), port),
                    "{said:?}"
                );
                allowed += usize::from(said.allowed);
            }
            let said = check(&lab, "b", from, to, "icmp");
            assert_eq!(said.allowed, pings(&lab, from, &ip(to)), "{said:?}");
        }
    }
    assert_eq!(allowed, 1, "ops to servers on tcp/2222 and nothing else");
    let said = check(&lab, "a", "c", "b", "tcp/2222");
    assert_eq!((said.rule, said.line), (Some(1), Some(4)), "{said:?}");
    assert!(policy_on(&lab, "b").unwrap().denied_here > 0);

    // A datagram's answer comes back; the same datagram unasked does not arrive.
    let bind = |host: &str, port| {
        lab.testbed()
            .inside(host, || UdpSocket::bind(("0.0.0.0", port)).unwrap())
            .unwrap()
    };
    let (server, client) = (bind("b", 5300), bind("c", 5300));
    [&server, &client]
        .into_iter()
        .for_each(|s| s.set_read_timeout(Some(SILENCE)).unwrap());
    let mut buffer = [0; 9];
    server.send_to(b"unasked", (ip("c"), 5300)).unwrap();
    assert!(
        client.recv_from(&mut buffer).is_err(),
        "servers may not begin"
    );
    client.send_to(b"question", (ip("b"), 5300)).unwrap();
    let (_, from) = server.recv_from(&mut buffer).expect("ops may ask servers");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(
        client
            .recv_from(&mut buffer)
            .expect("the answer comes in")
            .0,
        6
    );

    // The rules hold from the first packet after a restart, whoever is reachable.
    lab.kill_daemon("b").unwrap();
    lab.start("b").unwrap();
    lab.wait(
        "ops to reach the server again",
        Duration::from_secs(20),
        Duration::from_millis(200),
        || Ok(connects(&lab, "c", &ip("b"), 2222).then_some(())),
    )
    .unwrap();
    // Until a has a link to the new daemon too, silence says nothing.
    lab.wait(
        "a to reach b again",
        Duration::from_secs(30),
        Duration::from_millis(200),
        || Ok(pings(&lab, "a", &ip("b")).then_some(())),
    )
    .unwrap();
    assert!(!connects(&lab, "a", &ip("b"), 3333));

    let bad = write_policy(
        &lab,
        "a",
        "default = \"deny\"\n[[rule]]\naction = \"allow\"\nfrom = \"*\"\nto = \"*\"\nports \
            = \"tcp/99999\"\n",
    );
    let said = refused(&lab, "a", &["acl", "set", bad.to_str().unwrap()], 2);
    assert!(
        said.contains("line 6") && said.contains("tcp/99999"),
        "{said}"
    );
    let fine = write_policy(&lab, "b", "default = \"allow\"\n");
    refused(&lab, "b", &["acl", "set", fine.to_str().unwrap()], 5);
    refused(&lab, "a", &["acl", "check", "a", "nobody", "tcp/22"], 3);

    set_policy(&lab, "a", &hosts, "default = \"allow\"\n");
    assert!(connects(&lab, "a", &ip("b"), 3333));
    lab.down().unwrap();
}

#[test]
fn a_lan_is_reached_through_its_member_while_that_offers_and_may() {
    let lab = lab("subnet", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a", "b", "c"]);
    let _lan = Lan::new(&lab, "b");
    let used = |host: &str| {
        let listed = lab.routes(host).unwrap();
        listed
            .into_iter()
            .find(|route| route.subnet == "192.168.77.0/24")
            .map(|route| (route.used, route.note))
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        lab.wait(
            what,
            Duration::from_secs(15),
            Duration::from_millis(100),
            || Ok(done().then_some(())),
        )
        .unwrap_or_else(|e| {
            panic!(
                "{}: {:?} {:?} {:?}\n{}",
                chain(&e),
                used("a"),
                used("b"),
                used("c"),
                lab.log_tail("b", 30)
            )
        });
    };
    let forwards = || {
        lab.testbed()
            .run("b", &["cat", "/proc/sys/net/ipv4/conf/lan0/forwarding"])
            .unwrap()
            .trim()
            != "0"
    };
    let table = || {
        lab.testbed()
            .run("b", &["nft", "list", "tables"])
            .unwrap()
            .contains("p2pvm_")
    };
    let before = forwards();

    assert!(refused(&lab, "a", &["route", "offer", "192.168.77.0/24"], 5).contains("no route"));
    let own = lab.status("b").unwrap().subnet;
    assert!(refused(&lab, "b", &["route", "offer", &own], 5).contains("network's own subnet"));
    lab.p2pvm("b", &["route", "offer", "192.168.77.0/24"])
        .unwrap();
    until("a to hear of the offer", &|| used("a").is_some());
    assert!(
        !used("a").unwrap().0,
        "in a network without a policy an offer is used by those who say so"
    );
    assert!(!pings(&lab, "a", "192.168.77.9"));
    lab.p2pvm("a", &["route", "accept"]).unwrap();
    until("a to reach the LAN", &|| pings(&lab, "a", "192.168.77.9"));

    // A member that is on such a network itself keeps its own way there, and says why.
    let pair = "ip link add d0 type veth peer name d1 && ip addr add 192.168.77.200/24 dev d0 && \
        ip link set d0 up && ip link set d1 up";
    lab.testbed().run("c", &["sh", "-c", pair]).unwrap();
    lab.p2pvm("c", &["route", "accept"]).unwrap();
    until("c to say what is in the way", &|| {
        used("c").is_some_and(|(used, note)| !used && note.contains("192.168.77.0/24"))
    });

    // With a policy, the policy says which member may offer which subnet.
    set_policy(
        &lab,
        "a",
        &["a", "b", "c"],
        "default = \"allow\"\n[[route]]\nsubnet = \"192.168.0.0/16\"\nby = \"member:c\"\n",
    );
    until("the offer to be refused", &|| {
        used("a").is_some_and(|(used, _)| !used) && !forwards()
    });
    assert!(!pings(&lab, "a", "192.168.77.9"));
    set_policy(
        &lab,
        "a",
        &["a", "b", "c"],
        "default = \"deny\"\n[[rule]]\naction = \"allow\"\nfrom = \"member:a\"\nto \
            = \"192.168.77.0/24\"\nports = \"icmp\"\n\
         [[route]]\nsubnet = \"192.168.0.0/16\"\nby = \"member:b\"\n",
    );
    until("the offer to be used", &|| {
        used("a").is_some_and(|(used, _)| used)
    });
    assert!(check(&lab, "c", "a", "192.168.77.9", "icmp").allowed);
    until("a to reach the LAN by rule", &|| {
        pings(&lab, "a", "192.168.77.9")
    });
    assert!(!check(&lab, "c", "a", "192.168.77.9", "tcp/22").allowed);

    // A killed daemon's guardian takes its forwarding away.
    lab.kill_daemon("b").unwrap();
    until("the forwarding to be undone", &|| {
        !table() && forwards() == before
    });
    lab.start("b").unwrap();
    until("the offer to be back", &|| pings(&lab, "a", "192.168.77.9"));
    lab.p2pvm("b", &["route", "withdraw", "192.168.77.0/24"])
        .unwrap();
    until("the offer to be gone", &|| used("a").is_none() && !table());
    assert!(
        !lab.testbed()
            .run("a", &["ip", "route"])
            .unwrap()
            .contains("192.168.77.0")
    );
    lab.down().unwrap();
}

/// A name server on a host that knows one address.
fn name_server(lab: &Lab, host: &str) -> String {
    let address = lab.testbed().host(host).unwrap().address.to_string();
    let socket = lab
        .testbed()
        .inside(host, || UdpSocket::bind((address.as_str(), 53)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut end = 12;
            while buffer[end] != 0 {
                end += 1 + usize::from(buffer[end]);
            }
            let is_a = buffer[end + 1..end + 3] == [0, 1];
            let mut answer = buffer[..end + 5].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]);
            }
            assert!(length >= end + 5);
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

/// Whether ours is alone in the list, so that after a kill others' names wait until somebody has
/// put the list back.
fn musl_is_here() -> bool {
    fs::read_dir("/lib").is_ok_and(|lib| {
        lib.flatten()
            .any(|file| file.file_name().to_string_lossy().starts_with("ld-musl-"))
    })
}

#[test]
fn a_hosts_programs_find_names_and_resolv_conf_is_restored_afterwards() {
    let lab = lab("names", &public_sites(&["a", "b", "c"], 10.0));
    network(&lab, &["a", "b", "c"]);
    let shared = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let etc = lab.dir("b").unwrap().join("etc");
    let listed = format!("nameserver {}\n", name_server(&lab, "c"));
    let original = format!("# ours\nsearch example.org\n{listed}");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("resolv.conf"), &original).unwrap();
    fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    lab.p2pvm("b", &["down"]).unwrap();
    lab.configure("b", &format!("{SETTINGS}resolver = \"auto\"\n"))
        .unwrap();
    // The host's own /etc, in a mount namespace that the daemon keeps.
    let program = env!("CARGO_BIN_EXE_p2pvm");
    let with_etc = |words: &str| {
        lab.testbed()
            .run(
                "b",
                &[
                    "sh",
                    "-c",
                    &format!("mount --bind $P2PVM_DIR/etc /etc && {program} {words}"),
                ],
            )
            .unwrap()
    };
    let current = || fs::read_to_string(etc.join("resolv.conf")).unwrap();
    let is_edited = || {
        lab.wait(
            "resolv.conf to name us",
            Duration::from_secs(10),
            Duration::from_millis(50),
            || {
                Ok(current()
                    .split_once("nameserver ")
                    .is_some_and(|(_, own)| own.starts_with("127."))
                    .then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}: {}\n{}", chain(&e), current(), lab.log_tail("b", 20)));
    };
    with_etc("up --detach");
    is_edited();
    // Where the C library musl is installed the others are comments.
    assert!(
        current().starts_with("# ours\nsearch example.org\n# p2pvm ")
            && current().ends_with(&listed),
        "{}",
        current()
    );

    let pid = fs::read_to_string(lab.dir("b").unwrap().join("daemon.pid")).unwrap();
    let getent = |database: &str, key: &str| {
        let out = lab
            .testbed()
            .exec(
                "b",
                &["nsenter", "-m", "-t", pid.trim(), "getent", database, key],
            )
            .unwrap();
        String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let status = lab.status("a").unwrap();
    let (v4, v6) = (
        status.address.as_deref().unwrap(),
        status.address_v6.as_str(),
    );
    let found = getent("ahostsv4", "a.lab.p2p");
    assert_eq!(
        found.first().map(String::as_str),
        Some(v4),
        "{}\n{}",
        current(),
        lab.log_tail("b", 60)
    );
    assert_eq!(
        getent("ahostsv6", "a.lab.p2p").first().map(String::as_str),
        Some(v6)
    );
    // Asked again as programs do: a lookup can fail in the moment in which members connect.
    lab.wait(
        "the address to have a name",
        Duration::from_secs(10),
        Duration::from_millis(200),
        || Ok((getent("hosts", v4) == [v4, "a.lab.p2p"]).then_some(())),
    )
    .unwrap();
    assert_eq!(
        getent("hosts", v6).last().map(String::as_str),
        Some("a.lab.p2p")
    );
    assert_eq!(
        getent("ahostsv4", "elsewhere.example.net")
            .first()
            .map(String::as_str),
        Some("192.0.2.77"),
        "other names by the old server"
    );
    assert_eq!(getent("hosts", "nobody.lab.p2p."), [""; 0]);

    // Somebody else writes the list anew.
    fs::write(etc.join("resolv.conf"), &original).unwrap();
    is_edited();
    assert_eq!(
        getent("ahostsv4", "a.lab.p2p").first().map(String::as_str),
        Some(v4)
    );

    // Killed, it may leave its lines, and nobody waits for that; the next daemon takes them out
    // before it puts its own in.
    lab.kill_daemon("b").unwrap();
    let script = "mount --bind $P2PVM_DIR/etc /etc && getent ahostsv4 elsewhere.example.net";
    let began = std::time::Instant::now();
    let found = lab.testbed().exec("b", &["sh", "-c", script]).unwrap();
    assert!(
        musl_is_here() || String::from_utf8_lossy(&found.stdout).starts_with("192.0.2.77 "),
        "{}",
        current()
    );
    // One question of the C library may be lost while the killed daemon's traces are removed (5 s);
    // a look-up that waits for our dead server each time would take ten.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    with_etc("up --detach");
    is_edited();
    assert_eq!(current().matches("# p2pvm ").count(), 1, "{}", current());
    with_etc("down");
    assert_eq!(current(), original);
    with_etc("up --detach");
    is_edited();
    lab.kill_daemon("b").unwrap();
    with_etc("down");
    assert_eq!(current(), original, "without a daemon too");
    assert_eq!(
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        shared,
        "this machine's own file was never touched"
    );
    lab.down().unwrap();
}

#[test]
fn a_guest_has_ipv6_and_a_name_and_is_guarded_by_it() {
    let lab = lab("guest", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
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
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let (v4, v6) = (made.address, made.address_v6);
    lab.wait_for_guest("a", &v4, Duration::from_secs(120))
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    lab.wait(
        "the guest to answer over IPv6",
        Duration::from_secs(20),
        Duration::from_millis(500),
        || Ok(pings(&lab, "a", &v6).then_some(())),
    )
    .unwrap();
    assert!(pings(&lab, "c", &lab.status("a").unwrap().address_v6));
    for ip in [&v4, &v6] {
        assert_eq!(
            reverse(&lab, "a", ip).as_deref(),
            Some("web.vm.lab.p2p"),
            "{ip}"
        );
    }

    let reaches = |from: &str| {
        lab.testbed()
            .inside(from, || {
                TcpStream::connect_timeout(&format!("{v4}:7000").parse().unwrap(), SILENCE).is_ok()
            })
            .unwrap()
    };
    set_policy(
        &lab,
        "a",
        &["a", "b", "c"],
        "default = \"deny\"\n[[rule]]\naction = \"allow\"\nfrom = \"member:a\"\nto \
            = \"vm:web\"\nports = \"tcp/7000\"\n",
    );
    lab.wait(
        "a to be let in",
        Duration::from_secs(10),
        Duration::from_millis(200),
        || Ok(reaches("a").then_some(())),
    )
    .unwrap();
    for (from, allowed) in [("a", true), ("b", false), ("c", false)] {
        let said = check(&lab, "c", from, "vm:web", "tcp/7000");
        assert_eq!(
            (said.allowed, reaches(from)),
            (allowed, allowed),
            "{from}: {said:?}"
        );
    }
    assert!(!pings(&lab, "a", &v6) && !check(&lab, "a", "a", &v6, "icmp").allowed);
    // The rules are the VM's, wherever it runs.
    lab.migrate("a", "web", "c")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    lab.wait(
        "a to be let in at the new host",
        Duration::from_secs(15),
        Duration::from_millis(200),
        || Ok(reaches("a").then_some(())),
    )
    .unwrap();
    assert!(!reaches("b") && !reaches("c"));
    lab.down().unwrap();
}

/// The name of an address by the resolver of `host`.
fn reverse(lab: &Lab, host: &str, ip: &str) -> Option<String> {
    let name = match ip.parse().unwrap() {
        std::net::IpAddr::V4(v4) => {
            v4.octets()
                .iter()
                .rev()
                .map(|o| format!("{o}."))
                .collect::<String>()
                + "in-addr.arpa"
        }
        std::net::IpAddr::V6(v6) => {
            v6.octets()
                .iter()
                .rev()
                .map(|o| format!("{:x}.{:x}.", o & 15, o >> 4))
                .collect::<String>()
                + "ip6.arpa"
        }
    };
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 12, 0, 1]);
    let server = format!("{}:53", address(lab, host));
    let answer = lab
        .testbed()
        .inside(host, || {
            let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
            socket.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
            socket.send_to(&query, server).ok()?;
            let mut answer = [0u8; 512];
            let n = socket.recv(&mut answer).ok()?;
            Some(answer[..n].to_vec())
        })
        .unwrap()?;
    if answer[7] == 0 {
        return None;
    }
    // Behind the question: a pointer or the name again, then type, class, TTL and length.
    let mut at = query.len();
    while answer[at] != 0 && answer[at] & 0xc0 == 0 {
        at += 1 + usize::from(answer[at]);
    }
    at += if answer[at] == 0 { 1 } else { 2 } + 10;
    let mut labels = Vec::new();
    while let length @ 1..=63 = usize::from(answer[at]) {
        labels.push(String::from_utf8_lossy(&answer[at + 1..at + 1 + length]).into_owned());
        at += 1 + length;
    }
    Some(labels.join("."))
}
