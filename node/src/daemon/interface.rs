//! Puts on the board what is wrong with this host's interface, or with a guest's, and cannot be put back; and that something leads
//! the tunnel's own packets into the tunnel.

use super::Parts;
use p2pvm_host::Finding;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often it is looked at: both are read from memory.
const EVERY: Duration = Duration::from_secs(1);
/// A loop that has not been seen for so long is over.
const LOOP_LASTS: Duration = Duration::from_secs(60);
/// The board's area.
const AREA: &str = "interface";

/// Looks until the daemon ends.
pub async fn watch(parts: Arc<Parts>) {
    loop {
        let (_, last) = parts.plane.loops();
        parts.board.set(AREA, findings(parts.plane.device_faults(), last, Instant::now()));
        tokio::time::sleep(EVERY).await;
    }
}

fn findings(faults: Vec<String>, last_loop: Option<(Instant, SocketAddr)>, now: Instant) -> Vec<Finding> {
    let fault = |found| Finding::failed(found, "'p2pvm doctor --fix'; if that does not help, 'p2pvm down && p2pvm up --detach'");
    let mut found: Vec<Finding> = faults.into_iter().map(fault).collect();
    if let Some((at, to)) = last_loop
        && now.duration_since(at) < LOOP_LASTS
    {
        // The port changes from packet to packet, the finding does not.
        found.push(Finding::warning(
            format!("a route of this machine leads packets of the tunnel itself, to {}, into the tunnel: they are dropped", to.ip()),
            format!("'ip route get {}' shows the route; take it away, or see 'p2pvm route list'", to.ip()),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;

    #[test]
    fn a_fault_is_a_failure_and_a_loop_a_warning_for_as_long_as_it_lasts() {
        let now = Instant::now();
        let to: SocketAddr = "198.18.3.10:4002".parse().unwrap();
        let found = findings(vec!["p2pvm0 cannot be made".into()], Some((now, to)), now);
        assert_eq!(found.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Failed, Level::Warning]);
        assert!(found[1].found.contains("198.18.3.10") && found.iter().all(|finding| !finding.advice.is_empty()), "{found:?}");
        assert_eq!(findings(vec![], Some((now, to)), now + LOOP_LASTS), []);
    }
}
