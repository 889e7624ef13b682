//! The doctor's rules about what packets need: a TUN interface, the kernel's settings, UDP, an MTU,
//! name servers.

use super::check;
use crate::doctor::probes::Udp;
use p2pvm_api::{Check, NetCheckView, PathKind};
use p2pvm_host::{
    Level::{Failed, Ok as Fine, Warning},
    tun::TunTrouble,
};

/// The least MTU, bytes. Reason: QUIC's packets of 1200 bytes with their headers (RFC 9000 §14)
/// need the least MTU of IPv6.
const MTU_NEEDED: u32 = 1280;
pub(crate) fn tun(tried: Result<(), TunTrouble>) -> Check {
    match tried {
        Ok(()) => check("tun", Fine, "this process can make a TUN interface", ""),
        Err(trouble) => check("tun", Failed, trouble.to_string(), trouble.remedy()),
    }
}

pub(crate) fn nft(found: &Result<(), String>) -> Check {
    const FOR: &str = "'p2pvm route offer' needs it; the rest works without";
    match found {
        Ok(()) => check("nft", Fine, "nft is installed and may be used", ""),
        Err(why) if why.contains("not installed") => check(
            "nft",
            Warning,
            why.clone(),
            format!("apt-get install nftables: {FOR}"),
        ),
        Err(why) => check(
            "nft",
            Warning,
            format!("nft cannot be used: {why}"),
            format!("run as root with CAP_NET_ADMIN: {FOR}"),
        ),
    }
}

pub(crate) fn sysctl(found: &Result<(), String>) -> Check {
    match found {
        Ok(()) => check("sysctl", Fine, "/proc/sys can be written", ""),
        Err(why) => check(
            "sysctl",
            Warning,
            format!("the kernel's network settings cannot be written: {why}"),
            "a LAN cannot be offered with 'p2pvm route offer' from here; in a container mount \
                /proc/sys writable, or switch forwarding \
             on outside: 'sysctl net.ipv4.ip_forward=1'",
        ),
    }
}

pub(crate) fn ipv6(has: bool, off_on: Option<&str>) -> Check {
    if let Some(device) = off_on {
        return check(
            "ipv6",
            Warning,
            format!("off on {device} alone: members' IPv6 addresses are not reached from here"),
            format!(
                "'sysctl -w net.ipv6.conf.default.disable_ipv6=0 \
                    net.ipv6.conf.{device}.disable_ipv6=0', or switch it off for all"
            ),
        );
    }
    let found = if has {
        "on"
    } else {
        "off on this machine: p2pvm works with IPv4 alone"
    };
    check("ipv6", Fine, found, "")
}

pub(crate) fn mtu(uplinks: &[(String, u32)]) -> Check {
    let said = uplinks
        .iter()
        .map(|(name, mtu)| format!("{name} {mtu}"))
        .collect::<Vec<_>>()
        .join(", ");
    match uplinks.iter().map(|(_, mtu)| *mtu).min() {
        None => check(
            "mtu",
            Warning,
            "there is no default route",
            "connect this machine to a network with a router; members of one LAN reach each other \
                without",
        ),
        Some(least) if least < MTU_NEEDED => check(
            "mtu",
            Failed,
            format!("{said} bytes: less than the {MTU_NEEDED} that QUIC needs"),
            "raise it: 'ip link set dev NAME mtu 1500', or, for a VPN's interface, in that VPN's \
                settings",
        ),
        Some(_) => check("mtu", Fine, format!("{said} bytes"), ""),
    }
}

pub(crate) fn name_servers(found: &Result<Vec<String>, String>) -> Check {
    const ADD: &str =
        "name one in /etc/resolv.conf ('nameserver 9.9.9.9'), or let the network's manager do it";
    match found {
        Ok(servers) if servers.is_empty() => check(
            "names",
            Warning,
            "/etc/resolv.conf names no name server",
            ADD,
        ),
        Ok(servers) => check(
            "names",
            Fine,
            format!("asked of {}", servers.join(", ")),
            "",
        ),
        Err(why) => check("names", Warning, why.clone(), ADD),
    }
}

