//! Snapshots and restores, restarts and fencing.
#![allow(missing_docs)]

mod mobility;

use mobility::{
    Lab,
    fake::{Step, Strike},
};
use p2pvm_vm_manager::{Error, checkpoint::RestoreOptions, host::VmState};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::sync::watch;

const FORCE: RestoreOptions = RestoreOptions { force: true };

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_paused_guest_waits_for_its_voters() {
    let mut lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    // It was fenced, which a full disk kept from being written down.
    lab.world.machine(vm, lab.me(0)).unwrap().hold();
    lab.kill_daemon(0);
    lab.up(0).await;
    lab.settles_on(vm, &[0], "still this host's").await;
    lab.world.machine(vm, lab.me(0)).unwrap().hold();
    lab.kill_daemon(0);
    let back = lab
        .host(3)
        .restore("web", "one", FORCE, &watch::Sender::default())
        .await
        .unwrap();
    lab.isolate(0, true);
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.world.running(vm), [lab.me(3)]);
    lab.assert_never_double("nobody could be asked");
    lab.isolate(0, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.world.running(vm), [lab.me(3)]);
    assert_eq!(lab.host(0).list()[0].state, VmState::Branch);
    lab.settles_on(vm, &[3], &format!("restored in {}", back.epoch))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_hosts_vm_comes_back_with_its_memory_only_by_force() {
    let mut lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.power_off(0);
    let back = lab.restore_by_force(4).await;
    assert_eq!(
        lab.world
            .machine(vm, lab.me(4))
            .unwrap()
            .memory
            .load(Ordering::SeqCst),
        42
    );
    assert_eq!(
        lab.peers.announced.lock().unwrap()[&vm],
        (back.epoch, lab.me(4))
    );
    // The dead host returns: its copy stays a branch and does not start.
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.world.running(vm), [lab.me(4)]);
    let listed = lab.host(0).list();
    assert_eq!(
        (listed[0].name.as_str(), listed[0].state),
        ("web-branch-e1", VmState::Branch)
    );
    lab.assert_never_double("restore");
    lab.host(0).delete("web-branch-e1").await.unwrap();
    assert!(lab.host(0).list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_restore_leaves_no_bytes_unless_it_has_the_epoch() {
    let mut lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let without = (1..5)
        .find(|i| lab.kept(*i) == (0, 0))
        .expect("two of four hold copies");
    lab.power_off(0);
    let (restoring, strike) = lab.restoring(without, FORCE, Step::Launch).await;
    assert_ne!(lab.kept(without), (0, 0));
    // It has the epoch by now: what came is what there is of the VM.
    strike.2.send(true).unwrap();
    restoring.await.unwrap().unwrap_err();
    assert_ne!(lab.kept(without), (0, 0));

    // Without its voters a restore fails after all its bytes have come.
    let lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let voters = lab.host(0).status("web").await.unwrap().definition.voters;
    let without = (1..5)
        .find(|i| lab.kept(*i) == (0, 0))
        .expect("two of four hold copies");
    for voter in (0..5).filter(|i| *i != without && voters.contains(&lab.me(*i))) {
        lab.net.set_cut(lab.me(voter), lab.me(without), true);
    }
    let failed = lab
        .host(without)
        .restore("web", "one", FORCE, &watch::Sender::default())
        .await
        .unwrap_err();
    assert!(lab.world.machine(vm, lab.me(without)).is_none(), "{failed}");
    lab.keeps_nothing(without, &failed.to_string()).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_holder_lets_go_what_members_kept_for_a_dead_one() {
    let mut lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let (without, replicas): (Vec<_>, Vec<_>) = (1..5).partition(|i| lab.kept(*i).0 == 0);
    assert_eq!(replicas.len(), 2);
    lab.power_off(0);
    let host = lab.host(without[0]);
    host.restore("web", "one", FORCE, &watch::Sender::default())
        .await
        .unwrap();
    host.delete_snapshot("web", "one").await.unwrap();
    for i in replicas {
        assert_eq!(lab.kept(i).0, 0, "member {i}");
    }
    assert_eq!(lab.kept(without[0]).0, 1, "its image");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_cut_off_freezes_its_copy_when_back() {
    let lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.isolate(0, true);
    let back = lab
        .host(3)
        .restore("web", "one", FORCE, &watch::Sender::default())
        .await
        .unwrap();
    lab.isolate(0, false);
    lab.host(0).stale_epoch(vm, back.epoch);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(lab.world.running(vm), [lab.me(3)]);
    assert_eq!(lab.host(0).list()[0].state, VmState::Branch);
    assert!(
        !lab.sites[0].port.attached.lock().unwrap().contains_key(&vm),
        "the branch has no port"
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_vm_is_not_restored_beside_itself() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    for options in [RestoreOptions::default(), FORCE] {
        let refused = lab
            .host(2)
            .restore("web", "one", options, &watch::Sender::default())
            .await
            .unwrap_err();
        assert!(
            matches!(&refused, Error::Refused(why) if why.contains("stop it first")),
            "{refused}"
        );
    }
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
    // Stopped, it is restored in place.
    lab.host(0).stop("web").await.unwrap();
    let back = lab
        .host(0)
        .restore(
            "web",
            "one",
            RestoreOptions::default(),
            &watch::Sender::default(),
        )
        .await
        .unwrap();
    assert_eq!(
        (back.state, lab.host(0).list().len()),
        (VmState::Running, 1)
    );
    assert_eq!(
        lab.world
            .machine(vm, lab.me(0))
            .unwrap()
            .memory
            .load(Ordering::SeqCst),
        42
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_restore_in_place_leaves_one_holder_and_a_branch() {
    let mut lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.host(0).stop("web").await.unwrap();
    let options = RestoreOptions::default();
    let (restoring, strike) = lab.restoring(0, options, Step::Launch).await;
    strike.2.send(true).unwrap();
    restoring.await.unwrap().unwrap_err();
    let states = |lab: &Lab| -> Vec<_> {
        let all = lab.host(0).list();
        all.into_iter().map(|vm| (vm.name, vm.state)).collect()
    };
    let expected = [
        ("web".to_owned(), VmState::Stopped),
        ("web-branch-e1".to_owned(), VmState::Branch),
    ];
    assert_eq!(states(&lab), expected);
    // Nor does a restart make the older copy a holder again.
    lab.kill_daemon(0);
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(states(&lab), expected);
    lab.host(0).start("web").await.unwrap();
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
    lab.host(0).delete("web-branch-e1").await.unwrap();
}

/// Kills member 0's daemon while a restore of "web" stands at `step`; the dead daemon's call never
/// returns.
async fn killed_in_a_restore(lab: &mut Lab, step: Step) -> Strike {
    let (_, strike) = lab.restoring(0, RestoreOptions::default(), step).await;
    lab.kill_daemon(0);
    strike
}

#[tokio::test(start_paused = true)]
async fn a_daemon_killed_after_a_restore_had_its_epoch_leaves_one_holder() {
    let mut lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.host(0).stop("web").await.unwrap();
    let _strike = killed_in_a_restore(&mut lab, Step::Launch).await;
    // As an earlier version wrote it: the older copy is a holder as well.
    let older = lab.sites[0]
        .dir
        .join("vms")
        .join(format!("{}-e1", vm.short()));
    let path = older.join("vm.json");
    let mut entry: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(entry["role"]["role"], "branch", "{entry}");
    entry["role"] = serde_json::json!({ "role": "held" });
    std::fs::write(&path, serde_json::to_vec(&entry).unwrap()).unwrap();
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let held: Vec<_> = lab.host(0).list();
    let held = held.iter().filter(|vm| vm.state != VmState::Branch);
    assert_eq!(held.count(), 1, "{:?}", lab.host(0).list());
    lab.host(0).start("web").await.unwrap();
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
}

/// What is listed on member 0.
fn listed(lab: &Lab) -> Vec<(String, VmState)> {
    let all = lab.host(0).list().into_iter();
    all.map(|vm| (vm.name, vm.state)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_daemon_killed_while_a_restore_writes_keeps_the_older_disk() {
    let mut lab = Lab::new(4).await;
    lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    lab.host(0).stop("web").await.unwrap();
    // The voters hold the VM confirmed for this host, in the epoch of the older copy.
    let _strike = killed_in_a_restore(&mut lab, Step::Rebase).await;
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(listed(&lab), [("web".to_owned(), VmState::Stopped)]);
    assert_eq!(lab.host(0).list()[0].epoch.0, 1, "the older copy");
    lab.host(0).start("web").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_a_restore_writes_the_name_means_the_held_copy() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    // Its directory sorts before that of the ninth epoch.
    for _ in 1..9 {
        lab.host(0).stop("web").await.unwrap();
        let options = RestoreOptions::default();
        let progress = watch::Sender::default();
        let back = lab.host(0).restore("web", "one", options, &progress).await;
        back.unwrap();
    }
    lab.host(0).stop("web").await.unwrap();
    let before = lab.host(0).status("web").await.unwrap();
    assert_eq!((before.epoch.0, before.state), (9, VmState::Stopped));
    let options = RestoreOptions::default();
    let (_restoring, strike) = lab.restoring(0, options, Step::Rebase).await;
    let during = lab.host(0).status("web").await.unwrap();
    assert_eq!((during.epoch.0, during.state), (9, VmState::Stopped));
    assert!(lab.world.machine(vm, lab.me(0)).is_none());
    strike.2.send(false).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_daemon_takes_its_guest_up_a_rebooted_host_boots_it() {
    let mut lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    lab.kill_daemon(0);
    lab.up(0).await;
    lab.settles_on(vm, &[0], "killed daemon").await;
    assert_eq!(
        lab.world
            .machine(vm, lab.me(0))
            .unwrap()
            .memory
            .load(Ordering::SeqCst),
        42,
        "the same guest"
    );
    lab.power_off(0);
    lab.up(0).await;
    lab.settles_on(vm, &[0], "rebooted host").await;
    lab.host(0).stop("web").await.unwrap();
    lab.power_off(0);
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        lab.host(0).list()[0].state,
        VmState::Stopped,
        "one that was stopped stays so"
    );
    lab.host(0).delete("web").await.unwrap();
    assert!(lab.host(1).record("web").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_vm_stopped_for_a_shutdown_starts_again_with_its_host() {
    let mut lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    lab.vm(0, "off").await;
    lab.host(0).stop("off").await.unwrap();
    let patience = Duration::from_secs(60);
    lab.host(0).stop_for_now("web", patience).await.unwrap();
    let state = |lab: &Lab| {
        lab.host(0)
            .list()
            .iter()
            .map(|vm| vm.state)
            .collect::<Vec<_>>()
    };
    assert_eq!(state(&lab), [VmState::Stopped; 2]);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(state(&lab), [VmState::Stopped; 2], "not before");
    lab.power_off(0);
    lab.up(0).await;
    lab.settles_on(vm, &[0], "booted host").await;
    assert_eq!(state(&lab), [VmState::Stopped, VmState::Running]);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_one_vms_in_the_whole_network() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let refused = lab
        .host(1)
        .create(lab.new_vm("web"), &watch::Sender::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, Error::Refused(why) if why.contains("already")),
        "{refused}"
    );
    assert!(lab.host(1).list().is_empty(), "nothing is left behind");
    let (all, silent) = lab.host(2).list_all().await;
    assert_eq!((all.len(), silent.len()), (1, 0));
}
