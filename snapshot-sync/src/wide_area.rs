//! For tests: a fabric over [`MemoryFabric`] whose streams have delay and rate, and fail in chosen
//! ways.

use async_trait::async_trait;
use p2pvm_overlay::{
    BoxStream, Fabric, FabricError, MemberId, RingAddr, Serve,
    fabric::memory::{MemoryFabric, MemoryNet},
    identity::LinkKey,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::Instant,
};

/// How the streams to a member behave.
#[derive(Clone, Default)]
struct Path {
    bytes_per_second: Option<u64>,
    break_after: Option<u64>,
    silent_after: Option<u64>,
    /// The network in which the pair is cut when a stream breaks.
    cut: Option<MemoryNet>,
}

/// One member's view of the wide area.
pub(crate) struct WideArea {
    inner: Arc<MemoryFabric>,
    one_way: Duration,
    paths: Mutex<HashMap<MemberId, Path>>,
}

impl WideArea {
    pub(crate) fn new(inner: Arc<MemoryFabric>, one_way: Duration) -> Arc<Self> {
        Arc::new(Self {
            inner,
            one_way,
            paths: Mutex::default(),
        })
    }

    fn set(&self, from: MemberId, change: impl FnOnce(&mut Path)) {
        change(self.paths.lock().unwrap().entry(from).or_default());
    }

    /// Each stream to the member breaks after `bytes` bytes have come.
    pub(crate) fn break_after(&self, from: MemberId, bytes: u64) {
        self.set(from, |path| path.break_after = Some(bytes));
    }

    /// The first break also cuts the pair.
    pub(crate) fn on_break(&self, from: MemberId, net: MemoryNet) {
        self.set(from, |path| path.cut = Some(net));
    }

    /// Each stream to the member falls silent after `bytes` bytes have come.
    pub(crate) fn silent_after(&self, from: MemberId, bytes: u64) {
        self.set(from, |path| path.silent_after = Some(bytes));
    }

    /// Streams that are opened from now on do not fail.
    pub(crate) fn restore(&self, from: MemberId) {
        self.set(from, |path| *path = Path::default());
    }

    /// The member's bytes come at this rate.
    pub(crate) fn slow_to(&self, from: MemberId, bytes_per_second: u64) {
        self.set(from, |path| path.bytes_per_second = Some(bytes_per_second));
    }
}

/// Carries bytes with delay until either side ends or the path breaks.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    one_way: Duration,
    path: Path,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    let read = async move {
        let mut carried = 0;
        let mut free = Instant::now();
        loop {
            let mut bytes = vec![0; 16 << 10];
            let Ok(length @ 1..) = from.read(&mut bytes).await else {
                break;
            };
            bytes.truncate(length);
            carried += length as u64;
            if path.break_after.is_some_and(|limit| carried > limit) {
                break;
            }
            if path.silent_after.is_some_and(|limit| carried > limit) {
                std::future::pending::<()>().await;
            }
            if let Some(rate) = path.bytes_per_second {
                free =
                    free.max(Instant::now()) + Duration::from_secs_f64(length as f64 / rate as f64);
                tokio::time::sleep_until(free).await;
            }
            if sender
                .send((Instant::now() + one_way, bytes))
                .await
                .is_err()
            {
                break;
            }
        }
    };
    let write = async move {
        while let Some((at, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

#[async_trait]
impl Fabric for WideArea {
    fn me(&self) -> MemberId {
        self.inner.me()
    }

    fn connected(&self) -> Vec<MemberId> {
        self.inner.connected()
    }

    fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        self.inner.link_key(member)
    }

    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError> {
        self.inner.closest(place, n).await
    }

    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.inner.call(to, service, body, timeout).await
    }

    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>) {
        self.inner.serve(service, handler);
    }

    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError> {
        let path = self
            .paths
            .lock()
            .unwrap()
            .get(&to)
            .cloned()
            .unwrap_or_default();
        tokio::time::sleep(self.one_way * 2).await;
        let (far_read, far_write) = tokio::io::split(self.inner.open_stream(to, service).await?);
        let (near, mine) = tokio::io::duplex(256 << 10);
        let (mine_read, mine_write) = tokio::io::split(mine);
        let (one_way, me) = (self.one_way, self.me());
        tokio::spawn(async move {
            let cut = path.cut.clone();
            // The end of either direction ends the stream.
            tokio::select! {
                () = carry(mine_read, far_write, one_way, Path::default()) => {}
                () = carry(far_read, mine_write, one_way, path) => {}
            }
            if let Some(net) = cut {
                net.set_cut(me, to, true);
            }
        });
        Ok(Box::new(near))
    }

    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        self.inner.accept_streams(service)
    }
}
