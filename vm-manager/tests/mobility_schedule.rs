//! A VM's schedule of snapshots: what it takes, and that it goes with the VM.
#![allow(missing_docs)]

mod mobility;

use mobility::{Lab, fake::Step};
use p2pvm_overlay::UnixTime;
use p2pvm_vm_manager::{
    Error,
    backups::{Retention, Schedule, is_automatic},
    hypervisor::MigrateOptions,
    vault::Durability,
};
use std::time::Duration;
use tokio::sync::watch;

fn hourly() -> Schedule {
    Schedule {
        every: 3600,
        keep: Retention {
            last: 2,
            ..Retention::default()
        },
        disk_only: true,
        since: UnixTime::now(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_schedule_takes_a_snapshot_and_goes_with_its_vm() {
    let lab = Lab::new(4).await;
    lab.vm(0, "web").await;
    let schedule = hourly();
    lab.host(0)
        .set_schedule("web", Some(schedule))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let here = lab.host(0).status("web").await.unwrap();
    let names: Vec<&str> = here.snapshots.iter().map(|s| s.name.as_str()).collect();
    assert!(names.len() == 1 && is_automatic(names[0]), "{names:?}");
    assert!(!here.snapshots[0].with_ram);
    assert_eq!(here.snapshots[0].durability, Durability::Durable);
    assert!(here.backups.degraded.is_empty());

    let (host, to) = (lab.host(0), lab.me(1));
    let quiet = watch::Sender::default();
    host.migrate("web", to, MigrateOptions::default(), quiet)
        .await
        .unwrap();
    for i in [1, 2] {
        let known = lab.host(i).status("web").await.unwrap();
        assert_eq!(known.backups.schedule, Some(schedule), "{i}");
    }
    lab.host(1).set_schedule("web", None).await.unwrap();
    let known = lab.host(2).status("web").await.unwrap();
    assert_eq!(known.backups.schedule, None);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_hangs_holds_up_no_other_vms_schedule() {
    let lab = Lab::new(4).await;
    let mut trap = lab.trap(Step::Checkpoint);
    for name in ["db", "web"] {
        lab.vm(0, name).await;
        let schedule = Some(hourly());
        lab.host(0).set_schedule(name, schedule).await.unwrap();
    }
    // The snapshot of one of them stands still from here on.
    let _strike = trap.recv().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut taken = Vec::new();
    for name in ["db", "web"] {
        let status = lab.host(0).status(name).await.unwrap();
        taken.push(status.snapshots.len());
    }
    taken.sort();
    assert_eq!(taken, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn no_snapshot_by_hand_has_a_schedules_name() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let quiet = watch::Sender::default();
    let name = "auto-20261201-1110";
    let refused = lab.host(0).snapshot("web", name, &quiet).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    let never = Schedule {
        every: 1,
        ..hourly()
    };
    let refused = lab.host(0).set_schedule("web", Some(never)).await;
    assert!(refused.unwrap_err().to_string().contains("one minute"));
}
