//! A process that is never idle, for a guardian to freeze: two threads that write down what time it
//! is, by `CLOCK_BOOTTIME`, as fast as they can. The last stamp is its last instruction.

use p2pvm_vm_manager::guardian::{GuardedProcess, boot_time};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::Duration,
};

/// Names the file of the stamps to a process that is to be a victim.
const STAMPS: &str = "P2PVM_TEST_VICTIM";
/// How many threads it has.
const THREADS: usize = 2;
/// Where version 2 of the control groups is mounted, alone or beside version 1.
const TREES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A victim, killed and cleared away with its owner.
pub struct Victim {
    child: Child,
    stamps: File,
    group: Option<PathBuf>,
    _dir: tempfile::TempDir,
}

impl Victim {
    /// This program again, with these words, at whose beginning it calls [`be_one_if_asked`].
    pub fn start(words: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stamps");
        fs::write(&path, [0; 8 * THREADS]).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(words)
            .env(STAMPS, &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // As a guest has it: a pipe that nobody writes to.
        drop::<Option<ChildStdin>>(child.stdin.take());
        Self {
            group: group_of(&child),
            child,
            stamps: File::open(path).unwrap(),
            _dir: dir,
        }
    }

    /// What a guardian needs.
    pub fn process(&self) -> GuardedProcess {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, rest) = text.rsplit_once(") ").unwrap();
        GuardedProcess {
            pid: self.child.id() as i32,
            started: rest.split(' ').nth(19).unwrap().parse().unwrap(),
            freeze: self.group.as_ref().map(|dir| dir.join("cgroup.freeze")),
        }
    }

    /// Its last stamp, since boot.
    pub fn last(&self) -> Duration {
        let mut bytes = [0; 8 * THREADS];
        self.stamps.read_exact_at(&mut bytes, 0).unwrap();
        let stamps = bytes.as_chunks::<8>().0;
        let last = stamps.iter().map(|stamp| u64::from_le_bytes(*stamp));
        Duration::from_nanos(last.max().unwrap())
    }

    /// Whether it writes nothing for so long.
    pub fn is_still_for(&self, time: Duration) -> bool {
        let before = self.last();
        thread::sleep(time);
        self.last() == before
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let Some(group) = &self.group else { return };
        // Threads leave one by one.
        for _ in 0..100 {
            if fs::remove_dir(group).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Puts the process into a group of its own that can be frozen, where there is a tree for it.
fn group_of(child: &Child) -> Option<PathBuf> {
    let is_tree = |tree: &&str| Path::new(tree).join("cgroup.controllers").exists();
    let tree = TREES.into_iter().find(is_tree)?;
    let group = Path::new(tree).join(format!("p2pvm-test-{}", child.id()));
    fs::create_dir(&group).ok()?;
    let joined = fs::write(group.join("cgroup.procs"), child.id().to_string());
    joined.ok().map(|()| group)
}

/// Is a victim until it is killed, if this process was started as one.
pub fn be_one_if_asked() {
    let Some(path) = std::env::var_os(STAMPS) else {
        return;
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let path = Path::new(&path);
            scope.spawn(move || stamp(path, thread));
        }
    });
}

/// Writes down the time without end.
fn stamp(path: &Path, thread: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    loop {
        let now = boot_time().as_nanos() as u64;
        file.write_all_at(&now.to_le_bytes(), 8 * thread as u64)
            .unwrap();
    }
}
