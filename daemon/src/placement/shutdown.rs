//! What happens to the guests when their host shuts down: the host asks all of them at once to
//! power down, and ends those that have not after a bounded time. A VM that was meant to run still
//! is, so it boots again with the host.

use futures::{StreamExt, stream::FuturesUnordered};
use p2pvm_api::VmStayed;
use p2pvm_host::chain;
use p2pvm_vm_manager::host::{Host, VmState, VmStatus};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long the moves may take together. Reason: what has not moved must still power down, and
/// `TimeoutStopSec` of p2pvm-guests.service bounds both.
pub(super) const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// How long a guest may take to power down before it is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of all guests may take.
const LIMIT: Duration = Duration::from_secs(100);
/// How long it takes no VMs from others. Reason: a machine that is not off by then goes on.
pub(super) const CLOSED: Duration = Duration::from_secs(600);
/// How long a VM that was on its way here before is waited for.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether a guest has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How the end of a host's guests went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    pub stopped: Vec<String>,
    pub stayed: Vec<VmStayed>,
}

/// The VMs here, as far as they have to end.
struct Seen {
    /// Those with a guest.
    guests: Vec<String>,
    /// Whether one is on its way.
    is_coming: bool,
}

impl Seen {
    fn on(host: &Host) -> Self {
        let all = host.list();
        Self {
            is_coming: all.iter().any(|vm| vm.state == VmState::Arriving),
            guests: all
                .into_iter()
                .filter(has_guest)
                .map(|vm| vm.name)
                .collect(),
        }
    }
}

/// Whether the VM has a guest here that can be asked to power down.
fn has_guest(vm: &VmStatus) -> bool {
    matches!(
        vm.state,
        VmState::Running | VmState::Leaving | VmState::Paused
    )
}

/// Ends all guests here, all at once, and those that come meanwhile.
pub(super) async fn end_all(host: &Arc<Host>) -> Ended {
    end_each(|| Seen::on(host), |name, limit| end(host, name, limit)).await
}

async fn end_each<E>(look: impl Fn() -> Seen, end: impl Fn(String, Duration) -> E) -> Ended
where
    E: Future<Output = Result<String, VmStayed>>,
{
    let began = Instant::now();
    let (mut ending, mut ends) = (FuturesUnordered::new(), Vec::new());
    let mut known = BTreeSet::new();
    loop {
        let seen = look();
        for name in seen.guests {
            if known.insert(name.clone()) {
                ending.push(end(name, LIMIT.saturating_sub(began.elapsed())));
            }
        }
        let waits = seen.is_coming && began.elapsed() < ARRIVAL_LIMIT;
        if ending.is_empty() {
            if !waits {
                return sorted(ends);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        } else if let Ok(ended) = tokio::time::timeout(LOOK_EVERY, ending.next()).await {
            ends.extend(ended);
        }
    }
}

/// Ends a guest within `limit`; it has the larger part of that to power down by itself.
async fn end(host: &Arc<Host>, name: String, limit: Duration) -> Result<String, VmStayed> {
    let patience = PATIENCE.min(limit * 3 / 5);
    let ended = tokio::time::timeout(limit, host.stop_for_now(&name, patience)).await;
    let why = match ended {
        Ok(Ok(())) => return Ok(name),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("it did not end within {} s", limit.as_secs()),
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

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_comes_meanwhile_ends_as_well() {
        let began = Instant::now();
        let look = || {
            let has_come = began.elapsed() >= Duration::from_secs(5);
            let names = ["web", "late"].into_iter();
            Seen {
                guests: names
                    .take(if has_come { 2 } else { 1 })
                    .map(str::to_owned)
                    .collect(),
                is_coming: !has_come,
            }
        };
        let end = |name: String, limit: Duration| async move {
            assert!(limit > PATIENCE, "{name} has {limit:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(name)
        };
        let all = end_each(look, end).await;
        assert_eq!(all.stopped, ["late", "web"]);
        assert!(began.elapsed() < Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_that_never_arrives_delays_a_shutdown_for_a_bounded_time() {
        let began = Instant::now();
        let look = || Seen {
            guests: vec![],
            is_coming: true,
        };
        let end = |name: String, _: Duration| async move { Ok(name) };
        assert_eq!(end_each(look, end).await, Ended::default());
        assert!(began.elapsed() < 2 * ARRIVAL_LIMIT);
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
