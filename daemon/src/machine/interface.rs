//! Reports on the board the faults of this host's interface, or of a guest's, that cannot be
//! repaired, and routes that lead the tunnel's own packets into the tunnel.

use crate::{machine::proof, parts::Parts};
use p2pvm_host::Finding;
use p2pvm_overlay::plane::ProofFailure;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long before loops and faults are checked again. Reason: both are read from memory.
const EVERY: Duration = Duration::from_secs(1);
/// How long before a loop that does not recur counts as over.
const LOOP_LASTS: Duration = Duration::from_secs(60);
/// The board's area.
const AREA: &str = "interface";

/// Checks until the daemon ends.
pub async fn watch(parts: Arc<Parts>) {
    loop {
        let (_, last) = parts.plane.loops();
        let mut found = findings(parts.plane.device_faults(), last, Instant::now());
        found.extend(past_the_device(&parts.plane.ways_elsewhere()));
        parts.board.set(AREA, found);
        tokio::time::sleep(EVERY).await;
    }
}

fn findings(
    faults: Vec<String>,
    last_loop: Option<(Instant, SocketAddr)>,
    now: Instant,
) -> Vec<Finding> {
    let fault = |found| {
        Finding::failed(
            found,
            "'p2pvm doctor --fix'; if that does not help, 'p2pvm down && p2pvm up --detach'",
        )
    };
    let mut found: Vec<Finding> = faults.into_iter().map(fault).collect();
    if let Some((at, to)) = last_loop
        && now.duration_since(at) < LOOP_LASTS
    {
        // The port changes from packet to packet, the finding does not.
        found.push(Finding::warning(
            format!(
                "a route of this machine leads packets of the tunnel itself, to {}, into the \
                tunnel: they are dropped",
                to.ip()
            ),
            format!(
                "'ip route get {}' shows the route; take it away, or see 'p2pvm route \
                list'",
                to.ip()
            ),
        ));
    }
    found
}

/// The packets that bypass the device. [`proof`] reports those of IPv4, which it proves by packets.
fn past_the_device(ways: &[ProofFailure]) -> impl Iterator<Item = Finding> {
    let is_v6 =
        |way: &&ProofFailure| matches!(way, ProofFailure::Elsewhere { addr, .. } if addr.is_ipv6());
    ways.iter().filter(is_v6).filter_map(proof::own_trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;

    #[test]
    fn while_it_lasts_a_fault_is_a_failure_a_loop_a_warning() {
        let now = Instant::now();
        let to: SocketAddr = "198.18.3.10:4002".parse().unwrap();
        let found = findings(vec!["p2pvm0 cannot be made".into()], Some((now, to)), now);
        assert_eq!(
            found
                .iter()
                .map(|finding| finding.level)
                .collect::<Vec<_>>(),
            [Level::Failed, Level::Warning]
        );
        assert!(
            found[1].found.contains("198.18.3.10")
                && found.iter().all(|finding| !finding.advice.is_empty()),
            "{found:?}"
        );
        assert_eq!(findings(vec![], Some((now, to)), now + LOOP_LASTS), []);
    }

    #[test]
    fn a_rule_past_the_device_is_told_once_with_its_proof() {
        let way = |addr: &str| ProofFailure::Elsewhere {
            device: "p2pvm0".into(),
            addr: addr.parse().unwrap(),
            through: "eth0".into(),
        };
        let found: Vec<Finding> = past_the_device(&[way("10.83.0.1"), way("fd77::1")]).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0]
                .found
                .contains("fd77::1 leave by eth0 instead of p2pvm0")
                && found[0].advice.contains("ip rule"),
            "{found:?}"
        );
    }
}
