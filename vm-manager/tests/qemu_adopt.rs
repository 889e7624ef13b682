//! A daemon that is killed in the middle of something, and the next one, with real QEMU processes.

mod support;

use p2pvm_vm_manager::{
    Error,
    hypervisor::{Hypervisor, MachineSpec, MigrateOptions, Progress, RunState, Start},
    qemu::Qemu,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use support::{Guest, Host, PATIENCE, image};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// Too slow for a migration to end.
const SLOW: MigrateOptions = MigrateOptions {
    post_copy: false,
    max_downtime: Duration::from_millis(100),
    bandwidth: 1 << 20,
};

/// Carries a stream to the socket `to` as a daemon does, until a quarter of a MiB has gone there;
/// then it hangs.
fn hanging_after_a_while(at: &Path, to: PathBuf) -> JoinHandle<()> {
    let listener = UnixListener::bind(at).unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let target = UnixStream::connect(to).await.unwrap();
        let ((from_client, mut to_client), (mut from_target, mut to_target)) =
            (client.into_split(), target.into_split());
        let mut some = from_client.take(256 << 10);
        let there = tokio::io::copy(&mut some, &mut to_target);
        let back = tokio::io::copy(&mut from_target, &mut to_client);
        let _ = tokio::join!(there, back);
        std::future::pending().await
    })
}

/// How far a move had come when its source's daemon was killed.
const STEPS: [&str; 6] = [
    "half the disk",
    "disk",
    "ram",
    "paused",
    "target dead",
    "handed over",
];

/// Sends RAM until the guest is paused.
async fn send_ram(source: &Guest, ram: &Path) {
    source
        .machine
        .migrate_until_paused(ram, MigrateOptions::default(), &watch::Sender::default())
        .await
        .unwrap();
}

/// Takes a move up to `step`; the daemon dies then, and with it what carries the streams.
async fn move_until_killed(step: &str, host: &Host, source: Guest, target: &Guest) {
    let sockets = target.machine.incoming().await.unwrap();
    let tx = watch::Sender::default();
    let mirror = async |disk: &Path| source.machine.mirror(disk, &sockets.export, &tx).await;
    let mut network = None;
    if step == "half the disk" {
        let proxy = host.dir.path().join("proxy");
        network = Some(hanging_after_a_while(&proxy, sockets.disk.clone()));
        tokio::time::timeout(Duration::from_secs(1), mirror(&proxy))
            .await
            .unwrap_err();
    } else {
        mirror(&sockets.disk).await.unwrap();
    }
    match step {
        "ram" => {
            let sending = source.machine.migrate_until_paused(&sockets.ram, SLOW, &tx);
            tokio::time::timeout(Duration::from_secs(1), sending)
                .await
                .unwrap_err();
        }
        "paused" | "target dead" | "handed over" => send_ram(&source, &sockets.ram).await,
        _ => {}
    }
    if step == "handed over" {
        source.machine.switch_over().await.unwrap();
    }
    source.forget();
    if let Some(network) = network {
        network.abort();
    }
    if step == "target dead" {
        target.machine.kill().await.unwrap();
    }
}

/// The next daemon takes the guest up as the move left it, and gives the move up.
async fn take_up(step: &str, host: &Host, spec: &MachineSpec) -> Guest {
    let mut source = host.adopt(spec).await;
    let stands = matches!(step, "paused" | "target dead" | "handed over");
    let expected = if stands {
        RunState::Paused
    } else {
        RunState::Running
    };
    assert_eq!(*source.machine.watch().borrow(), expected, "{step}");
    assert_eq!(
        source.machine.may_be_handed_over().await.unwrap(),
        step == "handed over",
        "{step}"
    );
    let tx = watch::Sender::default();
    let refused = source.machine.checkpoint(host.dir.path(), &tx).await;
    assert!(
        matches!(refused, Err(Error::Refused(_))),
        "{step}: {refused:?}"
    );
    give_up(step, &source).await;
    let mut state = source.machine.watch();
    state.wait_for(|s| *s == RunState::Running).await.unwrap();
    let command = format!("echo '{step}' > /data/step; sync; cat /data/step /run/mark");
    assert_eq!(source.run(&command).await, format!("{step}\nremembered"));
    source
}

async fn give_up(step: &str, source: &Guest) {
    let given_up = source.machine.cancel_migration().await;
    given_up.unwrap_or_else(|e| panic!("{step}: {e:?}"));
}

