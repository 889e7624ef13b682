//! Detects other p2pvm networks of this machine that are in the way: one whose subnet contains the
//! real address of a member of this network, and the other way round. Nothing is sent through the
//! other's tunnel, so packets take a detour until the subnets differ.
//!
//! The other network's daemon reads this from the mark of this one's interface
//! ([`p2pvm_host::links::Mark`]).

use crate::parts::Parts;
use p2pvm_host::{
    Finding, Net,
    links::{Link, links},
};
use p2pvm_overlay::plane::Path;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

/// How long before the interfaces are checked again.
const EVERY: Duration = Duration::from_secs(5);
/// The board's area.
const AREA: &str = "networks";
const REMEDY: &str = "one of the two networks needs another subnet: found it again with 'p2pvm \
    init --subnet', or leave it on this machine";

/// Checks until the daemon ends.
pub(crate) async fn watch(parts: Arc<Parts>) {
    loop {
        let links = tokio::task::block_in_place(links).unwrap_or_default();
        let missed = missed(&parts);
        parts.plane.set_misses(missed.first().map(|(_, ip)| *ip));
        parts.board.set(AREA, findings(&parts, &links, &missed));
        tokio::time::sleep(EVERY).await;
    }
}

/// The members, by name, to which packets take a detour because of it.
fn missed(parts: &Parts) -> Vec<(String, IpAddr)> {
    let is_direct = |member| {
        parts
            .plane
            .path(member)
            .is_some_and(|link| matches!(link.path, Path::Direct(_)))
    };
    let hidden = parts
        .connector
        .hidden()
        .into_iter()
        .filter(|(member, _)| !is_direct(*member));
    let mut missed: Vec<_> = hidden
        .map(|(member, ip)| (parts.name_of(member), ip))
        .collect();
    missed.sort();
    missed
}

fn findings(parts: &Parts, links: &[Link], missed: &[(String, IpAddr)]) -> Vec<Finding> {
    let subnet = parts.network.subnet;
    found(
        &parts.network.id.to_string(),
        Net::new(subnet.addr, subnet.prefix),
        links,
        missed,
    )
}

fn found(own: &str, subnet: Net, links: &[Link], missed: &[(String, IpAddr)]) -> Vec<Finding> {
    let marks = || {
        links
            .iter()
            .filter_map(|link| Some((link, link.mark().filter(|mark| mark.network != own)?)))
    };
    let mut found: Vec<Finding> = missed
        .iter()
        .map(|(name, ip)| {
            let holds = |link: &&Link| {
                link.addresses
                    .iter()
                    .any(|(address, prefix)| holds(address, *prefix, ip))
            };
            let by = marks().map(|(link, _)| link).find(holds).map_or(
                "another \
                interface",
                |link| link.name.as_str(),
            );
            let found = format!(
                "{name} has the address {ip}, which lies in the p2pvm network \
                behind {by} of this machine"
            );
            Finding::warning(
                format!("{found}: packets to it go through other members"),
                REMEDY,
            )
        })
        .collect();
    for (link, mark) in marks() {
        if let Some(ip @ IpAddr::V4(v4)) = mark.misses
            && subnet.contains(&v4)
        {
            found.push(Finding::warning(
                format!(
                    "this network's subnet {subnet} holds {ip}, a member's real address in the \
                        p2pvm network behind {} of this machine: \
                     packets of that network to it go through other members",
                    link.name
                ),
                REMEDY,
            ));
        }
    }
    found
}

fn holds(address: &IpAddr, prefix: u8, ip: &IpAddr) -> bool {
    let as_v4 = |ip: &IpAddr| {
        if let IpAddr::V4(v4) = ip {
            Some::<Ipv4Addr>(*v4)
        } else {
            None
        }
    };
    as_v4(address)
        .zip(as_v4(ip))
        .is_some_and(|(address, ip)| Net::new(address, prefix).contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::links::Mark;

    fn link(name: &str, network: &str, address: &str, misses: Option<IpAddr>) -> Link {
        let mark = Mark {
            network: network.into(),
            link_port: 1,
            control_port: 2,
            misses,
        };
        Link {
            index: 1,
            name: name.into(),
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1340,
            alias: Some(mark.to_string()),
            addresses: vec![(address.parse().unwrap(), 16)],
        }
    }

    #[test]
    fn each_network_names_the_others_member_and_never_itself() {
        let real: IpAddr = "198.18.3.10".parse().unwrap();
        let links = [
            link("p2pvm0", "a", "10.9.0.1", Some(real)),
            link("p2pvm1", "b", "198.18.0.1", None),
        ];
        let net = |text: &str| text.parse::<Net>().unwrap();
        let [first] = found(
            "a",
            net("10.9.0.0/16"),
            &links,
            &[("lab3".to_owned(), real)],
        )
        .try_into()
        .unwrap();
        assert!(
            first.found.contains("lab3 has the address 198.18.3.10")
                && first.found.contains("p2pvm1"),
            "{first:?}"
        );
        let [second] = found("b", net("198.18.0.0/16"), &links, &[])
            .try_into()
            .unwrap();
        assert!(
            second.found.contains("198.18.0.0/16 holds 198.18.3.10")
                && second.found.contains("p2pvm0"),
            "{second:?}"
        );
        assert!(
            [&first, &second]
                .iter()
                .all(|finding| finding.advice.contains("--subnet"))
        );
        assert_eq!(
            found("c", net("10.7.0.0/16"), &links, &[]),
            [],
            "a third network has nothing to do with it"
        );
    }
}
