//! What happens to the guests when their host shuts down: the host asks all of them at once to
//! power down, and ends those that have not after a bounded time. A VM that was meant to run still
//! is, so it boots again with the host.

use futures::{StreamExt, stream};
use p2pvm_api::VmStayed;
use p2pvm_host::chain;
use p2pvm_vm_manager::host::{Host, VmState, VmStatus};
use std::{sync::Arc, time::Duration};

/// How long the moves may take together. Reason: what has not moved must still power down, and
/// `TimeoutStopSec` of p2pvm-guests.service bounds both.
pub(super) const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to power down before it is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of one guest may take in all.
const LIMIT: Duration = Duration::from_secs(100);
/// How many guests are ended at a time. Reason: all have the same time, so more than a host has.
const AT_A_TIME: usize = 256;

/// How the end of a host's guests went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    pub stopped: Vec<String>,
    pub stayed: Vec<VmStayed>,
}

/// Whether the VM has a guest here that can be asked to power down.
fn has_guest(vm: &VmStatus) -> bool {
    matches!(
        vm.state,
        VmState::Running | VmState::Leaving | VmState::Paused
    )
}

/// Ends all guests here.
pub(super) async fn end_all(host: &Arc<Host>) -> Ended {
    let names: Vec<String> = host
        .list()
        .into_iter()
        .filter(has_guest)
        .map(|vm| vm.name)
        .collect();
    let ends = stream::iter(names).map(|name| end(host, name));
    let ends: Vec<_> = ends.buffer_unordered(AT_A_TIME).collect().await;
    sorted(ends)
}

async fn end(host: &Arc<Host>, name: String) -> Result<String, VmStayed> {
    let ended = tokio::time::timeout(LIMIT, host.stop_for_now(&name, PATIENCE)).await;
    let why = match ended {
        Ok(Ok(())) => return Ok(name),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("it did not end within {} s", LIMIT.as_secs()),
    };
    tracing::warn!(
        vm = name,
        why,
        "a guest has not ended before this host shuts down"
    );
    Err(VmStayed { name, why })
}

fn sorted(ends: Vec<Result<String, VmStayed>>) -> Ended {
    let mut all = Ended::default();
    for end in ends {
        match end {
            Ok(name) => all.stopped.push(name),
            Err(stayed) => all.stayed.push(stayed),
        }
    }
    all.stopped.sort();
    all.stayed.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_end_and_guests_that_stay_are_told_by_name() {
        let stayed = VmStayed {
            name: "db".to_owned(),
            why: "busy".to_owned(),
        };
        let ends = vec![
            Ok("web".to_owned()),
            Err(stayed.clone()),
            Ok("cache".into()),
        ];
        let all = sorted(ends);
        assert_eq!(all.stopped, ["cache", "web"]);
        assert_eq!(all.stayed, [stayed]);
    }

    #[test]
    fn moves_and_stops_together_end_within_the_units_time() {
        let unit = include_str!("../../../packaging/p2pvm-guests.service");
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutStopSec="))
            .expect("the unit bounds its stop");
        let bound = Duration::from_secs(line.parse().expect("seconds"));
        assert!(MOVE_LIMIT + LIMIT < bound, "{bound:?}");
    }
}
