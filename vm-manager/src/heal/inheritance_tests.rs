use super::*;
use crate::{
    host::registry::tests::entry,
    protection::{Replica, tests::replica},
    vault::Durability,
};
use p2pvm_overlay::{Epoch, UnixTime};
use proptest::prelude::*;

const HOLDER: MemberId = MemberId([4; 32]);

fn member(n: u8) -> MemberId {
    MemberId([n; 32])
}

fn copy(taken: u64, providers: &[MemberId]) -> Replica {
    Replica {
        epoch: Epoch(1),
        taken: UnixTime(taken),
        providers: providers.to_vec(),
        durability: Durability::Durable,
        ..replica(0)
    }
}

fn inheritance(name: &str) -> Inheritance {
    let entry = entry(name);
    let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
    Inheritance {
        set,
        record: entry.record(HOLDER),
    }
}

#[test]
fn an_heir_is_named_by_the_record_of_a_protected_running_vm() {
    let mut record = inheritance("web").record;
    record.replica = Some(copy(7, &[HOLDER, member(1)]));
    assert_eq!(not_heir(&record, member(1)), None);
    assert!(not_heir(&record, member(2)).is_some());
    for change in [
        |vm: &mut VmRecord| vm.wanted = RunGoal::Stopped,
        |vm: &mut VmRecord| vm.protection.protect = Protect::Off,
        |vm: &mut VmRecord| vm.protection.replace = Replace::Never,
    ] {
        let mut other = record.clone();
        change(&mut other);
        assert!(not_heir(&other, member(1)).is_some());
    }
}

#[test]
fn what_a_host_is_an_heir_of_survives_its_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("heir-of");
    let all = Inheritances::open(path.clone()).unwrap();
    let (web, db) = (inheritance("web"), inheritance("db"));
    assert_eq!(all.keep(web.clone()), Ok(true));
    assert_eq!(all.keep(web.clone()), Ok(false));
    assert_eq!(all.keep(db.clone()), Ok(true));
    all.forget(db.set.vm);
    std::fs::write(path.join("torn"), [1, 2, 3]).unwrap();
    let again = Inheritances::open(path.clone()).unwrap();
    assert_eq!(again.vms(), [web.set.vm]);
    assert_eq!(again.named("web"), Some(web));
    assert_eq!(again.named("db"), None);
    assert!(!path.join("torn").exists());
}

#[test]
fn a_vm_is_started_once_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let all = Inheritances::open(dir.path().join("heir-of")).unwrap();
    let (web, db) = (VmId([1; 32]), VmId([2; 32]));
    let taking = all.begin_taking(web);
    assert!(taking.is_some() && all.begin_taking(web).is_none());
    assert!(all.begin_taking(db).is_some());
    drop(taking);
    assert!(all.begin_taking(web).is_some());
}

#[test]
fn one_member_makes_this_host_an_heir_of_few_vms() {
    let dir = tempfile::tempdir().unwrap();
    let all = Inheritances::open(dir.path().join("heir-of")).unwrap();
    let one = inheritance("web");
    for n in 0..MAX_OF_MEMBER {
        let mut other = one.clone();
        other.set.vm = VmId(*blake3::hash(&n.to_le_bytes()).as_bytes());
        assert_eq!(all.keep(other), Ok(true));
    }
    assert!(all.keep(one).unwrap_err().contains("at most"));
}

proptest! {
    #[test]
    fn no_damaged_file_causes_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Inheritance::from_bytes(&bytes);
        let mut torn = inheritance("web").to_bytes();
        torn.truncate(bytes.len());
        let _ = Inheritance::from_bytes(&torn);
    }
}
