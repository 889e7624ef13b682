//! Other people's VMs and hosts: files as images, requests without the right, VMs that are brought,
//! and what the service "vm" is told.

use super::{Attempt, Stage};
use crate::common::set_policy;
use p2pvm_overlay::{Epoch, FabricError, UnixTime, identity::KeyPair, membership::vm_mac};
use p2pvm_vm_manager::{
    Definition, GuestAddress, VmSecret,
    directory::Directory,
    host::remote::{VmAnswer, VmRequest},
    migrate::wire::{Answer, LONG, Offer, Request, ask},
};
use std::{fs, net::Ipv4Addr};

/// How many VMs of one member are on their way to a host at a time.
const ARRIVALS: usize = 8;

/// What is tried while the network is open: every member may make VMs there.
pub const OPEN: &[Attempt] = &[
    ("the root key as an image", root_key_as_image),
    ("the identity as an image, by a way out", way_out),
    ("a link below an offered directory", link_as_image),
    ("a FIFO as an image", fifo_as_image),
    ("a device and the daemon's own files as images", other_files),
    ("a request to be passed on in a host's name", passed_on),
    ("routes that are for this machine's root", roots_routes),
    ("a request longer than any", long_request),
    (
        "VMs with another's name, address or an impossible size",
        spoilt_offers,
    ),
    ("more VMs brought than one member may", too_many_offers),
    ("moves of others ended or settled", anothers_moves),
    ("a running VM to be given way", give_way_running),
    ("a stopped VM to be given way", give_way_stopped),
    ("a VM said to run elsewhere", said_elsewhere),
];

/// What is tried in a closed network, which the first row makes.
pub const CLOSED: &[Attempt] = &[
    ("each operation without the right", without_right),
    ("a token of its own", own_token),
    ("another member's token", stolen_token),
    ("a VM restored without the right", restored_without_right),
];

