//! Addresses, names, routes and records: what a member says of what is not its own.

use super::{Attempt, Stage};
use p2pvm_dhcp::{Error, Holder, address_key};
use p2pvm_dht::{
    Record, Records,
    cell::Cell,
    wire::{Reply, Request, emit, parse},
};
use p2pvm_overlay::{Epoch, RingAddr, UnixTime, identity::KeyPair};
use p2pvm_vm_manager::directory::{Directory, name_key, vm_key};
use serde::Serialize;
use std::{net::IpAddr, sync::Arc, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

/// What members tell each other over the service "route".
#[derive(Serialize)]
enum Told {
    Here(Vec<(IpAddr, Record)>),
    Stale(IpAddr, Epoch),
}

fn bytes(told: &Told) -> Vec<u8> {
    postcard::to_stdvec(told).unwrap()
}

fn in_an_hour() -> UnixTime {
    UnixTime::now().plus(HOUR.as_secs())
}

/// Records of owners that nobody knows, at places that nobody needs.
pub fn new_records(many: u64) -> Vec<Record> {
    let record = |n: u64| {
        let key = RingAddr::of(
            "rogue",
            &[&rand::random::<[u8; 32]>()[..], &n.to_le_bytes()].concat(),
        );
        Record::sign(
            &KeyPair::generate(),
            key,
            1,
            in_an_hour(),
            Some(vec![7; 64]),
        )
    };
    (0..many).map(record).collect()
}

/// A message with many addresses of VMs that nobody knows.
pub fn told(stage: &Stage, many: u8) -> Vec<u8> {
    let subnet = stage.rogue.network.subnet.addr.octets();
    let record = |n: u8| {
        let ip = IpAddr::from([subnet[0], subnet[1], subnet[2] | 1, n]);
        claims(stage, &[ip], 1)
    };
    bytes(&Told::Here((0..many).flat_map(record).collect()))
}

/// Records by which a VM that the rogue has just made up has these addresses, with the rogue.
fn claims(stage: &Stage, ips: &[IpAddr], epoch: u64) -> Vec<(IpAddr, Record)> {
    let (keys, rogue) = (KeyPair::generate(), &stage.rogue);
    let epoch = Epoch(epoch);
    rogue
        .addresses
        .records_of(&keys, ips, rogue.me(), epoch, "evil")
}

fn own_address(stage: &Stage, host: &str) -> IpAddr {
    let address = super::address(&stage.lab, host);
    address.parse().unwrap()
}

fn address_v6(stage: &Stage, host: &str) -> IpAddr {
    stage.lab.status(host).unwrap().address_v6.parse().unwrap()
}

/// The addresses of the VM "web".
fn guest(stage: &Stage) -> [IpAddr; 2] {
    let v4 = stage.web.address.parse().unwrap();
    [v4, IpAddr::V6(stage.rogue.network.vm_v6(stage.vm()))]
}

fn tell_all(stage: &Stage, told: &Told) {
    for host in super::DAEMONS {
        // Whether it is believed shows in the routes, not in the answer.
        let answer = stage.rogue.call(stage.id(host), "route", bytes(told));
        assert!(answer.is_ok(), "{answer:?}");
    }
    // What is in doubt is asked of the DHT within this time, and again later.
    std::thread::sleep(Duration::from_millis(1500));
}

pub const ATTEMPTS: &[Attempt] = &[
    ("a host's address for a VM of the rogue's", hosts_address),
    ("a host's IPv6 address for a VM of the rogue's", hosts_v6),
    (
        "a host's address for the rogue itself",
        hosts_address_as_own,
    ),
    ("a guest's addresses for another VM", guests_addresses),
    ("a guest said to be stale", guest_said_stale),
    ("a host said to be stale", host_said_stale),
    ("hundreds of addresses that nobody has", invented_addresses),
    ("a host's name", hosts_name),
    ("a VM's name", vms_name),
    ("a VM's record with another's signature", vms_record),
    ("a VM's record that its owner did not sign", unsigned_record),
    ("a cell with another owner, as settled", forged_cell),
    ("a VM's record deleted", deleted_record),
    ("attempts of others withdrawn", withdrawn),
    ("records far into the future", endless_record),
    ("the way to another's address proved", anothers_way),
];

fn hosts_address(stage: &Stage) {
    let ip = own_address(stage, "a");
    for epoch in [1, 7, u64::from(u32::MAX)] {
        tell_all(stage, &Told::Here(claims(stage, &[ip], epoch)));
        stage.assert_reached("a");
    }
}

fn hosts_v6(stage: &Stage) {
    let ip = address_v6(stage, "a");
    tell_all(
        stage,
        &Told::Here(claims(stage, &[ip], u64::from(u32::MAX))),
    );
    let port = 9;
    for from in ["b", "c"] {
        let reached = stage.reaches(from, &format!("[{ip}]"), port);
        assert!(reached, "{from} does not reach a over IPv6");
    }
}

/// As a member writes it for itself: signed with its own key, without an epoch.
fn hosts_address_as_own(stage: &Stage) {
    let ip = own_address(stage, "a");
    let holder = Holder {
        member: stage.rogue.me(),
        epoch: Epoch(0),
        vm: None,
        name: "r".into(),
    };
    let value = [vec![0], postcard::to_stdvec(&holder).unwrap()].concat();
    let keys = stage.rogue.identity.keys();
    for version in [1, 9_999, u64::MAX] {
        let value = Some(value.clone());
        let record = Record::sign(keys, address_key(ip), version, in_an_hour(), value);
        tell_all(stage, &Told::Here(vec![(ip, record)]));
        stage.assert_reached("a");
    }
}

fn guests_addresses(stage: &Stage) {
    for epoch in [stage.web.epoch + 1, u64::from(u32::MAX)] {
        tell_all(stage, &Told::Here(claims(stage, &guest(stage), epoch)));
        stage.assert_guest_reached();
    }
}

fn guest_said_stale(stage: &Stage) {
    for ip in guest(stage) {
        for epoch in [stage.web.epoch + 1, u64::MAX] {
            tell_all(stage, &Told::Stale(ip, Epoch(epoch)));
        }
    }
    stage.assert_guest_reached();
    stage.assert_web_runs();
}

fn host_said_stale(stage: &Stage) {
    let ip = own_address(stage, "b");
    tell_all(stage, &Told::Stale(ip, Epoch(u64::MAX)));
    stage.assert_reached("b");
}

fn invented_addresses(stage: &Stage) {
    for _ in 0..20 {
        let answer = stage.rogue.call(stage.id("b"), "route", told(stage, 255));
        assert!(answer.is_ok(), "{answer:?}");
    }
    stage.assert_guest_reached();
    stage.assert_reached("b");
}

fn hosts_name(stage: &Stage) {
    let (addresses, me) = (stage.rogue.addresses.clone(), stage.rogue.me());
    let keys = KeyPair::from_seed(&stage.rogue.identity.keys().seed());
    let claimed = stage
        .rogue
        .run(async move { addresses.claim_host(&keys, me, "a").await });
    assert!(
        matches!(claimed, Err(Error::NameTaken { .. })),
        "{claimed:?}"
    );
}

fn vms_name(stage: &Stage) {
    let (addresses, me) = (stage.rogue.addresses.clone(), stage.rogue.me());
    let directory = Directory::new(stage.rogue.records.clone());
    let (claimed, taken) = stage.rogue.run(async move {
        let keys = KeyPair::generate();
        let claimed = addresses.claim_vm(&keys, me, Epoch(9), "web").await;
        (claimed, directory.take_name(&keys, "web").await)
    });
    assert!(
        matches!(claimed, Err(Error::NameTaken { .. })),
        "{claimed:?}"
    );
    let why = taken.unwrap_err().to_string();
    assert!(why.contains("has a VM named 'web' already"), "{why}");
    assert_eq!(stage.lab.vm("c", "web").unwrap().id, stage.web.id);
}

/// The VM's record and that of its name, as the network has them.
fn vms_records(stage: &Stage) -> Vec<Option<Record>> {
    let records: Arc<dyn Records> = stage.honest.records.clone();
    let keys = [vm_key(stage.vm()), name_key("web")];
    stage.honest.run(async move {
        let mut found = Vec::new();
        for key in keys {
            found.push(records.get(key).await.unwrap());
        }
        found
    })
}

/// Sends a request about a key to all daemons; each must answer so that `is_right`.
fn send(stage: &Stage, request: &Request, is_right: fn(&Reply) -> bool) {
    for host in super::DAEMONS {
        let answer = stage
            .rogue
            .call(stage.id(host), "dht", emit(request))
            .unwrap();
        let reply: Reply = parse(&answer).unwrap();
        assert!(is_right(&reply), "{host}: {reply:?}");
    }
}

/// Fails if the records of "web" are not those of its owner afterwards.
fn leaves_the_records(stage: &Stage, attempt: impl Fn(RingAddr)) {
    let before = vms_records(stage);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    attempt(vm_key(stage.vm()));
    attempt(name_key("web"));
    let owners = |records: &[Option<Record>]| -> Vec<_> {
        records
            .iter()
            .flatten()
            .map(|r| (r.owner, r.value.is_some()))
            .collect()
    };
    assert_eq!(owners(&vms_records(stage)), owners(&before));
    assert_eq!(stage.lab.vm("c", "web").unwrap().host, "a");
}

fn is_not_held(reply: &Reply) -> bool {
    matches!(
        reply,
        Reply::Written {
            accepted: false,
            ..
        } | Reply::Refused(_)
    )
}

fn vms_record(stage: &Stage) {
    leaves_the_records(stage, |key| {
        let mine = KeyPair::generate();
        for version in [1, u64::MAX] {
            let value = Some(mine.public().to_vec());
            let record = Record::sign(&mine, key, version, in_an_hour(), value);
            send(stage, &Request::Write { record, attempt: 1 }, is_not_held);
        }
    });
}

fn forge(stage: &Stage, key: RingAddr, value: Option<Vec<u8>>) -> Record {
    let owner = stage.vm().0;
    let signed = Record::sign(&KeyPair::generate(), key, u64::MAX, in_an_hour(), value);
    Record { owner, ..signed }
}

fn unsigned_record(stage: &Stage) {
    leaves_the_records(stage, |key| {
        let record = forge(stage, key, Some(vec![1]));
        send(stage, &Request::Write { record, attempt: 2 }, is_not_held);
    });
}

fn forged_cell(stage: &Stage) {
    leaves_the_records(stage, |key| {
        let mine = KeyPair::generate();
        let value = Some(mine.public().to_vec());
        let own = Record::sign(&mine, key, u64::MAX, in_an_hour(), value);
        for record in [own, forge(stage, key, Some(vec![1]))] {
            let cell = Cell::of(record, true);
            // Merged or refused: the owner is the first one, as most replicas have it.
            send(stage, &Request::Merge(key, cell), |reply| {
                matches!(reply, Reply::Holds(_) | Reply::Refused(_))
            });
        }
    });
}

fn deleted_record(stage: &Stage) {
    leaves_the_records(stage, |key| {
        let mine = KeyPair::generate();
        // A tombstone of its own buries nothing of another owner's.
        let record = Record::sign(&mine, key, u64::MAX, in_an_hour(), None);
        send(stage, &Request::Write { record, attempt: 3 }, |reply| {
            matches!(reply, Reply::Written { .. } | Reply::Refused(_))
        });
        let record = forge(stage, key, None);
        send(stage, &Request::Write { record, attempt: 4 }, is_not_held);
    });
}

fn withdrawn(stage: &Stage) {
    leaves_the_records(stage, |key| {
        for attempt in (0..50).chain([u64::MAX]) {
            send(stage, &Request::Withdraw { key, attempt }, |reply| {
                matches!(reply, Reply::Done)
            });
        }
    });
}

fn endless_record(stage: &Stage) {
    for record in new_records(3) {
        let mine = KeyPair::generate();
        let record = Record::sign(&mine, record.key, 1, UnixTime(u64::MAX), record.value);
        send(stage, &Request::Write { record, attempt: 5 }, |reply| {
            matches!(reply, Reply::Refused(_))
        });
    }
}

/// A member has packets proved to its own address only, and not often.
fn anothers_way(stage: &Stage) {
    let ask = |ip: IpAddr| {
        let question = postcard::to_stdvec(&(1u8, ip)).unwrap();
        stage.rogue.refused(stage.id("b"), "prove", question)
    };
    for ip in [
        own_address(stage, "a"),
        guest(stage)[0],
        "192.0.2.1".parse().unwrap(),
    ] {
        let why = ask(ip);
        assert!(why.contains("not known here as the asker's"), "{why}");
    }
}
