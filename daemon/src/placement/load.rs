//! The load of this host, from /proc. If the daemon runs in the machine's own network namespace,
//! that is the whole machine's. Otherwise (an emulated host) only the processes of its namespace
//! and its guests count, so that emulated hosts on one machine each have a load of their own.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Measures processor and memory use between calls of [`Meter::sample`].
pub struct Meter {
    scope: Scope,
    cpus: f64,
    tick: Duration,
    last: Option<(Instant, BusyTime)>,
}

enum Scope {
    Machine,
    Namespace(fs::Metadata),
}

enum BusyTime {
    /// Busy time of all processors since boot.
    Machine(Duration),
    /// Processor time of each process.
    Processes(HashMap<u32, Duration>),
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Processors busy, 0 to 1 of this host's capacity.
    pub cpu: f64,
    /// This host's capacity.
    pub cpus: f64,
    /// Memory in use, MiB.
    pub memory_used_mib: u64,
    /// All memory, MiB.
    pub memory_total_mib: u64,
}

impl Meter {
    /// A meter for this host. `cpus` is its capacity, 0 for all processors of the machine.
    pub fn new(cpus: u32) -> Self {
        use std::os::unix::fs::MetadataExt;
        // A container may hide process 1; the testbed names its hosts by this variable.
        let emulated = std::env::var_os("P2PVM_HOST").is_some();
        let machine = fs::metadata("/proc/1/ns/net").ok();
        let own = fs::metadata("/proc/self/ns/net").ok();
        let scope = match (machine, own) {
            (Some(machine), Some(own)) if emulated || machine.ino() != own.ino() => {
                Scope::Namespace(own)
            }
            (None, Some(own)) if emulated => Scope::Namespace(own),
            _ => Scope::Machine,
        };
        let there = std::thread::available_parallelism().map_or(1, usize::from);
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten()
            .unwrap_or(100)
            .max(1);
        let cpus = if cpus == 0 {
            there as f64
        } else {
            f64::from(cpus)
        };
        Self {
            scope,
            cpus,
            tick: Duration::from_secs(1) / per_second as u32,
            last: None,
        }
    }

    /// Measures since the last call. The first call measures nothing yet. `guests` is how many
    /// processors the guests keep busy: they are in namespaces of their own, so that an emulated
    /// host's processes do not include them.
    pub fn sample(&mut self, guests: f64) -> Load {
        let now = Instant::now();
        let used = match &self.scope {
            Scope::Machine => BusyTime::Machine(self.machine()),
            Scope::Namespace(own) => BusyTime::Processes(self.processes(own)),
        };
        let busy = match (&self.last, &used) {
            (Some((_, BusyTime::Machine(before))), BusyTime::Machine(after)) => {
                after.saturating_sub(*before)
            }
            (Some((_, BusyTime::Processes(before))), BusyTime::Processes(after)) => after
                .iter()
                .map(|(pid, time)| {
                    time.saturating_sub(before.get(pid).copied().unwrap_or_default())
                })
                .sum(),
            _ => Duration::ZERO,
        };
        let elapsed = self
            .last
            .as_ref()
            .map_or(Duration::ZERO, |(then, _)| now - *then);
        self.last = Some((now, used));
        let beside = if matches!(self.scope, Scope::Namespace(_)) {
            guests / self.cpus
        } else {
            0.0
        };
        let cpu = if elapsed.is_zero() {
            0.0
        } else {
            busy.as_secs_f64() / elapsed.as_secs_f64() / self.cpus + beside
        };
        let (memory_used_mib, memory_total_mib) = memory();
        Load {
            cpu: cpu.clamp(0.0, 1.0),
            cpus: self.cpus,
            memory_used_mib,
            memory_total_mib,
        }
    }

    /// The sum of user, nice, system, irq, softirq and steal in the first line of /proc/stat
    /// (proc(5)).
    fn machine(&self) -> Duration {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u32> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .skip(1)
            .map(|f| f.parse().unwrap_or(0))
            .collect();
        [0, 1, 2, 5, 6, 7]
            .iter()
            .filter_map(|i| fields.get(*i))
            .map(|ticks| self.tick * *ticks)
            .sum()
    }

    fn processes(&self, own: &fs::Metadata) -> HashMap<u32, Duration> {
        use std::os::unix::fs::MetadataExt;
        let Ok(entries) = fs::read_dir("/proc") else {
            return HashMap::new();
        };
        let pids = entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        let here = |pid: &u32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == own.ino())
        };
        pids.filter(here)
            .filter_map(|pid| Some((pid, self.process(pid)?)))
            .collect()
    }

    /// The sum of utime and stime in /proc/PID/stat; the name before them may contain blanks and
    /// brackets.
    fn process(&self, pid: u32) -> Option<Duration> {
        let text =
            fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u32>().ok());
        Some(self.tick * (ticks(11)?.saturating_add(ticks(12)?)))
    }
}

fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_default();
        line.split_ascii_whitespace()
            .nth(1)
            .and_then(|v| v.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let (total, available) = (kib("MemTotal"), kib("MemAvailable"));
    (total.saturating_sub(available) >> 10, total >> 10)
}

/// Resident memory of this process, bytes.
pub fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    line.split_ascii_whitespace()
        .next()
        .and_then(|v| v.parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_shows_as_load() {
        let mut meter = Meter::new(0);
        assert_eq!(meter.sample(0.0).cpu, 0.0);
        let until = Instant::now() + Duration::from_millis(300);
        let mut spins = 0u64;
        while Instant::now() < until {
            spins = std::hint::black_box(spins + 1);
        }
        let load = meter.sample(0.0);
        assert!(load.cpu > 0.5 / load.cpus, "{load:?}");
        assert!(
            load.memory_used_mib > 0 && load.memory_used_mib < load.memory_total_mib,
            "{load:?}"
        );
    }
}