fn new_vm(image: &str, more: &str) -> String {
    let size = r#""cpus":1,"memory_mib":64,"disk_bytes":null,"start":false"#;
    format!(r#"{{"name":"leak","image":"{image}",{size}{more}}}"#)
}

fn create(stage: &Stage, to: &str, image: &str, more: &str) -> String {
    let body = new_vm(image, more);
    let (_, answer) = stage.rogue.http(stage.id(to), "POST /vms", "", &body);
    answer
}

/// A file of `a` is refused with these words, and nothing of it is kept.
fn refuses_image(stage: &Stage, image: &str, why: &str) {
    let images = stage.lab.dir("a").unwrap().join("images");
    let kept = || fs::read_dir(&images).unwrap().count();
    let before = kept();
    let answer = create(stage, "a", image, "");
    assert!(answer.contains(why), "{image}: {answer}");
    assert_eq!(kept(), before, "{image}");
    let (code, out, _) = stage.lab.try_p2pvm("a", &["vm", "show", "leak"]).unwrap();
    assert_eq!(code, 3, "{out}");
}

fn file(stage: &Stage, name: &str) -> String {
    let dir = stage.lab.dir("a").unwrap();
    dir.join(name).to_str().unwrap().to_owned()
}

const NOT_OFFERED: &str = "other members may name";

fn root_key_as_image(stage: &Stage) {
    let secret = fs::read(file(stage, "root.key")).unwrap();
    refuses_image(stage, &file(stage, "root.key"), NOT_OFFERED);
    for host in super::DAEMONS {
        let chunks = stage.lab.dir(host).unwrap().join("images");
        let leaked = fs::read_dir(chunks).unwrap().flatten().any(|file| {
            let bytes = fs::read(file.path()).unwrap_or_default();
            bytes.len() < 1 << 20 && bytes.windows(32).any(|part| part == secret)
        });
        assert!(!leaked, "{host}");
    }
}

fn way_out(stage: &Stage) {
    for way in ["offered/../identity", "offered/./../identity"] {
        refuses_image(stage, &file(stage, way), NOT_OFFERED);
    }
}

fn link_as_image(stage: &Stage) {
    refuses_image(stage, &file(stage, "offered/link"), "over a link");
}

fn fifo_as_image(stage: &Stage) {
    // The answer comes at once: nobody waits for a writer.
    refuses_image(
        stage,
        &file(stage, "offered/fifo"),
        "a pipe, socket or device",
    );
}

fn other_files(stage: &Stage) {
    let own = ["votes.log", "api.sock", "node.toml", "vms"].map(|name| file(stage, name));
    let others = [
        "/dev/zero",
        "/dev/sda",
        "/etc/shadow",
        "/proc/self/environ",
        "/",
    ];
    for image in own.iter().map(String::as_str).chain(others) {
        refuses_image(stage, image, NOT_OFFERED);
    }
}

/// `a` neither asks `b` in its own name, nor makes the VM there.
fn passed_on(stage: &Stage) {
    for more in [r#","on":"b""#, r#","on":"c""#] {
        let answer = create(stage, "a", &file(stage, "root.key"), more);
        assert!(answer.contains(NOT_OFFERED), "{answer}");
    }
    let id = stage.web.id.clone();
    // `b` does not have it and does not pass the request on.
    for name in ["web", id.as_str()] {
        let request = format!("POST /vms/{name}/stop?force=true");
        for headers in ["", "p2pvm-forwarded: 1\r\n"] {
            let (_, answer) = stage.rogue.http(stage.id("b"), &request, headers, "");
            let refused = r#""kind":"not-found""#;
            assert!(answer.contains(refused), "{answer}");
        }
    }
}

fn roots_routes(stage: &Stage) {
    let asked = [
        "GET /status",
        "GET /peers",
        "GET /doctor",
        "GET /acl",
        "POST /acl",
        "POST /invite",
        "POST /revoke",
        "POST /leave",
        "POST /drain",
        "POST /down",
        "GET /cluster/vms",
        "GET /tokens",
        "POST /tokens",
        "GET /metrics",
        "POST /dashboard",
        "GET /events",
        "POST /events/follow",
        "GET /users",
        "POST /users",
        "GET /offer",
        "POST /offer/off",
        "GET /store",
        "POST /store/gc",
        "GET /../status",
        "GET /vms/../status",
        "GET /vms/..%2f..%2fidentity",
        "GET //status",
    ];
    for request in asked {
        let (status, answer) = stage.rogue.http(stage.id("a"), request, "", "{}");
        assert!((400..500).contains(&status), "{request}: {status} {answer}");
        assert!(!answer.contains("network_id"), "{request}: {answer}");
    }
}

fn long_request(stage: &Stage) {
    let body = format!(r#"{{"name":"{}"}}"#, "x".repeat(1 << 20));
    let (status, answer) = stage.rogue.http(stage.id("a"), "POST /vms", "", &body);
    assert!(status >= 400 || status == 0, "{status} {answer}");
    let head = format!("x-long: {}\r\n", "y".repeat(1 << 20));
    let (status, answer) = stage.rogue.http(stage.id("a"), "GET /vms", &head, "");
    assert!(status >= 400 || status == 0, "{status} {answer}");
    let (status, answer) = stage.honest.http(stage.id("a"), "GET /vms", "", "");
    assert_eq!(status, 200, "{answer}");
}

/// A VM of the rogue's own, with a name and an address of its own by the network's records.
fn own_vm(stage: &Stage, name: &'static str) -> (KeyPair, Definition) {
    let (addresses, me) = (stage.rogue.addresses.clone(), stage.rogue.me());
    let directory = Directory::new(stage.rogue.records.clone());
    let (keys, lease) = stage.rogue.run(async move {
        let keys = KeyPair::generate();
        directory.take_name(&keys, name).await.unwrap();
        let lease = addresses.claim_vm(&keys, me, Epoch(1), name).await;
        (keys, lease.unwrap())
    });
    let vm = keys.vm_id();
    let definition = Definition {
        vm,
        name: name.into(),
        cpus: 1,
        memory_mib: 64,
        disk_bytes: 1 << 20,
        // That nobody has: the VM stays on its way.
        image: p2pvm_snapshot_sync::ManifestId(p2pvm_snapshot_sync::ChunkId(vm.0)),
        voters: vec![me],
        address: GuestAddress {
            v4: lease.v4,
            prefix: lease.prefix,
            v6: stage.rogue.network.vm_v6(vm),
            mac: vm_mac(vm),
            mtu: 1340,
        },
        created: UnixTime::now(),
    };
    (keys, definition)
}

fn tell(stage: &Stage, to: &str, request: Request) -> Result<Answer, FabricError> {
    let (fabric, to) = (stage.rogue.fabric(), stage.id(to));
    stage
        .rogue
        .run(async move { ask(&*fabric, to, &request, LONG).await })
}

fn offer(
    stage: &Stage,
    to: &str,
    keys: &KeyPair,
    definition: &Definition,
) -> Result<Answer, FabricError> {
    let offer = Offer {
        id: rand::random(),
        definition: definition.clone(),
        secret: VmSecret::of(keys),
        epoch: Epoch(2),
        snapshots: Vec::new(),
    };
    tell(stage, to, Request::Prepare(Box::new(offer)))
}

fn spoilt_offers(stage: &Stage) {
    let (keys, good) = own_vm(stage, "mine");
    let web: Ipv4Addr = stage.web.address.parse().unwrap();
    let of = |host: &str| -> Ipv4Addr { super::address(&stage.lab, host).parse().unwrap() };
    let (of_a, of_b) = (of("a"), of("b"));
    type Spoil<'a> = &'a dyn Fn(&mut Definition);
    let spoilt: [(&str, Spoil); 12] = [
        ("another's name", &|vm| vm.name = "web".into()),
        ("nobody's name", &|vm| vm.name = "nobodys".into()),
        ("no name", &|vm| vm.name = "../../etc".into()),
        ("the VM's address", &|vm| vm.address.v4 = web),
        ("the target's own address", &|vm| vm.address.v4 = of_a),
        ("another host's address", &|vm| vm.address.v4 = of_b),
        ("another's IPv6", &|vm| {
            vm.address.v6 = "fd00::1".parse().unwrap()
        }),
        ("another's MAC", &|vm| vm.address.mac = vm_mac(stage.vm())),
        ("no processor", &|vm| vm.cpus = 0),
        ("endless memory", &|vm| vm.memory_mib = u64::MAX),
        ("an endless disk", &|vm| vm.disk_bytes = u64::MAX),
        ("another's key", &|vm| vm.vm = stage.vm()),
    ];
    let before = stage.lab.vms("a").unwrap().len();
    for (what, spoil) in spoilt {
        let mut definition = good.clone();
        spoil(&mut definition);
        let answer = offer(stage, "a", &keys, &definition);
        let is_refused = matches!(
            answer,
            Err(FabricError::Refused(..)) | Ok(Answer::Gone { .. })
        );
        assert!(is_refused, "{what}: {answer:?}");
        assert_eq!(stage.lab.vms("a").unwrap().len(), before, "{what}");
    }
}

fn too_many_offers(stage: &Stage) {
    const NAMES: [&str; 12] = [
        "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10", "m11",
    ];
    let vms: Vec<_> = NAMES.into_iter().map(|name| own_vm(stage, name)).collect();
    let (mut taken, mut last) = (0, String::new());
    for (keys, definition) in &vms {
        match offer(stage, "c", keys, definition) {
            Ok(_) => taken += 1,
            Err(refused) => last = refused.to_string(),
        }
    }
    assert!((1..=ARRIVALS).contains(&taken), "{taken}: {last}");
    assert!(
        last.contains("on their way") || last.contains("do not fit"),
        "{last}"
    );
}

fn anothers_moves(stage: &Stage) {
    let vm = stage.vm();
    for id in [0, 1, 7, u64::MAX] {
        let requests = [
            Request::Abort {
                id,
                vm,
                reason: "because".into(),
            },
            Request::Settle {
                id,
                vm,
                running: true,
            },
            Request::Arm { id, serial: 1 },
            Request::Progress { id },
        ];
        for request in requests {
            let answer = tell(stage, "a", request);
            let is_taken = matches!(answer, Ok(Answer::Armed | Answer::Running));
            assert!(!is_taken, "{answer:?}");
        }
    }
    stage.assert_web_runs();
}

fn tell_host(stage: &Stage, to: &str, request: &VmRequest) -> VmAnswer {
    let body = postcard::to_stdvec(request).unwrap();
    let answer = stage.rogue.call(stage.id(to), "vm", body).unwrap();
    postcard::from_bytes(&answer).unwrap()
}

fn give_way_running(stage: &Stage) {
    let answer = tell_host(stage, "a", &VmRequest::GiveWay(stage.vm()));
    assert_eq!(answer, VmAnswer::GivesWay(false));
    stage.assert_web_runs();
}

/// The copy may be promised, but goes only when the voters have confirmed the VM elsewhere.
fn give_way_stopped(stage: &Stage) {
    let made = stage.lab.vm("a", "idle").unwrap();
    let vm = made.id.parse().unwrap();
    for _ in 0..3 {
        tell_host(stage, "a", &VmRequest::GiveWay(vm));
        assert_eq!(tell_host(stage, "a", &VmRequest::Took(vm)), VmAnswer::Heard);
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    let now = stage.lab.vm("a", "idle").unwrap();
    assert_eq!((now.id, now.host), (made.id, made.host));
    stage.lab.p2pvm("a", &["vm", "delete", "idle"]).unwrap();
}

/// The voters are asked now and then: the VM's owner does with it what it likes meanwhile.
fn said_elsewhere(stage: &Stage) {
    let made = stage.lab.vm("a", "busy").unwrap();
    for vm in [stage.vm(), made.id.parse().unwrap()] {
        let body = postcard::to_stdvec(&VmRequest::Took(vm)).unwrap();
        let bodies = vec![body; 5000];
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| stage.rogue.flood(stage.id("a"), "vm", bodies, 48));
            if vm != stage.vm() {
                stage.lab.p2pvm("a", &["vm", "delete", "busy"]).unwrap();
            }
            let tally = flood.join().expect("the flood ends");
            assert!(tally.failed.is_empty(), "{:?}", tally.failed);
        });
    }
    stage.assert_guest_reached();
    stage.assert_web_runs();
}

