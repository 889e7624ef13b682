//! VMs whose host is lost, cut off or hangs: at most one guest of each ever executes, and an heir
//! starts it unasked.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, fake::Step};
use p2pvm_overlay::VmId;
use p2pvm_vm_manager::{
    Error,
    checkpoint::RestoreOptions,
    host::{Shield, VmState},
    hypervisor::{Machine, MigrateOptions},
    protection::{Protection, Replace},
};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::sync::watch;

/// How long until a lost host's VM runs elsewhere at most: the host is silent for half a minute,
/// and its lease may have been renewed just before.
const HEALED: Duration = Duration::from_secs(120);

/// A lab of five whose member 0 runs the protected VM "web", of which two others are heirs.
async fn protected() -> (Lab, VmId) {
    let lab = Lab::guarded(5).await;
    let vm = lab.vm(0, "web").await;
    lab.take_snapshot(0).await;
    let heirs = lab.host(0).heirs(vm).len();
    for _ in 0..120 {
        if lab.host(0).shield("web") == Some(Shield::Leased) && lab.host(0).heirs(vm).len() == 2 {
            return (lab, vm);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{:?}, {heirs} heirs", lab.host(0).shield("web"));
}

/// The members that are heirs of the VM on member 0.
fn heirs(lab: &Lab, vm: VmId) -> Vec<usize> {
    let heirs = lab.host(0).heirs(vm);
    let is_heir = |i: &usize| heirs.contains(&lab.me(*i));
    (1..lab.sites.len()).filter(is_heir).collect()
}

/// Waits until a guest executes on one of `wanted`; at no time does more than one.
async fn heals(lab: &Lab, vm: VmId, wanted: &[usize]) -> usize {
    let half = Duration::from_millis(500);
    for _ in 0..HEALED.as_millis() / half.as_millis() {
        let runs = lab.world.executes(vm);
        assert!(runs.len() <= 1, "{runs:?}");
        if let Some(i) = wanted.iter().find(|i| runs == [lab.me(**i)]) {
            return *i;
        }
        tokio::time::sleep(half).await;
    }
    panic!("it executes on {:?}", lab.world.executes(vm));
}

#[tokio::test(start_paused = true)]
async fn a_dead_hosts_vm_runs_at_exactly_one_heir() {
    let (mut lab, vm) = protected().await;
    // Times of snapshots are of the wall clock, in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    // Two rounds later the newest replica has what the guest holds.
    tokio::time::sleep(Duration::from_secs(130)).await;
    let heirs = heirs(&lab, vm);
    lab.power_off(0);
    let heir = heals(&lab, vm, &heirs).await;
    lab.settles_on(vm, &[heir], "an heir").await;
    // It boots from the replica, which is newer than the snapshot and has no memory.
    let machine = lab.world.machine(vm, lab.me(heir)).unwrap();
    let disk = std::fs::read(&machine.spec().disk).unwrap();
    assert_eq!(disk, [b"disk ", &42u64.to_be_bytes()[..]].concat());
    let web = lab.host(heir).status("web").await.unwrap();
    assert!(web.note.unwrap().contains("was lost"), "and says so");
    // For a long time, the other heir looks on.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(heir)]);
    // The dead host returns.
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(heir)]);
    assert_eq!(lab.host(0).list()[0].state, VmState::Branch);
    lab.assert_never_double("healed");
    // It is protected there too, and an heir of it starts it again.
    assert_eq!(lab.host(heir).shield("web"), Some(Shield::Leased));
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_an_heir_starts_what_was_restored() {
    let (mut lab, vm) = protected().await;
    let machine = lab.world.machine(vm, lab.me(0)).unwrap();
    machine.memory.store(77, Ordering::SeqCst);
    // Times of snapshots are of the wall clock, in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    // The newest replica has what was done since the snapshot, and is given up with it.
    tokio::time::sleep(Duration::from_secs(130)).await;
    let heirs = heirs(&lab, vm);
    let (host, quiet) = (lab.host(0), watch::Sender::default());
    host.stop("web").await.unwrap();
    let restored = host.restore("web", "one", RestoreOptions::default(), &quiet);
    restored.await.unwrap();
    let record = lab.host(heirs[0]).record("web").await.unwrap();
    assert!(
        record.replica.is_some(),
        "it stays until there is a newer one"
    );
    lab.power_off(0);
    let heir = heals(&lab, vm, &heirs).await;
    let machine = lab.world.machine(vm, lab.me(heir)).unwrap();
    assert_eq!(machine.memory.load(Ordering::SeqCst), 42);
    lab.assert_never_double("after a restore");
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_hosts_guest_stands_before_an_heir_starts_it() {
    let (lab, vm) = protected().await;
    let heirs = heirs(&lab, vm);
    lab.isolate(0, true);
    let heir = heals(&lab, vm, &heirs).await;
    assert_ne!(heir, 0);
    let old = lab.host(0).status("web").await.unwrap();
    assert_eq!(old.state, VmState::Paused);
    assert!(old.note.unwrap().starts_with("frozen"));
    lab.isolate(0, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.host(0).list()[0].state, VmState::Branch);
    assert_eq!(lab.world.executes(vm), [lab.me(heir)]);
    // The guest that was frozen has ended: a branch keeps its disk alone.
    assert!(lab.world.machine(vm, lab.me(0)).is_none());
    lab.assert_never_double("cut off");
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_leaves_the_guest_where_it_is() {
    let (lab, vm) = protected().await;
    lab.isolate(0, true);
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(0)]);
    lab.isolate(0, false);
    for _ in 0..240 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(lab.world.executes(vm), [lab.me(0)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_frozen_by_a_cut_of_all_goes_on_after_it() {
    let (lab, vm) = protected().await;
    for i in 0..5 {
        lab.isolate(i, true);
    }
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert!(lab.world.executes(vm).is_empty());
    for i in 0..5 {
        lab.isolate(i, false);
    }
    heals(&lab, vm, &[0, 1, 2, 3, 4]).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(lab.world.executes(vm).len(), 1);
    lab.assert_never_double("a cut of all");
}

#[tokio::test(start_paused = true)]
async fn a_killed_daemons_guest_is_frozen_and_its_vm_runs_once() {
    let (mut lab, vm) = protected().await;
    let heirs = heirs(&lab, vm);
    lab.kill_daemon(0);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert!(lab.world.is_frozen(vm, lab.me(0)), "by the guardian alone");
    let heir = heals(&lab, vm, &heirs).await;
    // The daemon is back: the frozen guest stays so, and its copy is a branch.
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(heir)]);
    assert_eq!(lab.host(0).list()[0].state, VmState::Branch);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_keeps_its_guest_running() {
    let (mut lab, vm) = protected().await;
    for pause in [5, 15] {
        lab.kill_daemon(0);
        tokio::time::sleep(Duration::from_secs(pause)).await;
        lab.up(0).await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(lab.world.executes(vm), [lab.me(0)]);
        }
        assert_eq!(lab.host(0).shield("web"), Some(Shield::Leased));
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_guest_goes_on_when_its_restarted_daemon_may() {
    let (mut lab, vm) = protected().await;
    // No heir can be granted it: the voters are cut off from each other.
    for i in 1..5 {
        lab.isolate(i, true);
    }
    lab.kill_daemon(0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(lab.world.is_frozen(vm, lab.me(0)));
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(lab.world.is_frozen(vm, lab.me(0)), "nobody could be asked");
    for i in 1..5 {
        lab.isolate(i, false);
    }
    heals(&lab, vm, &[0, 1, 2, 3, 4]).await;
    lab.assert_never_double("a frozen guest");
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_voters_gives_nothing_away() {
    let (mut lab, vm) = protected().await;
    let voters = lab.host(0).status("web").await.unwrap().definition.voters;
    let others: Vec<_> = (1..5).filter(|i| voters.contains(&lab.me(*i))).collect();
    for i in &others {
        lab.kill_daemon(*i);
    }
    lab.isolate(0, true);
    for i in &others {
        lab.up(*i).await;
        lab.isolate(0, true);
    }
    heals(&lab, vm, &[1, 2, 3, 4]).await;
    lab.assert_never_double("voters restarted");
}

#[tokio::test(start_paused = true)]
async fn a_protected_vm_moves_and_is_protected_there() {
    let (lab, vm) = protected().await;
    let (options, progress) = (MigrateOptions::default(), watch::Sender::default());
    let (host, to) = (lab.host(0), lab.me(1));
    let moved = host.migrate("web", to, options, progress).await.unwrap();
    assert_eq!(moved.failure, None);
    lab.settles_on(vm, &[1], "moved").await;
    assert_eq!(lab.host(1).shield("web"), Some(Shield::Leased));
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(lab.world.executes(vm), [lab.me(1)]);
    }
    lab.assert_never_double("moved under a lease");
}

#[tokio::test(start_paused = true)]
async fn an_heir_follows_its_vm_to_a_host_that_told_nobody() {
    let (mut lab, vm) = protected().await;
    let heirs = heirs(&lab, vm);
    let new = (1..5).find(|i| !heirs.contains(i)).unwrap();
    let (host, to) = (lab.host(0), lab.me(new));
    let moving = tokio::spawn(async move {
        let (options, progress) = (MigrateOptions::default(), watch::Sender::default());
        host.migrate("web", to, options, progress).await
    });
    // Its host dies in the moment in which it has the VM: no record and no heir knows of it.
    for _ in 0..60_000 {
        let there = lab.host(new).list();
        if there.iter().any(|one| one.state == VmState::Running) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lab.power_off(new);
    let _ = moving.await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // The former host answers, and does not have the VM.
    let heir = heals(&lab, vm, &heirs).await;
    lab.settles_on(vm, &[heir], "an heir of the new host").await;
    assert!(
        lab.host(0)
            .list()
            .iter()
            .all(|one| one.state == VmState::Branch)
    );
    lab.assert_never_double("a host that told nobody");
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_the_middle_of_a_move_leaves_one_guest() {
    for step in [Step::Ram, Step::Paused, Step::SwitchOver, Step::HandedOver] {
        let (lab, vm) = protected().await;
        let (moving, strike) = lab.moving(step).await;
        lab.isolate(0, true);
        let _ = strike.2.send(false);
        let running = heals(&lab, vm, &[1, 2, 3, 4]).await;
        lab.isolate(0, false);
        let _ = moving.await;
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(
            lab.world.executes(vm).len(),
            1,
            "{step:?}, first on {running}"
        );
        lab.assert_never_double(&format!("{step:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_asks_waits_for_a_person() {
    let (mut lab, vm) = protected().await;
    let asks = Protection {
        replace: Replace::Ask,
        ..lab.host(0).protection("web").unwrap()
    };
    lab.host(0).protect("web", asks).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let heirs = heirs(&lab, vm);
    let heir = heirs[0];
    let early = lab.host(heir).take_over_vm("web", &[]).await.unwrap_err();
    assert!(matches!(early, Error::Agreement { .. }), "{early}");
    lab.power_off(0);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(lab.world.executes(vm).is_empty());
    lab.host(heir).take_over_vm("web", &[]).await.unwrap();
    assert_eq!(lab.world.executes(vm), [lab.me(heir)]);
}

#[tokio::test(start_paused = true)]
async fn with_two_members_a_vm_says_that_it_is_not_protected() {
    let lab = Lab::guarded(2).await;
    let vm = lab.vm(0, "web").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let Some(Shield::Bare(why)) = lab.host(0).shield("web") else {
        panic!("{:?}", lab.host(0).shield("web"));
    };
    assert!(why.contains("1 voter"), "{why}");
    lab.isolate(0, true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(0)], "and it runs on");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_vm_of_a_dead_host_stays_stopped() {
    let (mut lab, vm) = protected().await;
    lab.host(0).stop("web").await.unwrap();
    lab.power_off(0);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(lab.world.executes(vm).is_empty());
}

#[tokio::test(start_paused = true)]
async fn protection_that_is_turned_off_ends_the_lease() {
    let (mut lab, vm) = protected().await;
    let off = Protection {
        protect: p2pvm_vm_manager::protection::Protect::Off,
        ..Protection::default()
    };
    lab.host(0).protect("web", off).await.unwrap();
    assert!(matches!(lab.host(0).shield("web"), Some(Shield::Bare(_))));
    lab.isolate(0, true);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(lab.world.executes(vm), [lab.me(0)]);
    lab.isolate(0, false);
    lab.power_off(0);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(lab.world.executes(vm).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_heir_whose_first_start_fails_starts_it_again() {
    let (mut lab, vm) = protected().await;
    let heirs = heirs(&lab, vm);
    let mut launches = lab.trap(Step::Launch);
    lab.power_off(0);
    let (_, heir, fails) = tokio::time::timeout(HEALED, launches.recv())
        .await
        .unwrap()
        .unwrap();
    fails.send(true).unwrap();
    let runs = heals(&lab, vm, &heirs).await;
    assert_eq!(lab.me(runs), heir, "it has the epoch");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(lab.world.executes(vm), [heir]);
    lab.assert_never_double("a start that failed");
}

#[tokio::test(start_paused = true)]
async fn an_heir_whose_daemon_dies_at_the_start_starts_it() {
    let (mut lab, vm) = protected().await;
    let mut launches = lab.trap(Step::Launch);
    lab.power_off(0);
    let (_, heir, fails) = tokio::time::timeout(HEALED, launches.recv())
        .await
        .unwrap()
        .unwrap();
    let dead = (1..5).find(|i| lab.me(*i) == heir).unwrap();
    lab.kill_daemon(dead);
    drop(fails);
    tokio::time::sleep(Duration::from_secs(10)).await;
    lab.up(dead).await;
    heals(&lab, vm, &[1, 2, 3, 4]).await;
    lab.assert_never_double("an heir that was killed");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_protects_no_more_leaves_its_guests_running() {
    let (mut lab, vm) = protected().await;
    lab.kill_daemon(0);
    lab.options.protects = false;
    lab.up(0).await;
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(lab.world.executes(vm), [lab.me(0)]);
    }
    assert!(matches!(lab.host(0).shield("web"), Some(Shield::Bare(_))));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_froze_after_a_restart_has_its_port_again() {
    let (mut lab, vm) = protected().await;
    for i in 1..5 {
        lab.isolate(i, true);
    }
    // Its daemon is back before the freeze, and can ask nobody until after it.
    lab.kill_daemon(0);
    tokio::time::sleep(Duration::from_secs(5)).await;
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(lab.world.is_frozen(vm, lab.me(0)));
    for i in 1..5 {
        lab.isolate(i, false);
    }
    if heals(&lab, vm, &[0, 1, 2, 3, 4]).await == 0 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let attached = lab.sites[0].port.attached.lock().unwrap();
        assert!(attached.get(&vm).is_some_and(|(_, frozen)| !frozen));
    }
}
