//! Properties of sites besides NATs, seen from real sockets: IPv6 and firewalls, routers that map
//! ports, lines for small packets only; and changes while programs run: new public addresses, hosts
//! that move, lids that close.

mod testbed_common;

use p2pvm_lab::Testbed;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::Duration,
};
use testbed_common::{at, at6, kept_out, reaches, receive, socket, socket6, up};

#[test]
fn ipv6_is_untranslated_and_a_firewall_lets_in_only_what_answers() {
    let testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='symmetric'\nipv6='dual'\nfirewall=true\n\
         [[site]]\nname='open'\nipv6='dual'\n[[site]]\nname='six'\nipv6='only'\n[[site]]\n\
         name='mobile'\nnat='port-restricted'\n\
         carrier='symmetric'\nipv6='dual'\n[[site]]\nname='four'\n",
    );
    let (home, open, six) = (
        socket6(&testbed, "home", 4000),
        socket6(&testbed, "open", 4000),
        socket6(&testbed, "six", 4000),
    );
    assert!(
        kept_out(&open, at6(&testbed, "home", 4000), &home),
        "it is no answer"
    );
    home.send_to(b"hello", at6(&testbed, "open", 4000)).unwrap();
    assert_eq!(
        receive(&open).1,
        at6(&testbed, "home", 4000),
        "seen as what it is"
    );
    assert!(
        reaches(&open, at6(&testbed, "home", 4000), &home),
        "an answer"
    );
    assert!(
        kept_out(&six, at6(&testbed, "home", 4000), &home),
        "another's"
    );
    assert!(
        reaches(&six, at6(&testbed, "open", 4000), &open)
            && reaches(&open, at6(&testbed, "six", 4000), &six)
    );
    let mobile = socket6(&testbed, "mobile", 4000);
    assert!(
        reaches(&mobile, at6(&testbed, "six", 4000), &six)
            && reaches(&six, at6(&testbed, "mobile", 4000), &mobile)
    );

    assert_eq!(
        testbed.host("six").unwrap().address,
        at6(&testbed, "six", 0).ip(),
        "it has no other"
    );
    let (from, four) = (socket(&testbed, "six", 0), socket(&testbed, "four", 4000));
    assert!(
        kept_out(&from, at(&testbed, "four", 4000), &four),
        "there is no IPv4 at an IPv6-only site"
    );
    assert!(reaches(
        &socket(&testbed, "home", 0),
        at(&testbed, "four", 4000),
        &four
    ));
}

#[test]
fn tcp_over_ipv6_crosses_a_link_that_loses_and_limits() {
    let testbed = up(
        "seed=3\n[default]\nrtt_ms=4\nloss=0.01\nmbit=200\n[[site]]\nname='a'\nipv6='dual'\n\
            [[site]]\nname='b'\nipv6='dual'\n",
    );
    let listener = testbed
        .inside("b", || TcpListener::bind("[::]:80"))
        .unwrap()
        .unwrap();
    let mut client = testbed
        .inside("a", || TcpStream::connect(at6(&testbed, "b", 80)))
        .unwrap()
        .unwrap();
    let sent: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let copy = sent.clone();
    let writer = thread::spawn(move || client.write_all(&copy));
    let mut heard = Vec::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_end(&mut heard)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(
        heard == sent,
        "{} bytes of {} arrived as they were sent",
        heard.len(),
        sent.len()
    );
}

/// Asks the host's router by NAT-PMP (RFC 6886 §3.3) for a mapping of UDP port `port`; returns the
/// result code and the public port.
fn natpmp(testbed: &Testbed, host: &str, port: u16) -> Option<(u16, u16)> {
    let client = socket(testbed, host, 0);
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let gateway = testbed.plan().sites[testbed.host(host).unwrap().site].gateway;
    let mut request = vec![0, 1, 0, 0];
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(600u32.to_be_bytes());
    for _ in 0..5 {
        client.send_to(&request, (gateway, 5351)).unwrap();
        let mut answer = [0; 64];
        if let Ok(n) = client.recv(&mut answer)
            && n >= 16
        {
            let word = |i: usize| u16::from_be_bytes([answer[i], answer[i + 1]]);
            assert_eq!(answer[1], 129, "the answer to a mapping request");
            return Some((word(2), word(10)));
        }
    }
    None
}

