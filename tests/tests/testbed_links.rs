//! Links delay, lose and limit as the sites file says, the same at each run, and a cut one carries
//! nothing. Prints what it measured.

mod testbed_common;

use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, UdpGsoSegment},
};
use p2pvm_lab::{
    Testbed,
    figures::{Figure, Recorder},
    sites::Properties,
};
use std::{
    io::{Read, Write},
    iter,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};
use testbed_common::{PATIENCE, at, connection, kept_out, reaches, receive, silent, socket, up};

/// Prints figures, and writes them for docs/testing.md where that is asked for.
fn record(recorder: &Recorder, figures: &[Figure]) {
    println!("{}", Recorder::overview(figures));
    let command = "cargo nextest run -p p2pvm-tests --test testbed_links";
    recorder
        .record_part("testbed", command, figures)
        .expect("the figures are written");
}

/// Round trips of `count` datagrams one after the other, sorted; an echo on `to` answers.
fn round_trips(testbed: &Testbed, from: &str, to: &str, count: usize) -> Vec<Duration> {
    let (client, server) = (socket(testbed, from, 0), socket(testbed, to, 7));
    let address = at(testbed, to, 7);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            for _ in 0..count {
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..length], from).unwrap();
            }
        });
        let mut times: Vec<Duration> = (0..count)
            .map(|_| {
                let started = Instant::now();
                client.send_to(b"ping", address).unwrap();
                client.recv(&mut [0; 64]).unwrap();
                started.elapsed()
            })
            .collect();
        times.sort();
        times
    })
}

#[test]
fn a_round_trip_takes_what_the_link_says_and_little_more() {
    let (recorder, mut figures) = (Recorder::from_environment(), vec![]);
    let testbed = up(
        "[[site]]\nname='a'\n[[site]]\nname='b'\n[[site]]\nname='c'\n[[site]]\nname='d'\n[[site]]\n\
            name='e'\n\
         [[link]]\na='a'\nb='b'\nrtt_ms=0.1\n[[link]]\na='a'\nb='c'\nrtt_ms=10\n[[link]]\na='a'\n\
         b='d'\nrtt_ms=200\n\
         [[link]]\na='a'\nb='e'\ndelay_ms=5\nback={delay_ms=40}\n",
    );
    for (to, nominal_ms, count) in [
        ("b", 0.1, 1000),
        ("c", 10.0, 50),
        ("d", 200.0, 5),
        ("e", 45.0, 10),
    ] {
        let times = round_trips(&testbed, "a", to, count);
        let ms = |d: &Duration| d.as_secs_f64() * 1e3;
        let least = ms(&times[0]);
        let figure = Figure::new(
            "trip",
            "round trip of a datagram",
            "ms",
            times.iter().map(ms),
        );
        figures.push(figure.of(format!("{nominal_ms}")).digits(3));
        assert!(least >= nominal_ms, "faster than the link: {least} ms");
        // The machine may be busy with other tests: this bound is for mistakes, the figures above
        // are for precision.
        assert!(
            least < nominal_ms + 30.0,
            "much slower than the link: {least} ms"
        );
    }
    record(&recorder, &figures);
}

/// Room for all datagrams of a test, also while the reader does not run.
fn with_room(socket: UdpSocket) -> UdpSocket {
    setsockopt(&socket, RcvBufForce, &(4 << 20)).unwrap();
    socket
}

/// Sends numbered datagrams over a link that loses a tenth; returns those that arrived.
fn arrived(seed: u64, pause: Duration) -> Vec<String> {
    let testbed = up(&format!(
        "seed={seed}\n[default]\nrtt_ms=4\njitter_ms=1\nloss=0.1\n[[site]]\nname='a'\n[[site]]\n\
            name='b'\n"
    ));
    let (from, to) = (
        socket(&testbed, "a", 0),
        with_room(socket(&testbed, "b", 9)),
    );
    for number in 0..500 {
        from.send_to(number.to_string().as_bytes(), at(&testbed, "b", 9))
            .unwrap();
        if number % 10 == 0 {
            thread::sleep(pause);
        }
    }
    // Order is kept, so what comes before an end has come.
    for _ in 0..20 {
        from.send_to(b"end", at(&testbed, "b", 9)).unwrap();
    }
    iter::repeat_with(|| receive(&to).0)
        .take_while(|text| text != "end")
        .collect()
}

#[test]
fn the_same_seed_loses_the_same_packets_and_order_is_kept() {
    let first = arrived(11, Duration::from_millis(1));
    assert_eq!(first, arrived(11, Duration::from_micros(300)), "seed 11");
    assert_ne!(
        first,
        arrived(12, Duration::from_millis(1)),
        "seeds 11 and 12"
    );
    assert!(
        (400..=480).contains(&first.len()),
        "{} of 500 arrived over a link that loses a tenth",
        first.len()
    );
    assert!(
        first
            .iter()
            .map(|text| text.parse::<u32>().unwrap())
            .is_sorted()
    );
}

