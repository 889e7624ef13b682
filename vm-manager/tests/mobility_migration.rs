//! Live migration with every kind of failure at every step: never two guests, and one in the end.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, fake::Step};
use p2pvm_vm_manager::{hypervisor::MigrateOptions, migrate::RunningSide};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::sync::watch;

const STEPS: [Step; 9] = [
    Step::Launch,
    Step::Mirror,
    Step::Ram,
    Step::Paused,
    Step::SwitchOver,
    Step::HandedOver,
    Step::FinishIncoming,
    Step::Resume,
    Step::Resumed,
];

#[tokio::test(start_paused = true)]
async fn a_vm_moves_with_its_memory_and_leaves_nothing_behind() {
    let lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
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
    assert_eq!(
        (outcome.runs_on, outcome.failure.as_deref()),
        (RunningSide::Target, None)
    );
    assert_eq!(lab.world.running(vm), [lab.me(1)]);
    assert_eq!(
        lab.world
            .machine(vm, lab.me(1))
            .unwrap()
            .memory
            .load(Ordering::SeqCst),
        42
    );
    assert!(lab.host(0).list().is_empty());
    assert_eq!(lab.host(3).holder("web").await.unwrap(), lab.me(1));
    assert_eq!(
        lab.peers.announced.lock().unwrap()[&vm],
        (outcome.epoch, lab.me(1))
    );
    // And back again: an earlier stay is no obstacle.
    let back = lab
        .host(1)
        .migrate(
            "web",
            lab.me(0),
            MigrateOptions::default(),
            watch::Sender::default(),
        )
        .await
        .unwrap();
    assert_eq!(back.runs_on, RunningSide::Target);
    assert!(back.epoch > outcome.epoch);
    lab.assert_never_double("there and back");
}

#[tokio::test(start_paused = true)]
async fn after_any_failed_step_the_vm_runs_where_the_outcome_says() {
    for step in STEPS {
        let lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        let (moving, strike) = lab.moving(step).await;
        strike.2.send(true).unwrap();
        let outcome = moving.await.unwrap().unwrap();
        let on = lab.settles_on(vm, &[0, 1], &format!("{step:?}")).await;
        assert_eq!(
            outcome.runs_on,
            if on == 0 {
                RunningSide::Source
            } else {
                RunningSide::Target
            },
            "{step:?}: {outcome:?}"
        );
        lab.assert_never_double(&format!("{step:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_between_the_two_at_any_step_leaves_one_running() {
    for step in STEPS {
        for heals in [true, false] {
            let context = format!("cut at {step:?}, heals: {heals}");
            let lab = Lab::new(4).await;
            let vm = lab.vm(0, "web").await;
            let (moving, strike) = lab.moving(step).await;
            lab.net.set_cut(lab.me(0), lab.me(1), true);
            strike.2.send(false).unwrap();
            if heals {
                tokio::time::sleep(Duration::from_secs(40)).await;
                lab.net.set_cut(lab.me(0), lab.me(1), false);
            }
            let outcome = moving.await.unwrap().unwrap();
            let on = lab.settles_on(vm, &[0, 1], &context).await;
            let said = if on == 0 {
                RunningSide::Source
            } else {
                RunningSide::Target
            };
            assert_eq!(outcome.runs_on, said, "{context}: {outcome:?}");
            lab.assert_never_double(&context);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_isolated_target_freezes_and_the_source_goes_on() {
    for step in STEPS {
        let context = format!("target isolated at {step:?}");
        let lab = Lab::new(4).await;
        let vm = lab.vm(0, "web").await;
        let (moving, strike) = lab.moving(step).await;
        lab.isolate(1, true);
        strike.2.send(false).unwrap();
        moving.await.unwrap().unwrap();
        lab.settles_on(vm, &[0], &context).await;
        lab.isolate(1, false);
        tokio::time::sleep(Duration::from_secs(120)).await;
        lab.settles_on(vm, &[0], &context).await;
        lab.assert_never_double(&context);
    }
}

/// Moves a VM, and at `step` kills the daemon of member `victim`, with `power` its guests too.
async fn strike(step: Step, victim: usize, power: bool) {
    let context = format!(
        "{} of member {victim} dies at {step:?}",
        if power { "power" } else { "daemon" }
    );
    let mut lab = Lab::new(4).await;
    let vm = lab.vm(0, "web").await;
    let (moving, struck) = lab.moving(step).await;
    if power {
        lab.power_off(victim);
    } else {
        lab.kill_daemon(victim);
    }
    // A dead side's hypervisor call never returns; a live one's goes on.
    if struck.1 == lab.me(victim) {
        drop(struck.2)
    } else {
        struck.2.send(false).unwrap()
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(lab.world.running(vm).len() <= 1, "{context}: while dead");
    lab.up(victim).await;
    lab.settles_on(vm, &[0, 1], &context).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    lab.settles_on(vm, &[0, 1], &context).await;
    lab.assert_never_double(&context);
    drop(moving);
}

#[tokio::test(start_paused = true)]
async fn a_killed_source_daemon_finds_out_where_its_vm_is() {
    for step in STEPS {
        strike(step, 0, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_target_daemon_leaves_one_running() {
    for step in STEPS {
        strike(step, 1, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_loses_power_leaves_one_running() {
    for step in STEPS {
        strike(step, 1, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_loses_power_leaves_one_running() {
    for step in STEPS {
        strike(step, 0, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_one_operation_at_a_time_works_on_a_vm() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let (moving, strike) = lab.moving(Step::Ram).await;
    let refused = lab.host(0).start("web").await.unwrap_err().to_string();
    assert!(refused.contains("is being moved"), "{refused}");
    strike.2.send(false).unwrap();
    assert_eq!(moving.await.unwrap().unwrap().runs_on, RunningSide::Target);
}
