//! A network that was cut in two, and orderly restores elsewhere: no name stands twice, nothing
//! half-made stays, no copy is left.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_vm_manager::{
    Error, ImageSource, NewVm,
    checkpoint::RestoreOptions,
    host::{VmState, VmStatus},
    hypervisor::MigrateOptions,
};
use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};
use tokio::sync::watch;

/// Members 0 and 1 on one side, 2 and 3 on the other.
fn cut(lab: &Lab, cut: bool) {
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        lab.net.set_cut(lab.me(a), lab.me(b), cut);
    }
    for site in &lab.sites {
        if let Some((_, dht, _)) = &site.daemon {
            dht.membership_changed();
        }
    }
}

fn new(lab: &Lab, name: &str) -> NewVm {
    NewVm {
        name: name.into(),
        image: ImageSource::File(lab.image.clone()),
        cpus: 1,
        memory_mib: 64,
        disk_bytes: None,
    }
}

async fn names(lab: &Lab, from: usize) -> Vec<String> {
    let (all, silent) = lab.host(from).list_all().await;
    assert!(silent.is_empty(), "{silent:?}");
    all.into_iter().map(|vm| vm.name).collect()
}

#[tokio::test(start_paused = true)]
async fn of_two_vms_of_one_name_made_in_two_halves_one_keeps_it_and_both_can_be_deleted() {
    for round in 0..6 {
        let lab = Lab::new(4).await;
        cut(&lab, true);
        let vms = [lab.vm(0, "dup").await, lab.vm(2, "dup").await];
        cut(&lab, false);
        tokio::time::sleep(Duration::from_secs(120)).await;
        let mut seen = BTreeSet::new();
        for from in 0..4 {
            seen.insert(names(&lab, from).await);
        }
        assert_eq!(seen.len(), 1, "round {round}: all see the same: {seen:?}");
        let both = seen.pop_first().unwrap();
        assert!(
            both.len() == 2 && both[0] == "dup" && both[1].starts_with("dup-"),
            "round {round}: {both:?}"
        );
        // The records say the same: each name leads to the VM that is called so, and the loser ran
        // on all the while.
        let here = |i: usize| -> VmStatus { lab.host(i).list().remove(0) };
        for (i, vm) in [(0, vms[0]), (2, vms[1])] {
            let status = here(i);
            assert_eq!(
                lab.host(3)
                    .record(&status.name)
                    .await
                    .unwrap()
                    .definition
                    .vm,
                vm
            );
            assert_eq!(
                (lab.world.running(vm), status.note.is_some()),
                (vec![lab.me(i)], status.name != "dup"),
                "{status:?}"
            );
        }
        for i in [0, 2] {
            let name = here(i).name;
            lab.host(i).stop(&name).await.unwrap();
            lab.host(i).delete(&name).await.unwrap();
        }
        for name in &both {
            assert!(
                matches!(lab.host(1).record(name).await, Err(Error::NotFound(_))),
                "{name} is free again"
            );
        }
        lab.host(1)
            .create(new(&lab, "dup"), &watch::Sender::default())
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_made_is_never_listed_and_goes_by_itself_when_the_network_is_whole() {
    let lab = Lab::new(4).await;
    // Nobody has noticed the cut yet: records find no majority, neither to make nor to give back.
    lab.net.set_notice(Duration::from_secs(600));
    for other in 1..4 {
        lab.net.set_cut(lab.me(0), lab.me(other), true);
    }
    let refused = lab
        .host(0)
        .create(new(&lab, "dup"), &watch::Sender::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Agreement { .. }), "{refused}");
    assert!(lab.host(0).list().is_empty(), "{:?}", lab.host(0).list());
    lab.net.set_notice(Duration::ZERO);
    for other in 1..4 {
        lab.net.set_cut(lab.me(0), lab.me(other), false);
    }
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(names(&lab, 2).await, Vec::<String>::new());
    let left = std::fs::read_dir(lab.sites[0].dir.join("vms"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "nor is anything left on the disk");
    lab.host(3)
        .create(new(&lab, "dup"), &watch::Sender::default())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stopped_vm_restored_elsewhere_leaves_no_copy_behind_and_may_come_back() {
    for force in [false, true] {
        let lab = Lab::new(5).await;
        let vm = lab.vm(0, "web").await;
        lab.snapshot(0).await;
        lab.host(0).stop("web").await.unwrap();
        let options = RestoreOptions { force };
        let back = lab
            .host(4)
            .restore("web", "one", options, &watch::Sender::default())
            .await
            .unwrap();
        assert_eq!((back.state, back.holder), (VmState::Running, lab.me(4)));
        assert_eq!(
            lab.world
                .machine(vm, lab.me(4))
                .unwrap()
                .memory
                .load(Ordering::SeqCst),
            42
        );
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(
            lab.host(0).list().is_empty(),
            "force {force}: {:?}",
            lab.host(0).list()
        );
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert!(
            lab.host(0).list().is_empty(),
            "force {force}: it does not come back by itself"
        );
        assert_eq!(
            std::fs::read_dir(lab.sites[0].dir.join("vms"))
                .unwrap()
                .count(),
            0
        );
        lab.host(4)
            .migrate(
                "web",
                lab.me(0),
                MigrateOptions::default(),
                watch::Sender::default(),
            )
            .await
            .unwrap();
        assert_eq!(lab.world.running(vm), [lab.me(0)]);
        lab.assert_never_double("restored elsewhere and moved back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_copy_whose_host_could_not_be_asked_is_kept_and_lies_where_it_is_shown() {
    let lab = Lab::new(5).await;
    lab.vm(0, "web").await;
    lab.snapshot(0).await;
    lab.host(0).stop("web").await.unwrap();
    lab.isolate(0, true);
    let options = RestoreOptions { force: true };
    lab.host(4)
        .restore("web", "one", options, &watch::Sender::default())
        .await
        .unwrap();
    lab.isolate(0, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let listed = lab.host(0).list();
    assert_eq!(
        (listed[0].name.as_str(), listed[0].state, listed[0].holder),
        ("web-branch-e1", VmState::Branch, lab.me(0))
    );
    lab.host(0).delete("web-branch-e1").await.unwrap();
    assert!(lab.host(0).list().is_empty());
}
