//! Moves that are cancelled, or that end with their guest; guests that stand still on a full disk:
//! nothing is lost, and every answer is true.
#![allow(missing_docs)]

mod mobility;

use mobility::{
    Lab, Moving,
    fake::{Step, Strike},
};
use p2pvm_overlay::VmId;
use p2pvm_vm_manager::{
    directory::RunGoal,
    host::VmState,
    hypervisor::{Halt, Machine, MigrateOptions},
    migrate::{Occasion, RunningSide},
    protection::Restart,
};
use std::time::Duration;
use tokio::sync::watch;

/// The steps at which the guest runs at the source.
const BEFORE: [Step; 3] = [Step::Launch, Step::Mirror, Step::Ram];

/// A move of "web" from 0 to 1, whose target is called lyon, that stands at `step`.
async fn moving(lab: &Lab, step: Step) -> (Moving, Strike) {
    let why = Occasion {
        called: Some("lyon".into()),
        ..Occasion::default()
    };
    lab.moving_because(why, step).await
}

/// The VM is nowhere but where it was.
async fn nothing_half_made(lab: &Lab, vm: VmId, context: &str) {
    for _ in 0..100 {
        if lab.host(1).list().is_empty() && lab.world.machine(vm, lab.me(1)).is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("{context}: {:?}", lab.host(1).list());
}

#[tokio::test(start_paused = true)]
async fn a_move_ended_at_any_step_leaves_its_guest_where_it_was() {
    for step in BEFORE {
        let lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        let (moving, _strike) = moving(&lab, step).await;
        let began = tokio::time::Instant::now();
        lab.host(0).cancel_migration("web").await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{step:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(lab.world.running(vm), [lab.me(0)], "{step:?}");
        assert!(
            lab.sites[0].port.leaving.lock().unwrap().is_empty(),
            "{step:?}: the guest gets its packets again"
        );
        let outcome = moving.await.unwrap().unwrap();
        assert!(
            outcome.cancelled && outcome.runs_on == RunningSide::Source,
            "{step:?}: {outcome:?}"
        );
        nothing_half_made(&lab, vm, &format!("{step:?}")).await;
        lab.keeps_nothing(1, &format!("{step:?}")).await;
        assert_eq!(lab.kept(0), (1, 1), "the VM here uses it");
        let refused = lab
            .host(0)
            .cancel_migration("web")
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("is not being moved"), "{refused}");
    }
}

/// The first target was granted an epoch, so that the second one needs a newer one.
#[tokio::test(start_paused = true)]
async fn after_a_cancelled_move_the_vm_moves_elsewhere_at_once() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (moving, strike) = moving(&lab, Step::Ram).await;
    lab.host(0).cancel_migration("web").await.unwrap();
    let first = moving.await.unwrap().unwrap();
    drop(strike);
    let options = MigrateOptions::default();
    let (why, progress) = (Occasion::default(), watch::Sender::default());
    let second = lab
        .host(0)
        .migrate_because(why, "web", lab.me(2), options, progress)
        .await
        .unwrap();
    assert_eq!(
        (second.runs_on, &second.failure),
        (RunningSide::Target, &None)
    );
    assert!(second.epoch > first.epoch, "{first:?} {second:?}");
    assert_eq!(lab.world.running(vm), [lab.me(2)]);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_no_vm_here_uses_goes_at_the_daemons_start() {
    let mut lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    // The target's daemon is killed while it prepares; the source gives up.
    let (moving, _strike) = moving(&lab, Step::Mirror).await;
    lab.kill_daemon(1);
    lab.host(0).cancel_migration("web").await.unwrap();
    assert!(moving.await.unwrap().unwrap().cancelled);
    assert_eq!(lab.kept(1), (1, 1));
    lab.up(1).await;
    lab.keeps_nothing(1, "an interrupted arrival").await;
    // One that was deleted leaves its image for a while, in case it is made again.
    lab.host(0).stop("web").await.unwrap();
    lab.host(0).delete("web").await.unwrap();
    assert!(
        lab.world.running(vm).is_empty() && lab.kept(0) == (1, 1),
        "{:?}",
        lab.kept(0)
    );
    lab.kill_daemon(0);
    lab.up(0).await;
    lab.keeps_nothing(0, "a deleted VM").await;
    // An image that a VM uses stays, whatever else goes.
    lab.vm(0, "web").await;
    lab.kill_daemon(0);
    lab.up(0).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.kept(0), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_vms_image_goes_after_a_day() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    lab.host(0)
        .stop_within("web", Duration::ZERO)
        .await
        .unwrap();
    lab.host(0).delete("web").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20 * 3600)).await;
    assert_eq!(lab.kept(0), (1, 1));
    tokio::time::sleep(Duration::from_secs(8 * 3600)).await;
    lab.keeps_nothing(0, "a day later").await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_goes_before_a_move() {
    for step in BEFORE {
        let lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        let (moving, _strike) = moving(&lab, step).await;
        let began = tokio::time::Instant::now();
        let stopped = lab.host(0).stop("web").await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{step:?}: {:?}",
            began.elapsed()
        );
        assert_eq!(
            (stopped.state, stopped.wanted),
            (VmState::Stopped, RunGoal::Stopped),
            "{step:?}"
        );
        assert!(moving.await.unwrap().unwrap().cancelled);
        nothing_half_made(&lab, vm, &format!("{step:?}")).await;
        lab.host(0).delete("web").await.unwrap();
        assert!(lab.host(0).list().is_empty() && lab.world.running(vm).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_during_a_move_names_target_progress_and_the_way_out() {
    let lab = Lab::new(4).await;
    lab.vm(0, "web").await;
    let (moving, strike) = moving(&lab, Step::Ram).await;
    let host = lab.host(0);
    let second = host
        .migrate(
            "web",
            lab.me(2),
            MigrateOptions::default(),
            watch::Sender::default(),
        )
        .await
        .unwrap_err();
    let snapshot = host
        .snapshot("web", "now", &watch::Sender::default())
        .await
        .unwrap_err();
    for refused in [second, snapshot].map(|e| e.to_string()) {
        for said in [
            "is being moved to lyon",
            "ram",
            "p2pvm vm migrate --cancel web",
        ] {
            assert!(refused.contains(said), "{refused}");
        }
    }
    let refused = host.delete("web").await.unwrap_err().to_string();
    assert!(refused.contains("runs: stop it first"), "{refused}");
    strike.2.send(false).unwrap();
    assert_eq!(
        moving.await.unwrap().unwrap().runs_on,
        RunningSide::Target,
        "nothing of that has ended the move"
    );
    // Once it is over, no answer says that it goes on.
    let refused = lab
        .host(1)
        .cancel_migration("web")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("is not being moved"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_too_late_says_where_the_vm_is() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (moving, strike) = moving(&lab, Step::SwitchOver).await;
    let host = lab.host(0);
    let stopping = tokio::spawn(async move { host.stop("web").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    strike.2.send(false).unwrap();
    assert_eq!(moving.await.unwrap().unwrap().runs_on, RunningSide::Target);
    let late = stopping.await.unwrap().unwrap_err().to_string();
    assert!(late.contains("just moved to lyon"), "{late}");
    assert_eq!(lab.world.running(vm), [lab.me(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_powers_off_during_its_move_is_reported_stopped() {
    for step in BEFORE {
        let mut lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        let (moving, _strike) = moving(&lab, step).await;
        lab.world
            .machine(vm, lab.me(0))
            .unwrap()
            .halt(Halt::PoweredOff);
        let outcome = moving.await.unwrap().unwrap();
        assert!(
            outcome.ended && !outcome.cancelled && outcome.runs_on == RunningSide::Source,
            "{step:?}: {outcome:?}"
        );
        assert_eq!(
            outcome.failure.as_deref(),
            Some("its guest powered itself off"),
            "{step:?}"
        );
        let status = lab.host(0).status("web").await.unwrap();
        assert_eq!(
            (status.state, status.wanted, status.activity),
            (VmState::Stopped, RunGoal::Stopped, None),
            "{step:?}"
        );
        assert!(
            status
                .note
                .unwrap()
                .contains("powered itself off while it was being moved"),
            "{step:?}"
        );
        nothing_half_made(&lab, vm, &format!("{step:?}")).await;
        // Nor does its daemon start it again.
        lab.kill_daemon(0);
        lab.up(0).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(lab.world.running(vm).is_empty(), "{step:?}");
        lab.host(0).start("web").await.unwrap();
        assert_eq!(lab.world.running(vm), [lab.me(0)], "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_crashes_during_its_move_runs_again() {
    for (policy, again) in [(Restart::OnFailure, true), (Restart::Never, false)] {
        let lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        lab.host(0).set_restart("web", policy).await.unwrap();
        let (moving, _strike) = moving(&lab, Step::Ram).await;
        let guest = lab.world.machine(vm, lab.me(0)).unwrap();
        guest.kill().await.unwrap();
        let outcome = moving.await.unwrap().unwrap();
        assert!(outcome.ended, "{policy:?}: {outcome:?}");
        let status = lab.host(0).status("web").await.unwrap();
        let note = status.note.unwrap();
        assert!(note.contains("while it was being moved"), "{note}");
        assert_eq!(note.contains("starts again"), again, "{note}");
        nothing_half_made(&lab, vm, &format!("{policy:?}")).await;
        tokio::time::sleep(Duration::from_secs(70)).await;
        let runs = lab.world.running(vm);
        assert_eq!(runs == [lab.me(0)], again, "{policy:?}: {runs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_on_a_full_disk_goes_on_when_there_is_room() {
    let lab = Lab::new(3).await;
    let vm = lab.vm(0, "web").await;
    let machine = lab.world.machine(vm, lab.me(0)).unwrap();
    machine.halt(Halt::DiskFull);
    let status = lab.host(0).status("web").await.unwrap();
    let still = status.still.unwrap();
    assert_eq!((status.state, still.why), (VmState::Paused, Halt::DiskFull));
    assert!(
        still.free_bytes >= still.needed_bytes && still.needed_bytes > 0,
        "{still:?}"
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(lab.world.running(vm), [lab.me(0)]);
    assert_eq!(lab.host(0).status("web").await.unwrap().still, None);
    assert_eq!(
        machine.memory.load(std::sync::atomic::Ordering::SeqCst),
        42,
        "the same guest"
    );
}

#[tokio::test(start_paused = true)]
async fn a_halted_guest_moves_with_its_memory_and_survives_a_start() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    // An error that room does not settle: nothing goes on by itself.
    lab.world
        .machine(vm, lab.me(0))
        .unwrap()
        .halt(Halt::DiskError);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(lab.world.running(vm).is_empty());
    assert_eq!(
        lab.host(2).list_all().await.0[0]
            .still
            .as_ref()
            .unwrap()
            .why,
        Halt::DiskError,
        "seen from elsewhere"
    );
    let outcome = lab
        .host(0)
        .migrate(
            "web",
            lab.me(1),
            MigrateOptions::default(),
            watch::Sender::default(),
        )
        .await
        .unwrap();
    assert_eq!(outcome.runs_on, RunningSide::Target, "{outcome:?}");
    let there = lab.world.machine(vm, lab.me(1)).unwrap();
    assert_eq!(there.memory.load(std::sync::atomic::Ordering::SeqCst), 42);
    there.halt(Halt::DiskError);
    lab.host(1).start("web").await.unwrap();
    assert_eq!(
        there.memory.load(std::sync::atomic::Ordering::SeqCst),
        42,
        "the same guest"
    );
    assert_eq!(lab.world.running(vm), [lab.me(1)]);
    there.halt(Halt::DiskError);
    lab.host(1).stop("web").await.unwrap();
    lab.host(1).delete("web").await.unwrap();
}
