//! The texts of the API that one member passes on to another: requests about VMs with their
//! answers, and each member's answer to a question to the whole cluster.
//!
//! A field that is added later is left out of the text while it is not set
//! (`skip_serializing_if`), so that the line stays; a new sample has it set.

use crate::{
    golden::{self, Golden, variants},
    operations::{Answer, Asker, OPERATIONS, Operation, Type},
    *,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{any::type_name, collections::BTreeSet, fmt::Debug};

/// The golden texts, and the types that have one.
struct Passed<'a> {
    golden: &'a mut Golden,
    types: BTreeSet<String>,
}

impl Passed<'_> {
    fn text<T: Debug + Serialize + DeserializeOwned>(&mut self, name: &str, sample: T) {
        self.types.insert(type_name::<T>().to_owned());
        self.golden.message(
            name,
            &sample,
            |sample| serde_json::to_vec(sample).expect("plain fields"),
            |text| serde_json::from_slice(text).ok(),
        );
    }

    fn previous<T: Debug + DeserializeOwned>(&mut self, name: &str, sample: T) {
        let read = |text: &[u8]| serde_json::from_slice(text).ok();
        self.golden.previous(name, &sample, read);
    }

    fn texts<T: Debug + Serialize + DeserializeOwned>(&mut self, samples: Vec<(&str, T)>) {
        for (name, sample) in samples {
            self.text(name, sample);
        }
    }
}

fn requests(passed: &mut Passed) {
    let create = |disk_bytes, on| CreateVm {
        name: "web".into(),
        image: "/images/web.qcow2".into(),
        cpus: 2,
        memory_mib: 512,
        disk_bytes,
        user: None,
        start: true,
        on,
        restart: None,
    };
    passed.text("create", create(None, None));
    passed.text("create.on", create(Some(10 << 30), Some("cellar".into())));
    passed.previous("create.first", create(None, None));
    let restore = |snapshot, force, on| RestoreVm {
        snapshot,
        force,
        on,
    };
    passed.text("restore", restore(None, false, None));
    passed.previous("restore.first", restore(None, false, None));
    let on = Some("cellar".to_owned());
    passed.text("restore.on", restore(Some("before".into()), true, on));
    let snapshot = |name, disk_only| SnapshotVm { name, disk_only };
    passed.text("snapshot", snapshot(None, false));
    let name = Some("before".to_owned());
    passed.text("snapshot.named", snapshot(name, false));
    passed.text("snapshot.disk-only", snapshot(None, true));
    passed.text("verify", VerifySnapshot { repair: true });
    passed.text("schedule", ScheduleChange { schedule: None });
    let schedule = Some(schedule());
    passed.text("schedule.set", ScheduleChange { schedule });
    let replicate = |every_s, copies| ReplicateVm { every_s, copies };
    passed.text("replicate", replicate(Some(60), Some(2)));
    passed.text("replicate.off", replicate(None, None));
    let restart = Some(RestartWord::Always);
    passed.text("set", SetVm { restart });
    passed.text("set.nothing", SetVm { restart: None });
    let protect = ProtectVm {
        protect: Some(true),
        replace: Some(ReplaceWord::Ask),
        on_partition: Some(PartitionWord::Freeze),
        lost_after_s: Some(30),
        replicate_every_s: Some(60),
    };
    passed.text("protect", protect);
    passed.text("protect.nothing", ProtectVm::default());
    let on = Some("cellar".to_owned());
    passed.text("takeover", TakeOverVm { on });
    let migrate = |to, post_copy| MigrateVm { to, post_copy };
    passed.text("migrate", migrate(None, false));
    passed.previous("migrate.first", migrate(None, false));
    passed.text("migrate.to", migrate(Some("cellar".into()), true));
}

fn schedule() -> ScheduleView {
    ScheduleView {
        disk_only: true,
        every_seconds: 21_600,
        keep: KeepView {
            days: 7,
            hours: 8,
            last: 1,
            weeks: 4,
        },
    }
}

fn snapshot_view() -> SnapshotView {
    SnapshotView {
        name: "auto-20261201-1110".into(),
        taken: "2026-12-01T11:10:56Z".into(),
        state: "degraded 1 of 2".into(),
        holders: vec!["attic".into()],
        automatic: true,
        checkpoint: Some("c0ffee".into()),
        epoch: Some(3),
        with_ram: Some(false),
    }
}

