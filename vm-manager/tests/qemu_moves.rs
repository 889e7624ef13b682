//! Moves and checkpoints of real guests between two drivers on this machine, over loopback.

mod support;

use p2pvm_vm_manager::hypervisor::{Hypervisor, MigrateOptions, Progress, RunState, Start};
use std::{path::Path, time::Duration};
use support::{Guest, Host, PATIENCE, image};
use tokio::sync::watch;

/// A guest that writes to its disk and to memory, and a target that waits for it.
async fn ready_to_move(vm: u8, image: &Path, hosts: &[Host; 2]) -> (Guest, Guest) {
    let mut source = hosts[0].boot(vm, image).await;
    source
        .run(
            "echo before > /data/mark; dd if=/dev/urandom of=/data/bulk bs=1M count=4; sync; \
            md5sum /data/bulk > /run/sum; dirty 4 600",
        )
        .await;
    let target = hosts[1]
        .qemu
        .launch(&hosts[1].spec(vm, image).await, Start::Incoming)
        .await
        .unwrap();
    assert_eq!(*target.watch().borrow(), RunState::Incoming);
    (source, Guest::of(target).await)
}

fn progress() -> (watch::Sender<Progress>, watch::Receiver<Progress>) {
    watch::channel(Progress::default())
}

async fn moves(vm: u8, image: &Path, options: MigrateOptions) {
    let hosts = [Host::new(), Host::new()];
    let (mut source, mut target) = ready_to_move(vm, image, &hosts).await;
    let (tx, rx) = progress();
    let sockets = target.machine.incoming().await.unwrap();
    assert_eq!(
        sockets,
        target.machine.incoming().await.unwrap(),
        "asking again changes nothing"
    );
    source
        .machine
        .mirror(&sockets.disk, &sockets.export, &tx)
        .await
        .unwrap();
    assert!(
        rx.borrow().phase == "disk" && rx.borrow().total_bytes >= 4 << 20,
        "{:?}",
        rx.borrow()
    );
    source.run("echo mirrored > /data/mark; sync").await;
    source
        .machine
        .migrate_until_paused(&sockets.ram, options, &tx)
        .await
        .unwrap();
    let ((), report) = tokio::join!(
        async {
            target.machine.finish_incoming().await.unwrap();
            target.machine.resume().await.unwrap();
        },
        source.machine.switch_over()
    );
    let report = report.unwrap();
    assert!(report.ram_bytes > 1 << 20);
    assert_eq!(*source.machine.watch().borrow(), RunState::Paused);
    source.machine.kill().await.unwrap();
    assert_eq!(target.run("cat /data/mark").await, "mirrored");
    assert_eq!(
        target
            .run("echo 1 > /proc/sys/vm/drop_caches; md5sum -c /run/sum")
            .await,
        "/data/bulk: OK"
    );
    assert_eq!(
        target
            .run("echo after > /data/mark; sync; cat /data/mark")
            .await,
        "after"
    );
    assert_eq!(target.run("dmesg | grep -c 'I/O error'").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_with_its_disk_and_memory() {
    let Some(image) = image("a_guest_moves_with_its_disk_and_memory") else {
        return;
    };
    moves(11, &image, MigrateOptions::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_by_post_copy() {
    let Some(image) = image("a_guest_moves_by_post_copy") else {
        return;
    };
    // A stop too short to be planned for keeps pre-copy from ending.
    let options = MigrateOptions {
        post_copy: true,
        max_downtime: Duration::from_millis(1),
        bandwidth: 64 << 20,
    };
    moves(12, &image, options).await;
}

/// Takes a move up to `step`, and loses the target where the step says so.
async fn move_up_to(step: &str, source: &Guest, target: &Guest) {
    let (tx, _rx) = progress();
    let sockets = target.machine.incoming().await.unwrap();
    let (from, to) = (&source.machine, &target.machine);
    if step != "nothing" {
        from.mirror(&sockets.disk, &sockets.export, &tx)
            .await
            .unwrap();
    }
    match step {
        "disk lost" => to.kill().await.unwrap(),
        "ram" => {
            // Too slow to end; its caller loses patience.
            let options = MigrateOptions {
                bandwidth: 1 << 20,
                ..MigrateOptions::default()
            };
            let sending = from.migrate_until_paused(&sockets.ram, options, &tx);
            tokio::time::timeout(Duration::from_secs(1), sending)
                .await
                .unwrap_err();
        }
        "paused" | "target dead" | "handed over" => {
            from.migrate_until_paused(&sockets.ram, MigrateOptions::default(), &tx)
                .await
                .unwrap();
            let mut state = from.watch();
            state.wait_for(|s| *s == RunState::Paused).await.unwrap();
        }
        _ => {}
    }
    match step {
        "target dead" => {
            to.kill().await.unwrap();
            let _ = from.switch_over().await;
        }
        "handed over" => {
            from.switch_over().await.unwrap();
            to.kill().await.unwrap();
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_given_up_at_any_step_leaves_the_guest_running_here() {
    let Some(image) = image("a_move_given_up_at_any_step_leaves_the_guest_running_here") else {
        return;
    };
    let hosts = [Host::new(), Host::new()];
    let mut source = hosts[0].boot(13, &image).await;
    for step in [
        "nothing",
        "disk",
        "disk lost",
        "ram",
        "paused",
        "target dead",
        "handed over",
    ] {
        let spec = hosts[1].spec(13, &image).await;
        let target = hosts[1].qemu.launch(&spec, Start::Incoming).await.unwrap();
        let target = Guest::of(target).await;
        move_up_to(step, &source, &target).await;
        source
            .machine
            .cancel_migration()
            .await
            .unwrap_or_else(|e| panic!("{step}: {e:?}"));
        assert_eq!(
            source
                .run(&format!("echo '{step}' > /data/step; sync; cat /data/step"))
                .await,
            step
        );
        source
            .machine
            .watch()
            .wait_for(|s| *s == RunState::Running)
            .await
            .unwrap();
        let _ = target.machine.kill().await;
        std::fs::remove_file(&spec.disk).unwrap();
    }
    source.machine.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_one_instant_of_ram_and_disk() {
    let Some(image) = image("a_checkpoint_is_one_instant_of_ram_and_disk") else {
        return;
    };
    let host = Host::new();
    let mut guest = host.boot(14, &image).await;
    // Memory and disk carry the same count, written again and again.
    guest
        .run(
            "dirty 16 600; (n=0; while :; do n=$((n+1)); echo $n >> /run/count; echo $n >> \
        /data/count; sync; done) 2>/dev/null >/dev/null & true",
        )
        .await;
    let (tx, _rx) = progress();
    let dir = host.dir.path().join("checkpoint");
    for _ in 0..2 {
        guest.machine.checkpoint(&dir, &tx).await.unwrap();
        assert_eq!(*guest.machine.watch().borrow(), RunState::Running);
    }
    guest.machine.kill().await.unwrap();
    drop(guest);

    let mut spec = host.spec(14, &image).await;
    spec.disk = dir.join("disk.qcow2");
    let machine = host
        .qemu
        .launch(&spec, Start::Checkpoint(dir.join("ram")))
        .await
        .unwrap();
    assert_eq!(*machine.watch().borrow(), RunState::Paused);
    let mut guest = Guest::of(machine).await;
    guest.machine.resume().await.unwrap();
    guest.run("kill %1").await;
    let counts = guest
        .run("echo 1 > /proc/sys/vm/drop_caches; tail -n 1 /run/count; tail -n 1 /data/count")
        .await;
    let counts: Vec<u64> = counts.lines().map(|l| l.parse().unwrap()).collect();
    assert!(
        counts[0].abs_diff(counts[1]) <= 1,
        "memory and disk are of different instants: {counts:?}"
    );
    assert_eq!(guest.run("dmesg | grep -ci 'error'").await, "0");
    guest.machine.stop(PATIENCE).await.unwrap();
}