/// Mbit/s of one TCP stream over `time`.
fn tcp_mbit(testbed: &Testbed, from: &str, to: &str, time: Duration) -> f64 {
    let (mut client, mut server) = connection(testbed, from, to, 5001);
    let reader = thread::spawn(move || {
        let (mut buffer, mut total, started) = (vec![0; 1 << 20], 0, Instant::now());
        loop {
            match server.read(&mut buffer).unwrap() {
                0 => return total as f64 * 8e-6 / started.elapsed().as_secs_f64(),
                length => total += length,
            }
        }
    });
    let (data, started) = (vec![7; 256 << 10], Instant::now());
    while started.elapsed() < time {
        client.write_all(&data).unwrap();
    }
    drop(client);
    reader.join().unwrap()
}

#[test]
fn a_link_carries_its_rate_or_hundreds_of_mbit_without_a_limit() {
    let recorder = Recorder::from_environment();
    let testbed = up(
        "[[site]]\nname='a'\nnat='port-restricted'\n[[site]]\nname='b'\n[[site]]\nname='c'\n\
            [[site]]\nname='d'\n\
         [[link]]\na='a'\nb='b'\nrtt_ms=10\nmbit=20\nback={mbit=5}\n[[link]]\na='a'\nb='c'\n\
         rtt_ms=1\n\
         [[link]]\na='a'\nb='d'\nrtt_ms=20\nmbit=500\n",
    );
    let slow = tcp_mbit(&testbed, "a", "b", Duration::from_secs(2));
    let unlimited = tcp_mbit(&testbed, "a", "c", Duration::from_secs(1));
    let fast = tcp_mbit(&testbed, "a", "d", Duration::from_secs(2));
    let tcp = |of: &str, rate: f64| {
        let figure = Figure::new("tcp", "TCP through a NAT", "Mbit/s", [rate]);
        figure.of(of).digits(1)
    };
    let figures = [
        tcp("20 Mbit/s, 10 ms", slow),
        tcp("500 Mbit/s, 20 ms", fast),
        tcp("no limit, 1 ms", unlimited),
    ];
    record(&recorder, &figures);
    // The rate counts headers; what is still queued when the sender stops arrives at the same rate.
    assert!(
        (10.0..=20.0).contains(&slow),
        "{slow} Mbit/s over a link of 20"
    );
    assert!(
        fast <= 500.0 && fast > 50.0,
        "{fast} Mbit/s over a link of 500"
    );
    assert!(
        unlimited > 200.0,
        "{unlimited} Mbit/s over an unlimited link"
    );
}

/// TCP over a link that loses: joined packets are cut, and every byte arrives as it was sent.
#[test]
fn a_lossy_link_spoils_no_byte_of_a_stream() {
    let testbed = up(
        "seed=3\n[default]\nrtt_ms=2\nloss=0.01\nmbit=100\n[[site]]\nname='a'\nnat='symmetric'\n\
            [[site]]\nname='b'\n",
    );
    let (mut client, mut server) = connection(&testbed, "a", "b", 5001);
    let data: Vec<u8> = (0..2_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&data).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).unwrap();
        assert!(
            heard == data,
            "{} bytes heard of {}",
            heard.len(),
            data.len()
        );
    });
    let counters = testbed.counters().unwrap()[0][1];
    assert!(counters.lost > 0 && counters.refused == 0, "{counters:?}");
}

#[test]
fn a_cut_link_carries_nothing_until_healed_and_others_go_on() {
    let testbed = up(
        "[default]\nrtt_ms=2\n[[site]]\nname='a'\n[[site]]\nname='b'\nhosts=['b1','b2']\n[[site]]\n\
            name='c'\n",
    );
    let (a, b, c) = (
        socket(&testbed, "a", 9),
        socket(&testbed, "b1", 9),
        socket(&testbed, "c", 9),
    );
    let (to_a, to_b, to_c) = (
        at(&testbed, "a", 9),
        at(&testbed, "b1", 9),
        at(&testbed, "c", 9),
    );
    assert!(reaches(&a, to_b, &b) && reaches(&b, to_a, &a));
    testbed.cut("a", "b").unwrap();
    assert!(kept_out(&a, to_b, &b) && kept_out(&b, to_a, &a));
    assert!(reaches(&a, to_c, &c) && reaches(&b, to_c, &c));
    testbed.heal("b", "a").unwrap();
    assert!(reaches(&a, to_b, &b) && reaches(&b, to_a, &a));
    for (x, y) in [("a", "b1"), ("b1", "b2"), ("a", "a")] {
        assert!(
            testbed
                .cut(x, y)
                .unwrap_err()
                .to_string()
                .contains("name two sites"),
            "{x} {y}"
        );
    }
    assert!(
        testbed
            .cut("a", "z")
            .unwrap_err()
            .to_string()
            .contains("named z")
    );
    testbed.isolate("b1").unwrap();
    assert!(kept_out(&a, to_b, &b));
    testbed.rejoin("b1").unwrap();
    assert!(reaches(&a, to_b, &b) && reaches(&b, to_c, &c));
}