fn snapshots(passed: &mut Passed) {
    passed.text("snapshot-view", snapshot_view());
    let detail = SnapshotDetail {
        content_bytes: 3 << 20,
        missing_bytes: 1 << 20,
        snapshot: snapshot_view(),
    };
    passed.text("snapshot-detail", detail);
    let deleted = SnapshotDeleted {
        deleted: "before".into(),
        vm: "web".into(),
    };
    passed.text("snapshot-deleted", deleted);
    let verified = SnapshotVerified {
        copies: vec![CopyVerified {
            host: "cellar".into(),
            lacking: Some(2),
        }],
        here: Some(HereVerified {
            bytes: 4096,
            damaged: 1,
            host: "attic".into(),
            missing: 0,
            repaired: true,
            unrepaired: None,
            whole: 7,
        }),
        name: "before".into(),
    };
    passed.text("snapshot-verified", verified);
    let diff = SnapshotDiff {
        disk: DiffView {
            bytes: 8192,
            changed_blocks: 1,
            changed_bytes: 4096,
            new_bytes: 4096,
        },
        from: "before".into(),
        ram: None,
        to: "after".into(),
    };
    passed.text("snapshot-diff", diff);
    let answer = ScheduleAnswer {
        schedule: Some(schedule()),
        vm: "web".into(),
    };
    passed.text("schedule-answer", answer);
    let scheduled = VmView {
        snapshots: vec![snapshot_view()],
        schedule: Some(schedule()),
        ..bare_vm()
    };
    passed.text("vm.scheduled", scheduled);
}

fn step() -> Step {
    Step {
        phase: "ram".into(),
        done_bytes: 1 << 20,
        total_bytes: 1 << 30,
        note: "dirty 4 MiB/s".into(),
    }
}

/// A VM with nothing that may be missing.
fn bare_vm() -> VmView {
    VmView {
        name: "web".into(),
        id: "7b".into(),
        state: VmStateView::Running,
        host: "attic".into(),
        host_id: "a7".into(),
        address: "10.1.2.3".into(),
        address_v6: "fd00::3".into(),
        mac: "02:03:04:05:06:07".into(),
        cpus: 2,
        memory_mib: 512,
        image: "im".into(),
        epoch: 3,
        voters: vec!["attic".into(), "cellar".into()],
        activity: None,
        note: None,
        reach: None,
        still: None,
        replication: None,
        protection: None,
        last_seen: None,
        advice: None,
        cpu: None,
        moving: None,
        user: None,
        bandwidth: None,
        snapshots: Vec::new(),
        restart: None,
        schedule: None,
        restored_from: None,
    }
}

fn full_vm() -> VmView {
    VmView {
        activity: Some(ActivityView::Migrating),
        note: Some("held".into()),
        reach: Some(ReachView {
            state: ReachState::Silent,
            seconds: 7,
            rtt_ms: Some(0.5),
            why: Some("no answer".into()),
        }),
        still: Some(StillView {
            why: "host disk full".into(),
            path: "/var/lib/p2pvm".into(),
            free_bytes: 3 << 20,
            needed_bytes: 64 << 20,
        }),
        last_seen: Some("2026-11-30T12:02:00Z".into()),
        advice: Some("p2pvm vm restore web --force".into()),
        cpu: Some(0.5),
        moving: Some(Moving {
            to: "cellar".into(),
            step: step(),
        }),
        snapshots: vec![SnapshotView {
            name: "before".into(),
            taken: "2026-11-30T12:00:00Z".into(),
            state: "replicating 1 of 2".into(),
            holders: vec!["attic".into()],
            ..SnapshotView::default()
        }],
        ..bare_vm()
    }
}

fn answers(passed: &mut Passed) {
    passed.text("vm", bare_vm());
    passed.text("vm.full", full_vm());
    passed.previous("vm.first", bare_vm());
    let replication = ReplicationView {
        text: "RPO 38 s".into(),
        every_s: 60,
        rpo_s: Some(38),
        copies: 2,
        wanted: 2,
        late: false,
        why: None,
        rounds: 3,
        new_bytes: 1 << 20,
        last_new_bytes: 4096,
    };
    let replicated = VmView {
        replication: Some(replication),
        ..bare_vm()
    };
    passed.text("vm.replicated", replicated);
    let deleted = "web".to_owned();
    passed.text("deleted", VmDeleted { deleted });
    let moved = |pause_ms, trace| VmMoved {
        downtime_ms: 41,
        epoch: 4,
        from: "attic".into(),
        host: "cellar".into(),
        migration: "00ff".into(),
        name: "web".into(),
        pause_ms,
        ram_bytes: 134_217_728,
        total_ms: 2310,
        trace,
    };
    passed.text("moved", moved(None, None));
    passed.text("moved.traced", moved(Some(57), Some("4bf9".into())));
    let cancelled = MoveCancelled {
        cancelled: "web".into(),
        host: "attic".into(),
    };
    passed.text("move-cancelled", cancelled);
    let taken = |holders| SnapshotTaken {
        checkpoint: "c0ffee".into(),
        holders,
        name: "before".into(),
        pause_ms: 12.5,
        state: "durable".into(),
        taken: "2026-11-30T12:02:00Z".into(),
    };
    passed.text("taken", taken(None));
    passed.text("taken.held", taken(Some(vec!["attic".into()])));
    passed.text("explained", explained());
    let proof = "AAEC".to_owned();
    passed.text("proof", ProofView { proof });
}

