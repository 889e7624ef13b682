//! Differences between clocks in words, and what a wrong clock means for an invite.

use p2pvm_overlay::{UnixTime, membership::Invite};
use std::time::{Duration, SystemTime};

/// The remedy for a wrong clock.
pub const SET: &str = "set it: 'timedatectl set-ntp true', or 'date -s'";
/// The difference below which two clocks count as equal for invites and certificates.
pub const TOLERANCE: Duration = Duration::from_secs(60);
/// The earliest time that a correct clock can show: the beginning of 2026, this program's year.
const PROGRAM_BORN: UnixTime = UnixTime(1_767_225_600);
/// How far a founder's clock may be ahead before a joiner's clock is doubted.
const FOUNDED_AHEAD: u64 = 300;

/// A span of time in its two largest units: "23 h 4 min", "2 d", "41 s".
pub fn span(of: Duration) -> String {
    let seconds = of.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(at) = units.iter().position(|(size, _)| seconds >= *size) else {
        return format!("{} ms", of.as_millis());
    };
    let (size, unit) = units[at];
    let mut said = format!("{} {unit}", seconds / size);
    // The hours of 700 days are noise.
    if let Some((next, unit)) = units.get(at + 1)
        && seconds / size < 100
        && seconds % size >= *next
    {
        said.push_str(&format!(" {} {unit}", seconds % size / next));
    }
    said
}

/// "23 h 4 min ahead of", "2 d behind": the difference of `here` from `there`; `None` if they count
/// as equal.
pub fn apart(here: UnixTime, there: UnixTime) -> Option<String> {
    let by = Duration::from_secs(here.0.abs_diff(there.0));
    if by < TOLERANCE {
        return None;
    }
    Some(format!(
        "{} {}",
        span(by),
        if here > there { "ahead of" } else { "behind" }
    ))
}

/// A time as a readable date.
pub fn shown(at: UnixTime) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at.0.min(200_000_000_000)));
    at.map_or_else(
        || "no date".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

/// Why the clock cannot be right, whatever the other clocks say.
pub fn impossible(now: UnixTime) -> Option<String> {
    (now < PROGRAM_BORN).then(|| {
        format!(
            "this machine's clock shows {}, a time before this program was made: {SET}",
            shown(now)
        )
    })
}

/// What this machine's clock says against an invite. The clock itself may be wrong.
pub fn doubt(invite: &Invite, now: UnixTime) -> Option<String> {
    let created = invite.network().created;
    if created.0 > now.0.saturating_add(FOUNDED_AHEAD) {
        let since = span(Duration::from_secs(created.0 - now.0));
        return Some(format!(
            "this machine's clock shows {}, {since} before the network was founded",
            shown(now)
        ));
    }
    invite.check(now).is_err().then(|| {
        format!(
            "by this machine's clock, which shows {}, the invite has expired",
            shown(now)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_their_two_largest_units() {
        let said = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(said(23 * 3600 + 4 * 60 + 9), "23 h 4 min");
        assert_eq!(said(2 * 86_400 + 3599), "2 d");
        assert_eq!(said(86_400 + 3600), "1 d 1 h");
        assert_eq!(said(730 * 86_400 + 7200), "730 d");
        assert_eq!(
            (said(41), span(Duration::from_millis(7))),
            ("41 s".into(), "7 ms".into())
        );
    }

    #[test]
    fn clocks_are_told_apart_by_how_much_and_which_way() {
        let at = |seconds: u64| UnixTime(1_800_000_000 + seconds);
        assert_eq!(apart(at(0), at(59)), None);
        assert_eq!(apart(at(82_800), at(0)).unwrap(), "23 h ahead of");
        assert_eq!(apart(at(0), at(120)).unwrap(), "2 min behind");
        assert!(impossible(UnixTime(86_400)).unwrap().contains("1970-01-02"));
        assert_eq!(impossible(at(0)), None);
    }
}