/// A `cut` or `heal` of both directions holds for the very next packet of each.
#[test]
fn a_change_of_a_link_holds_for_the_next_packet() {
    let testbed = up("[default]\nrtt_ms=2\n[[site]]\nname='a'\n[[site]]\nname='b'\n");
    let (a, b) = (socket(&testbed, "a", 9), socket(&testbed, "b", 9));
    let (to_a, to_b) = (at(&testbed, "a", 9), at(&testbed, "b", 9));
    assert!(reaches(&a, to_b, &b) && reaches(&b, to_a, &a));
    for round in 0..200 {
        let (x, y) = if round % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        testbed.cut(x, y).unwrap();
        a.send_to(b"cut", to_b).unwrap();
        b.send_to(b"cut", to_a).unwrap();
        // The kernel may bring a packet from its host to the link a little after it was sent.
        let dropped = || {
            let counters = testbed.counters().unwrap();
            [counters[0][1].cut, counters[1][0].cut]
        };
        let since = Instant::now();
        while dropped() != [round + 1; 2] {
            assert!(
                since.elapsed() < Duration::from_secs(10),
                "round {round}: {:?}",
                dropped()
            );
        }
        testbed.heal(x, y).unwrap();
        b.send_to(b"healed", to_a).unwrap();
        a.send_to(b"healed", to_b).unwrap();
        for socket in [&a, &b] {
            assert_eq!(receive(socket).0, "healed", "round {round}");
        }
    }
}

#[test]
fn a_link_can_change_its_shape_while_it_runs() {
    let testbed = up("[default]\nrtt_ms=2\n[[site]]\nname='a'\n[[site]]\nname='b'\n");
    assert!(round_trips(&testbed, "a", "b", 10)[0] < Duration::from_millis(40));
    testbed
        .reshape(
            "a",
            "b",
            Properties {
                rtt_ms: Some(60.0),
                ..Properties::default()
            },
        )
        .unwrap();
    assert!(round_trips(&testbed, "a", "b", 3)[0] >= Duration::from_millis(60));
}

/// UDP joined by the sender (GSO), as QUIC and p2pvm's links send it: each datagram arrives whole
/// and alone, or is lost alone.
#[test]
fn joined_datagrams_are_lost_one_by_one() {
    let testbed = up(
        "seed=9\n[default]\nrtt_ms=2\nloss=0.02\nmbit=50\n[[site]]\nname='a'\n\
            nat='port-restricted'\n[[site]]\nname='b'\n",
    );
    let (from, to) = (
        socket(&testbed, "a", 0),
        with_room(socket(&testbed, "b", 9)),
    );
    setsockopt(&from, UdpGsoSegment, &1000).unwrap();
    for round in 0..50u8 {
        let joined: Vec<u8> = (0..20u8)
            .flat_map(|number| std::iter::once(round).chain(std::iter::repeat_n(number, 999)))
            .collect();
        from.send_to(&joined, at(&testbed, "b", 9)).unwrap();
        // 20 kB take 3.3 ms at 50 Mbit/s.
        thread::sleep(Duration::from_millis(5));
    }
    let since = Instant::now();
    let mut counters = testbed.counters().unwrap()[0][1];
    while counters.packets + counters.lost < 1000 && since.elapsed() < PATIENCE {
        counters = testbed.counters().unwrap()[0][1];
    }
    assert_eq!(counters.packets + counters.lost, 1000, "{counters:?}");
    let heard: Vec<u16> = (0..counters.packets)
        .map(|_| {
            let mut buffer = [0; 2048];
            let length = to.recv(&mut buffer).expect("what was not lost arrives");
            assert!(
                length == 1000 && buffer[2..1000].iter().all(|byte| *byte == buffer[1]),
                "{length} bytes"
            );
            u16::from(buffer[0]) * 20 + u16::from(buffer[1])
        })
        .collect();
    assert!(silent(&to), "more datagrams than the link counted");
    assert!(heard.is_sorted() && counters.lost > 0);
}
