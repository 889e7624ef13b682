//! The settings, and the way of spans to a real HTTP server: there, away and back, refusing, and
//! too slow for what comes.

#[path = "../../../node/tests/common/collector.rs"]
mod collector;

use super::{Counts, Exporter, Settings, queue::MAX_WAITING};
use collector::Collector;
use opentelemetry::trace::{SpanContext, SpanKind};
use p2pvm_overlay::MemberId;
use std::{
    fmt::Display,
    net::TcpListener,
    time::{Duration, Instant},
};

fn listener(at: &str) -> TcpListener {
    TcpListener::bind(at).unwrap()
}

fn exporter(to: impl Display) -> Exporter {
    let settings: Settings = toml::from_str(&format!(
        "endpoint = \"http://{to}\"\nheaders = {{ x-scope = \"lab\" }}"
    ))
    .unwrap();
    Exporter::start(&settings, MemberId([7; 32]), "lyon")
        .unwrap()
        .expect("it names a collector")
}

fn end_spans(exporter: &Exporter, n: usize) {
    let traces = exporter.traces(|_| None);
    for _ in 0..n {
        traces
            .begin(&SpanContext::NONE, SpanKind::Internal, "work")
            .done();
    }
}

/// Waits until the counts are these.
async fn settles(exporter: &Exporter, sent: u64, dropped: u64, waiting: u64) {
    let (wanted, began) = (
        Counts {
            sent,
            dropped,
            waiting,
        },
        Instant::now(),
    );
    while exporter.counts() != wanted {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}, not {wanted:?}",
            exporter.counts()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn spans_reach_the_collector_with_who_sent_them() {
    let collector = Collector::at(listener("127.0.0.1:0"));
    let exporter = exporter(collector.address());
    let traces = exporter.traces(|_| Some("lyon".to_owned()));
    let mut step = traces.begin(
        &SpanContext::NONE,
        SpanKind::Server,
        "receive web".to_owned(),
    );
    step.note_member("by", "by.id", MemberId([7; 32]));
    step.event("pass", &[("n", u64::MAX)]);
    let trace = step.trace_id().unwrap();
    step.trail().step("within").failed(&"no room");
    step.done();
    settles(&exporter, 2, 0, 0).await;
    let (root, within) = (
        collector.named("receive web").unwrap(),
        collector.named("within").unwrap(),
    );
    let resource = |key: &str| root.resource[key].as_str();
    assert_eq!(
        (resource("service.name"), resource("service.version")),
        ("p2pvm", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        (resource("service.instance.id"), resource("host.name")),
        (MemberId([7; 32]).to_string().as_str(), "lyon")
    );
    assert_eq!(
        (root.attributes["by"].as_str(), root.span.kind),
        ("lyon", 2)
    );
    assert_eq!(
        collector::plain(&root.span.events[0].attributes)["n"],
        i64::MAX.to_string()
    );
    assert_eq!(root.span.status.as_ref().unwrap().code, 1);
    let failed = within.span.status.as_ref().unwrap();
    assert_eq!((failed.code, failed.message.as_str()), (2, "no room"));
    assert_eq!(within.span.parent_span_id, root.span.span_id);
    assert_eq!(
        root.span
            .trace_id
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>(),
        trace
    );
    assert_eq!(
        (collector.header("x-scope").as_deref(), collector.requests()),
        (Some("lab"), 1)
    );
}

#[tokio::test]
async fn a_collector_may_be_called_by_a_name() {
    let collector = Collector::at(listener("127.0.0.1:0"));
    let exporter = exporter(format_args!("localhost:{}", collector.address().port()));
    end_spans(&exporter, 1);
    settles(&exporter, 1, 0, 0).await;
}

#[tokio::test]
async fn a_returning_collector_gets_what_waited_a_refusing_one_nothing_twice() {
    let address = listener("127.0.0.1:0").local_addr().unwrap();
    let exporter = exporter(address);
    end_spans(&exporter, 3);
    // Long enough for a first try in vain.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(
        exporter.counts(),
        Counts {
            sent: 0,
            dropped: 0,
            waiting: 3
        }
    );
    let collector = Collector::at(listener(&address.to_string()));
    settles(&exporter, 3, 0, 0).await;
    collector.answers(503, 0);
    end_spans(&exporter, 1);
    while collector.requests() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(exporter.counts().waiting, 1, "what is busy is tried again");
    collector.answers(200, 0);
    settles(&exporter, 4, 0, 0).await;
    collector.answers(400, 0);
    end_spans(&exporter, 2);
    settles(&exporter, 4, 2, 0).await;
    collector.answers(200, 1);
    end_spans(&exporter, 3);
    settles(&exporter, 6, 3, 0).await;
}

#[tokio::test]
async fn what_waits_is_bounded_and_what_is_lost_is_counted() {
    let address = listener("127.0.0.1:0").local_addr().unwrap();
    let exporter = exporter(address);
    end_spans(&exporter, MAX_WAITING + 100);
    assert_eq!(
        exporter.counts(),
        Counts {
            sent: 0,
            dropped: 100,
            waiting: MAX_WAITING as u64
        }
    );
    let collector = Collector::at(listener(&address.to_string()));
    settles(&exporter, MAX_WAITING as u64, 100, 0).await;
    assert_eq!(collector.taken().len(), MAX_WAITING);
    assert!(collector.requests() > 1, "in several requests");
}

#[tokio::test]
async fn an_ending_daemon_sends_spans_without_waiting_for_a_silent_collector() {
    let collector = Collector::at(listener("127.0.0.1:0"));
    let leaving = exporter(collector.address());
    end_spans(&leaving, 1);
    leaving.close().await;
    assert_eq!(
        leaving.counts(),
        Counts {
            sent: 1,
            dropped: 0,
            waiting: 0
        }
    );
    // Takes connections and never answers.
    let silent = listener("127.0.0.1:0");
    let leaving = exporter(silent.local_addr().unwrap());
    end_spans(&leaving, 1);
    let began = Instant::now();
    leaving.close().await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "it did not wait for an answer"
    );
    assert_eq!(leaving.counts().waiting, 1);
}

