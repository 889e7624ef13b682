//! Reports on the board how far this machine's clock is from the members'. The daemon does not
//! depend on it; people, logs and other programs do, and so do signatures that this machine makes
//! before it has met a member.

use crate::clock;
use crate::parts::Parts;
use p2pvm_host::Finding;
use p2pvm_overlay::network_time::{NetworkTime, Skew};
use std::{sync::Arc, time::Duration};

/// How long before the clocks are compared again. Reason: the members are asked elsewhere, this
/// only subtracts.
const EVERY: Duration = Duration::from_secs(5);
/// The board's area.
const AREA: &str = "clock";

/// Compares until the daemon ends.
pub async fn watch(parts: Arc<Parts>) {
    let mut said = None;
    loop {
        let finding = NetworkTime::of_process().skew().and_then(finding);
        // The amount changes by milliseconds from look to look; a change worth a line changes the
        // words.
        if finding != said {
            parts.board.set(AREA, finding.clone().into_iter().collect());
            said = finding;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The finding for a difference.
fn finding(skew: Skew) -> Option<Finding> {
    let by = Duration::from_millis(skew.ahead_ms.unsigned_abs());
    if by < clock::TOLERANCE {
        return None;
    }
    let side = if skew.ahead_ms < 0 {
        "behind"
    } else {
        "ahead of"
    };
    let of = match skew.members {
        1 => "that of the one member asked; one of the two is wrong".to_owned(),
        members => format!("the members' (of {members})"),
    };
    // Minutes are enough: with seconds each look would be another finding if a clock runs fast.
    let found = format!(
        "this machine's clock is {} {side} {of}",
        clock::span(Duration::from_secs((by.as_secs() + 30) / 60 * 60))
    );
    // Nothing here fails because of it: the network's time is the members'.
    Some(Finding::warning(found, clock::SET))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;

    #[test]
    fn a_wrong_clock_is_named_with_difference_side_and_remedy() {
        let skew = |ahead_s: i64, members| Skew {
            ahead_ms: ahead_s * 1000,
            members,
        };
        assert_eq!(finding(skew(30, 5)), None);
        let ahead = finding(skew(23 * 3600 + 4 * 60 + 7, 5)).unwrap();
        assert_eq!(
            ahead.found,
            "this machine's clock is 23 h 4 min ahead of the members' (of 5)"
        );
        assert!(
            ahead.level == Level::Warning && ahead.advice.contains("set-ntp"),
            "{ahead:?}"
        );
        let behind = finding(skew(-130, 1)).unwrap();
        assert!(
            behind.level == Level::Warning
                && behind.found.contains("2 min behind that of the one member"),
            "{behind:?}"
        );
        assert_eq!(
            finding(skew(-100, 1)),
            finding(skew(-149, 1)),
            "it is one finding, not one a look"
        );
        assert!(
            finding(skew(86_398, 2))
                .unwrap()
                .found
                .contains(" 1 d ahead")
        );
    }
}
