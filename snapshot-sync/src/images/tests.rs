//! Images as files on several members.

use super::*;
use crate::{ChunkStore, ExchangeOptions};
use p2pvm_overlay::fabric::memory::MemoryNet;
use std::{os::unix::fs::PermissionsExt, time::Duration};

struct Member {
    dir: tempfile::TempDir,
    exchange: Arc<Exchange>,
    images: Images,
}

fn quiet() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}

fn member(net: &MemoryNet, n: u8) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::open(dir.path().join("store")).unwrap();
    let exchange = Exchange::start(
        net.add(MemberId([n; 32])),
        store,
        ExchangeOptions::default(),
    );
    let images = Images::open(exchange.clone(), dir.path().join("images")).unwrap();
    Member {
        dir,
        exchange,
        images,
    }
}

fn image(dir: &Path) -> (PathBuf, Vec<u8>) {
    let mut content = vec![0; 3 << 20];
    blake3::Hasher::new()
        .finalize_xof()
        .fill(&mut content[1 << 20..2 << 20]);
    let path = dir.join("base.qcow2");
    fs::write(&path, &content).unwrap();
    (path, content)
}

#[tokio::test]
async fn an_image_of_one_member_is_read_only_on_another() {
    let net = MemoryNet::new(Duration::from_millis(1));
    let (a, b) = (member(&net, 1), member(&net, 2));
    let (path, content) = image(a.dir.path());
    let id = a.images.import(&path, &quiet()).await.unwrap();
    let there = b
        .images
        .ensure_local(id, &[a.exchange.me()], &quiet())
        .await
        .unwrap();
    assert_eq!(fs::read(&there).unwrap(), content);
    assert_eq!(
        fs::metadata(&there).unwrap().permissions().mode() & 0o777,
        0o400
    );
    assert_eq!(b.images.list().await.unwrap(), vec![id]);
    net.kill(a.exchange.me());
    assert_eq!(
        b.images.ensure_local(id, &[], &quiet()).await.unwrap(),
        there,
        "it is here for good"
    );
    let here = a.images.ensure_local(id, &[], &quiet()).await.unwrap();
    assert_eq!(fs::read(&here).unwrap(), content);
}

#[tokio::test]
async fn concurrent_requests_for_an_image_all_get_it() {
    let net = MemoryNet::new(Duration::from_millis(1));
    let (a, b) = (member(&net, 1), member(&net, 2));
    let (path, content) = image(a.dir.path());
    let id = a.images.import(&path, &quiet()).await.unwrap();
    let (provider, quiet) = ([a.exchange.me()], quiet());
    let all =
        futures::future::join_all((0..8).map(|_| b.images.ensure_local(id, &provider, &quiet)))
            .await;
    for path in all {
        assert_eq!(fs::read(path.unwrap()).unwrap(), content);
    }
}

#[tokio::test]
async fn a_file_thrown_away_is_made_again_and_half_ones_go() {
    let net = MemoryNet::new(Duration::from_millis(1));
    let a = member(&net, 1);
    let (path, content) = image(a.dir.path());
    let id = a.images.import(&path, &quiet()).await.unwrap();
    let file = a.images.ensure_local(id, &[], &quiet()).await.unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(file::partial_path(&file), b"half").unwrap();
    let reopened = Images::open(a.exchange.clone(), a.dir.path().join("images")).unwrap();
    assert!(!file::partial_path(&file).exists());
    reopened.ensure_local(id, &[], &quiet()).await.unwrap();
    assert_eq!(fs::read(&file).unwrap(), content);
}

#[tokio::test]
async fn an_image_removed_is_gone_and_its_chunks_with_the_next_collection() {
    let net = MemoryNet::new(Duration::from_millis(1));
    let a = member(&net, 1);
    let (path, _) = image(a.dir.path());
    let id = a.images.import(&path, &quiet()).await.unwrap();
    let file = a.images.ensure_local(id, &[], &quiet()).await.unwrap();
    a.images.remove(id).await.unwrap();
    assert!(!file.exists() && a.images.list().await.unwrap().is_empty());
    assert_eq!(a.exchange.store().gc(Duration::ZERO).unwrap().kept, 0);
    assert!(matches!(
        a.images.ensure_local(id, &[], &quiet()).await,
        Err(Error::NoProvider { .. })
    ));
}
