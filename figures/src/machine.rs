//! The circumstances of a run: its date, the commit, the machine, and the machine's other load.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

/// How long the processes of the machine are watched before their load is computed.
const WATCHED: Duration = Duration::from_secs(1);
/// The share of a processor, in percent, below which a process is not named.
/// Reason: a machine's own services wake now and then.
const NAMED_FROM: f64 = 5.0;
/// Clock ticks in a second in `/proc/PID/stat`: Linux has shown 100 on every processor since 2.6.
const TICKS: f64 = 100.0;

/// The command that this process was started with, as a person types it: without the program's
/// directory and without `--figures`.
pub fn command_line() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program)
        .file_name()
        .map_or(program.clone(), |name| name.to_string_lossy().into_owned());
    let mut shown = vec![name];
    while let Some(word) = words.next() {
        if word == "--figures" {
            words.next();
        } else if !word.starts_with("--figures=") {
            shown.push(word);
        }
    }
    shown.join(" ")
}

/// Today's date in UTC, `2026-11-30`.
pub(crate) fn today() -> String {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    date(since.as_secs() / 86_400)
}

/// The date `days` days after 1970-01-01. After "chrono-compatible low-level date algorithms" by
/// Howard Hinnant: years begin in March, so that the leap day is the last.
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (month, day) = (
        if march < 10 { march + 3 } else { march - 9 },
        day - (153 * march + 2) / 5 + 1,
    );
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The commit of the tree that a directory is in, followed by "with changes" if files outside
/// `docs/` differ.
pub(crate) fn commit(dir: &Path) -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        // Root measures in a tree that belongs to another user.
        let mut command = Command::new("git");
        command.args(["-c", "safe.directory=*", "-C"]).arg(dir);
        let done = command.args(arguments).output().ok()?;
        let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        done.status.success().then_some(said)
    };
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    let outside = [":(top)", ":(top,exclude)docs"];
    match git(&["rev-parse", "--short=7", "HEAD"]) {
        Some(commit) => match git(&[&status[..], &outside[..]].concat()) {
            Some(changed) if changed.is_empty() => commit,
            _ => format!("{commit} with changes"),
        },
        None => "unknown".into(),
    }
}

/// Processors and kernel.
pub(crate) fn description() -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    let count = thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} processors ({model}), Linux {}", kernel.trim())
}

/// Shares of a processor by the name of a program, in percent.
pub(crate) type Busy = BTreeMap<String, f64>;

/// The load by other programs now; takes a second.
pub(crate) fn busy() -> Busy {
    let before = ticks();
    thread::sleep(WATCHED);
    let own = std::process::id();
    let mut busy = Busy::new();
    for (pid, (name, now)) in ticks() {
        let used = now.saturating_sub(before.get(&pid).map_or(0, |(_, ticks)| *ticks));
        if pid != own {
            *busy.entry(name).or_default() += used as f64 / TICKS / WATCHED.as_secs_f64() * 100.0;
        }
    }
    busy.retain(|_, share| *share >= NAMED_FROM);
    busy
}

/// The programs in words, the busiest first.
pub(crate) fn in_words(busy: &Busy) -> String {
    let mut each: Vec<_> = busy.iter().collect();
    each.sort_by(|a, b| b.1.total_cmp(a.1));
    let each: Vec<String> = each
        .iter()
        .map(|(name, share)| format!("{name} {share:.0} %"))
        .collect();
    if each.is_empty() {
        "nothing".into()
    } else {
        each.join(", ")
    }
}

/// Name and clock ticks of every process.
fn ticks() -> BTreeMap<u32, (String, u64)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((
            pid,
            used(&fs::read_to_string(entry.path().join("stat")).ok()?)?,
        ))
    })
    .collect()
}

/// Name and clock ticks in a line of `/proc/PID/stat`. A name may have blanks and parentheses.
fn used(stat: &str) -> Option<(String, u64)> {
    let (begin, rest) = stat.rsplit_once(')')?;
    let (_, name) = begin.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((name.into(), user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates_over_leap_years() {
        for (days, text) in [
            (0, "1970-01-01"),
            (11_016, "2000-02-29"),
            (20_787, "2026-11-30"),
            (20_819, "2027-01-01"),
        ] {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn a_process_of_any_name_is_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 2 3 4 11 31 0 0 20 0 1 0 5";
        assert_eq!(used(stat), Some(("a (b) c".into(), 42)));
        assert_eq!(used("7 (short) S 1"), None);
    }

    #[test]
    fn the_busiest_program_is_named_first() {
        let busy = Busy::from([("cargo".into(), 7.0), ("rustc".into(), 180.4)]);
        assert_eq!(in_words(&busy), "rustc 180 %, cargo 7 %");
        assert_eq!(in_words(&Busy::new()), "nothing");
    }
}
