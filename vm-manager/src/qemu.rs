//! The QEMU driver: guests as QEMU 10 processes that outlive the daemon, controlled over QMP.
//!
//! `command` says what a guest is made of, [`crate::jail`] what it may touch, `machine` how it
//! lives, `migration` how it moves, `moving` how far a move has come, `checkpoint` how the guest is
//! copied while it runs, `probe` whether the host's KVM is real. Everything a later daemon needs to
//! take a guest up again lies in the run directory ([`crate::run_dir`]: the pid file, monitor and
//! console sockets, the logs) or in QEMU itself.

mod checkpoint;
mod command;
mod console;
mod image;
mod leftover;
mod machine;
mod migration;
mod moving;
mod probe;
mod process;
mod qcow2;
mod qmp;
mod relay;
mod replica;
mod tap;

pub use leftover::end_guests;
pub use probe::Probe;
pub use qmp::connect_unix;

use crate::{
    Error,
    cgroup::Limits,
    error::io_at,
    guardian::GuardedProcess,
    hypervisor::{Accel, Hypervisor, Machine, MachineSpec, Start},
    image_file,
    jail::Jail,
    run_dir::RunDir,
};
use async_trait::async_trait;
use machine::QemuMachine;
use p2pvm_overlay::chain;
use process::{PID_FILE, Process};
use qmp::Qmp;
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// What QEMU itself prints, in the run directory.
const LOG: &str = "qemu.log";
/// How much of that is read, bytes.
const LOG_TAIL: u64 = 16 << 10;
/// How long a started QEMU may take until its monitor answers.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long loading a checkpoint may take. Reason: RAM at the speed of a slow disk.
const LOAD_PATIENCE: Duration = Duration::from_secs(300);

/// QEMU on this host.
pub struct Qemu {
    state_dir: PathBuf,
    forced: Option<Accel>,
    probe: Option<Probe>,
    verdict: tokio::sync::OnceCell<Accel>,
}

impl Qemu {
    /// The driver that keeps the verdict on this host's KVM in `state_dir`. `accel` forces an
    /// accelerator; else the host is probed by booting `probe`, and without one [`Accel::Tcg`] is
    /// taken.
    pub fn new(state_dir: impl Into<PathBuf>, accel: Option<Accel>, probe: Option<Probe>) -> Self {
        Self {
            state_dir: state_dir.into(),
            forced: accel,
            probe,
            verdict: tokio::sync::OnceCell::new(),
        }
    }

    async fn spawn(
        &self,
        spec: &MachineSpec,
        start: &Start,
        jail: &Jail,
        run_dir: &RunDir,
    ) -> Result<Process, Error> {
        let accel = self.accel().await?;
        let files = GuestFiles::open(spec, accel, run_dir).await?;
        let fds = files.fds();
        let mut inherit = vec![fds.tap, fds.disk[0], fds.disk[1]];
        inherit.extend([fds.monitor, fds.console, fds.console_log]);
        inherit.extend(fds.image.map(|(fd, _)| fd));
        inherit.extend(fds.kvm);

        let at = |name: &str| io_at("set up the run directory", spec.run_dir.join(name));
        let log = run_dir.create(LOG).map_err(at(LOG))?;
        let errors = log.try_clone().map_err(at(LOG))?;
        let pid_file = run_dir.create(PID_FILE).map_err(at(PID_FILE))?;
        let mut command = tokio::process::Command::new(PROGRAM);
        command
            .args(command::arguments(spec, accel, start, fds))
            .current_dir(&spec.run_dir)
            .env_clear()
            .env("PATH", path_of_programs());
        // Nobody writes to it. The guest keeps it open, and a guardian makes of it what stops the
        // guest at the guardian's own end.
        let (input, _) = io::pipe().map_err(at("its input"))?;
        command.stdin(input).stdout(log).stderr(errors);
        jail.enter(
            &mut command,
            &Limits {
                cpus: spec.cpus,
                memory_mib: spec.memory_mib,
            },
            inherit,
            Some(pid_file),
        );
        let mut child = command
            .spawn()
            .map_err(not_started(PROGRAM, "start QEMU"))?;
        let process = child.id().and_then(|pid| Process::of(pid as i32));
        // Reaps it; the process is not killed when this daemon, and the task, end.
        tokio::spawn(async move { child.wait().await });
        process.ok_or_else(|| self.died(spec))
    }

