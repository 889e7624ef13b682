//! Guests that end by themselves: which are started again, how often, and what the VM's user sees.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_api::EventKind;
use p2pvm_overlay::VmId;
use p2pvm_vm_manager::{
    directory::RunGoal,
    host::{HostEvent, VmState},
    hypervisor::{Halt, Machine},
    protection::Restart,
};
use std::time::Duration;

/// Longer than the longest wait for a restart.
const LATER: Duration = Duration::from_secs(70);

async fn crash(lab: &Lab, vm: VmId) {
    let guest = lab.world.machine(vm, lab.me(0)).expect("a guest");
    guest.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_crashed_guest_runs_again_until_it_crashes_too_often() {
    let lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    let mut events = lab.host(0).events();
    // The five restarts are within ten minutes: their waits are 31 s together.
    for round in 0..5 {
        crash(&lab, vm).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let waiting = lab.host(0).status("web").await.unwrap();
        assert_eq!(
            (waiting.state, waiting.wanted),
            (VmState::Stopped, RunGoal::Running),
            "{round}"
        );
        assert!(waiting.note.unwrap().contains("starts again"), "{round}");
        tokio::time::sleep(LATER).await;
        assert_eq!(lab.world.running(vm), [lab.me(0)], "{round}");
        assert_eq!(lab.host(0).status("web").await.unwrap().note, None);
    }
    crash(&lab, vm).await;
    tokio::time::sleep(LATER).await;
    let given_up = lab.host(0).status("web").await.unwrap();
    assert_eq!(
        (given_up.state, given_up.wanted),
        (VmState::Stopped, RunGoal::Stopped)
    );
    assert!(given_up.note.unwrap().contains("'vm start'"));
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let HostEvent::Noted(noted) = event {
            told.push(noted.kind);
        }
    }
    let count = |kind: &EventKind| told.iter().filter(|told| *told == kind).count();
    let counts = [
        EventKind::GuestCrashed,
        EventKind::GuestRestarted,
        EventKind::GuestGivenUp,
    ];
    assert_eq!(counts.each_ref().map(count), [6, 5, 1], "{told:?}");
    // A person starts it: it gets its restarts again.
    lab.host(0).start("web").await.unwrap();
    crash(&lab, vm).await;
    tokio::time::sleep(LATER).await;
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
}

#[tokio::test(start_paused = true)]
async fn the_policy_says_which_guests_run_again() {
    for (policy, off, crashed) in [
        (Restart::Always, true, true),
        (Restart::OnFailure, false, true),
        (Restart::Never, false, false),
    ] {
        for (is_off, again) in [(true, off), (false, crashed)] {
            let lab = Lab::new(3).await;
            let vm = lab.vm(0, "web").await;
            let set = lab.host(0).set_restart("web", policy).await.unwrap();
            assert_eq!(set.restart, Some(policy));
            match is_off {
                true => lab
                    .world
                    .machine(vm, lab.me(0))
                    .unwrap()
                    .halt(Halt::PoweredOff),
                false => crash(&lab, vm).await,
            }
            tokio::time::sleep(LATER).await;
            let runs = !lab.world.running(vm).is_empty();
            assert_eq!(runs, again, "{policy:?}, off: {is_off}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_stopped_while_it_waits_stays_stopped() {
    let lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    crash(&lab, vm).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopped = lab.host(0).stop("web").await.unwrap();
    assert_eq!(stopped.note, None, "nothing starts it again");
    tokio::time::sleep(LATER).await;
    assert!(lab.world.running(vm).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_meanwhile_boots_a_waiting_vm() {
    let mut lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    crash(&lab, vm).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    lab.kill_daemon(0);
    lab.up(0).await;
    tokio::time::sleep(LATER).await;
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_guest_that_lacks_its_voters_is_not_given_up() {
    let lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    lab.isolate(0, true);
    crash(&lab, vm).await;
    // Longer than five restarts take.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let waiting = lab.host(0).status("web").await.unwrap();
    assert_eq!(
        (waiting.state, waiting.wanted),
        (VmState::Stopped, RunGoal::Running)
    );
    lab.isolate(0, false);
    tokio::time::sleep(LATER).await;
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
}
