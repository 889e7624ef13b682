//! What may come to a host: a host accepts of a member that brings a VM only what it can check, and
//! memory is promised once.
#![allow(missing_docs)]

mod mobility;

use mobility::Lab;
use p2pvm_authority::{Resource, Revocation, Revocations};
use p2pvm_overlay::{
    Epoch, Fabric, FabricError, MemberId, UnixTime,
    identity::{Identity, KeyPair},
};
use p2pvm_vm_manager::{
    Definition, Error, GuestAddress, NewVm, Protection, VmSecret,
    checkpoint::RestoreOptions,
    directory::{Directory, RunGoal, Snapshot, VmRecord},
    host::VmState,
    hypervisor::MigrateOptions,
    migrate::{
        RunningSide,
        wire::{Answer, LONG, Offer, Request, ask},
    },
    offer::{Closed, Known, Limits, Terms},
    vault::Durability,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// A member that claims of VMs whatever a test wants.
struct Rogue {
    fabric: Arc<dyn Fabric>,
    directory: Directory,
    image: p2pvm_snapshot_sync::ManifestId,
    serial: u64,
}

impl Rogue {
    /// A member of `lab` beside its hosts; it names the image of a VM on host 0.
    fn of(lab: &Lab) -> Self {
        let fabric: Arc<dyn Fabric> = lab.net.add(Identity::generate().member_id());
        let (host, dht, _) = lab.sites[0].daemon.as_ref().unwrap();
        Self {
            fabric,
            directory: Directory::new(dht.clone()),
            image: host.list()[0].definition.image,
            serial: 0,
        }
    }

    /// A VM of its own with a name and an address of its own.
    async fn vm(&self, name: &str) -> (KeyPair, Definition) {
        let keys = KeyPair::generate();
        self.directory.take_name(&keys, name).await.unwrap();
        let id = keys.vm_id().0;
        let definition = Definition {
            vm: keys.vm_id(),
            name: name.into(),
            cpus: 1,
            memory_mib: 64,
            disk_bytes: 1 << 20,
            image: self.image,
            voters: vec![self.fabric.me()],
            address: GuestAddress {
                v4: [10, 7, id[0], id[1]].into(),
                prefix: 16,
                v6: std::net::Ipv6Addr::from(u128::from(id[2])),
                mac: [2, 0, id[0], id[1], id[2], id[3]],
                mtu: 1340,
            },
            created: UnixTime(7),
        };
        (keys, definition)
    }

    async fn offer(
        &mut self,
        to: MemberId,
        keys: &KeyPair,
        definition: &Definition,
    ) -> Result<Answer, FabricError> {
        self.serial += 1;
        let offer = Offer {
            id: self.serial,
            definition: definition.clone(),
            secret: VmSecret::of(keys),
            epoch: Epoch(2),
            snapshots: vec![],
        };
        ask(&*self.fabric, to, &Request::Prepare(Box::new(offer)), LONG).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_offer_with_anothers_name_or_address_is_refused_and_leaves_nothing() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let web = lab.host(0).list()[0].definition.clone();
    let mut rogue = Rogue::of(&lab);
    let (keys, good) = rogue.vm("mine").await;
    type Spoil<'a> = &'a dyn Fn(&mut Definition);
    let spoilt: [(&str, Spoil); 6] = [
        ("named 'web'", &|vm| vm.name = "web".into()),
        ("no VM has that name", &|vm| vm.name = "nobodys".into()),
        ("that of 'web'", &|vm| vm.address.v4 = web.address.v4),
        ("is another's", &|vm| vm.address.v4 = [10, 7, 0, 1].into()),
        ("1 to 256", &|vm| vm.cpus = 0),
        ("do not fit", &|vm| vm.memory_mib = u64::MAX),
    ];
    let before = lab.host(0).promised_mib();
    for (why, spoil) in spoilt {
        let mut vm = good.clone();
        spoil(&mut vm);
        let refused = rogue.offer(lab.me(0), &keys, &vm).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{why}: {refused}");
        assert_eq!(lab.host(0).list().len(), 1, "{why}");
    }
    assert_eq!(lab.host(0).promised_mib(), before, "nothing is kept for it");
    // On a host without "web" the network's records say whose the name is.
    let mut vm = good.clone();
    vm.name = "web".into();
    let refused = rogue.offer(lab.me(1), &keys, &vm).await.unwrap_err();
    assert!(refused.to_string().contains("another VM's"), "{refused}");
    let taken = rogue.offer(lab.me(0), &keys, &good).await.unwrap();
    assert!(matches!(taken, Answer::Preparing(_)), "{taken:?}");
    assert_eq!(lab.host(0).status("web").await.unwrap().definition, web);
}

#[tokio::test(start_paused = true)]
async fn no_vm_moves_to_a_host_that_is_shutting_down() {
    let lab = Lab::new(2).await;
    lab.vm(0, "web").await;
    let mut rogue = Rogue::of(&lab);
    let (keys, vm) = rogue.vm("mine").await;
    let limit = Duration::from_secs(60);
    lab.host(0).close_for(limit);
    let refused = rogue.offer(lab.me(0), &keys, &vm).await.unwrap_err();
    assert!(refused.to_string().contains("shutting down"), "{refused}");
    assert_eq!(lab.host(0).list().len(), 1);
    // The machine goes on after all.
    tokio::time::sleep(limit).await;
    let taken = rogue.offer(lab.me(0), &keys, &vm).await.unwrap();
    assert!(matches!(taken, Answer::Preparing(_)), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_not_made_is_not_remembered_as_own() {
    let lab = Lab::new(3).await;
    let web = lab.vm(0, "web").await;
    let quiet = watch::Sender::default();
    let refused = lab.host(1).create(lab.new_vm("web"), &quiet).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let own = |i: usize| std::fs::read_to_string(lab.sites[i].dir.join("own-vms")).unwrap();
    assert_eq!(own(0), format!("{web}\n"));
    assert_eq!(own(1), "");
}

#[tokio::test(start_paused = true)]
async fn one_member_brings_a_bounded_number_of_vms_at_a_time() {
    let lab = Lab::new(2).await;
    lab.vm(0, "web").await;
    let mut rogue = Rogue::of(&lab);
    let mut vms = Vec::new();
    for i in 0..10 {
        vms.push(rogue.vm(&format!("mine-{i}")).await);
    }
    let mut taken = 0;
    let mut last = None;
    for (keys, vm) in &vms {
        match rogue.offer(lab.me(1), keys, vm).await {
            Ok(_) => taken += 1,
            Err(refused) => last = Some(refused.to_string()),
        }
    }
    assert_eq!(taken, 8);
    assert!(last.unwrap().contains("on their way"));
    // Its silence gives the places and the memory back.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        (lab.host(1).list().len(), lab.host(1).promised_mib()),
        (0, 0)
    );
    let (keys, vm) = &vms[9];
    assert!(rogue.offer(lab.me(1), keys, vm).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_takes_anothers_address_is_not_restored() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    let web = lab.host(0).list()[0].definition.clone();
    let rogue = Rogue::of(&lab);
    let (keys, mut definition) = rogue.vm("mine").await;
    definition.address.v4 = web.address.v4;
    let snapshot = Snapshot {
        name: "s".into(),
        checkpoint: web.image,
        taken: UnixTime(7),
        epoch: Epoch(1),
        with_ram: false,
        durability: Durability::Local,
        providers: vec![],
    };
    let record = VmRecord {
        definition,
        holder: rogue.fabric.me(),
        epoch: Epoch(1),
        wanted: RunGoal::Stopped,
        snapshots: vec![snapshot],
        owner: None,
        user: None,
        revoked: Revocations::NONE,
        protection: Protection::default(),
        replica: None,
        backups: Default::default(),
        restored: None,
    };
    rogue.directory.publish(&keys, &record, 0).await.unwrap();
    let force = RestoreOptions { force: true };
    for host in [0, 1] {
        let quiet = watch::Sender::default();
        let refused = lab.host(host).restore("mine", "s", force, &quiet).await;
        let refused = refused.unwrap_err();
        let why = refused.to_string();
        assert!(matches!(refused, Error::Refused(_)), "{why}");
        assert!(why.contains("another's") || why.contains("'web'"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_arriving_vms_the_one_that_does_not_fit_stays() {
    let lab = Lab::with_memory(3, 100).await;
    let vms = [lab.vm(0, "a").await, lab.vm(1, "b").await];
    let go = |host: usize, name: &'static str| {
        let (host, to) = (lab.host(host), lab.me(2));
        async move {
            let quiet = watch::Sender::default();
            let options = MigrateOptions::default();
            host.migrate(name, to, options, quiet).await.unwrap()
        }
    };
    let (a, b) = tokio::join!(go(0, "a"), go(1, "b"));
    let mut ends = [a.runs_on, b.runs_on];
    ends.sort_by_key(|end| *end == RunningSide::Target);
    assert_eq!(ends, [RunningSide::Source, RunningSide::Target]);
    let why = a.failure.or(b.failure).unwrap();
    assert!(why.contains("64 MiB of memory do not fit"), "{why}");
    assert_eq!(lab.host(2).promised_mib(), 64);
    let there = vms
        .iter()
        .filter(|vm| lab.world.running(**vm) == [lab.me(2)]);
    assert_eq!(there.count(), 1);
    lab.assert_never_double("memory");
}

#[tokio::test(start_paused = true)]
async fn a_start_is_refused_until_there_is_memory_for_it() {
    let lab = Lab::with_memory(1, 100).await;
    lab.vm(0, "a").await;
    let host = lab.host(0);
    let new = |name: &str, memory_mib| NewVm {
        memory_mib,
        ..lab.new_vm(name)
    };
    let quiet = watch::Sender::default();
    let refused = host.create(new("huge", 101), &quiet).await.unwrap_err();
    assert!(refused.to_string().contains("100 of its"), "{refused}");
    host.create(new("b", 64), &quiet).await.unwrap();
    let refused = host.start("b").await.unwrap_err();
    assert!(
        refused.to_string().contains("64 of the 100 MiB"),
        "{refused}"
    );
    host.stop("a").await.unwrap();
    host.start("b").await.unwrap();
    host.stop("b").await.unwrap();
    assert_eq!(host.promised_mib(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_vms_owner_goes_where_the_vm_goes() {
    let lab = Lab::new(3).await;
    let owner = MemberId([9; 32]);
    let (new, quiet) = (lab.new_vm("web"), watch::Sender::default());
    lab.host(0).create_for(owner, new, &quiet).await.unwrap();
    lab.host(0).start("web").await.unwrap();
    let options = MigrateOptions::default();
    let (host, to) = (lab.host(0), lab.me(1));
    host.migrate("web", to, options, quiet).await.unwrap();
    for host in [1, 2] {
        let known = lab.host(host).status("web").await.unwrap();
        assert_eq!((known.holder, known.owner), (to, Some(owner)), "{host}");
    }
}

/// Terms for all members, with so much for their VMs.
fn terms(vms: Option<u64>, memory_mib: Option<u64>, closed: Option<Closed>) -> Terms {
    Terms {
        limits: Limits {
            vms,
            memory_mib,
            ..Limits::default()
        },
        closed,
        ..Terms::default()
    }
}

async fn migrate(lab: &Lab, name: &str, from: usize, to: usize) -> Result<(), String> {
    let (host, to) = (lab.host(from), lab.me(to));
    let options = MigrateOptions::default();
    let quiet = watch::Sender::default();
    let outcome = host.migrate(name, to, options, quiet).await;
    let outcome = outcome.map_err(|e| p2pvm_overlay::chain(&e))?;
    match outcome.runs_on {
        RunningSide::Target => Ok(()),
        _ => Err(outcome.failure.unwrap_or_default()),
    }
}

#[tokio::test(start_paused = true)]
async fn an_arriving_vm_needs_an_offer_but_home_is_always_open() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    lab.host(1)
        .offer("lab1", terms(None, None, Some(Closed::Off)));
    let said = migrate(&lab, "web", 0, 1).await.unwrap_err();
    assert!(
        said.contains("host lab1") && said.contains("is off"),
        "{said}"
    );
    assert!(lab.host(1).list().is_empty() && lab.host(1).tenants().is_empty());
    lab.host(1).offer("lab1", terms(Some(1), Some(100), None));
    migrate(&lab, "web", 0, 1).await.unwrap();
    let tenants = lab.host(1).tenants();
    assert_eq!((tenants.len(), tenants[0].owner), (1, lab.me(0)));
    let share = tenants[0].share;
    assert_eq!((share.vms, share.memory_mib), (1, 64));
    // Its owner takes it back, although it offers nothing itself.
    lab.host(0)
        .offer("lab0", terms(Some(0), None, Some(Closed::Off)));
    migrate(&lab, "web", 1, 0).await.unwrap();
    assert!(lab.host(0).tenants().is_empty(), "it is no tenant at home");
    assert!(lab.host(1).tenants().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_vms_for_one_place_the_second_is_refused() {
    let lab = Lab::new(3).await;
    lab.vm(0, "a").await;
    lab.vm(1, "b").await;
    for (offered, why) in [
        (
            terms(Some(1), None, None),
            "offers 1 place to other members",
        ),
        (terms(None, Some(100), None), "offers 100 MiB of memory"),
    ] {
        lab.host(2).offer("lab2", offered);
        let (a, b) = tokio::join!(migrate(&lab, "a", 0, 2), migrate(&lab, "b", 1, 2));
        let (came, stayed) = if a.is_ok() { ("a", b) } else { ("b", a) };
        let said = stayed.unwrap_err();
        assert!(said.contains(why), "{said}");
        let home = if came == "a" { 0 } else { 1 };
        migrate(&lab, came, 2, home).await.unwrap();
        assert!(lab.host(2).tenants().is_empty());
    }
    lab.assert_never_double("places");
}

/// An offer for no member.
struct Nobody;

impl Known for Nobody {
    fn may_run(&self, _: MemberId) -> bool {
        false
    }

    fn name_of(&self, member: MemberId) -> String {
        member.short()
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_offer_a_members_vm_stays_but_starts_no_more() {
    let lab = Lab::new(3).await;
    let (host, other) = (lab.host(0), lab.me(1));
    let quiet = watch::Sender::default();
    let web = lab.new_vm("web");
    host.create_for(other, web, &quiet).await.unwrap();
    host.start("web").await.unwrap();
    let nobody = Terms {
        known: Arc::new(Nobody),
        ..Terms::default()
    };
    host.offer("lab0", nobody);
    assert_eq!(host.list()[0].state, VmState::Running, "it stays");
    host.stop("web").await.unwrap();
    let said = host.start("web").await.unwrap_err().to_string();
    assert!(said.contains("host lab0 runs no VMs of"), "{said}");
    let db = lab.new_vm("db");
    let said = host.create_for(other, db, &quiet).await.unwrap_err();
    assert!(said.to_string().contains("[offer] run"), "{said}");
    host.create(lab.new_vm("own"), &quiet).await.unwrap();
    host.start("own").await.unwrap();
    assert_eq!(
        host.names_of_others().into_iter().collect::<Vec<_>>(),
        ["web"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_cannot_bring_a_vm_as_the_hosts_own() {
    let lab = Lab::new(3).await;
    lab.vm(0, "web").await;
    lab.host(1).offer("lab1", terms(Some(0), None, None));
    let mut rogue = Rogue::of(&lab);
    let (keys, vm) = rogue.vm("mine").await;
    let refused = rogue.offer(lab.me(1), &keys, &vm).await.unwrap_err();
    assert!(refused.to_string().contains("offers 0 places"), "{refused}");
    lab.host(1).offer("lab1", Terms::default());
    let offer = Offer {
        id: 77,
        definition: vm,
        secret: VmSecret::of(&keys),
        epoch: Epoch(1),
        snapshots: vec![],
    };
    let request = Request::Prepare(Box::new(offer));
    let refused = ask(&*rogue.fabric, lab.me(1), &request, LONG).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("first epoch"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_stays_revoked_where_the_vm_goes() {
    let mut lab = Lab::new(5).await;
    let vm = lab.vm(0, "web").await;
    let (owner, of_vm) = (KeyPair::generate(), Resource::Vm(vm));
    let until = UnixTime::now().plus(3600).0;
    let word = Revocation::sign(&owner, of_vm, [7; 16], until);
    assert!(lab.host(0).revoke(vm, word, |_| true).unwrap());
    assert!(
        !lab.host(0).revoke(vm, word, |_| true).unwrap(),
        "it is known"
    );
    let refused = lab.host(1).revoke(vm, word, |_| true).unwrap_err();
    assert!(matches!(refused, Error::NotFound(_)), "{refused}");
    let is_revoked = |lab: &Lab, host: usize| lab.host(host).revoked(vm).has(&[7; 16]);
    // A restart of the daemon, a move, a restore from the record.
    lab.kill_daemon(0);
    lab.up(0).await;
    assert!(is_revoked(&lab, 0));
    lab.settles_on(vm, &[0], "after the restart").await;
    let options = MigrateOptions::default();
    let (host, to) = (lab.host(0), lab.me(1));
    let moved = host.migrate("web", to, options, watch::Sender::default());
    assert_eq!(moved.await.unwrap().runs_on, RunningSide::Target);
    assert!(is_revoked(&lab, 1) && !is_revoked(&lab, 0));
    lab.take_snapshot(1).await;
    lab.power_off(1);
    lab.restore_by_force(4).await;
    assert!(is_revoked(&lab, 4));
}

#[tokio::test(start_paused = true)]
async fn members_that_serve_no_votes_are_not_chosen_as_voters() {
    let lab = Lab::new(3).await;
    // One, since the records of a name are made with one dead replica at most.
    let idle = Identity::generate().member_id();
    let _idle: Arc<dyn Fabric> = lab.net.add(idle);
    // It is among the two members closest to most of these VMs on the ring.
    for name in ["a", "b", "c", "d"] {
        let (host, progress) = (lab.host(0), watch::Sender::default());
        let made = host.create(lab.new_vm(name), &progress).await.unwrap();
        let voters = made.definition.voters;
        assert_eq!(voters.len(), 3, "{voters:?}");
        assert!(!voters.contains(&idle), "{voters:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_no_other_voter_a_vm_is_made_with_one() {
    let lab = Lab::new(2).await;
    let _other: Arc<dyn Fabric> = lab.net.add(Identity::generate().member_id());
    let (host, progress) = (lab.host(0), watch::Sender::default());
    let made = host.create(lab.new_vm("web"), &progress).await.unwrap();
    assert_eq!(made.definition.voters, [lab.me(0)]);
}
