use super::*;
use crate::wiring::alone::{Alone, delete, get, post};
use hyper::StatusCode;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, identity::KeyPair};
use p2pvm_snapshot_sync::{ChunkId, ManifestId};
use p2pvm_vm_manager::{
    Definition, GuestAddress,
    directory::{Directory, RunGoal, VmRecord},
};
use serde_json::json;

const OWNER: MemberId = MemberId([3; 32]);
const OTHER: MemberId = MemberId([4; 32]);

/// The routes as one asks them.
fn asked_by(alone: &Alone, asker: Asker) -> Router {
    routes(alone.services.vms.clone()).layer(Extension(asker))
}

/// A VM of [`OWNER`]'s on a member that cannot be reached.
async fn elsewhere(alone: &Alone, name: &str) {
    let keys = KeyPair::generate();
    let directory = Directory::new(alone.services.vms.parts.records.clone());
    directory.take_name(&keys, name).await.unwrap();
    let definition = Definition {
        vm: keys.vm_id(),
        name: name.into(),
        cpus: 1,
        memory_mib: 64,
        disk_bytes: 1 << 20,
        image: ManifestId(ChunkId([1; 32])),
        voters: vec![MemberId([2; 32])],
        address: GuestAddress {
            v4: [10, 83, 2, 3].into(),
            prefix: 16,
            v6: std::net::Ipv6Addr::LOCALHOST,
            mac: [2; 6],
            mtu: 1340,
        },
        created: UnixTime(7),
    };
    let record = VmRecord {
        definition,
        holder: MemberId([2; 32]),
        epoch: Epoch(1),
        wanted: RunGoal::Running,
        snapshots: vec![],
        owner: Some(OWNER),
    };
    directory.publish(&keys, &record, 0).await.unwrap();
}

async fn close(alone: &Alone) {
    let access = alone.services.access.clone();
    access.set("default = \"deny\"").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_no_member_has_is_not_found() {
    let alone = Alone::start().await;
    let routes = || asked_by(&alone, Asker::Root);
    assert_eq!(get(routes(), "/vms").await, (StatusCode::OK, json!([])));
    let (status, said) = get(routes(), "/vms/web").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
    assert!(said.to_string().contains("there is no VM 'web'"), "{said}");
    let elsewhere = json!({"name": "web", "image": "/no/image", "cpus": 1, "memory_mib": 64,
        "start": false, "on": "cellar"});
    let (status, said) = post(routes(), "/vms", &elsewhere).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
    assert!(
        said.to_string().contains("no member 'cellar' is known"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_names_no_file_of_this_host_but_those_that_are_offered() {
    let images = tempfile::tempdir().unwrap();
    let alone = Alone::offering(vec![images.path().to_owned()]).await;
    let image = images.path().join("web.img");
    std::fs::write(&image, b"QFI\xfb").unwrap();
    let key = alone.layout.root_key();
    std::os::unix::fs::symlink(&key, images.path().join("link.img")).unwrap();
    let create = async |asker, path: &std::path::Path| {
        let wanted = json!({"name": "leak", "image": path, "cpus": 1, "memory_mib": 64,
            "start": false});
        let (_, said) = post(asked_by(&alone, asker), "/vms", &wanted).await;
        said.to_string()
    };
    let member = Asker::Member(OTHER);
    for secret in [&key, &images.path().join("link.img"), &"/etc/passwd".into()] {
        let said = create(member, secret).await;
        assert!(
            said.contains("other members may name an image's id here") && said.contains("[offer]"),
            "{said}"
        );
    }
    // The test's hypervisor reads no image: a caller that hears of it was let through.
    for (asker, path) in [(member, &image), (Asker::Root, &key)] {
        let said = create(asker, path).await;
        assert!(said.contains("there is no hypervisor"), "{said}");
    }
    let images = std::fs::read_dir(alone.layout.images()).unwrap().count();
    assert_eq!(images, 0, "nothing was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_member_asks_is_not_asked_of_a_third_in_this_hosts_name() {
    let alone = Alone::start().await;
    elsewhere(&alone, "web").await;
    let (status, said) = post(asked_by(&alone, Asker::Root), "/vms/web/start", &json!({})).await;
    assert!(
        status == StatusCode::GATEWAY_TIMEOUT && said.to_string().contains("cannot be reached"),
        "this host's root is led on: {status} {said}"
    );
    let member = || asked_by(&alone, Asker::Member(OTHER));
    let (_, said) = post(member(), "/vms/web/start", &json!({})).await;
    assert!(
        said.to_string().contains("the VM 'web' is not known"),
        "{said}"
    );
    let wanted = json!({"name": "new", "image": "/no/image", "cpus": 1, "memory_mib": 64,
        "start": false, "on": "cellar"});
    let (_, said) = post(member(), "/vms", &wanted).await;
    assert!(!said.to_string().contains("cellar"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_closed_network_a_vm_is_its_owners_and_others_see_it() {
    let alone = Alone::start().await;
    elsewhere(&alone, "web").await;
    let as_ = |member| asked_by(&alone, Asker::Member(member));
    let passes = |said: serde_json::Value| !said.to_string().contains("lacks the right");
    let all =
        ["start", "stop", "migrate", "snapshot", "restore"].map(|op| format!("/vms/web/{op}"));
    let nothing = json!({});
    assert!(passes(delete(as_(OTHER), "/vms/web").await.1), "it is open");
    close(&alone).await;
    for path in &all {
        let (status, said) = post(as_(OTHER), path, &nothing).await;
        let refused = said.to_string();
        assert_eq!(status, StatusCode::CONFLICT, "{path} {said}");
        assert!(
            refused.contains("'web'") && refused.contains("its owner"),
            "{said}"
        );
        assert!(passes(post(as_(OWNER), path, &nothing).await.1), "{path}");
        let me = alone.services.vms.parts.me();
        assert!(
            passes(post(as_(me), path, &nothing).await.1),
            "{path}: a founder"
        );
    }
    for path in ["/vms/web", "/vms/web/migrate"] {
        assert!(!passes(delete(as_(OTHER), path).await.1), "{path}");
        assert!(passes(delete(as_(OWNER), path).await.1), "{path}");
    }
    assert!(!passes(get(as_(OTHER), "/vms/web/console").await.1));
    let wanted = json!({"name": "new", "image": "/no/image", "cpus": 1, "memory_mib": 64,
        "start": false});
    assert!(!passes(post(as_(OWNER), "/vms", &wanted).await.1));
    for path in ["/vms", "/vms/web"] {
        let (status, said) = get(as_(OTHER), path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_asks_gets_no_answer() {
    let alone = Alone::start().await;
    let (status, said) = get(routes(alone.services.vms.clone()), "/vms").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{said}");
}