/// Packets go on, but a member that is not the owner manages nothing.
pub fn close(stage: &Stage) {
    let rules = "default = \"deny\"\n[[rule]]\naction = \"allow\"\nfrom = \"*\"\nto = \"*\"\n";
    set_policy(&stage.lab, "a", &super::DAEMONS, rules);
}

/// The operations on "web", each a method and a path.
const OPERATIONS: [&str; 16] = [
    "POST /vms/web/start",
    "POST /vms/web/stop?force=true",
    "DELETE /vms/web?force=true",
    "GET /vms/web/console",
    "POST /vms/web/migrate",
    "DELETE /vms/web/migrate",
    "POST /vms/web/snapshot",
    "POST /vms/web/restore",
    "POST /vms/web/takeover",
    "POST /vms/web/protection",
    "POST /vms/web/replication",
    "POST /vms/web/settings",
    "POST /vms/web/schedule",
    "DELETE /vms/web/snapshots/before",
    "POST /vms/web/snapshots/before/verify",
    "POST /vms",
];

fn refuses_all(stage: &Stage, headers: &str) {
    for request in OPERATIONS {
        let body = match request {
            "POST /vms" => new_vm("/usr/lib/p2pvm/guest.qcow2", ""),
            _ => "{}".to_owned(),
        };
        let (status, answer) = stage.rogue.http(stage.id("a"), request, headers, &body);
        assert_eq!(status, 409, "{request}: {answer}");
        assert!(answer.contains("lacks the right to"), "{request}: {answer}");
    }
    stage.assert_web_runs();
}

