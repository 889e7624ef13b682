//! One migration is one trace: real daemons, a real guest, and a collector that takes what each
//! host sends, is away, and comes back.

#[path = "common/collector.rs"]
mod collector;
mod common;

use collector::{Collector, Taken};
use common::{
    SETTINGS, image, lab,
    measured::{Measurement, seconds},
    network, public_sites,
};
use p2pvm_api::VmView;
use p2pvm_lab::{chain, lab::Lab};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    time::{Duration, Instant},
};

/// Where the collector listens on host `c`.
const PORT: u16 = 4318;

fn collector(lab: &Lab) -> Collector {
    Collector::at(
        lab.testbed()
            .inside("c", || {
                TcpListener::bind(("0.0.0.0", PORT)).expect("the port is free")
            })
            .unwrap(),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Waits until the spans of these names are there; gives them by name.
fn wait_for(
    lab: &Lab,
    collector: &Collector,
    trace: &str,
    names: &[&str],
) -> BTreeMap<String, Taken> {
    lab.wait(
        "the spans",
        Duration::from_secs(90),
        Duration::from_millis(100),
        || {
            let of: BTreeMap<String, Taken> = collector
                .taken()
                .into_iter()
                .filter(|t| hex(&t.span.trace_id) == trace)
                .map(|t| (t.span.name.clone(), t))
                .collect();
            Ok(names
                .iter()
                .all(|name| of.contains_key(*name))
                .then_some(of))
        },
    )
    .unwrap_or_else(|e| {
        let taken: Vec<_> = collector
            .taken()
            .into_iter()
            .map(|t| (hex(&t.span.trace_id), t.span.name))
            .collect();
        panic!(
            "{}: {taken:?}\n{}\n{}",
            chain(&e),
            lab.log_tail("a", 40),
            lab.log_tail("b", 40)
        )
    })
}

/// Prints a trace as a tree with milliseconds since its beginning.
fn print(all: &BTreeMap<String, Taken>, parent: &[u8], began: u64, depth: usize) {
    let mut children: Vec<_> = all
        .values()
        .filter(|t| t.span.parent_span_id == parent)
        .collect();
    children.sort_by_key(|t| t.span.start_time_unix_nano);
    for t in children {
        let at = |nanos: u64| (nanos - began) as f64 / 1e6;
        let (from, to) = (
            at(t.span.start_time_unix_nano),
            at(t.span.end_time_unix_nano),
        );
        println!(
            "{:indent$}{:width$} {:2} {from:8.0} {:8.0}",
            "",
            t.span.name,
            t.resource["host.name"],
            to - from,
            indent = depth * 2,
            width = 34 - depth * 2
        );
        print(all, &t.span.span_id, began, depth + 1);
    }
}

/// Waits until a host's log has a line with this text.
fn wait_for_line(lab: &Lab, host: &str, text: &str) {
    lab.wait(
        &format!("'{text}' to be said"),
        Duration::from_secs(30),
        Duration::from_millis(100),
        || Ok(lab.log_tail(host, 400).contains(text).then_some(())),
    )
    .unwrap();
}

/// Writes for docs/traces.md how long a move took that could send no spans.
fn keep(measurement: Measurement, took: Duration) {
    let what = "migration at 20 ms RTT while the collector is away: total";
    measurement.end(&[seconds("total-away", what, &[took])
        .of("collector away")
        .digits(1)]);
}

fn metric(lab: &Lab, host: &str, name: &str) -> f64 {
    let page = lab.p2pvm(host, &["metrics"]).unwrap();
    let line = page
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")))
        .unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_migration_is_one_trace_and_a_missing_collector_hinders_none() {
    let measurement = Measurement::begin("traces", "cargo nextest run -p p2pvm --test e2e_traces");
    let lab = lab("traces", &public_sites(&["a", "b", "c"], 20.0));
    let address = lab.testbed().host("c").unwrap().address;
    for host in ["a", "b", "c"] {
        lab.configure(
            host,
            &format!("{SETTINGS}[traces]\nendpoint = \"http://{address}:{PORT}\"\n"),
        )
        .unwrap();
    }
    let there = collector(&lab);
    network(&lab, &["a", "b", "c"]);
    let made: VmView = lab
        .json(
            "a",
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
    lab.wait_for_guest("b", &made.address, Duration::from_secs(90))
        .unwrap();

    // Asked of a third member, whose asking the trace begins with.
    let moved = lab
        .migrate("c", "web", "b")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 60)));
    let trace = moved.trace.expect("the trace's id");
    let all = wait_for(
        &lab,
        &there,
        &trace,
        &["ask to migrate web", "migrate web", "receive web"],
    );
    let traces: BTreeSet<_> = there
        .taken()
        .iter()
        .map(|t| hex(&t.span.trace_id))
        .collect();
    assert_eq!(
        traces,
        BTreeSet::from([trace.clone()]),
        "one migration, one trace"
    );
    println!("{:34} {:2} {:>8} {:>8}", "SPAN", "ON", "FROM MS", "FOR MS");
    print(
        &all,
        &[],
        all["ask to migrate web"].span.start_time_unix_nano,
        0,
    );
    println!("{:#?}", all["migrate web"].attributes);

    let by_id: BTreeMap<_, _> = all.values().map(|t| (t.span.span_id.clone(), t)).collect();
    for t in all.values() {
        let (on, status) = (
            t.resource["host.name"].as_str(),
            t.span.status.as_ref().unwrap(),
        );
        assert_eq!(t.resource["service.name"], "p2pvm");
        assert_eq!(
            (status.code, status.message.as_str()),
            (1, ""),
            "{}",
            t.span.name
        );
        let (above, at) = match t.span.name.as_str() {
            "ask to migrate web" => {
                assert_eq!((t.span.parent_span_id.len(), on), (0, "c"));
                continue;
            }
            "migrate web" => ("ask to migrate web", "a"),
            "receive web" => ("migrate web", "b"),
            _ if on == "a" => ("migrate web", "a"),
            _ => ("receive web", "b"),
        };
        let parent = by_id[&t.span.parent_span_id];
        assert_eq!(
            (parent.span.name.as_str(), on),
            (above, at),
            "{}",
            t.span.name
        );
        // One machine, one clock: a child lies within its parent.
        assert!(
            parent.span.start_time_unix_nano <= t.span.start_time_unix_nano,
            "{}",
            t.span.name
        );
        assert!(
            t.span.start_time_unix_nano <= t.span.end_time_unix_nano,
            "{}",
            t.span.name
        );
        assert!(
            t.span.end_time_unix_nano <= parent.span.end_time_unix_nano,
            "{}",
            t.span.name
        );
    }
    for name in [
        "offer",
        "copy disk",
        "grant epoch",
        "copy memory",
        "switch over",
        "confirm",
        "clean up",
    ] {
        assert_eq!(all[name].resource["host.name"], "a", "{name}");
    }
    for name in [
        "admit",
        "fetch image",
        "start the waiting guest",
        "ask the voters",
        "receive disk",
        "receive memory",
        "resume",
        "announce",
    ] {
        assert_eq!(all[name].resource["host.name"], "b", "{name}");
    }
    assert!(
        !all["copy memory"].span.events.is_empty(),
        "passes over memory: {:?}",
        all["copy memory"].span
    );
    let ids: BTreeSet<_> = all
        .values()
        .map(|t| t.resource["service.instance.id"].as_str())
        .collect();
    assert_eq!(ids.len(), 3, "each member by its id");
    let noted = &all["migrate web"].attributes;
    for (key, value) in [
        ("p2pvm.vm.name", "web"),
        ("p2pvm.vm.id", &made.id),
        ("p2pvm.migration.id", &moved.migration),
        ("p2pvm.migration.from", "a"),
        ("p2pvm.migration.to", "b"),
        ("p2pvm.migration.cause", "request"),
        ("p2pvm.migration.mode", "pre-copy"),
        ("p2pvm.migration.outcome", "moved"),
        (
            "p2pvm.migration.downtime_ms",
            &moved.downtime_ms.to_string(),
        ),
        ("p2pvm.migration.ram_bytes", &moved.ram_bytes.to_string()),
    ] {
        assert_eq!(
            noted.get(key).map(String::as_str),
            Some(value),
            "{key}: {noted:?}"
        );
    }
    assert!(
        noted["p2pvm.migration.rounds"].parse::<u64>().unwrap() > 0,
        "{noted:?}"
    );
    for host in ["a", "b"] {
        assert!(
            lab.log_tail(host, 200).contains(&trace),
            "the log names the trace:\n{}",
            lab.log_tail(host, 40)
        );
    }

    // The collector is switched off: the VM moves back all the same, and the spans wait.
    drop(there);
    let began = Instant::now();
    let back = lab
        .migrate("b", "web", "a")
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("b", 60)));
    let took = began.elapsed();
    assert_eq!(back.host, "a");
    wait_for_line(&lab, "b", "does not answer");
    assert!(metric(&lab, "b", "p2pvm_trace_spans_waiting") >= 9.0);
    assert_eq!(metric(&lab, "b", "p2pvm_trace_spans_dropped_total"), 0.0);
    let there = collector(&lab);
    let trace = back.trace.unwrap();
    let all = wait_for(&lab, &there, &trace, &["migrate web", "receive web"]);
    assert_eq!(
        all["receive web"].span.parent_span_id,
        all["migrate web"].span.span_id
    );
    wait_for_line(&lab, "b", "takes spans again");
    assert_eq!(
        lab.log_tail("b", 400)
            .matches("does not answer; spans wait")
            .count(),
        1,
        "it is said once"
    );
    lab.down().unwrap();
    keep(measurement, took);
}
