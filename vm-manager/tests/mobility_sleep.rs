//! Time that passes while a machine sleeps or its daemon is dead, and what the guests here may do
//! afterwards.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, fake::Step};
use p2pvm_vm_manager::{
    host::{Activity, VmState, VmStatus},
    hypervisor::{Machine, RunState},
};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_target_that_slept_through_its_window_freezes_at_the_wake_up() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (_moving, strike) = lab.moving(Step::Resumed).await;
    let guest = lab.world.machine(vm, lab.me(1)).unwrap();
    // It runs, no voter has been told, and the lid is shut.
    lab.isolate(1, true);
    strike.2.send(false).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(*guest.watch().borrow(), RunState::Running);
    lab.sites[1].sleep.sleep(Duration::from_secs(60));
    let mut state = guest.watch();
    let frozen = state.wait_for(|state| *state == RunState::Paused);
    tokio::time::timeout(Duration::from_millis(10), frozen)
        .await
        .expect("at once")
        .unwrap();
    assert!(
        lab.sites[1].port.attached.lock().unwrap()[&vm].1,
        "its port too"
    );
    lab.settles_on(vm, &[0], "the source has it again").await;
    lab.isolate(1, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    lab.settles_on(vm, &[0], "and keeps it").await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_slept_before_it_was_whole_never_runs() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (_moving, strike) = lab.moving(Step::FinishIncoming).await;
    let mut handed_over = lab.trap(Step::HandedOver);
    strike.2.send(false).unwrap();
    let strike = handed_over.recv().await.unwrap();
    lab.sites[1].sleep.sleep(Duration::from_secs(60));
    strike.2.send(false).unwrap();
    lab.settles_on(vm, &[0], "the source goes on").await;
    lab.assert_never_double("slept");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ran_on_after_hand_over_is_held_after_restart() {
    let mut lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (_moving, _strike) = lab.moving(Step::HandedOver).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The daemon is killed after the target had all that matters, and QEMU's last write fails.
    lab.isolate(0, true);
    lab.kill_daemon(0);
    let guest = lab.world.machine(vm, lab.me(0)).unwrap();
    guest.runs_on();
    lab.settles_on(vm, &[1], "the target").await;
    lab.up(0).await;
    assert_eq!(*guest.watch().borrow(), RunState::Paused);
    assert_eq!(lab.host(0).list()[0].state, VmState::Doubtful);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(lab.world.running(vm), [lab.me(1)]);
    lab.isolate(0, false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    lab.settles_on(vm, &[1], "its voters say so").await;
    lab.assert_never_double("ran on");
}

#[tokio::test(start_paused = true)]
async fn many_vms_are_checked_at_a_time() {
    let lab = Lab::new(3).await;
    for i in 0..12 {
        lab.vm(0, &format!("vm{i}")).await;
    }
    let checking = || {
        let all = lab.host(0).list();
        let checking = |vm: &&_| {
            matches!(
                vm,
                VmStatus {
                    activity: Some(Activity::Checking),
                    ..
                }
            )
        };
        all.iter().filter(checking).count()
    };
    lab.isolate(0, true);
    // A round begins every twenty seconds; without voters each check takes seconds.
    let mut most = 0;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(checking());
    }
    assert_eq!(most, 12);
}
