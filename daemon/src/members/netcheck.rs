//! `p2pvm netcheck`: the overlay's report of this machine's connectivity, with names for ids.

use super::service::Members;
use crate::{lookup::link_kind, machine::sight};
use p2pvm_api::{NetCheckView, PunchView, PunchesView, ReachableView};
use p2pvm_overlay::connect::Punches;

/// The counts in the API's form.
pub fn punches(punches: &Punches) -> PunchesView {
    let view = |p: &p2pvm_overlay::connect::Punch| PunchView {
        member: p.member.to_string().into(),
        tries: p.tries,
        direct_ms: p.direct_ms,
        allowed: p.allowed,
    };
    PunchesView {
        tried: punches.tried,
        direct: punches.direct,
        first_try: punches.first_try,
        hopeless: punches.hopeless,
        median_ms: punches.median_ms,
        list: punches.list.iter().map(view).collect(),
    }
}

impl Members {
    /// Looks at this machine's network.
    pub async fn netcheck(&self) -> NetCheckView {
        let found = self.parts.connector.netcheck().await;
        let mut members: Vec<ReachableView> = found
            .members
            .iter()
            .map(|m| ReachableView {
                name: self.parts.name_of(m.member),
                nat: m.nat.map(|nat| nat.to_string()),
                may_be_direct: m.may_be_direct,
                path: m.link.as_ref().map(|link| self.parts.link_text(link)),
                path_kind: m.link.as_ref().and_then(link_kind),
                rtt_ms: m.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            })
            .collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        NetCheckView {
            daemon: true,
            nat: Some(found.nat.to_string()),
            mapping: Some(found.mapping.to_owned()),
            filtering: Some(found.filtering.to_owned()),
            reflexive: found.reflexive.map(|a| a.to_string()),
            udp_port: Some(found.udp_port),
            second_port: found.second_port,
            mapped: found
                .mapped
                .map(|(addr, protocol)| format!("{addr} by {protocol}")),
            ipv6: found.nat6.is_some(),
            ipv6_nat: found.nat6.map(|nat| nat.to_string()),
            members,
            relays: found
                .relays
                .iter()
                .map(|m| self.parts.name_of(*m))
                .collect(),
            punches: punches(&found.punches),
            ..sight::of_machine(&found.local, &found.router)
        }
    }
}
