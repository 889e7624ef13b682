//! The daemon's side: it finds the guardian or starts it, asks one thing at a time, and passes on
//! what is reported unasked.

use super::{
    Cause, FrozenVm, GuardedProcess, Guardian, GuardianError, Refusal, Renewal, Ward, kernel,
    message::{Ask, Reply},
    place::{self, Place, Received},
    standing::Lacks,
};
use async_trait::async_trait;
use p2pvm_overlay::{Epoch, VmId, lock};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{broadcast, mpsc},
    task::JoinHandle,
};

/// How long the guardian may take to answer, and to start.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// How long between two tries to reach a guardian that starts.
const AGAIN: Duration = Duration::from_millis(10);
/// How many reports a slow subscriber may be behind.
const BACKLOG: usize = 1024;
/// How many answers wait at most: one is asked for at a time, and late ones are skipped.
const ANSWERS: usize = 64;

/// The guardian of this host's guests, in a process of its own.
pub struct HostGuardian {
    dir: PathBuf,
    program: Vec<OsString>,
    link: tokio::sync::Mutex<Option<Link>>,
    shared: Arc<Shared>,
}

struct Shared {
    frozen: broadcast::Sender<FrozenVm>,
    jumps: broadcast::Sender<i64>,
    /// The processes that were armed, to arm them again at another guardian.
    known: Mutex<HashMap<VmId, GuardedProcess>>,
}

