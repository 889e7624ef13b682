//! A guest's life on one host, with real QEMU processes.

mod support;

use p2pvm_vm_manager::{
    Error,
    hypervisor::{Accel, Hypervisor, RunState, Start},
    qemu::{Probe, Qemu},
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    time::Duration,
};
use support::{Guest, Host, PATIENCE, READY, image};

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_is_taken_up_again_and_powers_down() {
    let Some(image) = image("a_guest_boots_is_taken_up_again_and_powers_down") else {
        return;
    };
    let host = Host::new();
    let mut guest = host.boot(1, &image).await;
    let spec = guest.machine.spec().clone();
    assert_eq!(
        guest.run("cat /sys/class/net/eth0/address").await,
        "02:00:00:00:00:01"
    );
    assert_eq!(guest.run("cat /sys/class/net/eth0/mtu").await, "1340");
    assert_eq!(*guest.machine.watch().borrow(), RunState::Running);
    let stats = guest.machine.stats().await.unwrap();
    assert!(
        stats.cpu_time > Duration::from_millis(300) && stats.resident_bytes > 64 << 20,
        "{stats:?}"
    );
    assert!(
        matches!(
            host.qemu.launch(&spec, Start::Boot).await,
            Err(Error::Refused(_))
        ),
        "twice in one place"
    );
    assert!(
        matches!(guest.machine.console().await, Err(Error::Refused(_))),
        "two readers"
    );

    guest.machine.pause().await.unwrap();
    guest
        .machine
        .watch()
        .wait_for(|s| *s == RunState::Paused)
        .await
        .unwrap();
    guest.machine.resume().await.unwrap();

    // The daemon goes; the guest stays; another daemon finds it, console and all.
    guest.forget();
    let mut guest = host.adopt(&spec).await;
    assert_eq!(guest.run("echo still here").await, "still here");

    guest.machine.stop(PATIENCE).await.unwrap();
    assert_eq!(*guest.machine.watch().borrow(), RunState::Stopped);
    assert!(host.qemu.adopt(&spec).await.unwrap().is_none());
    assert!(
        !fs::exists(format!("/sys/class/net/{}", spec.tap)).unwrap(),
        "the TAP goes with the guest"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_guest_boots_when_resumed_and_goes_on_after_a_freeze() {
    let Some(image) = image("a_held_guest_boots_when_resumed_and_goes_on_after_a_freeze") else {
        return;
    };
    let host = Host::new();
    let spec = host.spec(3, &image).await;
    let machine = host.qemu.launch(&spec, Start::Held).await.unwrap();
    let mut guest = Guest::of(machine).await;
    assert_eq!(*guest.machine.watch().borrow(), RunState::Paused);
    let process = guest.machine.guarded().unwrap();
    assert_eq!(host.qemu.guarded(&spec), Some(process.clone()));
    let input = fs::read_link(format!("/proc/{}/fd/0", process.pid)).unwrap();
    assert!(input.to_string_lossy().starts_with("pipe:"), "{input:?}");

    guest.machine.resume().await.unwrap();
    guest.until(READY).await;
    let Some(freeze) = process.freeze else {
        println!("NOT RUN: there is no version 2 control group");
        return;
    };
    fs::write(&freeze, "1").unwrap();
    let events = freeze.with_file_name("cgroup.events");
    let is_frozen = || fs::read_to_string(&events).unwrap().contains("frozen 1");
    for _ in 0..1000 {
        if is_frozen() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_frozen());
    fs::write(&freeze, "0").unwrap();
    assert_eq!(guest.run("echo on").await, "on");
    // A frozen guest's process can be ended, and its group goes.
    fs::write(&freeze, "1").unwrap();
    guest.machine.kill().await.unwrap();
    assert!(!freeze.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_jailed() {
    let Some(image) = image("a_guest_is_jailed") else {
        return;
    };
    let host = Host::new();
    let machine = host
        .qemu
        .launch(&host.spec(2, &image).await, Start::Boot)
        .await
        .unwrap();
    let guest = Guest::of(machine).await;
    let run_dir = &guest.machine.spec().run_dir;
    let pid = fs::read_to_string(run_dir.join("qemu.pid"))
        .unwrap()
        .trim()
        .to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_ne!(field("Uid:").split_ascii_whitespace().next(), Some("0"));
    assert_eq!(field("Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let net = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).unwrap();
    assert_ne!(net(&pid), net("self"));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    if fs::exists("/sys/fs/cgroup/memory/p2pvm").unwrap() {
        assert!(
            groups.lines().any(|l| l.contains(":memory:/p2pvm/")),
            "{groups}"
        );
    }
    if fs::exists("/sys/fs/cgroup/unified/p2pvm").unwrap() {
        assert!(
            groups.lines().any(|l| l.starts_with("0::/p2pvm/")),
            "{groups}"
        );
    }
    // Nothing in its run directory, nor the directory, can be changed by its user.
    let found = fs::metadata(run_dir).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o710));
    for name in [
        "qemu.pid",
        "qemu.log",
        "console.log",
        "qmp.sock",
        "console.sock",
    ] {
        let found = fs::symlink_metadata(run_dir.join(name)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600), "{name}");
    }
    guest.machine.kill().await.unwrap();
    assert_eq!(*guest.machine.watch().borrow(), RunState::Stopped);
}

/// A guest of a version that gave it the run directory, which has broken out and put links there.
#[tokio::test(flavor = "multi_thread")]
async fn links_in_a_run_directory_lead_the_daemon_nowhere() {
    let Some(image) = image("links_in_a_run_directory_lead_the_daemon_nowhere") else {
        return;
    };
    let host = Host::new();
    let guest = host.boot(5, &image).await;
    let spec = guest.machine.spec().clone();
    guest.forget();
    let precious = host.dir.path().join("precious");
    fs::write(&precious, vec![b'x'; 5 << 20]).unwrap();
    let group = fs::metadata(&spec.run_dir).unwrap().gid();
    chown(&spec.run_dir, Some(group), Some(group)).unwrap();
    fs::set_permissions(&spec.run_dir, fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["console.log", "qemu.log"] {
        fs::remove_file(spec.run_dir.join(name)).unwrap();
        symlink(&precious, spec.run_dir.join(name)).unwrap();
    }
    let mut guest = host.adopt(&spec).await;
    assert_eq!(fs::metadata(&spec.run_dir).unwrap().uid(), 0);
    assert_eq!(guest.run("echo still here").await, "still here");
    guest.machine.kill().await.unwrap();
    symlink(&precious, spec.run_dir.join("relay.log")).unwrap();
    let machine = host.qemu.launch(&spec, Start::Boot).await.unwrap();
    let guest = Guest::of(machine).await;
    assert_eq!(precious.metadata().unwrap().len(), 5 << 20);
    guest.machine.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(image) = image("a_guest_that_cannot_start_says_why_and_leaves_nothing") else {
        return;
    };
    let host = Host::new();
    let mut spec = host.spec(3, &image).await;
    spec.memory_mib = 1 << 40;
    let error = host.qemu.launch(&spec, Start::Boot).await.err().unwrap();
    assert!(
        matches!(&error, Error::Hypervisor { step: "start QEMU", detail } if detail.len() > 20),
        "{error}"
    );
    assert!(host.qemu.adopt(&spec).await.unwrap().is_none());
    fs::write(host.dir.path().join("broken"), b"not a checkpoint").unwrap();
    spec.memory_mib = 128;
    let error = host
        .qemu
        .launch(&spec, Start::Checkpoint(host.dir.path().join("broken")))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::Hypervisor { .. }), "{error}");
    assert!(host.qemu.adopt(&spec).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_used_only_if_a_guest_runs_on_it() {
    let Some(image) = image("kvm_is_used_only_if_a_guest_runs_on_it") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let probe = || {
        Some(Probe::Image {
            path: image.clone(),
            says: support::READY.into(),
        })
    };
    let accel = Qemu::new(dir.path(), None, probe()).accel().await.unwrap();
    println!("this host's guests run on {accel:?}");
    let begun = std::time::Instant::now();
    assert_eq!(
        Qemu::new(dir.path(), None, probe()).accel().await.unwrap(),
        accel
    );
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "the verdict is kept"
    );
    if !fs::exists("/dev/kvm").unwrap() {
        assert_eq!(accel, Accel::Tcg);
    }
    // What was found does run a guest.
    let host = Host {
        qemu: Qemu::new(dir.path(), None, probe()),
        dir,
    };
    host.boot(4, &image).await;
}
