//! Beside a real VPN of all addresses (WireGuard, set up by wg-quick): p2pvm works where the VPN
//! carries it, and where it carries the VPN.

mod common;

use common::{
    address, lab,
    measured::{Measurement, seconds},
    network, public_sites, run, until,
};
use p2pvm_api::{Health, Status};
use p2pvm_host::Level;
use p2pvm_lab::lab::Lab;
use std::{fs, path::Path, time::Duration};

/// The keeper looks at its machine every 5 s, and at once when the kernel tells of a change.
const SOON: Duration = Duration::from_secs(12);
/// The addresses within the VPN.
const SERVER: &str = "10.99.0.1";
const CLIENT: &str = "10.99.0.2";
/// What is not in p2pvm's network and answers.
const WORLD: &str = "203.0.113.7";

/// A key pair: secret, public.
fn keys(lab: &Lab, host: &str) -> (String, String) {
    let secret = run(lab, host, "wg genkey").trim().to_owned();
    let public = run(lab, host, &format!("echo {secret} | wg pubkey"))
        .trim()
        .to_owned();
    (secret, public)
}

fn write(file: &Path, text: &str) -> String {
    fs::write(file, text).unwrap();
    file.display().to_string()
}

/// The VPN's interface on a host.
fn interface(host: &str) -> String {
    format!("w{}{host}", std::process::id() % 100_000)
}

/// A VPN whose client is `b`. It gets its file for wg-quick, in which everything goes to the server
/// on `server` at `address`.
fn vpn(lab: &Lab, server: &str, address: &str) -> String {
    let ((server_secret, server_key), (secret, key)) = (keys(lab, server), keys(lab, "b"));
    // The interfaces of all hosts have their sockets in one directory.
    let names = [server, "b"].map(interface);
    let [at_server, at_client] = [server, "b"].map(|host| lab.dir(host).unwrap());
    let text = format!(
        "[Interface]\nPrivateKey = {server_secret}\nAddress = {SERVER}/24\nListenPort = 51820\n\
         [Peer]\nPublicKey = {key}\nAllowedIPs = {CLIENT}/32\n"
    );
    let file = write(&at_server.join(format!("{}.conf", names[0])), &text);
    run(
        lab,
        server,
        &format!("chmod 600 {file} && wg-quick up {file} 2>&1 && ip addr add {WORLD}/32 dev lo"),
    );
    let text = format!(
        "[Interface]\nPrivateKey = {secret}\nAddress = {CLIENT}/24\n\
         [Peer]\nPublicKey = {server_key}\nEndpoint = {address}:51820\nAllowedIPs = \
         0.0.0.0/0\nPersistentKeepalive = 1\n"
    );
    let file = write(&at_client.join(format!("{}.conf", names[1])), &text);
    run(lab, "b", &format!("chmod 600 {file}"));
    file
}

fn switch(lab: &Lab, file: &str, to: &str) {
    run(lab, "b", &format!("wg-quick {to} {file} 2>&1"));
}

fn status(lab: &Lab) -> Status {
    lab.status("b").unwrap()
}

fn is_ok(lab: &Lab) -> bool {
    status(lab).health.word == Health::Ok
}

fn pings(lab: &Lab, to: &str) -> bool {
    lab.testbed()
        .exec("b", &["ping", "-nqc", "1", "-W", "1", to])
        .is_ok_and(|out| out.status.success())
}

/// Own rules that lead past a VPN, and all own ones, by the protocol number that p2pvm's carry.
fn own_rules(lab: &Lab) -> Vec<String> {
    run(lab, "b", "ip -d rule")
        .lines()
        .filter(|rule| rule.contains("proto 112"))
        .map(str::to_owned)
        .collect()
}

