//! A QMP connection: commands in, answers and events out, file descriptors passed along.
//!
//! Why not the typed `qapi` crate: its connection ends for good at an event that is not in its
//! schema (QEMU 9.0) and at an answer whose caller has gone away, and both are ordinary here (QEMU
//! is newer; callers time out). What a hypervisor answers is therefore read field by field from
//! JSON, and what is unknown is passed over.
//!
//! Traps of QMP itself, met here:
//! - A monitor socket serves one client; a second one hangs in the backlog. So a guest has one
//!   [`Qmp`], which is shared.
//! - A descriptor sent with `SCM_RIGHTS` belongs to the next `getfd`/`add-fd`: the writer's lock is
//!   held until the answer.
//! - Events come for every cause: subscribe *before* the command whose effect is awaited.

use crate::Error;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, oneshot, watch},
};

/// How long QEMU may take over one command. Reason: its main loop can be busy with a flush of a
/// slow disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// Why a command has no answer.
const ENDED: &str = "the guest's process has ended";
/// How many events are kept for a slow reader. Reason: one that lags asks for the state instead.
const EVENTS: usize = 256;

/// The longest line that is read. Reason: what a broken QEMU sends is held in memory; its longest
/// regular answer has some 100 KiB.
const MAX_LINE: u64 = 4 << 20;
/// The longest event that is passed on. Reason: many are kept for a slow reader.
const MAX_EVENT: usize = 64 << 10;

/// A message that QEMU sent unasked.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// What QEMU returned, or its description of the error.
type Answer = Result<Value, String>;

/// The callers of the commands that are under way, by the commands' ids.
type Pending = HashMap<u64, oneshot::Sender<Answer>>;

struct Shared {
    pending: Mutex<Pending>,
    events: broadcast::Sender<Event>,
    closed: watch::Sender<bool>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        p2pvm_overlay::lock(&self.pending)
    }
}

/// One guest's monitor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Qmp {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    next: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Qmp {
    /// Negotiates over a connection to the monitor.
    pub(crate) async fn over(stream: UnixStream) -> io::Result<Self> {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read);
        let mut greeting = Vec::new();
        tokio::time::timeout(PATIENCE, read_line(&mut lines, &mut greeting))
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        if !String::from_utf8_lossy(&greeting).contains("\"QMP\"") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no QMP greeting",
            ));
        }
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            closed: watch::channel(false).0,
        });
        tokio::spawn(read_all(lines, shared.clone()));
        let qmp = Self {
            writer: Arc::new(tokio::sync::Mutex::new(write)),
            next: Arc::default(),
            shared,
        };
        qmp.run("qmp_capabilities", json!({}))
            .await
            .map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Becomes true when QEMU has closed the connection, that is, has died.
    pub(crate) fn closed(&self) -> watch::Receiver<bool> {
        self.shared.closed.subscribe()
    }

    /// Executes a command and returns what it returned.
    pub(crate) async fn run(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, Error> {
        self.send(command, arguments, None).await
    }

    /// Gives QEMU a descriptor under `name`, for `fd:` addresses.
    pub(crate) async fn give_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.send("getfd", json!({ "fdname": name }), Some(fd))
            .await
            .map(drop)
    }

    /// Makes a new descriptor set of `fd`, named `/dev/fdset/<n>` to QEMU, and returns n.
    pub(crate) async fn add_fd(&self, fd: &OwnedFd) -> Result<u64, Error> {
        let answer = self.send("add-fd", json!({}), Some(fd.as_fd())).await?;
        answer["fdset-id"]
            .as_u64()
            .ok_or_else(|| refused("add-fd", "no fdset-id in the answer"))
    }

    /// Adds `fd` to the descriptor set `set`: QEMU takes the one whose access mode fits.
    pub(crate) async fn extend_fd_set(&self, set: u64, fd: &OwnedFd) -> Result<(), Error> {
        self.send("add-fd", json!({ "fdset-id": set }), Some(fd.as_fd()))
            .await
            .map(drop)
    }

    async fn send(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let (tx, rx) = oneshot::channel();
        self.shared.pending().insert(id, tx);
        let exchange = async {
            let writer = self.writer.lock().await;
            if *self.shared.closed.borrow() {
                return Err(refused(command, ENDED));
            }
            write_all(&writer, line.as_bytes(), fd)
                .await
                .map_err(|source| Error::Monitor {
                    step: command,
                    source,
                })?;
            // Held until the answer only when a descriptor travels along.
            let _held = fd.map(|_| writer);
            let answer = rx.await.unwrap_or_else(|_| Err(ENDED.to_owned()));
            answer.map_err(|words| refused(command, words))
        };
        let result = tokio::time::timeout(PATIENCE, exchange).await;
        self.shared.pending().remove(&id);
        result.unwrap_or(Err(Error::TimedOut {
            step: command,
            seconds: PATIENCE.as_secs(),
        }))
    }
}

/// The error of a command that QEMU refused, or answered unexpectedly.
pub(crate) fn refused(step: &'static str, detail: impl Into<String>) -> Error {
    Error::Hypervisor {
        step,
        detail: detail.into(),
    }
}

/// Waits for the first event that `pick` takes, up to `patience`. `None` when it has not come, or
/// may have been missed.
pub(crate) async fn wait_for<T>(
    events: &mut broadcast::Receiver<Event>,
    patience: Duration,
    mut pick: impl FnMut(&Event) -> Option<T>,
) -> Option<T> {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) => {
                    if let Some(found) = pick(&event) {
                        return Some(found);
                    }
                }
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(patience, wait).await.ok().flatten()
}