fn without_right(stage: &Stage) {
    refuses_all(stage, "");
    for claim in [
        "authorization: Bearer root\r\n",
        "p2pvm-forwarded: 1\r\n",
        "host: localhost\r\n",
    ] {
        let (status, answer) = stage.rogue.http(stage.id("a"), OPERATIONS[1], claim, "");
        assert!((400..500).contains(&status), "{claim}: {answer}");
    }
    // To see it is allowed.
    let (status, answer) = stage.rogue.http(stage.id("a"), "GET /vms/web", "", "");
    assert!(status == 200 && answer.contains(&*stage.web.id), "{answer}");
    stage.assert_web_runs();
}

const RIGHTS: &str = "start,stop,delete,console,move,snapshot,restore";

/// A token that a host's own root makes, for a member.
fn token(stage: &Stage, by: &str, to: &str) -> String {
    let words = [
        "token", "create", "--vm", "web", "--may", RIGHTS, "--for", "1h", "--to", to,
    ];
    let token = stage.lab.p2pvm(by, &words).unwrap();
    format!("p2pvm-token: {}\r\n", token.trim())
}

/// `b` is not the owner of the VM: its tokens open nothing.
fn own_token(stage: &Stage) {
    refuses_all(stage, &token(stage, "b", "r"));
}

fn stolen_token(stage: &Stage) {
    let stolen = token(stage, "a", "c");
    refuses_all(stage, &stolen);
    // A forged one: one letter of it is another.
    let at = stolen.len() / 2;
    let other = if stolen.as_bytes()[at] == b'a' {
        "b"
    } else {
        "a"
    };
    let mut forged = stolen.clone();
    forged.replace_range(at..=at, other);
    refuses_all(stage, &forged);
}

fn restored_without_right(stage: &Stage) {
    let body = r#"{"snapshot":"kept","force":true,"on":null}"#;
    for host in super::DAEMONS {
        let (status, answer) = stage
            .rogue
            .http(stage.id(host), "POST /vms/web/restore", "", body);
        assert_eq!(status, 409, "{host}: {answer}");
    }
    stage.assert_web_runs();
}