/// Moves the guest with its memory and disk whole.
async fn move_whole(image: &Path, hosts: &[Host; 2], source: &Guest) -> Guest {
    let spec = hosts[1].spec(21, image).await;
    let target = hosts[1].qemu.launch(&spec, Start::Incoming).await.unwrap();
    let mut target = Guest::of(target).await;
    let sockets = target.machine.incoming().await.unwrap();
    let tx = watch::Sender::default();
    source
        .machine
        .mirror(&sockets.disk, &sockets.export, &tx)
        .await
        .unwrap();
    send_ram(source, &sockets.ram).await;
    source.machine.switch_over().await.unwrap();
    target.machine.finish_incoming().await.unwrap();
    target.machine.resume().await.unwrap();
    source.machine.kill().await.unwrap();
    assert_eq!(
        target.run("cat /run/mark /data/step").await,
        "remembered\nhanded over"
    );
    target
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_daemon_died_can_be_given_up_and_repeated() {
    let Some(image) = image("a_move_whose_daemon_died_can_be_given_up_and_repeated") else {
        return;
    };
    let hosts = [Host::new(), Host::new()];
    let mut source = hosts[0].boot(21, &image).await;
    let spec = source.machine.spec().clone();
    source
        .run(
            "echo remembered > /run/mark; dd if=/dev/urandom of=/data/bulk bs=1M count=4; \
        sync; md5sum /data/bulk > /run/sum",
        )
        .await;
    for step in STEPS {
        let theirs = hosts[1].spec(21, &image).await;
        let target = hosts[1].qemu.launch(&theirs, Start::Incoming).await;
        let target = Guest::of(target.unwrap()).await;
        move_until_killed(step, &hosts[0], source, &target).await;
        source = take_up(step, &hosts[0], &spec).await;
        let _ = target.machine.kill().await;
        std::fs::remove_file(&theirs.disk).unwrap();
        // What was given up is over for good: one more daemon finds nothing, and gives up nothing.
        source.forget();
        source = hosts[0].adopt(&spec).await;
        give_up(&format!("{step}, once more"), &source).await;
    }

    // Held by its user, it is not let go by a daemon that has no move to give up.
    source.machine.pause().await.unwrap();
    source.forget();
    source = hosts[0].adopt(&spec).await;
    source.machine.cancel_migration().await.unwrap();
    assert_eq!(*source.machine.watch().borrow(), RunState::Paused);
    source.machine.resume().await.unwrap();

    let mut target = move_whole(&image, &hosts, &source).await;
    assert_eq!(
        target
            .run("echo 1 > /proc/sys/vm/drop_caches; md5sum -c /run/sum")
            .await,
        "/data/bulk: OK"
    );
    assert_eq!(target.run("dmesg | grep -c 'I/O error'").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_whose_daemon_died_does_not_hinder_the_next() {
    let Some(image) = image("a_checkpoint_whose_daemon_died_does_not_hinder_the_next") else {
        return;
    };
    let host = Host::new();
    let mut guest = host.boot(22, &image).await;
    let spec = guest.machine.spec().clone();
    guest.run("dirty 48 600").await;
    let dir = host.dir.path().join("checkpoint");
    // A daemon's work ends with its runtime.
    let daemon = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    guest.forget();
    let (tx, mut rx) = watch::channel(Progress::default());
    let (state, taken, into) = (host.dir.path().to_owned(), spec.clone(), dir.clone());
    daemon.spawn(async move {
        let qemu = Qemu::new(state, Some(p2pvm_vm_manager::hypervisor::Accel::Tcg), None);
        let machine = qemu.adopt(&taken).await.unwrap().unwrap();
        machine.checkpoint(&into, &tx).await.unwrap();
    });
    rx.wait_for(|p| p.phase == "ram").await.unwrap();
    daemon.shutdown_background();

    let mut guest = host.adopt(&spec).await;
    if *guest.machine.watch().borrow() == RunState::Paused {
        guest.machine.resume().await.unwrap();
    }
    let (tx, _rx) = watch::channel(Progress::default());
    guest.machine.checkpoint(&dir, &tx).await.unwrap();
    assert_eq!(guest.run("echo runs on").await, "runs on");
    guest.machine.stop(PATIENCE).await.unwrap();
}