/// Connects to a unix socket whose path may be longer than the 107 bytes an address holds.
pub async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path).await;
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path).await;
    };
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name)).await
}

async fn write_all(
    writer: &OwnedWriteHalf,
    mut bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let stream: &UnixStream = writer.as_ref();
    let fds: Vec<i32> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let mut rights: &[i32] = &fds;
    while !bytes.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let control = [ControlMessage::ScmRights(rights)];
                let control = if rights.is_empty() {
                    &control[..0]
                } else {
                    &control[..]
                };
                Ok(sendmsg::<()>(
                    stream.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    control,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?)
            })
            .await?;
        rights = &[];
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Reads a line into `line`; false at the end, and an error where it is too long.
async fn read_line(lines: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    lines.take(MAX_LINE).read_until(b'\n', line).await?;
    if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a line of the monitor is too long",
        ));
    }
    Ok(!line.is_empty())
}

async fn read_all(mut lines: BufReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let mut line = Vec::new();
    loop {
        match read_line(&mut lines, &mut line).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                tracing::warn!(
                    error = %p2pvm_overlay::chain(&error),
                    "the connection to a guest's monitor is closed"
                );
                break;
            }
        }
        let message: Option<Value> = serde_json::from_slice(&line).ok();
        let is_long_event =
            |message: &Value| line.len() > MAX_EVENT && message["event"].is_string();
        if let Some(message) = message.filter(|message| !is_long_event(message)) {
            take(message, &shared);
        }
    }
    shared.closed.send_replace(true);
    shared.pending().clear();
}

/// Passes one message of QEMU's on: an event to all subscribers, or an answer to its command's
/// caller, which may have gone.
fn take(mut message: Value, shared: &Shared) {
    if let Some(name) = message["event"].as_str() {
        let event = Event {
            name: name.to_owned(),
            data: message["data"].clone(),
        };
        tracing::trace!(name = event.name, data = %event.data, "event");
        let _ = shared.events.send(event);
        return;
    }
    let Some(id) = message["id"].as_u64() else {
        return;
    };
    let Some(caller) = shared.pending().remove(&id) else {
        return;
    };
    let answer = match message.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(message["error"]["desc"]
            .as_str()
            .unwrap_or("an error without a description")
            .to_owned()),
    };
    let _ = caller.send(answer);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncWriteExt, net::UnixListener};

    async fn pair(dir: &Path) -> (Qmp, UnixStream) {
        let path = dir.join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(
                    b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\", \"future\"]}}\n",
                )
                .await
                .unwrap();
            let mut reader = BufReader::new(&mut stream);
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            stream
                .write_all(b"{\"return\": {}, \"id\": 0}\n")
                .await
                .unwrap();
            stream
        });
        let stream = UnixStream::connect(&path).await.unwrap();
        (Qmp::over(stream).await.unwrap(), server.await.unwrap())
    }

    #[tokio::test]
    async fn unknown_events_and_orphaned_answers_do_not_end_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let (qmp, mut server) = pair(dir.path()).await;
        let mut events = qmp.subscribe();
        server
            .write_all(
                b"not json\n{\"event\": \"OF_QEMU_42\", \"data\": {\"x\": \
            1}}\n{\"return\": {}, \"id\": 999}\n",
            )
            .await
            .unwrap();
        let seen = wait_for(&mut events, Duration::from_secs(5), |e| {
            (e.name == "OF_QEMU_42").then(|| e.data["x"].as_u64())
        })
        .await;
        assert_eq!(seen, Some(Some(1)));
        let call = tokio::spawn({
            let qmp = qmp.clone();
            async move { qmp.run("query-status", json!({})).await }
        });
        server
            .write_all(b"{\"return\": {\"status\": \"running\"}, \"id\": 1}\n")
            .await
            .ok();
        // The answer may overtake the question in this arrangement; a second one with the same id
        // is then the orphan.
        tokio::time::sleep(Duration::from_millis(50)).await;
        server
            .write_all(b"{\"return\": {\"status\": \"running\"}, \"id\": 1}\n")
            .await
            .ok();
        assert_eq!(call.await.unwrap().unwrap()["status"], "running");
    }

    #[tokio::test]
    async fn a_monitor_that_never_ends_its_line_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (qmp, mut server) = pair(dir.path()).await;
        let mut events = qmp.subscribe();
        let long = format!(
            "{{\"event\": \"LONG\", \"data\": \"{}\"}}\n",
            "x".repeat(MAX_EVENT)
        );
        server.write_all(long.as_bytes()).await.unwrap();
        server.write_all(b"{\"event\": \"SHORT\"}\n").await.unwrap();
        assert_eq!(events.recv().await.unwrap().name, "SHORT");
        let flood = tokio::spawn(async move {
            let piece = vec![b' '; 1 << 20];
            while server.write_all(&piece).await.is_ok() {}
        });
        let mut closed = qmp.closed();
        closed.wait_for(|closed| *closed).await.unwrap();
        // The reading half stays with it until the last writer has gone.
        drop(qmp);
        flood.await.unwrap();
    }

    #[tokio::test]
    async fn a_command_fails_at_once_when_qemu_dies() {
        let dir = tempfile::tempdir().unwrap();
        let (qmp, server) = pair(dir.path()).await;
        let call = tokio::spawn({
            let qmp = qmp.clone();
            async move { qmp.run("query-status", json!({})).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(server);
        assert!(matches!(
            call.await.unwrap(),
            Err(Error::Hypervisor {
                step: "query-status",
                ..
            })
        ));
        assert!(*qmp.closed().borrow());
        assert!(qmp.run("stop", json!({})).await.is_err());
    }
}
