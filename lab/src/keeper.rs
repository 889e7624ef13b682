//! The process that keeps a testbed: it forwards, answers on the control socket, and takes the
//! testbed down when it ends.
//!
//! A testbed's run directory names its keeper by process id and start time. So each `up` finds the
//! testbeds whose keeper was killed, and removes them.

use crate::{
    forwarder::{Counters, Forwarder},
    plan::{Plan, RUN_DIR},
    raise::{raise, raze, run_dir},
    sites::{self, Shape, Sites},
    testbed::Error,
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, setsid},
};
use p2pvm_overlay::chain;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long either end of the control socket waits for the other.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);
/// How many bytes a request may have before it is refused.
const REQUEST_BYTES: u64 = 64 << 10;
/// How long a keeper may take to remove everything before it is killed.
const DOWN_LIMIT: Duration = Duration::from_secs(60);

/// How long a testbed kept by another process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until it is taken down.
    Detached,
    /// As long as the process that started it.
    Tied,
}

/// A request to the keeper, one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Control {
    SetCut {
        from: usize,
        to: usize,
        cut: bool,
    },
    Reshape {
        from: usize,
        to: usize,
        shape: Shape,
    },
    Report,
}

type Answer = Result<Option<Vec<Vec<Counters>>>, String>;

/// The process that keeps a testbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    /// Clock ticks from boot to the process's start: a later process may have the same id.
    started: u64,
    /// Whether the process does nothing but keep, so that `down` may end it.
    dedicated: bool,
}

impl Identity {
    fn own(dedicated: bool) -> Identity {
        let pid = std::process::id() as i32;
        Identity {
            pid,
            started: start_time(pid).unwrap_or(0),
            dedicated,
        }
    }

    fn lives(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// When a process started; `None` if there is no such process or it is a zombie, which has closed
/// its files.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything; state is field 3 and start time field
    // 22 of proc(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        None
    } else {
        fields.nth(18)?.parse().ok()
    }
}

fn identity(name: &str) -> Option<Identity> {
    serde_json::from_slice(&fs::read(run_dir(name).join("keeper.json")).ok()?).ok()
}

/// Whether the keeper of testbed `name` runs.
pub(crate) fn is_up(name: &str) -> bool {
    identity(name).is_some_and(Identity::lives)
}

/// Testbeds that have a run directory.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| sites::check_name(n).is_ok())
        .collect();
    names.sort();
    names
}

/// The plan of a testbed that is up.
pub(crate) fn read_plan(name: &str) -> Result<Plan, Error> {
    let path = run_dir(name).join("plan.json");
    let bytes = fs::read(&path).map_err(|e| Error::Io(format!("read {}", path.display()), e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::Io(format!("read {}", path.display()), e.into()))
}

/// Keeps a testbed in this process.
pub(crate) struct Keeper {
    plan: Plan,
    forwarder: Option<Arc<Forwarder>>,
    answering: Option<JoinHandle<()>>,
    ending: Arc<AtomicBool>,
    razed: bool,
}

impl Keeper {
    /// Removes what killed keepers left, then builds the testbed and starts to forward. On failure
    /// nothing stays.
    pub(crate) fn start(sites: &Sites, name: &str, dedicated: bool) -> Result<Keeper, Error> {
        sites.check()?;
        sites::check_name(name).map_err(Error::Sites)?;
        let plan = Plan::new(name, sites).map_err(Error::Sites)?;
        let lock = lock()?;
        for stale in names().iter().filter(|stale| !is_up(stale)) {
            // An error is ignored: its keeper may be removing it now; the next `up` removes what is
            // left.
            let _ = raze(stale);
        }
        claim(&plan, dedicated)?;
        drop(lock);
        let mut keeper = Keeper {
            plan,
            forwarder: None,
            answering: None,
            ending: Arc::default(),
            razed: false,
        };
        let devices = raise(&keeper.plan)?;
        let forwarder = Arc::new(Forwarder::start(&keeper.plan, devices)?);
        keeper.forwarder = Some(forwarder.clone());
        let path = run_dir(name).join("control.sock");
        let listener = UnixListener::bind(&path)
            .map_err(|e| Error::Io(format!("listen on {}", path.display()), e))?;
        let ending = keeper.ending.clone();
        let answer = move || answer_all(&listener, &forwarder, &ending);
        let thread = thread::Builder::new()
            .name("testbed-control".into())
            .spawn(answer);
        keeper.answering = Some(thread.map_err(|e| Error::Io("start a thread".into(), e))?);
        Ok(keeper)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes the testbed down.
    pub(crate) fn stop(mut self) -> Result<(), Error> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.razed, true) {
            return Ok(());
        }
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the answering thread; an error means that it has ended.
        if UnixStream::connect(run_dir(&self.plan.name).join("control.sock")).is_ok()
            && let Some(thread) = self.answering.take()
        {
            let _ = thread.join();
        }
        self.forwarder = None;
        raze(&self.plan.name)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            let error = chain(&error);
            tracing::error!(
                error,
                testbed = self.plan.name,
                "the testbed could not be removed"
            );
        }
    }
}

