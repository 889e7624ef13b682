//! The cost of the daemons: processor time and resident memory, from /proc.

use std::fs;

/// Seconds of processor time that these processes have used so far, user and system together.
pub(super) fn cpu_seconds(pids: &[u32]) -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100)
        .max(1) as f64;
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold blanks; utime and stime are the 14th and 15th field
        // (proc_pid_stat(5)).
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system) = (
            fields.next()?.parse::<f64>().ok()?,
            fields.next()?.parse::<f64>().ok()?,
        );
        Some((user + system) / ticks)
    };
    pids.iter().filter_map(of).sum()
}

/// Resident megabytes of the largest of these processes.
pub(super) fn resident_mb(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kb = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?
            .split_whitespace()
            .next()?
            .parse::<f64>()
            .ok()?;
        Some(kb / 1000.0)
    };
    pids.iter().filter_map(of).fold(0.0, f64::max)
}
