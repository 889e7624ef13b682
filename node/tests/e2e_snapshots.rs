//! Snapshots as backups: a schedule takes and deletes them, a damaged one is found and repaired
//! from the members that keep it, and the store says what uses the disk.

mod common;

use common::{image, lab, network, public_sites};
use p2pvm_api::{
    ScheduleAnswer, SnapshotDetail, SnapshotDiff, SnapshotState, SnapshotTaken, SnapshotVerified,
    SnapshotView, StoreCollected, StoreView, VmView,
};
use p2pvm_lab::{chain, lab::Lab};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const STEP: Duration = Duration::from_secs(1);

fn json<T: serde::de::DeserializeOwned>(lab: &Lab, host: &str, words: &[&str]) -> T {
    lab.json(host, words)
        .unwrap_or_else(|e| panic!("{words:?}: {}\n{}", chain(&e), lab.log_tail(host, 60)))
}

/// A network of three, with the stopped VM "web" on `a`.
fn with_web(test: &str) -> Lab {
    let lab = lab(test, &public_sites(&["a", "b", "c"], 5.0));
    network(&lab, &["a", "b", "c"]);
    let words = [
        "vm",
        "create",
        "web",
        "--image",
        image(),
        "--memory",
        "128M",
    ];
    let _: VmView = json(&lab, "a", &words);
    lab
}

fn snapshots(lab: &Lab, host: &str) -> Vec<SnapshotView> {
    json(lab, host, &["vm", "snapshot", "list", "web"])
}

/// The chunk files of a host.
fn chunk_files(lab: &Lab, host: &str) -> Vec<PathBuf> {
    let dir = lab.dir(host).unwrap().join("chunks/chunks");
    let files = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    files(&dir).iter().flat_map(|shard| files(shard)).collect()
}

#[test]
fn a_damaged_snapshot_is_found_and_repaired_from_its_keepers() {
    let lab = with_web("snapshots");
    let take = ["vm", "snapshot", "create", "web", "--name", "safe"];
    let taken: SnapshotTaken = json(&lab, "a", &take);
    assert_eq!(taken.state, SnapshotState::Durable, "{taken:?}");
    // The old form is the same command.
    let again = ["vm", "snapshot", "web", "--name", "later", "--disk-only"];
    let _: SnapshotTaken = json(&lab, "a", &again);
    let names: Vec<String> = snapshots(&lab, "b").into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["safe", "later"], "asked of another member");

    let shown: SnapshotDetail = json(&lab, "c", &["vm", "snapshot", "show", "web@safe"]);
    assert!(
        shown.content_bytes > 0 && shown.missing_bytes == 0,
        "{shown:?}"
    );
    assert_eq!(shown.snapshot.with_ram, Some(false), "it does not run");
    let both = ["vm", "snapshot", "diff", "web@safe", "web@later"];
    let diff: SnapshotDiff = json(&lab, "a", &both);
    assert_eq!(
        (diff.disk.changed_blocks, diff.ram),
        (0, None),
        "nothing ran"
    );

    let verify = ["vm", "snapshot", "verify", "web@safe"];
    let whole: SnapshotVerified = json(&lab, "a", &verify);
    let here = whole.here.unwrap();
    assert_eq!((here.damaged, here.missing), (0, 0), "{here:?}");
    assert!(here.whole > 0 && whole.copies.len() == 2);
    assert!(whole.copies.iter().all(|copy| copy.lacking == Some(0)));

    // The largest chunk is content of the image, which the snapshot names.
    let files = chunk_files(&lab, "a");
    let largest = files
        .iter()
        .max_by_key(|file| fs::metadata(file).unwrap().len());
    let largest = largest.expect("a snapshot has chunks");
    fs::write(largest, b"damaged").unwrap();
    let (code, said, why) = lab.try_p2pvm("a", &verify).unwrap();
    assert!(
        code == 1 && said.contains("1 chunks damaged") && why.contains("--repair"),
        "{code} {said} {why}"
    );
    let repair = [&verify[..], &["--repair"]].concat();
    let repaired: SnapshotVerified = json(&lab, "a", &repair);
    let here = repaired.here.unwrap();
    assert!(here.missing == 1 && here.repaired, "{here:?}");
    let whole: SnapshotVerified = json(&lab, "a", &verify);
    assert_eq!(whole.here.map(|here| here.missing), Some(0));

    let store: StoreView = json(&lab, "a", &["store"]);
    assert!(store.images.bytes > 0 && store.all.chunks > 0, "{store:?}");
    let is_safe = |name: &str| name == "web@safe";
    assert!(store.stored.iter().any(|one| is_safe(&one.name)));
    let kept: StoreView = json(&lab, "b", &["store"]);
    assert!(kept.replicas.iter().any(|of| of.member == "a"), "{kept:?}");
    let dry: StoreCollected = json(&lab, "a", &["store", "gc", "--dry-run"]);
    assert!(dry.dry_run && dry.kept > 0, "{dry:?}");

    lab.p2pvm("b", &["vm", "snapshot", "delete", "web@safe"])
        .unwrap();
    let names: Vec<String> = snapshots(&lab, "a").into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["later"]);
    lab.down().unwrap();
}

#[test]
fn a_schedule_takes_snapshots_and_keeps_those_made_by_hand() {
    let lab = with_web("schedule");
    let by_hand = ["vm", "snapshot", "create", "web", "--name", "mine"];
    let _: SnapshotTaken = json(&lab, "a", &by_hand);
    let refused = lab.try_p2pvm("a", &["vm", "snapshot", "schedule", "web", "--every", "1m"]);
    assert_ne!(refused.unwrap().0, 0, "a rule is needed");
    let rule = ["--every", "1m", "--keep", "1"];
    let set = [&["vm", "snapshot", "schedule", "web"][..], &rule].concat();
    let answer: ScheduleAnswer = json(&lab, "b", &set);
    assert_eq!(answer.schedule.map(|s| s.every_seconds), Some(60));
    let auto = |all: &[SnapshotView]| -> Vec<String> {
        let automatic = all.iter().filter(|s| s.automatic);
        automatic.map(|s| s.name.clone()).collect()
    };
    let wait = |what: &str, done: &dyn Fn(&[String]) -> bool| {
        lab.wait(what, Duration::from_secs(180), STEP, || {
            let names = auto(&snapshots(&lab, "a"));
            Ok(done(&names).then_some(names))
        })
        .unwrap_or_else(|e| panic!("{}\n{}", chain(&e), lab.log_tail("a", 60)))
    };
    let first = wait("a scheduled snapshot", &|names| !names.is_empty());
    let second = wait("the next one alone", &|names| {
        names.len() == 1 && names[0] != first[0]
    });
    assert!(second[0].starts_with("auto-20"), "{second:?}");
    let all = snapshots(&lab, "a");
    assert!(all.iter().any(|s| s.name == "mine" && !s.automatic));

    let off: ScheduleAnswer = json(&lab, "a", &["vm", "snapshot", "schedule", "web", "--off"]);
    assert_eq!(off.schedule, None);
    assert_eq!(
        json::<VmView>(&lab, "a", &["vm", "show", "web"]).schedule,
        None
    );
    lab.down().unwrap();
}
