//! Members that move: public addresses change, hosts change networks, sleep and wake, all are
//! started anew while those they joined through are gone for good, relays die. Measured times are
//! printed, and recorded for docs/nat.md.

mod common;

use common::{
    SETTINGS, address, lab,
    measured::{Measurement, seconds},
    network,
};
use p2pvm_api::Traffic;
use p2pvm_lab::{chain, figures::Figure, lab::Lab};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A TCP connection over the overlay that says something every 20 ms and hears it back; the longest
/// silence.
struct Talk {
    name: String,
    ends: JoinHandle<Result<Duration, String>>,
}

fn talk(lab: &Lab, from: &str, to: &str, time: Duration) -> Talk {
    let target = format!("{}:0", address(lab, to));
    let listener = lab
        .testbed()
        .inside(to, || {
            TcpListener::bind(&target).expect("the overlay address is there")
        })
        .unwrap();
    let at = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut buf = [0; 64];
        while stream.read_exact(&mut buf).is_ok() && stream.write_all(&buf).is_ok() {}
    });
    let mut stream = lab
        .testbed()
        .inside(from, || {
            TcpStream::connect_timeout(&at, Duration::from_secs(10)).expect("connects")
        })
        .unwrap();
    let ends = std::thread::spawn(move || {
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a socket option");
        let (began, mut last, mut longest, mut buf) =
            (Instant::now(), Instant::now(), Duration::ZERO, [7; 64]);
        while began.elapsed() < time {
            stream
                .write_all(&buf)
                .map_err(|e| format!("writing: {e}"))?;
            stream
                .read_exact(&mut buf)
                .map_err(|e| format!("reading: {e}"))?;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(longest)
    });
    Talk {
        name: format!("{from} to {to}"),
        ends,
    }
}

/// Begins a measurement for docs/nat.md.
fn measurement() -> Measurement {
    let command = "cargo test -p p2pvm --test e2e_mobility -- --test-threads 1";
    Measurement::begin("moves", command)
}

/// How long it took after a move until all members were connected with each other.
fn connected(after: &str, took: Duration) -> Figure {
    let what = "until all members are connected again";
    seconds("connected", what, &[took]).of(after).digits(1)
}

/// How long it took members that were all started anew.
fn anew(addressed: Duration, together: Duration) -> [Figure; 2] {
    let after = "all started anew, those they joined through gone";
    let what = "until all members have an address again";
    let addressed = seconds("addressed", what, &[addressed]).of(after).digits(1);
    [addressed, connected(after, together)]
}

/// Lets several pairs talk while something happens; how long each was silent, and how long until
/// all are connected again.
fn through(
    lab: &mut Lab,
    what: &str,
    pairs: &[(&str, &str)],
    hosts: &[&str],
    time: u64,
    happen: impl FnOnce(&mut Lab),
) -> Vec<Duration> {
    let measurement = measurement();
    let talks: Vec<Talk> = pairs
        .iter()
        .map(|(from, to)| talk(lab, from, to, Duration::from_secs(time)))
        .collect();
    std::thread::sleep(Duration::from_secs(3));
    happen(lab);
    let began = Instant::now();
    whole(lab, hosts, 40);
    let control = began.elapsed();
    let mut silences = Vec::new();
    for talk in talks {
        let silence = talk
            .ends
            .join()
            .expect("no panic")
            .unwrap_or_else(|e| panic!("{what}, {}: {e}", talk.name));
        silences.push(silence);
    }
    let silence = seconds(
        "silence",
        "longest silence of a TCP stream, by pair",
        &silences,
    );
    measurement.end(&[silence.of(what).digits(1), connected(what, control)]);
    silences
}

/// Waits until all hosts are connected with each other.
fn whole(lab: &Lab, hosts: &[&str], seconds: u64) {
    for host in hosts {
        lab.wait(
            &format!("{host} to be connected with all"),
            Duration::from_secs(seconds),
            Duration::from_millis(100),
            || {
                let peers = lab.peers(host)?;
                let connected =
                    |name: &&&str| peers.iter().any(|p| p.name == **name && p.connected);
                Ok((hosts
                    .iter()
                    .filter(|h| *h != host)
                    .filter(connected)
                    .count()
                    == hosts.len() - 1)
                    .then_some(()))
            },
        )
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)));
    }
}

const BACK: Duration = Duration::from_secs(10);