/// Locks out other keepers while stale testbeds are removed and a name is claimed: one might take a
/// name that was just claimed for stale.
fn lock() -> Result<Flock<File>, Error> {
    let path = Path::new(RUN_DIR).join(".lock");
    let failed = |e| Error::Io(format!("lock {} (a testbed needs root)", path.display()), e);
    fs::create_dir_all(RUN_DIR).map_err(failed)?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
}

/// Makes the run directory atomically, so that it always names its keeper.
fn claim(plan: &Plan, dedicated: bool) -> Result<(), Error> {
    let directory = run_dir(&plan.name);
    let draft = Path::new(RUN_DIR).join(".draft");
    // Left by a keeper that was killed here; no other keeper uses it while this one holds the lock.
    let _ = fs::remove_dir_all(&draft);
    let write = || -> io::Result<()> {
        fs::create_dir_all(&draft)?;
        fs::write(
            draft.join("keeper.json"),
            serde_json::to_vec(&Identity::own(dedicated))?,
        )?;
        fs::write(draft.join("plan.json"), serde_json::to_vec_pretty(plan)?)?;
        fs::rename(&draft, &directory)
    };
    write().map_err(|e| {
        let _ = fs::remove_dir_all(&draft);
        if directory.exists() {
            Error::Exists(plan.name.clone())
        } else {
            Error::Io(format!("make {}", directory.display()), e)
        }
    })
}

fn answer_all(listener: &UnixListener, forwarder: &Forwarder, ending: &AtomicBool) {
    for stream in listener.incoming() {
        if ending.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { return };
        if let Err(error) = answer(&stream, forwarder) {
            tracing::debug!(error = %chain(&error), "a control request was not answered");
        }
    }
}

fn answer(stream: &UnixStream, forwarder: &Forwarder) -> io::Result<()> {
    stream.set_read_timeout(Some(CONTROL_LIMIT))?;
    stream.set_write_timeout(Some(CONTROL_LIMIT))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES)).read_line(&mut line)?;
    let result: Answer = match serde_json::from_str(&line) {
        Ok(Control::SetCut { from, to, cut }) => forwarder.set_cut(from, to, cut).map(|()| None),
        Ok(Control::Reshape { from, to, shape }) => {
            forwarder.reshape(from, to, shape).map(|()| None)
        }
        Ok(Control::Report) => forwarder.report().map(Some),
        Err(error) => Err(Error::Request(error)),
    }
    .map_err(|error| chain(&error));
    let mut bytes = serde_json::to_vec(&result)?;
    bytes.push(b'\n');
    (&*stream).write_all(&bytes)
}

