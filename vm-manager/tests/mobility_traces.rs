//! What a migration leaves in a trace: one over both hosts, whether it ends well or not.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, fake::Step, spans::noted};
use opentelemetry::trace::{SpanContext, SpanId, Status};
use p2pvm_vm_manager::{
    Traces,
    hypervisor::MigrateOptions,
    migrate::{MigrationOutcome, Occasion, RunningSide},
    trace::from_traceparent,
};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::sync::watch;

async fn migrate(lab: &Lab, why: Occasion) -> MigrationOutcome {
    let (options, progress) = (MigrateOptions::default(), watch::Sender::default());
    lab.host(0)
        .migrate_because(why, "web", lab.me(1), options, progress)
        .await
        .unwrap()
}

/// The spans of each member hang together below its first, and lie within their parents' time.
fn assert_whole(lab: &Lab) {
    let all = lab.spans.ended();
    let by_id: HashMap<SpanId, _> = all
        .iter()
        .map(|(site, span)| (span.span_context.span_id(), (*site, span)))
        .collect();
    for (site, span) in &all {
        assert!(span.start_time <= span.end_time, "{span:?}");
        let Some((parents_site, parent)) = by_id.get(&span.parent_span_id) else {
            assert_eq!(span.name, "migrate web", "the one span without a parent");
            continue;
        };
        assert_eq!(
            *site != *parents_site,
            span.parent_span_is_remote,
            "{}",
            span.name
        );
        assert_eq!(
            *site != *parents_site,
            span.name == "receive web",
            "{}",
            span.name
        );
        assert!(
            parent.start_time <= span.start_time,
            "{} begins before {}",
            span.name,
            parent.name
        );
    }
}

/// The steps of a move that succeeds: its source's, and its target's.
const STEPS: [&[&str]; 2] = [
    &[
        "migrate web",
        "offer",
        "wait for the target",
        "copy disk",
        "grant epoch",
        "copy memory",
        "switch over",
        "confirm",
        "clean up",
    ],
    &[
        "receive web",
        "admit",
        "fetch image",
        "start the waiting guest",
        "receive disk",
        "ask the voters",
        "receive memory",
        "resume",
        "announce",
        "confirm with the voters",
    ],
];