#[test]
fn a_router_maps_a_port_when_asked_and_then_anybody_reaches_it() {
    let testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='symmetric'\nupnp=true\n[[site]]\n\
            name='w'\n",
    );
    let (inside, outside) = (socket(&testbed, "home", 4000), socket(&testbed, "w", 1000));
    assert!(kept_out(&outside, at(&testbed, "home", 4000), &inside));
    assert_eq!(natpmp(&testbed, "home", 4000), Some((0, 4000)));
    assert!(
        reaches(&outside, at(&testbed, "home", 4000), &inside),
        "without a packet from inside before"
    );
    inside.send_to(b"hello", at(&testbed, "w", 1000)).unwrap();
    assert_eq!(
        receive(&outside).1,
        at(&testbed, "home", 4000),
        "seen as what was mapped"
    );
}

#[test]
fn a_router_behind_a_carriers_nat_refuses_to_map_a_port() {
    let testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='full-cone'\ncarrier='symmetric'\n\
            upnp=true\n[[site]]\nname='w'\n",
    );
    let answer = natpmp(&testbed, "home", 4000);
    assert!(answer.is_none_or(|(code, _)| code != 0), "{answer:?}");
}

#[test]
fn small_links_fragment_refuse_or_drop() {
    let text = "[default]\nrtt_ms=2\n[[site]]\nname='a'\nipv6='dual'\n[[site]]\nname='b'\n\
        ipv6='dual'\nmtu=1280\n";
    let largest = |testbed: &Testbed, to: SocketAddr| -> Option<usize> {
        // The first size is refused or lost, and the kernel learns the path's MTU; the second fits.
        let ping = |size: usize| {
            let (size, to) = (
                (size - if to.is_ipv4() { 28 } else { 48 }).to_string(),
                to.ip().to_string(),
            );
            testbed
                .exec(
                    "a",
                    &["ping", "-M", "do", "-c", "1", "-W", "1", "-s", &size, &to],
                )
                .unwrap()
                .status
                .success()
        };
        [1400, 1280].into_iter().find(|size| ping(*size))
    };
    let testbed = up(text);
    assert_eq!(largest(&testbed, at(&testbed, "b", 0)), Some(1280));
    assert_eq!(largest(&testbed, at6(&testbed, "b", 0)), Some(1280));
    let route = testbed
        .run(
            "a",
            &["ip", "route", "get", &at(&testbed, "b", 0).ip().to_string()],
        )
        .unwrap();
    assert!(route.contains("mtu 1280"), "the sender was told: {route}");
    let counters = testbed.counters().unwrap();
    assert!(counters[0][1].too_large >= 2, "{:?}", counters[0][1]);
    // A packet that may be fragmented is: 1400 bytes arrive as one datagram all the same.
    let (from, to) = (socket(&testbed, "a", 0), socket(&testbed, "b", 9));
    testbed
        .run(
            "a",
            &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc"],
        )
        .unwrap();
    let fresh = socket(&testbed, "a", 0);
    drop(from);
    fresh.send_to(&[7; 1400], at(&testbed, "b", 9)).unwrap();
    assert_eq!(receive(&to).0.len(), 1400);
    drop(testbed);

    let testbed = up(&text.replace("[default]", "[default]\nblack_hole=true"));
    assert_eq!(largest(&testbed, at(&testbed, "b", 0)), Some(1280));
    let route = testbed
        .run(
            "a",
            &["ip", "route", "get", &at(&testbed, "b", 0).ip().to_string()],
        )
        .unwrap();
    assert!(!route.contains("mtu"), "the sender was not told: {route}");
}

