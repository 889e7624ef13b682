use super::*;
use crate::wiring::alone::{Alone, Answered, delete, get, post, send};
use hyper::StatusCode;
use p2pvm_api::{Failure, Kind, VmStateView, client::USER_HEADER};
use p2pvm_authority::{Asked, Proof, Revocations};
use p2pvm_overlay::{Epoch, MemberId, UnixTime, identity::KeyPair};
use p2pvm_snapshot_sync::{ChunkId, ManifestId};
use p2pvm_vm_manager::{
    Definition, GuestAddress, Protection,
    directory::{Directory, RunGoal, VmRecord},
};

const OWNER: MemberId = MemberId([3; 32]);
const OTHER: MemberId = MemberId([4; 32]);

/// The user that [`elsewhere`]'s VM is for.
fn user() -> KeyPair {
    KeyPair::from_seed(&[8; 32])
}

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
        user: Some(user().public()),
        revoked: Revocations::NONE,
        protection: Protection::default(),
        replica: None,
        backups: Default::default(),
        restored: None,
    };
    directory.publish(&keys, &record, 0).await.unwrap();
}

async fn close(alone: &Alone) {
    let access = alone.services.access.clone();
    access.set("default = \"deny\"").await.unwrap();
}

/// A new VM from an image, here or on another member.
fn new(image: impl AsRef<std::path::Path>, on: Option<&str>) -> CreateVm {
    CreateVm {
        name: "new".into(),
        image: image.as_ref().display().to_string(),
        cpus: 1,
        memory_mib: 64,
        disk_bytes: None,
        user: None,
        start: false,
        on: on.map(str::to_owned),
        restart: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_no_member_has_is_not_found() {
    let alone = Alone::start().await;
    let routes = || asked_by(&alone, Asker::Root);
    assert!(
        get(routes(), "/vms")
            .await
            .value::<Vec<VmView>>()
            .is_empty()
    );
    let all = of_cluster(alone.services.vms.clone());
    let all: ClusterVms = get(all, "/cluster/vms").await.value();
    assert!(all.vms.is_empty() && all.silent.is_empty(), "{all:?}");
    let failure = get(routes(), "/vms/web").await.failure();
    assert_eq!(
        failure,
        Failure::not_found("there is no VM 'web': see 'p2pvm vm list'")
    );
    let elsewhere = new("/no/image", Some("cellar"));
    let failure = post(routes(), "/vms", &elsewhere).await.failure();
    assert_eq!(failure.kind, Kind::NotFound);
    assert!(
        failure.message.contains("no member 'cellar' is known"),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_member_names_only_offered_files_of_this_host() {
    let images = tempfile::tempdir().unwrap();
    let alone = Alone::offering(vec![images.path().to_owned()]).await;
    let image = images.path().join("web.img");
    std::fs::write(&image, b"QFI\xfb").unwrap();
    let key = alone.layout.root_key();
    std::os::unix::fs::symlink(&key, images.path().join("link.img")).unwrap();
    let create = async |asker, path: &std::path::Path| {
        let answer = post(asked_by(&alone, asker), "/vms", &new(path, None)).await;
        answer.late_failure().message
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
async fn another_members_request_is_not_passed_on_in_this_hosts_name() {
    let alone = Alone::start().await;
    elsewhere(&alone, "web").await;
    let root = asked_by(&alone, Asker::Root);
    let failure = post(root, "/vms/web/start", &()).await.failure();
    assert!(
        failure.kind == Kind::TimedOut && failure.message.contains("cannot be reached"),
        "this host's root is led on: {failure}"
    );
    let member = || asked_by(&alone, Asker::Member(OTHER));
    let failure = post(member(), "/vms/web/start", &()).await.late_failure();
    assert!(
        failure.message.contains("the VM 'web' is not known"),
        "{failure}"
    );
    let elsewhere = new("/no/image", Some("cellar"));
    let failure = post(member(), "/vms", &elsewhere).await.late_failure();
    assert!(!failure.message.contains("cellar"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_closed_network_only_its_owner_manages_a_vm() {
    let alone = Alone::start().await;
    elsewhere(&alone, "web").await;
    let as_ = |member| asked_by(&alone, Asker::Member(member));
    let passes = |answer: Answered| !answer.text.contains("lacks the right");
    let all =
        ["start", "stop", "migrate", "snapshot", "restore"].map(|op| format!("/vms/web/{op}"));
    assert!(passes(delete(as_(OTHER), "/vms/web").await), "it is open");
    close(&alone).await;
    for path in &all {
        let failure = post(as_(OTHER), path, &Force::default()).await.failure();
        assert_eq!(failure.kind, Kind::Refused, "{path} {failure}");
        assert!(
            failure.message.contains("'web'") && failure.message.contains("its owner"),
            "{failure}"
        );
        for member in [OWNER, alone.services.vms.parts.me()] {
            let answer = post(as_(member), path, &Force::default()).await;
            assert!(passes(answer), "{path}: its owner and a founder");
        }
    }
    for path in ["/vms/web", "/vms/web/migrate"] {
        assert!(!passes(delete(as_(OTHER), path).await), "{path}");
        assert!(passes(delete(as_(OWNER), path).await), "{path}");
    }
    assert!(!passes(get(as_(OTHER), "/vms/web/console").await));
    assert!(!passes(
        post(as_(OWNER), "/vms", &new("/no/image", None)).await
    ));
    let seen: Vec<VmView> = get(as_(OTHER), "/vms").await.value();
    assert!(seen.iter().all(|vm| vm.name == "web"), "{seen:?}");
    let seen: VmView = get(as_(OTHER), "/vms/web").await.value();
    assert_eq!(
        (seen.name.as_str(), seen.state),
        ("web", VmStateView::Remote)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_asks_gets_no_answer() {
    let alone = Alone::start().await;
    let answer = get(routes(alone.services.vms.clone()), "/vms").await;
    assert_eq!(
        answer.status,
        StatusCode::INTERNAL_SERVER_ERROR,
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_that_a_vm_is_for_manages_it_with_a_proof() {
    let alone = Alone::start().await;
    elsewhere(&alone, "web").await;
    close(&alone).await;
    const PATH: &str = "/vms/web/start";
    let start = async |user: Option<&KeyPair>| {
        let mut request = axum::http::Request::post(PATH);
        if let Some(user) = user {
            let asked = Asked {
                member: OTHER.0,
                method: "POST",
                path: PATH,
            };
            let proof = Proof::sign(user, &asked, UnixTime::now().0);
            request = request.header(USER_HEADER, proof.to_string());
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        send(asked_by(&alone, Asker::Member(OTHER)), request)
            .await
            .text
    };
    let lacks = "lacks the right to start 'web'";
    for user in [None, Some(&KeyPair::from_seed(&[9; 32]))] {
        let refused = start(user).await;
        assert!(refused.contains(lacks), "{refused}");
    }
    let admitted = start(Some(&user())).await;
    assert!(!admitted.contains(lacks), "{admitted}");
}