/// A connection. Dropping it leaves all deadlines as they are.
struct Link {
    socket: Arc<AsyncFd<OwnedFd>>,
    answers: mpsc::Receiver<(u16, Reply)>,
    serial: u16,
    reader: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl HostGuardian {
    /// The guardian of the state directory `dir`. `program` with its arguments starts one
    /// ([`super::serve`]) when the first VM is armed; `dir` must be an absolute path.
    pub fn new(dir: impl Into<PathBuf>, program: Vec<OsString>) -> Self {
        Self {
            dir: dir.into(),
            program,
            link: tokio::sync::Mutex::default(),
            shared: Arc::new(Shared {
                frozen: broadcast::channel(BACKLOG).0,
                jumps: broadcast::channel(BACKLOG).0,
                known: Mutex::default(),
            }),
        }
    }

    /// The one that is this program itself: `p2pvm --dir DIR guest-guardian`.
    pub fn of_this_program(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        let words: [&std::ffi::OsStr; 4] = [
            "/proc/self/exe".as_ref(),
            "--dir".as_ref(),
            dir.as_os_str(),
            "guest-guardian".as_ref(),
        ];
        let program = words.map(ToOwned::to_owned).to_vec();
        Self::new(dir, program)
    }

    /// Asks for one thing, of a new guardian if the previous one has ended. What is asked may be
    /// asked twice.
    async fn exchange(&self, ask: Ask, fds: &[RawFd]) -> Result<Reply, GuardianError> {
        let mut link = self.link.lock().await;
        let mut again = true;
        loop {
            let open = match link.take() {
                Some(open) => Ok(open),
                None => self.open().await,
            };
            let answer = match open {
                Ok(open) => link.insert(open).ask(ask, fds).await,
                Err(error) => Err(error),
            };
            if answer.is_err() {
                *link = None;
            }
            match answer {
                Err(GuardianError::Link(_)) if std::mem::take(&mut again) => {}
                answer => return answer,
            }
        }
    }

    /// Whether a guardian lives; connects to it, and starts none.
    async fn finds_one(&self) -> Result<bool, GuardianError> {
        let mut link = self.link.lock().await;
        if link.is_none()
            && let Ok(place) = Place::make(&self.dir)
            && let Ok(socket) = place.connect()
        {
            *link = Some(self.link(socket)?);
        }
        Ok(link.is_some())
    }

    /// Connects to the guardian that lives, or starts one.
    async fn open(&self) -> Result<Link, GuardianError> {
        let place = Place::make(&self.dir).map_err(GuardianError::Start)?;
        let mut link = match place.connect() {
            Ok(socket) => self.link(socket)?,
            Err(_) => self.start(&place).await?,
        };
        if let Reply::Ready { lacks } = link.ask(Ask::Hello, &[]).await? {
            for lack in Lacks(lacks).sentences() {
                tracing::warn!("guest guardian: {lack}");
            }
        }
        Ok(link)
    }

    async fn start(&self, place: &Place) -> Result<Link, GuardianError> {
        let (program, arguments) = self.program.split_first().ok_or_else(|| {
            GuardianError::Start(io::Error::new(
                io::ErrorKind::NotFound,
                "no program is named",
            ))
        })?;
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .current_dir("/")
            .env_remove("NOTIFY_SOCKET");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().map_err(GuardianError::Start)?;
        // Reaps it; it is not killed when this daemon, and the task, end.
        tokio::spawn(async move { child.wait().await });
        let connected = async {
            loop {
                if let Ok(socket) = place.connect() {
                    return socket;
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let late = |_| GuardianError::TimedOut;
        let socket = tokio::time::timeout(PATIENCE, connected).await;
        tracing::info!("guest guardian started");
        self.link(socket.map_err(late)?)
    }

    fn link(&self, socket: OwnedFd) -> Result<Link, GuardianError> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the descriptor is owned by what is registered, and nothing else has its number.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest) };
        let socket = Arc::new(socket.map_err(|e| GuardianError::Link(e.into()))?);
        let (tx, answers) = mpsc::channel(ANSWERS);
        let reader = tokio::spawn(listen(socket.clone(), tx, self.shared.clone()));
        Ok(Link {
            socket,
            answers,
            serial: 0,
            reader,
        })
    }

    /// Asks about a VM that is armed; a new guardian is given its process first.
    async fn about(&self, vm: VmId, ask: Ask) -> Result<Reply, GuardianError> {
        let reply = self.exchange(ask, &[]).await?;
        let unknown = Reply::Refused {
            why: Refusal::Unknown,
        };
        if reply != unknown {
            return Ok(reply);
        }
        let process = lock(&self.shared.known).get(&vm).cloned();
        let process = process.ok_or(GuardianError::NotArmed)?;
        let (Ask::Renew {
            epoch, deadline, ..
        }
        | Ask::Thaw {
            epoch, deadline, ..
        }) = ask
        else {
            return Ok(reply);
        };
        // The previous guardian has ended, and the kernel stopped the guest.
        match self.arm(vm, epoch, deadline, &process).await {
            Ok(()) | Err(GuardianError::Frozen) => self.exchange(ask, &[]).await,
            Err(error) => Err(error),
        }
    }
}

impl Link {
    async fn ask(&mut self, ask: Ask, fds: &[RawFd]) -> Result<Reply, GuardianError> {
        // 0 is for what is reported unasked.
        self.serial = self.serial.checked_add(1).unwrap_or(1);
        let (serial, bytes) = (self.serial, ask.to_bytes(self.serial));
        let asked = async {
            let send = |socket: &OwnedFd| place::send(socket, &bytes, fds);
            let sent = self.socket.async_io(Interest::WRITABLE, send);
            if let Err(error) = sent.await {
                // Until the reader has reported what that end did to the guests.
                while self.answers.recv().await.is_some() {}
                return Err(GuardianError::Link(error));
            }
            while let Some((of, reply)) = self.answers.recv().await {
                // One of an earlier request came too late for it.
                if of == serial {
                    return Ok(reply);
                }
            }
            let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
            Err(GuardianError::Link(ended))
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.unwrap_or(Err(GuardianError::TimedOut))
    }
}

/// Passes on what the guardian says until it ends.
async fn listen(
    socket: Arc<AsyncFd<OwnedFd>>,
    answers: mpsc::Sender<(u16, Reply)>,
    shared: Arc<Shared>,
) {
    let mut space = place::space();
    let ended = loop {
        let next = socket
            .async_io(Interest::READABLE, |fd| place::receive(fd, &mut space))
            .await;
        let Received { bytes, length, .. } = match next {
            Ok(Some(received)) => received,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        match Reply::from_bytes(&bytes[..length]) {
            Some((
                0,
                Reply::Froze {
                    vm,
                    cause,
                    woke_late,
                    done,
                },
            )) => shared.report(FrozenVm {
                vm,
                woke_late,
                done,
                cause,
            }),
            Some((0, Reply::Jumped { by })) => {
                tracing::warn!(by_ns = by, "the wall clock jumped");
                // Without a subscriber nobody wants to know.
                let _ = shared.jumps.send(by);
            }
            Some(answer) => {
                // Full: nobody waits for so many.
                let _ = answers.try_send(answer);
            }
            None => {}
        }
    };
    let cause = ended.as_ref().map(|e: &io::Error| p2pvm_overlay::chain(e));
    tracing::warn!(
        cause,
        "the guest guardian ended: the kernel stops guarded guests"
    );
    let known: Vec<VmId> = lock(&shared.known).keys().copied().collect();
    for vm in known {
        shared.report(FrozenVm {
            vm,
            woke_late: Duration::ZERO,
            done: Duration::ZERO,
            cause: Cause::Stopped,
        });
    }
}

impl Shared {
    fn report(&self, frozen: FrozenVm) {
        tracing::warn!(
            vm = %frozen.vm.short(), cause = ?frozen.cause, woke_late = ?frozen.woke_late,
            done = ?frozen.done, "guest frozen"
        );
        // Without a subscriber nobody wants to know.
        let _ = self.frozen.send(frozen);
    }
}

fn unexpected() -> GuardianError {
    let text = "it answered something else than was asked";
    GuardianError::Link(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn refused(why: Refusal) -> GuardianError {
    match why {
        Refusal::NoProcess => GuardianError::NoProcess,
        why => GuardianError::Refused(why),
    }
}

#[async_trait]
impl Guardian for HostGuardian {
    async fn arm(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
        process: &GuardedProcess,
    ) -> Result<(), GuardianError> {
        let handle = kernel::open_process(process.pid);
        let handle = handle.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => GuardianError::NoProcess,
            // A kernel or a container that has no descriptors of processes.
            _ => GuardianError::Start(error),
        })?;
        // After it was opened: the number may have been another process's before.
        if kernel::start_of(process.pid) != Some(process.started) {
            return Err(GuardianError::NoProcess);
        }
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        let freeze = process.freeze.as_ref().map(open).transpose();
        let freeze = freeze.map_err(GuardianError::Start)?;
        let mut fds = vec![handle.as_raw_fd()];
        fds.extend(freeze.as_ref().map(AsRawFd::as_raw_fd));
        let ask = Ask::Arm {
            vm,
            epoch,
            deadline,
            pid: process.pid,
            started: process.started,
        };
        let answer = self.exchange(ask, &fds).await?;
        if matches!(answer, Reply::Armed { .. } | Reply::Frozen { .. }) {
            lock(&self.shared.known).insert(vm, process.clone());
        }
        match answer {
            Reply::Armed { .. } => Ok(()),
            Reply::Frozen { .. } => Err(GuardianError::Frozen),
            Reply::Refused { why } => Err(refused(why)),
            _ => Err(unexpected()),
        }
    }

    async fn renew(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<Renewal, GuardianError> {
        let ask = Ask::Renew {
            vm,
            epoch,
            deadline,
        };
        match self.about(vm, ask).await? {
            Reply::Armed { .. } => Ok(Renewal::Armed),
            Reply::Frozen { .. } => Ok(Renewal::Frozen),
            Reply::Refused { why } => Err(refused(why)),
            _ => Err(unexpected()),
        }
    }

    async fn thaw(&self, vm: VmId, epoch: Epoch, deadline: Duration) -> Result<(), GuardianError> {
        let ask = Ask::Thaw {
            vm,
            epoch,
            deadline,
        };
        match self.about(vm, ask).await? {
            Reply::Armed { .. } => Ok(()),
            Reply::Refused { why } => Err(refused(why)),
            _ => Err(unexpected()),
        }
    }

    async fn drop_vm(&self, vm: VmId) -> Result<(), GuardianError> {
        lock(&self.shared.known).remove(&vm);
        if !self.finds_one().await? {
            return Ok(());
        }
        match self.exchange(Ask::Drop { vm }, &[]).await? {
            Reply::Dropped { .. } => Ok(()),
            Reply::Refused { why } => Err(refused(why)),
            _ => Err(unexpected()),
        }
    }

    async fn ward(&self, vm: VmId) -> Result<Ward, GuardianError> {
        if !self.finds_one().await? {
            return Ok(Ward::Unknown);
        }
        let unknown = Reply::Refused {
            why: Refusal::Unknown,
        };
        match self.exchange(Ask::Look { vm }, &[]).await? {
            Reply::Armed { .. } => Ok(Ward::Armed),
            Reply::Frozen { .. } => Ok(Ward::Frozen),
            reply if reply == unknown => Ok(Ward::Unknown),
            Reply::Refused { why } => Err(refused(why)),
            _ => Err(unexpected()),
        }
    }

    fn frozen(&self) -> broadcast::Receiver<FrozenVm> {
        self.shared.frozen.subscribe()
    }

    fn jumps(&self) -> broadcast::Receiver<i64> {
        self.shared.jumps.subscribe()
    }
}