/// Packets that came into p2pvm0 from this machine within the time.
fn packets(lab: &Lab, within: Duration) -> u64 {
    let count = || {
        run(lab, "b", "cat /sys/class/net/p2pvm0/statistics/tx_packets")
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    let before = count();
    std::thread::sleep(within);
    count() - before
}

#[test]
fn a_vpn_whose_server_is_a_member_does_not_carry_the_network() {
    let measurement = Measurement::begin("hosts", "cargo nextest run -p p2pvm --test e2e_vpn");
    let (mut pasts, mut backs) = (Vec::new(), Vec::new());
    let lab = lab("vpn-over", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    until(&lab, "b to be well", Duration::from_secs(40), || {
        is_ok(&lab)
    });
    let a = address(&lab, "a");
    let file = vpn(&lab, "a", &a);
    for round in 0..2 {
        switch(&lab, &file, "up");
        let past = until(&lab, "own packets to go past the VPN", SOON, || {
            !own_rules(&lab).is_empty()
        });
        let back = until(&lab, "the VPN to lead out", SOON, || {
            pings(&lab, WORLD) && pings(&lab, &a)
        });
        pasts.push(past);
        backs.push(past + back);
        until(&lab, "b to be well", SOON, || is_ok(&lab));
        let way = run(&lab, "b", &format!("ip route get {WORLD}"));
        assert!(
            way.contains(" table "),
            "packets to the world take the VPN: {way}"
        );
        let (page, name) = (
            lab.try_p2pvm("b", &["doctor"]).unwrap().1,
            file.rsplit_once('/').unwrap().1.replace(".conf", ""),
        );
        assert!(
            page.contains(&format!("go past the VPN {name}, whose server {a} ")),
            "{page}"
        );
        // Two packets a second of ours, two of the VPN's: neither feeds the other.
        let idle = packets(&lab, Duration::from_secs(3));
        assert!(idle < 60, "{idle} packets in 3 s");
        if round == 0 {
            // The daemon comes after the VPN.
            lab.p2pvm("b", &["down"]).unwrap();
            assert_eq!(own_rules(&lab), [""; 0]);
            lab.p2pvm("b", &["up", "--detach"]).unwrap();
            until(
                &lab,
                "all to be well again",
                Duration::from_secs(30),
                || pings(&lab, WORLD) && pings(&lab, &a) && is_ok(&lab),
            );
        }
        switch(&lab, &file, "down");
        until(&lab, "the rules to go with the VPN", SOON, || {
            own_rules(&lab).is_empty()
        });
        until(&lab, "b to be well without the VPN", SOON, || {
            is_ok(&lab) && pings(&lab, &a)
        });
    }
    let what = [
        "a VPN's start to p2pvm's packets past it",
        "to all that answers",
    ];
    measurement.end(&[
        seconds("vpn-past", what[0], &pasts).digits(1),
        seconds("vpn-back", what[1], &backs).digits(1),
    ]);
    lab.down().unwrap();
}

#[test]
fn a_vpn_is_passed_whatever_its_rules_or_named_as_an_obstacle() {
    let lab = lab("vpn-rules", &public_sites(&["a", "b"], 5.0));
    network(&lab, &["a", "b"]);
    until(&lab, "b to be well", Duration::from_secs(40), || {
        is_ok(&lab)
    });
    let a = address(&lab, "a");
    let file = vpn(&lab, "a", &a);
    let text = fs::read_to_string(&file).unwrap();
    let subnet = a.rsplitn(3, '.').last().unwrap();
    let by_destination = format!(
        "Table = off\nPostUp = ip route add default dev %i table 51820\n\
        PostUp = ip rule add pref 200 not to {subnet}.0.0/16 lookup 51820\n\
        PostDown = ip rule del pref 200\n[Peer]"
    );
    fs::write(&file, text.replace("[Peer]", &by_destination)).unwrap();
    switch(&lab, &file, "up");
    until(&lab, "all to be well beside that rule", SOON, || {
        pings(&lab, WORLD) && pings(&lab, &a) && is_ok(&lab)
    });
    switch(&lab, &file, "down");
    until(&lab, "b to be well without it", SOON, || {
        own_rules(&lab).is_empty() && is_ok(&lab) && pings(&lab, &a)
    });
    // Routes in the main table come behind every rule that could lead there.
    let halves = text.replace("0.0.0.0/0", "0.0.0.0/1, 128.0.0.0/1");
    fs::write(&file, halves).unwrap();
    switch(&lab, &file, "up");
    until(&lab, "the VPN to be named", SOON, || {
        let status = status(&lab);
        let is_named = status.findings.iter().any(|finding| {
            finding.level == Level::Failed && finding.found.contains("takes p2pvm's own packets")
        });
        is_named && status.health.word != Health::Ok
    });
    switch(&lab, &file, "down");
    until(&lab, "b to be well again", Duration::from_secs(40), || {
        own_rules(&lab).is_empty() && is_ok(&lab) && pings(&lab, &a)
    });
    lab.down().unwrap();
}

#[test]
fn a_vpn_to_elsewhere_carries_the_network() {
    let lab = lab("vpn-under", &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b"]);
    until(&lab, "b to be well", Duration::from_secs(40), || {
        is_ok(&lab)
    });
    let (a, server) = (
        address(&lab, "a"),
        lab.testbed().host("c").unwrap().address.to_string(),
    );
    let file = vpn(&lab, "c", &server);
    run(
        &lab,
        "c",
        "sysctl -qw net.ipv4.ip_forward=1 && nft 'add table ip out; add chain ip out post { type \
            nat hook postrouting priority 100; }; \
         add rule ip out post oifname eth0 masquerade'",
    );
    switch(&lab, &file, "up");
    // The interfaces of other tests' hosts are in the same directory of sockets.
    let show = format!("wg show {} transfer", interface("c"));
    let through = || {
        let transfer = run(&lab, "c", &show);
        let received = transfer.split_whitespace().nth(1);
        received.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    until(
        &lab,
        "all to be well through the VPN",
        Duration::from_secs(60),
        || pings(&lab, WORLD) && pings(&lab, &a) && is_ok(&lab),
    );
    let before = through();
    until(
        &lab,
        "a direct way through the VPN",
        Duration::from_secs(60),
        || {
            let peers = lab.peers("b").unwrap();
            let mut paths = peers.iter().filter_map(|peer| peer.path.as_deref());
            paths.any(|path| path.starts_with("direct"))
        },
    );
    (0..20).for_each(|_| assert!(pings(&lab, &a)));
    let carried = through() - before;
    assert!(
        carried > 20 * 84,
        "{carried} bytes of p2pvm's have gone through the VPN"
    );
    assert!(
        own_rules(&lab).is_empty(),
        "what the VPN's owner wants in it stays in it: {:?}",
        own_rules(&lab)
    );
    switch(&lab, &file, "down");
    until(
        &lab,
        "all to be well without it",
        Duration::from_secs(60),
        || pings(&lab, &a) && is_ok(&lab),
    );
    lab.down().unwrap();
}