fn settings(toml: &str) -> Settings {
    toml::from_str(toml).unwrap()
}

#[test]
fn settings_that_cannot_be_used_are_refused_with_what_to_do() {
    settings("").check().unwrap();
    settings("endpoint = \"http://127.0.0.1:4318\"\nheaders = { authorization = \"Basic eDp5\" }")
        .check()
        .unwrap();
    let said = |toml: &str| settings(toml).check().unwrap_err();
    assert!(said("endpoint = \"collector:4318\"").contains("http://"));
    assert!(said("headers = { \"a b\" = \"x\" }").contains("'a b'"));
    let secret = said("headers = { authorization = \"top\\nsecret\" }");
    assert!(
        secret.contains("authorization") && !secret.contains("secret"),
        "{secret}"
    );
    assert!(
        toml::from_str::<Settings>("endpont = \"x\"")
            .unwrap_err()
            .to_string()
            .contains("`endpoint`")
    );
}

#[test]
fn the_environment_fills_missing_settings_and_never_stops_the_daemon() {
    let shown = |toml: &str, environment: Option<&str>| {
        settings(toml).endpoint(environment).map(|e| e.to_string())
    };
    assert_eq!(shown("", None), None);
    assert_eq!(shown("", Some("")), None);
    assert_eq!(
        shown("", Some("http://[::1]:4318")).unwrap(),
        "http://[::1]:4318/v1/traces"
    );
    assert_eq!(
        shown("", Some("https://far.example.org")),
        None,
        "said in the log, and no more"
    );
    assert_eq!(
        shown("endpoint = \"http://a:1/x/\"", Some("http://b:2")).unwrap(),
        "http://a:1/x/v1/traces"
    );
}