    fn died(&self, spec: &MachineSpec) -> Error {
        let text = RunDir::open(&spec.run_dir)
            .and_then(|dir| dir.tail(LOG, LOG_TAIL))
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.trim_start_matches("qemu-system-x86_64: "))
            .collect();
        let detail = lines[lines.len().saturating_sub(5)..].join("; ");
        Error::Hypervisor {
            step: "start QEMU",
            detail: if detail.is_empty() {
                "it ended and printed nothing".to_owned()
            } else {
                detail
            },
        }
    }

    async fn monitor(
        &self,
        spec: &MachineSpec,
        process: Process,
        run_dir: &RunDir,
    ) -> Result<Qmp, Error> {
        let connect = async {
            loop {
                let connected =
                    async { Qmp::over(run_dir.connect(command::QMP_SOCKET).await?).await };
                match connected.await {
                    Ok(qmp) => return Ok(qmp),
                    Err(_) if process.is_alive() => {
                        tokio::time::sleep(Duration::from_millis(5)).await
                    }
                    Err(_) => return Err(self.died(spec)),
                }
            }
        };
        let late = Error::TimedOut {
            step: "start QEMU",
            seconds: START_PATIENCE.as_secs(),
        };
        tokio::time::timeout(START_PATIENCE, connect)
            .await
            .unwrap_or(Err(late))
    }
}

/// What the daemon opens for a guest's process, which may open nothing by itself.
struct GuestFiles {
    tap: OwnedFd,
    /// The VM's own disk, for reading and for writing.
    disk: [OwnedFd; 2],
    /// The image below it, with its format.
    image: Option<(OwnedFd, &'static str)>,
    kvm: Option<OwnedFd>,
    monitor: UnixListener,
    console: UnixListener,
    console_log: File,
}

impl GuestFiles {
    async fn open(spec: &MachineSpec, accel: Accel, run_dir: &RunDir) -> Result<Self, Error> {
        let info = image::info(&spec.disk).await?;
        if info.format != "qcow2" {
            return Err(Error::Refused(format!(
                "{} is {}, and a VM's own disk must be qcow2",
                spec.disk.display(),
                info.format
            )));
        }
        let reading = || OpenOptions::new().read(true).to_owned();
        let writing = || OpenOptions::new().read(true).write(true).to_owned();
        let disk = [
            open("open the disk", &reading(), &spec.disk)?,
            open("open the disk", &writing(), &spec.disk)?,
        ];
        let image = match &info.backing {
            Some(path) => Some((
                open("open the disk's image", &reading(), path)?,
                image::standalone(path).await?.format,
            )),
            None => None,
        };
        let kvm = match accel {
            Accel::Kvm => Some(open("open KVM", &writing(), Path::new(probe::KVM))?),
            Accel::Tcg => None,
        };
        let at = |name: &str| io_at("set up the run directory", spec.run_dir.join(name));
        let listen = |name: &str| run_dir.listen(name).map_err(at(name));
        Ok(Self {
            tap: tap::open(&spec.tap, spec.mtu)?,
            disk,
            image,
            kvm,
            monitor: listen(command::QMP_SOCKET)?,
            console: listen(command::CONSOLE_SOCKET)?,
            console_log: run_dir
                .create(command::CONSOLE_LOG)
                .map_err(at(command::CONSOLE_LOG))?,
        })
    }