fn explained() -> Explained {
    Explained {
        at: "2026-11-30T12:02:00.000Z".into(),
        host: "attic".into(),
        text: "moved to cellar".into(),
        details: Some(DecisionFigures {
            source_load: 0.9,
            ..DecisionFigures::default()
        }),
    }
}

fn lines(passed: &mut Passed) {
    let value = serde_json::json!({ "name": "web" });
    let failure = Failure::new(Kind::NotNow, "no majority");
    passed.texts::<Line<serde_json::Value, serde_json::Value>>(variants! {
        Line::Progress(_) => { "line.progress": Line::Progress(step()) }
        Line::Item(_) => { "line.item": Line::Item(value.clone()) }
        Line::Done(_) => { "line.done": Line::Done(value) }
        Line::Error(_) => { "line.error": Line::Error(failure) }
    });
    let of = |kind, cancelled| Failure {
        kind,
        message: "because".into(),
        cancelled,
    };
    passed.texts(variants! {
        Failure { kind: Kind::Failed, .. } => {
            "failure.failed": of(Kind::Failed, false),
            "failure.cancelled": of(Kind::Failed, true),
        }
        Failure { kind: Kind::Usage, .. } => { "failure.usage": of(Kind::Usage, false) }
        Failure { kind: Kind::NotFound, .. } => { "failure.not-found": of(Kind::NotFound, false) }
        Failure { kind: Kind::TimedOut, .. } => { "failure.timed-out": of(Kind::TimedOut, false) }
        Failure { kind: Kind::Refused, .. } => { "failure.refused": of(Kind::Refused, false) }
        Failure { kind: Kind::NotNow, .. } => { "failure.not-now": of(Kind::NotNow, false) }
    });
}

/// What members answer to questions to the whole cluster.
fn cluster(passed: &mut Passed) {
    let member = |address| ClusterMember {
        member: "a7".into(),
        name: "attic".into(),
        address,
        nat: "none".into(),
        position: "00f0".into(),
        neighbours: 4,
        cpu: 0.25,
        running_vms: 2,
    };
    passed.text("member", member(None));
    passed.text("member.addressed", member(Some("10.1.2.3".into())));
    let load = ClusterLoad {
        members: 3,
        cpu_sum: 1.25,
        running_vms: 4,
    };
    passed.text("load", load);
    let sample = Sample {
        name: "p2pvm_vms".into(),
        labels: vec![("state".into(), "running".into())],
        value: 2.0,
    };
    passed.text("figures", vec![sample]);
    let link = |rtt_ms, path_kind| Link {
        to: "c3".into(),
        path: "direct".into(),
        path_kind,
        rtt_ms,
    };
    let decided = Decided {
        vm: "7b".into(),
        explained: explained(),
    };
    let sight = |links| Sight {
        member: member(Some("10.1.2.3".into())),
        links,
        decisions: vec![decided.clone()],
    };
    let links = vec![link(Some(0.5), None), link(None, None)];
    passed.text("sight", sight(links));
    let links = vec![link(Some(0.5), Some(PathKind::Direct))];
    passed.text("sight.kind", sight(links));
}

fn types(operation: &Operation) -> Vec<Type> {
    let answer = match operation.answer {
        Answer::Json(answer) | Answer::Figures(answer) => vec![answer],
        Answer::Lines { done, .. } => vec![done],
        Answer::Console => Vec::new(),
    };
    operation.body.into_iter().chain(answer).collect()
}

/// A line for each operation, and a sample for each type that it passes on.
fn operations(passed: &mut Passed) {
    let all = OPERATIONS.iter().copied().flatten();
    for operation in all.filter(|operation| operation.askers.contains(&Asker::Member)) {
        let method = operation.method.word();
        let name = format!("{method}{}", operation.path.replace(['/', '{', '}'], "."));
        let query: Vec<_> = operation.query.iter().map(|query| query.name).collect();
        let text = format!("{method} {} {}", operation.path, query.join(","));
        passed.golden.bytes(&name, text.trim().as_bytes());
        for passed_on in types(operation) {
            let full = format!("{passed_on:?}");
            let inner = full.strip_prefix("alloc::vec::Vec<").unwrap_or(&full);
            let inner = inner.trim_end_matches('>');
            assert!(passed.types.contains(inner), "no sample of {inner}");
        }
    }
}

#[test]
fn members_of_the_previous_version_read_what_is_passed_on() {
    golden::check_texts("passed_on", |golden| {
        let mut passed = Passed {
            golden,
            types: BTreeSet::new(),
        };
        requests(&mut passed);
        answers(&mut passed);
        snapshots(&mut passed);
        lines(&mut passed);
        cluster(&mut passed);
        operations(&mut passed);
    });
}