#[test]
fn a_site_that_is_renumbered_has_other_addresses_and_no_mappings() {
    for nat in [
        "port-restricted",
        "port-restricted'\ncarrier='full-cone",
        "none",
    ] {
        let mut testbed = up(&format!(
            "[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='{nat}'\nipv6='dual'\n[[site]]\n\
                name='w'\nipv6='dual'\n"
        ));
        let (inside, outside) = (socket(&testbed, "home", 4000), socket(&testbed, "w", 1000));
        let seen = |testbed: &Testbed| {
            inside.send_to(b"hello", at(testbed, "w", 1000)).unwrap();
            receive(&outside).1
        };
        let (before, old) = (seen(&testbed), at(&testbed, "home", 0).ip());
        let old6 = at6(&testbed, "home", 4000);
        testbed.renumber("home").unwrap();
        assert!(
            kept_out(&outside, before, &inside),
            "{nat}: the old address leads nowhere"
        );
        let after = seen(&testbed);
        assert_eq!(
            (
                after.ip() == at(&testbed, "home", 0).ip(),
                after.ip() == old
            ),
            (true, false),
            "{nat}: {before} became {after}"
        );
        assert!(reaches(&outside, after, &inside), "{nat}");
        let (inside6, outside6) = (
            socket6(&testbed, "home", 4001),
            socket6(&testbed, "w", 1001),
        );
        assert!(
            reaches(&outside6, at6(&testbed, "home", 4001), &inside6)
                && at6(&testbed, "home", 4000) != old6,
            "{nat}"
        );
        assert_eq!(
            Testbed::open(&testbed.plan().name).unwrap().plan(),
            testbed.plan(),
            "other commands know it too"
        );
        testbed.down().unwrap();
    }
}

#[test]
fn a_host_that_moves_keeps_its_programs_and_gets_another_address() {
    let mut testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='home'\nnat='port-restricted'\nhosts=2\n[[site]]\n\
            name='work'\nnat='full-cone'\n\
         ipv6='dual'\n[[site]]\nname='w'\n",
    );
    let outside = socket(&testbed, "w", 1000);
    let inside = socket(&testbed, "home1", 4000);
    let heard_from = |testbed: &Testbed| {
        inside.send_to(b"hello", at(testbed, "w", 1000)).unwrap();
        receive(&outside).1
    };
    let addresses = |testbed: &Testbed| testbed.run("home1", &["hostname", "-I"]).unwrap();
    let (first, old) = (heard_from(&testbed), testbed.host("home1").unwrap().address);
    testbed.rehost("home1", None).unwrap();
    let now = testbed.host("home1").unwrap().address;
    assert!(
        now != old
            && addresses(&testbed).contains(&now.to_string())
            && !addresses(&testbed).contains(&format!("{old} "))
    );
    assert!(
        heard_from(&testbed) != first,
        "the NAT has another mapping for another inside address"
    );
    testbed.rehost("home1", Some("work")).unwrap();
    let work = testbed.plan().sites[1].public;
    assert_eq!(
        heard_from(&testbed).ip(),
        work,
        "the same socket, out of another site"
    );
    assert!(addresses(&testbed).contains("2001:2:0:2:"));
    testbed.rehost("home1", Some("home")).unwrap();
    assert_eq!(heard_from(&testbed).ip(), first.ip());
    assert!(
        testbed.rehost("home1", Some("nowhere")).is_err()
            && testbed.rehost("nobody", None).is_err()
    );
    testbed.down().unwrap();
}

#[test]
fn a_suspended_host_stands_still_and_goes_on_when_woken() {
    let testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='a'\nipv6='dual'\n[[site]]\nname='b'\nipv6='dual'\n",
    );
    let mut clock = Command::new("sh");
    clock
        .args(["-c", "while :; do echo tick; sleep 0.05; done"])
        .stdout(Stdio::piped());
    let mut clock = testbed.spawn("a", &mut clock).unwrap();
    let (sender, ticks) = std::sync::mpsc::channel();
    let mut output = clock.stdout.take().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while output.read(&mut buffer).is_ok_and(|n| n > 0) && sender.send(()).is_ok() {}
    });
    ticks.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(testbed.suspend("a").unwrap() >= 1);
    let (a, b) = (socket(&testbed, "a", 9), socket(&testbed, "b", 9));
    assert!(kept_out(&b, at(&testbed, "a", 9), &a));
    while ticks.try_recv().is_ok() {}
    assert!(
        ticks.recv_timeout(Duration::from_millis(500)).is_err(),
        "it stands still"
    );
    assert!(testbed.wake("a").unwrap() >= 1);
    ticks.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(reaches(&b, at(&testbed, "a", 9), &a));
    let (a, b) = (socket6(&testbed, "a", 10), socket6(&testbed, "b", 10));
    assert!(
        reaches(&b, at6(&testbed, "a", 10), &a),
        "its IPv6 address is there again"
    );
    testbed.down().unwrap();
    let _ = clock.wait();
}