pub(crate) fn udp(found: &Udp, net: Option<&NetCheckView>) -> Check {
    if found.addresses == 0 {
        return check(
            "udp",
            Failed,
            "this machine has no address on a network",
            "connect it: cable, Wi-Fi, DHCP",
        );
    }
    if let Some(why) = &found.busy {
        return check(
            "udp",
            Failed,
            why.clone(),
            "or set the port to 0 in node.toml: the daemon then takes any free one",
        );
    }
    let Some(net) = net else {
        let found = format!("the ports are free, {} addresses", found.addresses);
        return check(
            "udp",
            Fine,
            found,
            "start the daemon to see whether UDP reaches other members: 'p2pvm up --detach'",
        );
    };
    let nat = net.nat.as_deref().unwrap_or("unknown");
    let linked: Vec<_> = net.members.iter().filter(|m| m.path.is_some()).collect();
    let count = |kind: PathKind| {
        let of_kind = linked
            .iter()
            .filter(|m| m.path_kind.as_ref() == Some(&kind));
        of_kind.count()
    };
    let direct = count(PathKind::Direct);
    let said = format!(
        "NAT: {nat}; {} members connected, {} linked, {direct} directly",
        net.members.len(),
        linked.len()
    );
    if !linked.is_empty() && count(PathKind::Stream) == linked.len() {
        return check(
            "udp",
            Warning,
            said,
            "packets go over TCP: a firewall here or there drops UDP; allow it outwards",
        );
    }
    check("udp", Fine, said, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::ReachableView;

    const NONE: Udp = Udp {
        addresses: 0,
        busy: None,
    };

    #[test]
    fn what_keeps_packets_from_going_fails_and_says_what_to_do() {
        let no_tun = TunTrouble {
            step: p2pvm_host::tun::Step::Missing,
            errno: None,
            place: Default::default(),
        };
        let busy = Udp {
            addresses: 1,
            busy: Some("UDP port 4002 cannot be bound".into()),
        };
        let failed = [
            tun(Err(no_tun)),
            mtu(&[("eth0".into(), 1500), ("wg0".into(), 1200)]),
            udp(&NONE, None),
            udp(&busy, None),
        ];
        for check in failed {
            assert!(
                check.level == Failed && !check.advice.is_empty() && !check.found.is_empty(),
                "{check:?}"
            );
        }
    }

    #[test]
    fn what_slows_packets_or_keeps_routes_away_is_a_warning() {
        let net = NetCheckView {
            members: vec![ReachableView {
                name: "b".into(),
                nat: None,
                may_be_direct: None,
                path: Some("stream".into()),
                path_kind: Some(PathKind::Stream),
                rtt_ms: None,
            }],
            ..NetCheckView::default()
        };
        let one = Udp {
            addresses: 1,
            ..NONE
        };
        let warned = [
            nft(&Err("nft is not installed".into())),
            nft(&Err("Operation not permitted (you must be root)".into())),
            sysctl(&Err(
                "/proc/sys/net/ipv4/ip_forward: Read-only file system (os error 30)".into(),
            )),
            mtu(&[]),
            name_servers(&Ok(vec![])),
            name_servers(&Err("/etc/resolv.conf: No such file".into())),
            udp(&one, Some(&net)),
        ];
        for check in warned {
            assert!(
                check.level == Warning && !check.advice.is_empty(),
                "{check:?}"
            );
        }
        for fine in [
            ipv6(false, None),
            ipv6(true, None),
            mtu(&[("eth0".into(), 1280)]),
            nft(&Ok(())),
            sysctl(&Ok(())),
        ] {
            assert!(fine.level == Fine && fine.advice.is_empty(), "{fine:?}");
        }
    }
}