#[test]
fn links_return_within_ten_seconds_of_a_move_and_tcp_goes_on() {
    let mut lab = lab(
        "moves",
        r#"
        seed = 5
        [default]
        rtt_ms = 30
        mbit = 500
        [[site]]
        name = "pub"
        [[site]]
        name = "open"
        [[site]]
        name = "home"
        nat = "port-restricted"
        [[site]]
        name = "office"
        nat = "port-restricted"
        [[site]]
        name = "cafe"
        nat = "restricted"
        "#,
    );
    let hosts = ["pub", "open", "home", "office", "cafe"];
    network(&lab, &hosts);
    let pairs = [("home", "pub"), ("office", "home")];
    let assert_back = |what: &str, silences: &[Duration], asleep: Duration| {
        for silence in silences {
            assert!(*silence < BACK + asleep, "{what}: silent for {silence:?}");
        }
    };
    let silences = through(
        &mut lab,
        "new public address of a NAT",
        &pairs,
        &hosts,
        16,
        |lab| {
            lab.testbed_mut().renumber("home").unwrap();
        },
    );
    assert_back("renumbered", &silences, Duration::ZERO);
    let silences = through(
        &mut lab,
        "new address of an open host",
        &[("home", "open"), ("open", "pub")],
        &hosts,
        16,
        |lab| {
            lab.testbed_mut().renumber("open").unwrap();
        },
    );
    assert_back("open host renumbered", &silences, Duration::ZERO);
    let silences = through(
        &mut lab,
        "new address in the same network",
        &pairs,
        &hosts,
        16,
        |lab| {
            lab.testbed_mut().rehost("home", None).unwrap();
        },
    );
    assert_back("new LAN address", &silences, Duration::ZERO);
    let silences = through(&mut lab, "to another network", &pairs, &hosts, 16, |lab| {
        lab.testbed_mut().rehost("home", Some("cafe")).unwrap();
    });
    assert_back("other network", &silences, Duration::ZERO);
    let asleep = Duration::from_secs(15);
    let silences = through(&mut lab, "15 s of sleep", &pairs, &hosts, 36, |lab| {
        lab.testbed().suspend("home").unwrap();
        std::thread::sleep(asleep);
        lab.testbed().wake("home").unwrap();
    });
    assert_back("slept", &silences, asleep);
    lab.down().unwrap();
}

#[test]
fn a_restarted_network_finds_together_without_the_members_it_joined_through() {
    let measurement = measurement();
    let lab = lab(
        "reboot",
        r#"
        seed = 6
        [default]
        rtt_ms = 30
        mbit = 500
        [[site]]
        name = "b1"
        [[site]]
        name = "b2"
        [[site]]
        name = "m1"
        [[site]]
        name = "m2"
        nat = "port-restricted"
        [[site]]
        name = "m3"
        nat = "port-restricted"
        [[site]]
        name = "m4"
        nat = "symmetric"
        "#,
    );
    network(&lab, &["b1", "b2", "m1", "m2", "m3", "m4"]);
    let left = ["m1", "m2", "m3", "m4"];
    let before: Vec<String> = left.iter().map(|h| address(&lab, h)).collect();
    // The cache of peers is written within the second.
    std::thread::sleep(Duration::from_secs(2));
    for bootstrap in ["b1", "b2"] {
        lab.testbed().kill(bootstrap).unwrap();
    }
    for host in left {
        lab.kill_daemon(host).unwrap();
    }
    let began = Instant::now();
    std::thread::scope(|scope| {
        for host in left {
            let lab = &lab;
            scope.spawn(move || {
                lab.start(host)
                    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail(host, 60)))
            });
        }
    });
    let addressed = began.elapsed();
    whole(&lab, &left, 30);
    let together = began.elapsed();
    for (from, to) in [("m1", "m2"), ("m2", "m3"), ("m3", "m4"), ("m4", "m1")] {
        let to_address = before[left.iter().position(|h| *h == to).expect("one of them")].clone();
        lab.testbed()
            .run(from, &["ping", "-n", "-c", "1", "-W", "8", &to_address])
            .unwrap();
    }
    let took = began.elapsed();
    println!("and talk with each other after {:.2} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(30), "took {took:?}");
    assert_eq!(
        before,
        left.iter().map(|h| address(&lab, h)).collect::<Vec<_>>(),
        "each has the address that it had"
    );
    lab.down().unwrap();
    measurement.end(&anew(addressed, together));
}

#[test]
fn a_dead_relay_is_replaced_under_tcp_by_a_willing_one() {
    let mut lab = lab(
        "relays",
        r#"
        seed = 7
        [default]
        rtt_ms = 30
        mbit = 500
        [[site]]
        name = "never"
        [[site]]
        name = "near"
        [[site]]
        name = "far"
        [[site]]
        name = "sym"
        nat = "symmetric"
        [[site]]
        name = "port"
        nat = "port-restricted"
        [[link]]
        a = "far"
        b = "sym"
        rtt_ms = 80
        "#,
    );
    lab.configure("never", &format!("{SETTINGS}relay = false\n"))
        .unwrap();
    network(&lab, &["never", "near", "far", "sym", "port"]);
    lab.wait(
        "a path through the nearer willing member",
        Duration::from_secs(30),
        Duration::from_millis(500),
        || {
            let pinged = lab.ping("sym", "port", 2, "200ms")?;
            Ok((pinged.path == "relayed via near").then_some(()))
        },
    )
    .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("sym", 60)));
    let peers = lab.peers("sym").unwrap();
    let port = peers.iter().find(|p| p.name == "port").expect("a peer");
    assert_eq!(port.path.as_deref(), Some("relayed via near"));
    let left = ["never", "far", "sym", "port"];
    let silences = through(
        &mut lab,
        "the relay died",
        &[("sym", "port")],
        &left,
        16,
        |lab| {
            lab.testbed().kill("near").unwrap();
        },
    );
    assert!(
        silences[0] < Duration::from_secs(8),
        "silent for {:?}",
        silences[0]
    );
    assert_eq!(
        lab.ping("sym", "port", 2, "200ms").unwrap().path,
        "relayed via far"
    );
    let talked: Vec<Traffic> = lab.json("sym", &["traffic"]).unwrap();
    assert_eq!(talked[0].name, "port", "{talked:?}");
    lab.down().unwrap();
}