/// Asks the keeper of testbed `name`.
pub(crate) fn control(name: &str, request: &Control) -> Result<Option<Vec<Vec<Counters>>>, Error> {
    let ask = || -> io::Result<Answer> {
        let stream = UnixStream::connect(run_dir(name).join("control.sock"))?;
        stream.set_read_timeout(Some(CONTROL_LIMIT))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    match ask() {
        Ok(answer) => answer.map_err(Error::Keeper),
        Err(_) if !is_up(name) => Err(Error::NotUp(name.into())),
        Err(error) => Err(Error::Io(
            format!("ask the keeper of testbed {name}"),
            error,
        )),
    }
}

/// Starts a keeper process and waits until the testbed is up, or returns the keeper's error.
pub(crate) fn start_process(
    program: &Path,
    arguments: &[&OsStr],
    sites: &Sites,
    name: &str,
    life: Life,
) -> Result<Child, Error> {
    let failed = |e| {
        Error::Io(
            format!("start {} as the testbed's keeper", program.display()),
            e,
        )
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("keep")
        .arg(name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    match life {
        Life::Tied => command.arg("--tied"),
        Life::Detached => command.stderr(Stdio::null()),
    };
    let mut child = command.spawn().map_err(failed)?;
    let mut text = serde_json::to_vec(sites).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    if let Some(stdin) = child.stdin.as_mut() {
        stdin.write_all(&text).map_err(failed)?;
    }
    if life == Life::Detached {
        drop(child.stdin.take());
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut said)
            .map_err(failed)?;
    }
    match said.trim_end() {
        "up" => Ok(child),
        why => {
            drop(child.stdin.take());
            let status = child.wait().map_err(failed)?;
            Err(if why.is_empty() {
                Error::Keeper(format!("ended with {status}"))
            } else {
                Error::Keeper(why.into())
            })
        }
    }
}

/// The keeper process: reads the sites from standard input (one line of JSON), says `up` or an
/// error on standard output, keeps the testbed until SIGTERM, SIGINT or SIGHUP, or if `tied` until
/// standard input ends, and takes it down. To be called before any thread is started.
pub fn keep(name: &str, tied: bool) -> ExitCode {
    let mut ending = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ending.add(signal);
    }
    // Blocked here and inherited by every thread; `wait` below takes them.
    let blocked = ending.thread_block();
    // A session of its own: Ctrl-C ends the starter, and the end of the starter ends a tied keeper.
    let _ = setsid();
    let started = blocked
        .map_err(|e| Error::Io("block signals".into(), e.into()))
        .and_then(|()| {
            let mut line = String::new();
            io::stdin()
                .read_line(&mut line)
                .map_err(|e| Error::Io("read the sites".into(), e))?;
            let sites: Sites =
                serde_json::from_str(&line).map_err(|e| Error::Sites(e.to_string()))?;
            Keeper::start(&sites, name, true)
        });
    let keeper = match started {
        Ok(keeper) => keeper,
        Err(error) => {
            println!("{}", chain(&error).replace('\n', " "));
            return ExitCode::FAILURE;
        }
    };
    // An error means that the starter was killed: then the testbed is unwanted.
    let wanted = writeln!(io::stdout(), "up")
        .and_then(|()| io::stdout().flush())
        .is_ok();
    if tied {
        thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            let _ = kill(Pid::this(), Signal::SIGTERM);
        });
    }
    if wanted {
        let _ = ending.wait();
    }
    match keeper.stop() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed {name}: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Ends the keeper of testbed `name` and removes what is left.
pub(crate) fn end(name: &str) -> Result<(), Error> {
    sites::check_name(name).map_err(Error::Sites)?;
    if let Some(identity) = identity(name).filter(|identity| identity.lives()) {
        if !identity.dedicated {
            return Err(Error::Owned {
                name: name.into(),
                pid: identity.pid,
            });
        }
        let asked = Instant::now();
        // An error means that it has ended.
        let _ = kill(Pid::from_raw(identity.pid), Signal::SIGTERM);
        while identity.lives() && asked.elapsed() < DOWN_LIMIT {
            thread::sleep(Duration::from_millis(5));
        }
        if identity.lives() {
            let _ = kill(Pid::from_raw(identity.pid), Signal::SIGKILL);
        }
    } else if !run_dir(name).exists()
        && crate::namespace::list(&crate::plan::namespace_prefix(name)).is_empty()
    {
        return Err(Error::NotUp(name.into()));
    }
    raze(name)
}
