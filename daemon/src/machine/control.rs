//! Detects that members cannot be asked, and that another program redirects this machine's packets.

use crate::{members::service::Members, parts::Parts};
use p2pvm_api::Peer;
use p2pvm_host::{
    Finding, Keeper,
    outbound::{Detour, detour},
    rules::SOCKET_MARK,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long before this node checks again whether members can be asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long members must be out of reach before it is a finding. Reason: connections are made again
/// within this, for example after a member has restarted.
const ANEW: Duration = Duration::from_secs(8);
/// The board's area.
const AREA: &str = "control";

/// The finding that packets reach members but none of them can be asked.
fn unasked(peers: &[Peer], port: Option<u16>) -> Option<Finding> {
    let linked = peers.iter().filter(|peer| peer.linked).count();
    if linked == 0 || peers.iter().any(|peer| peer.connected) {
        return None;
    }
    let port = port.map_or_else(
        || "of the control plane".to_owned(),
        |port| port.to_string(),
    );
    let found = format!(
        "packets go to {linked} of {} known members, but none can be asked: UDP and TCP port \
            {port} is blocked here or there; names, moves and \
         joins wait",
        peers.len()
    );
    let advice = format!(
        "let UDP and TCP port {port} in and out, here and there: 'nft list ruleset' and 'iptables \
            -L -v' show the rule that drops it here"
    );
    Some(Finding::failed(found, advice))
}

/// The finding that no member is reached while another program, such as a VPN, redirects this
/// machine's packets. Their further way cannot be seen from here, and if the VPN sends them through
/// this network, each carries the other.
fn led_away(
    peers: &[Peer],
    ports: (Option<u16>, u16),
    detour: impl FnOnce() -> Option<Detour>,
) -> Option<Finding> {
    if peers.is_empty() || peers.iter().any(|peer| peer.linked || peer.connected) {
        return None;
    }
    let Detour { by, instead_of } = detour()?;
    let found = format!(
        "no member is reached, and this machine's packets leave by {by}, not by its default route \
            ({instead_of}): the VPN there does \
         not lead out, or leads p2pvm's own packets into p2pvm's network"
    );
    let control = ports
        .0
        .into_iter()
        .flat_map(|port| ["udp", "tcp"].map(|protocol| format!("ipproto {protocol} sport {port}")));
    let own = [
        format!("fwmark {SOCKET_MARK:#x}"),
        format!("ipproto udp sport {}", ports.1),
    ]
    .into_iter()
    .chain(control);
    let rules: Vec<String> = own
        .map(|own| format!("ip rule add pref 100 {own} lookup main"))
        .collect();
    Some(Finding::failed(
        found,
        format!("lead p2pvm's own packets around it: {}", rules.join(" && ")),
    ))
}

/// Checks until the daemon ends.
pub(crate) async fn watch(members: Arc<Members>, parts: Arc<Parts>, keeper: Arc<Keeper>) {
    let mut since = None;
    loop {
        let (peers, port) = (members.peers(), parts.control.listen_port());
        let ports = (port, parts.plane.udp_port());
        // Packets that go past a VPN are not redirected by it.
        let detour = || detour().filter(|_| keeper.report().past.is_none());
        let found = unasked(&peers, port).or_else(|| led_away(&peers, ports, detour));
        since = found.as_ref().and(since.or_else(|| Some(Instant::now())));
        let lasts = since.is_some_and(|since: Instant| since.elapsed() >= ANEW);
        parts
            .board
            .set(AREA, found.filter(|_| lasts).into_iter().collect());
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;

    #[test]
    fn members_reached_but_not_asked_are_a_failure_naming_the_port() {
        let peer = |connected, linked| Peer {
            connected,
            linked,
            ..Peer::default()
        };
        let found = unasked(&[peer(false, true), peer(false, false)], Some(4001)).unwrap();
        assert!(
            found.level == Level::Failed
                && found.found.contains("packets go to 1 of 2")
                && found.advice.contains("4001"),
            "{found:?}"
        );
        assert_eq!(
            unasked(&[peer(true, true), peer(false, true)], Some(4001)),
            None
        );
        assert_eq!(
            unasked(&[peer(false, false)], Some(4001)),
            None,
            "nothing goes there"
        );
        assert_eq!(unasked(&[], Some(4001)), None);
    }

    #[test]
    fn what_leads_all_packets_away_is_named_with_rules_around_it() {
        let peer = |linked| Peer {
            linked,
            ..Peer::default()
        };
        let by = |by: &str| {
            Some(Detour {
                by: by.into(),
                instead_of: "eth0".into(),
            })
        };
        let found = led_away(&[peer(false)], (Some(4001), 4002), || by("wg0")).unwrap();
        assert!(
            found
                .found
                .contains("leave by wg0, not by its default route (eth0)"),
            "{found:?}"
        );
        for own in [
            "fwmark 0x70327076",
            "ipproto udp sport 4002",
            "ipproto tcp sport 4001",
        ] {
            assert!(
                found
                    .advice
                    .contains(&format!("ip rule add pref 100 {own} lookup main")),
                "{found:?}"
            );
        }
        assert_eq!(led_away(&[peer(false)], (None, 4002), || None), None);
        let never = || -> Option<Detour> { panic!("nothing is wrong") };
        assert_eq!(led_away(&[peer(true)], (None, 4002), never), None);
        assert_eq!(led_away(&[], (None, 4002), || by("wg0")), None);
    }
}