/// Every span ended well, and within the one that spans its side.
fn assert_done_in_time(lab: &Lab) {
    let (root, arrival) = (
        lab.spans.named("migrate web"),
        lab.spans.named("receive web"),
    );
    for (_, span) in lab.spans.ended() {
        let parent = if span.parent_span_id == arrival.span_context.span_id() {
            &arrival
        } else {
            &root
        };
        assert!(
            span.end_time <= parent.end_time,
            "{} ends after {}",
            span.name,
            parent.name
        );
        assert_eq!(span.status, Status::Ok, "{}", span.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_is_one_trace_over_both_hosts() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let why = Occasion {
        cause: "autonomic",
        reason: Some("load 0.93".into()),
        ..Occasion::default()
    };
    let outcome = migrate(&lab, why).await;
    assert_eq!(outcome.runs_on, RunningSide::Target);
    let (root, arrival) = (
        lab.spans.named("migrate web"),
        lab.spans.named("receive web"),
    );
    let trace = outcome.trace.clone().expect("it is traced");
    assert_eq!(lab.spans.traces(), BTreeSet::from([trace]));
    assert_eq!(
        (root.parent_span_id, arrival.parent_span_id),
        (SpanId::INVALID, root.span_context.span_id())
    );
    assert_whole(&lab);
    assert_done_in_time(&lab);
    let of = |site: usize| lab.spans.names_of(site);
    let steps = STEPS.map(|names| names.iter().map(ToString::to_string).collect());
    assert_eq!([of(0), of(1)], steps);
    for (key, value) in [
        ("p2pvm.vm.name", "web"),
        ("p2pvm.vm.id", &vm.to_string()),
        ("p2pvm.migration.id", &outcome.id),
        ("p2pvm.migration.from.id", &lab.me(0).to_string()),
        ("p2pvm.migration.to.id", &lab.me(1).to_string()),
        ("p2pvm.migration.cause", "autonomic"),
        ("p2pvm.migration.reason", "load 0.93"),
        ("p2pvm.migration.mode", "pre-copy"),
        ("p2pvm.migration.outcome", "moved"),
        ("p2pvm.migration.downtime_ms", "5"),
        ("p2pvm.migration.ram_bytes", "16"),
        ("p2pvm.migration.rounds", "1"),
    ] {
        assert_eq!(noted(&root, key).as_deref(), Some(value), "{key}: {root:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_cancelled_move_ends_its_spans_with_the_reason() {
    for step in [
        Step::Launch,
        Step::Mirror,
        Step::Ram,
        Step::Paused,
        Step::FinishIncoming,
    ] {
        for cancel in [false, true] {
            let lab = Lab::new(4).await;
            let vm = lab.vm(0, "web").await;
            let (moving, strike) = lab.moving(step).await;
            if cancel {
                lab.host(0).cancel_migration("web").await.unwrap();
            }
            // A cancellation does not wait for the step that is under way.
            assert!(strike.2.send(!cancel).is_ok() || cancel, "{step:?}");
            let outcome = moving.await.unwrap().unwrap();
            assert_eq!(
                (outcome.runs_on, outcome.cancelled),
                (RunningSide::Source, cancel),
                "{step:?}: {outcome:?}"
            );
            lab.settles_on(vm, &[0], &format!("{step:?}")).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_whole(&lab);
            let root = lab.spans.named("migrate web");
            assert_eq!(
                root.status,
                Status::error(outcome.failure.unwrap()),
                "{step:?}"
            );
            let arrival = lab.spans.named("receive web");
            assert!(
                matches!(&arrival.status, Status::Error { description } if !description.is_empty()),
                "{step:?}: {:?}",
                arrival.status
            );
            let failed = lab
                .spans
                .outline()
                .iter()
                .filter(|(_, _, status)| *status != Status::Ok)
                .count();
            assert!(
                failed >= 3,
                "{step:?}: what was under way failed with them: {:?}",
                lab.spans.outline()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_trace_goes_on_through_a_host_that_records_none() {
    let asked =
        from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    for records in [true, false] {
        let mut lab = Lab::new(4).await;
        if !records {
            lab.kill_daemon(0);
            lab.traces[0] = Traces::default();
            lab.up(0).await;
        }
        lab.vm(0, "web").await;
        let outcome = migrate(
            &lab,
            Occasion {
                within: asked.clone(),
                ..Occasion::default()
            },
        )
        .await;
        assert_eq!(
            (outcome.runs_on, outcome.trace.as_deref()),
            (
                RunningSide::Target,
                Some("4bf92f3577b34da6a3ce929d0e0e4736")
            )
        );
        let arrival = lab.spans.named("receive web");
        assert_eq!(arrival.span_context.trace_id(), asked.trace_id());
        let above = if records {
            lab.spans.named("migrate web").span_context.span_id()
        } else {
            asked.span_id()
        };
        assert_eq!(arrival.parent_span_id, above);
        if records {
            assert_eq!(
                lab.spans.named("migrate web").parent_span_id,
                asked.span_id()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_that_record_nothing_move_and_name_no_trace() {
    let mut lab = Lab::new(4).await;
    lab.kill_daemon(0);
    lab.traces[0] = Traces::default();
    lab.up(0).await;
    lab.vm(0, "web").await;
    let outcome = migrate(
        &lab,
        Occasion {
            within: SpanContext::NONE,
            ..Occasion::default()
        },
    )
    .await;
    assert_eq!(
        (outcome.runs_on, outcome.trace),
        (RunningSide::Target, None)
    );
    let arrival = lab.spans.named("receive web");
    assert_eq!(
        (arrival.parent_span_id, arrival.status),
        (SpanId::INVALID, Status::Ok),
        "the target's trace is one of its own"
    );
}
