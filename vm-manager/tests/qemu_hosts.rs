//! A VM's life among hosts with real guests: made, moved live, snapshot, its host lost, brought
//! back.

mod mobility;
mod support;

use mobility::{Lab, spans::noted};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::SpanData;
use p2pvm_vm_manager::{
    ImageSource, NewVm,
    host::VmState,
    hypervisor::MigrateOptions,
    migrate::{MigrationOutcome, RunningSide},
    vault::Durability,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use support::{Console, PATIENCE, READY, image};
use tokio::sync::watch;

/// The guests' processes on the host with that directory.
fn guests(host: &Path) -> Vec<Pid> {
    let runs = fs::read_dir(host.join("vms"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|vm| vm.path().join("run"));
    let pid = |run: PathBuf| {
        let pid = fs::read_to_string(run.join("qemu.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        // The number may be another's by now; a guest's process works in its run directory.
        (fs::read_link(format!("/proc/{pid}/cwd")).ok()? == run.canonicalize().ok()?)
            .then(|| Pid::from_raw(pid))
    };
    runs.filter_map(pid).collect()
}

/// Ends the guests of all these hosts with the test, however it ends.
struct Ended(Vec<PathBuf>);

impl Drop for Ended {
    fn drop(&mut self) {
        for pid in self.0.iter().flat_map(|host| guests(host)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

async fn console(lab: &Lab, host: usize) -> Console {
    Console::of(lab.host(host).console("web").await.unwrap())
}

/// Makes and starts the VM on the first host; its console, once its shell takes input.
async fn started(lab: &Lab) -> Console {
    let new = NewVm {
        name: "web".into(),
        image: ImageSource::File(lab.image.clone()),
        cpus: 1,
        memory_mib: 128,
        disk_bytes: None,
        bits_per_second: None,
        user: None,
    };
    lab.host(0)
        .create(new, &watch::Sender::default())
        .await
        .unwrap();
    lab.host(0).start("web").await.unwrap();
    let mut guest = console(lab, 0).await;
    guest.until(READY).await;
    guest
}

async fn move_to(lab: &Lab, from: usize, to: usize, options: MigrateOptions) -> MigrationOutcome {
    lab.host(from)
        .migrate("web", lab.me(to), options, watch::Sender::default())
        .await
        .unwrap()
}

/// Takes the snapshot "one" on member 1, and waits until it is durable and member 2 finds its
/// copies in the record.
async fn take_durable_snapshot(lab: &Lab) {
    let mut taken = lab
        .host(1)
        .snapshot("web", "one", &watch::Sender::default())
        .await
        .unwrap();
    let durable = taken
        .copies
        .wait_for(|copies| copies.durability == Durability::Durable);
    tokio::time::timeout(PATIENCE, durable)
        .await
        .expect("durable in time")
        .unwrap();
    let is_recorded = async || {
        let record = lab.host(2).record("web").await.unwrap();
        record.snapshots.iter().any(|s| s.providers.len() >= 3)
    };
    let recorded = async {
        while !is_recorded().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recorded)
        .await
        .expect("recorded in time");
}

/// What tells one boot of the guest from another, and what it was told to keep.
const LOOK: &str = "cat /run/mark /data/mark /proc/sys/kernel/random/boot_id";

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_moves_live_and_survives_its_hosts_loss_with_its_memory() {
    let Some(image) = image("a_vm_moves_live_and_survives_its_hosts_loss_with_its_memory") else {
        return;
    };
    let mut lab = Lab::with_qemu(3, image).await;
    let _ended = Ended(lab.sites.iter().map(|site| site.dir.clone()).collect());
    let mut guest = started(&lab).await;
    guest
        .run("echo remembered > /run/mark; echo written > /data/mark; sync")
        .await;
    let boot = guest.run("cat /proc/sys/kernel/random/boot_id").await;
    assert_eq!(boot.len(), 36, "{boot}");
    let kept = format!("remembered\nwritten\n{boot}");
    drop(guest);

    let moved = move_to(&lab, 0, 1, MigrateOptions::default()).await;
    assert_eq!(
        (moved.runs_on, moved.failure.as_deref()),
        (RunningSide::Target, None)
    );
    assert!(
        lab.host(0).list().is_empty() && guests(&lab.sites[0].dir).is_empty(),
        "nothing is left behind"
    );
    let mut guest = console(&lab, 1).await;
    assert_eq!(guest.run(LOOK).await, kept);

    take_durable_snapshot(&lab).await;
    guest
        .run("echo too late > /run/mark; echo too late > /data/mark; sync")
        .await;
    drop(guest);

    let processes = guests(&lab.sites[1].dir);
    assert_eq!(processes.len(), 1);
    lab.power_off(1);
    kill(processes[0], Signal::SIGKILL).unwrap();
    let back = lab.restore_by_force(2).await;
    assert!(back.epoch > moved.epoch);
    let mut guest = console(&lab, 2).await;
    guest.run("echo 1 > /proc/sys/vm/drop_caches").await;
    assert_eq!(guest.run(LOOK).await, kept);
    assert_eq!(guest.run("dmesg | grep -c 'I/O error'").await, "0");
    assert_eq!(lab.host(0).holder("web").await.unwrap(), lab.me(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_daemon_died_mid_move_runs_on_and_moves_later() {
    let Some(image) = image("a_vm_whose_daemon_died_mid_move_runs_on_and_moves_later") else {
        return;
    };
    let mut lab = Lab::with_qemu(3, image).await;
    let _ended = Ended(lab.sites.iter().map(|site| site.dir.clone()).collect());
    let mut guest = started(&lab).await;
    guest
        .run("echo remembered > /run/mark; dd if=/dev/urandom of=/data/bulk bs=1M count=12; sync")
        .await;
    drop(guest);
    for phase in ["disk", "ram"] {
        // Too slow to end.
        let options = MigrateOptions {
            bandwidth: 1 << 20,
            ..MigrateOptions::default()
        };
        let begun = Instant::now();
        let (moving, at) = loop {
            let (host, to, progress) = (lab.host(0), lab.me(1), watch::Sender::default());
            let mut seen = progress.subscribe();
            let moving =
                tokio::spawn(async move { host.migrate("web", to, options, progress).await });
            let there =
                seen.wait_for(|p| p.total_bytes > 0 && (p.phase == phase || p.phase == "ram"));
            match there.await.map(|p| p.clone()) {
                Ok(at) => break (moving, at),
                // The target still waits for the move that was broken off.
                Err(_) => assert!(begun.elapsed() < PATIENCE, "{:?}", moving.await.unwrap()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let process = guests(&lab.sites[0].dir);
        lab.kill_daemon(0);
        assert!(moving.await.unwrap().is_err());
        lab.up(0).await;
        println!("killed at {at:?}");
        assert_eq!(guests(&lab.sites[0].dir), process, "the same guest");
        assert_eq!(lab.host(0).list()[0].state, VmState::Running);
        let mut guest = console(&lab, 0).await;
        assert_eq!(guest.run("cat /run/mark").await, "remembered");
        drop(guest);
    }
    let begun = Instant::now();
    loop {
        let moved = lab
            .host(0)
            .migrate(
                "web",
                lab.me(1),
                MigrateOptions::default(),
                watch::Sender::default(),
            )
            .await;
        match moved {
            Ok(moved) if moved.runs_on == RunningSide::Target => break,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut guest = console(&lab, 1).await;
    assert_eq!(guest.run("cat /run/mark").await, "remembered");
}

/// The move that all spans are of went by post-copy.
fn assert_notes_post_copy(root: &SpanData) {
    for (key, value) in [
        ("p2pvm.migration.post_copy_allowed", "true"),
        ("p2pvm.migration.mode", "post-copy"),
        ("p2pvm.migration.outcome", "moved"),
    ] {
        assert_eq!(noted(root, key).as_deref(), Some(value), "{key}: {root:?}");
    }
}

/// The steps' order tells when post-copy began and ended.
fn assert_order_of_post_copy(lab: &Lab) {
    let named = |name: &str| lab.spans.named(name);
    let (root, copying, switching) = (
        named("migrate web"),
        named("copy memory"),
        named("switch over"),
    );
    let begins: Vec<_> = copying
        .events
        .iter()
        .filter(|event| event.name == "post-copy begins")
        .collect();
    assert_eq!(begins.len(), 1, "{:?}", copying.events);
    assert!(
        copying.start_time <= begins[0].timestamp && begins[0].timestamp <= copying.end_time,
        "{:?}",
        copying.events
    );
    // One machine, one clock: the guest runs on the target before its source calls the switch done;
    // the rest of memory comes after.
    let resumed = named("resume").end_time;
    assert!(
        switching.start_time <= resumed && resumed <= switching.end_time,
        "{switching:?}"
    );
    let all = lab.spans.ended();
    let mut steps = vec![&copying, &switching];
    // Where all was sent before the source had heard that the guest runs, it has no span.
    let rest = all
        .iter()
        .find(|(_, span)| span.name == "send the rest of memory");
    if let Some((_, rest)) = rest {
        assert!(
            switching.end_time <= rest.start_time && rest.end_time <= named("confirm").start_time,
            "{rest:?}"
        );
        steps.push(rest);
    }
    for step in steps {
        let parent = step.parent_span_id;
        assert_eq!(parent, root.span_context.span_id(), "{}", step.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_copy_move_is_one_trace_that_says_when_it_began() {
    let Some(image) = image("a_post_copy_move_is_one_trace_that_says_when_it_began") else {
        return;
    };
    let lab = Lab::with_qemu(3, image).await;
    let _ended = Ended(lab.sites.iter().map(|site| site.dir.clone()).collect());
    let mut guest = started(&lab).await;
    // Much is dirty at the switch: mostly it takes longer to send than to hear that the guest runs.
    guest
        .run(
            "dd if=/dev/urandom of=/run/bulk bs=1M count=8; md5sum /run/bulk > /run/sum; dirty \
        48 600",
        )
        .await;
    drop(guest);

    // A stop too short to be planned for keeps pre-copy from ending.
    let options = MigrateOptions {
        post_copy: true,
        max_downtime: Duration::from_millis(1),
        bandwidth: 64 << 20,
    };
    let moved = move_to(&lab, 0, 1, options).await;
    assert_eq!(
        (moved.runs_on, moved.failure.as_deref()),
        (RunningSide::Target, None)
    );
    let mut guest = console(&lab, 1).await;
    assert_eq!(guest.run("md5sum -c /run/sum").await, "/run/bulk: OK");

    let trace = moved.trace.clone().expect("it is traced");
    assert_eq!(lab.spans.traces(), BTreeSet::from([trace]));
    let root = lab.spans.named("migrate web");
    for (site, span) in lab.spans.ended() {
        assert_eq!(span.status, Status::Ok, "{site}: {}", span.name);
    }
    assert_notes_post_copy(&root);
    assert_order_of_post_copy(&lab);
}