    fn fds(&self) -> command::InheritedFds {
        let image = self.image.as_ref();
        command::InheritedFds {
            tap: self.tap.as_raw_fd(),
            disk: self.disk.each_ref().map(AsRawFd::as_raw_fd),
            image: image.map(|(fd, format)| (fd.as_raw_fd(), *format)),
            kvm: self.kvm.as_ref().map(AsRawFd::as_raw_fd),
            monitor: self.monitor.as_raw_fd(),
            console: self.console.as_raw_fd(),
            console_log: self.console_log.as_raw_fd(),
        }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn accel(&self) -> Result<Accel, Error> {
        if let Some(accel) = self.forced {
            return Ok(accel);
        }
        let verdict = self
            .verdict
            .get_or_try_init(|| probe::verdict(&self.state_dir, self.probe.as_ref()))
            .await?;
        Ok(*verdict)
    }

    async fn create_disk(
        &self,
        image: &Path,
        disk: &Path,
        size_bytes: Option<u64>,
    ) -> Result<(), Error> {
        image::create_over(image, disk, size_bytes).await
    }

    async fn rebase_disk(&self, disk: &Path, image: &Path) -> Result<(), Error> {
        image::rebase(disk, image).await
    }

    async fn check_image(&self, image: &Path) -> Result<u64, Error> {
        let path = image.to_owned();
        let recognized = tokio::task::spawn_blocking(move || image_file::recognize(&path)).await;
        recognized.map_err(|source| Error::Task {
            step: "read the disk image",
            source,
        })??;
        let info = image::standalone(image).await?;
        image::check_whole(image, &info).await?;
        Ok(info.virtual_size)
    }

    async fn virtual_size(&self, image: &Path) -> Result<u64, Error> {
        Ok(image::info(image).await?.virtual_size)
    }

    async fn launch(&self, spec: &MachineSpec, start: Start) -> Result<Arc<dyn Machine>, Error> {
        let tag = command::tag(spec);
        if Process::find(&spec.run_dir, &tag).is_some() {
            return Err(Error::Refused(format!("{} is running already", spec.name)));
        }
        let jail = Arc::new(Jail::of(&tag, &spec.run_dir));
        let run_dir =
            RunDir::make(&spec.run_dir).map_err(io_at("make the run directory", &spec.run_dir))?;
        jail.furnish(&run_dir)
            .map_err(io_at("set up the run directory", &spec.run_dir))?;
        let process = self.spawn(spec, &start, &jail, &run_dir).await?;
        // From here on a failure must not leave the process behind.
        let started = async {
            let machine = QemuMachine::new(
                spec.clone(),
                self.monitor(spec, process, &run_dir).await?,
                process,
                jail.clone(),
            )
            .await?;
            if let Start::Checkpoint(ram) = &start {
                checkpoint::load(&machine, ram, LOAD_PATIENCE)
                    .await
                    .map_err(|e| match process.is_alive() {
                        true => e,
                        false => self.died(spec),
                    })?;
            }
            Ok(machine)
        };
        let machine = match started.await {
            Ok(machine) => machine,
            Err(error) => {
                process.kill();
                process.ended(START_PATIENCE).await;
                jail.remove().await;
                return Err(error);
            }
        };
        tracing::info!(
            vm = %spec.vm.short(), name = spec.name, pid = process.pid(), ?start, "guest started"
        );
        Ok(Arc::new(machine))
    }

    async fn end(&self, spec: &MachineSpec) -> Result<(), Error> {
        let tag = command::tag(spec);
        let jail = Jail::of(&tag, &spec.run_dir);
        if let Some(process) = Process::find(&spec.run_dir, &tag) {
            process.kill();
            if !process.ended(machine::KILL_PATIENCE).await {
                return Err(Error::TimedOut {
                    step: "end the guest's process",
                    seconds: machine::KILL_PATIENCE.as_secs(),
                });
            }
        }
        jail.remove().await;
        Ok(())
    }

    async fn adopt(&self, spec: &MachineSpec) -> Result<Option<Arc<dyn Machine>>, Error> {
        let tag = command::tag(spec);
        let jail = Arc::new(Jail::of(&tag, &spec.run_dir));
        let Some(process) = Process::find(&spec.run_dir, &tag) else {
            jail.remove().await;
            return Ok(None);
        };
        // An earlier version gave the directory to the guest.
        let run_dir = RunDir::open(&spec.run_dir)
            .and_then(|dir| jail.shut(&dir).map(|()| dir))
            .map_err(io_at("take the run directory", &spec.run_dir))?;
        let qmp = self.monitor(spec, process, &run_dir).await?;
        // A move may still be given up, or be over; the caller of a checkpoint is gone, and with it
        // the use of its files.
        if let Err(error) = checkpoint::abandon(&qmp).await {
            tracing::warn!(vm = %spec.vm.short(), error = %chain(&error), "a checkpoint that was \
                interrupted could not be cleared away");
        }
        if let Err(error) = replica::abandon(&qmp).await {
            tracing::warn!(vm = %spec.vm.short(), error = %chain(&error), "a replica that was \
                interrupted could not be cleared away");
        }
        let machine = QemuMachine::new(spec.clone(), qmp, process, jail).await?;
        tracing::info!(vm = %spec.vm.short(), name = spec.name, pid = process.pid(), "guest taken \
            up again");
        Ok(Some(Arc::new(machine)))
    }

    fn guarded(&self, spec: &MachineSpec) -> Option<GuardedProcess> {
        let tag = command::tag(spec);
        let process = Process::find(&spec.run_dir, &tag)?;
        Some(guarded(process, &Jail::of(&tag, &spec.run_dir)))
    }
}

/// A guest's process as a guardian takes it.
fn guarded(process: Process, jail: &Jail) -> GuardedProcess {
    GuardedProcess {
        pid: process.pid(),
        started: process.started(),
        freeze: jail.freezer_of(process.pid()),
    }
}

fn open(step: &'static str, options: &OpenOptions, path: &Path) -> Result<OwnedFd, Error> {
    Ok(options.open(path).map_err(io_at(step, path))?.into())
}

/// Why a program of QEMU's could not be started.
pub(crate) fn not_started(
    program: &'static str,
    step: &'static str,
) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing {
            program,
            hint: image::HINT,
        },
        _ => Error::Io {
            step,
            path: program.into(),
            source,
        },
    }
}

/// Where programs are looked for. A guest's process gets nothing else of the environment.
pub(crate) fn path_of_programs() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
}
