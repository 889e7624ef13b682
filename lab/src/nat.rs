//! A site's routers as nftables rules: kinds of NAT by the mapping and filtering rules of RFC 4787,
//! done by the kernel.
//!
//! *Mapping.* The public port is a hash of what it may depend on: of the inside address and port
//! for a cone (so it is the same for all destinations), of both ends for a symmetric NAT (so each
//! destination sees another). Seeded, so it is the same at each run. A symmetric NAT may instead
//! keep the inside port if it can, or count. *Filtering.* Port-restricted and symmetric need no
//! rule: conntrack lets back answers only. A restricted cone remembers for each public port the
//! addresses that it wrote to, a full cone only that it was used; packets that pass are translated
//! back by a map learnt from outgoing packets. All other incoming packets are dropped before
//! conntrack confirms them, so that they cannot spoil a later mapping. What a cone learnt lives
//! 120 s after the last outgoing packet (RFC 4787 REQ-5), a connection as long as the kernel's
//! conntrack keeps it. There is no hairpinning, as in most home routers.
//!
//! A site's firewall lets in answers alone, of either family (RFC 6092). Ports that `miniupnpd`
//! maps are let in where its chains say so.

use crate::{plan::SitePlan, sites::Nat};
use std::{fmt::Write, net::Ipv4Addr};

/// The first public port of mappings, and the number of ports.
const PORTS: (u16, u16) = (32768, 28000);
/// How many mappings a NAT with sequential ports makes before it reuses the first port.
const COUNTED_PORTS: u16 = 1024;
/// The tables and chains that a site's `miniupnpd` fills, for its configuration file.
pub(crate) const UPNP_SETTINGS: &str = "upnp_table_name=upnp\nupnp_nat_table_name=upnp\n\
    upnp_forward_chain=forward_mapped\n\
                                        upnp_nat_chain=inward_mapped\n\
                                        upnp_nat_postrouting_chain=outward_mapped\n";

/// The rules of a site's own router; its interface towards the core or the carrier is `wan`. None
/// if it lets everything through as it is.
pub(crate) fn rules(site: &SitePlan, seed: u64) -> Option<String> {
    let mut text = String::new();
    if !site.udp {
        text.push_str(
            "table inet no_udp {
                chain everything { type filter hook forward priority -10; policy accept; meta \
                l4proto udp drop; }
            }\n",
        );
    }
    if site.firewall {
        // Neighbour discovery is no forwarding, and "packet too big" is related to what was sent:
        // nothing else has to come in unasked.
        text.push_str(
            "table inet wall {
                chain inward { type filter hook forward priority 0; policy accept; iifname wan ct \
                state new ct status & dnat == 0 drop; }
            }\n",
        );
    }
    if site.upnp {
        text.push_str(mapped_ports());
    }
    if site.nat != Nat::None {
        translate(&mut text, site.nat, site.wan(), seed);
    }
    (!text.is_empty()).then_some(text)
}

/// The rules of a site's carrier, whose interface towards the core is `wan`. None if the site has
/// no carrier.
pub(crate) fn carrier_rules(site: &SitePlan, seed: u64) -> Option<String> {
    (site.carrier != Nat::None).then(|| {
        let mut text = String::new();
        translate(&mut text, site.carrier, site.public, seed);
        text
    })
}

/// Chains for `miniupnpd`, asked before the site's own rules.
fn mapped_ports() -> &'static str {
    "table inet upnp {
        chain forward_mapped { }
        chain inward_mapped { }
        chain outward_mapped { }
        chain forward { type filter hook forward priority -5; policy accept; jump forward_mapped; }
        chain prerouting { type nat hook prerouting priority dstnat - 5; policy accept; jump \
        inward_mapped; }
        chain postrouting { type nat hook postrouting priority srcnat - 5; policy accept; jump \
        outward_mapped; }
    }\n"
}

/// The rules of a NAT that has the address `public`.
fn translate(text: &mut String, nat: Nat, public: Ipv4Addr, seed: u64) {
    let (udp, random) = udp_mapping(nat, public, seed);
    let _ = write!(
        text,
        "table ip p2pvm {{
        chain mapping {{ type nat hook postrouting priority srcnat; policy accept;
            {udp}
            oifname wan masquerade{random};
        }}
        chain unsolicited {{ type filter hook input priority 0; policy accept;
            iifname wan icmp type echo-request accept;
            iifname wan ct state != established,related drop;
        }}
        chain inward {{ type filter hook forward priority 0; policy accept;
            iifname wan ct state new ct status & dnat == 0 drop;
        }}\n"
    );
    if matches!(nat, Nat::FullCone | Nat::Restricted) {
        let_in_by_mapping(text, nat);
    }
    text.push_str("}\n");
}

/// The rule that gives UDP its public port, and the option of the masquerade behind it.
fn udp_mapping(nat: Nat, public: Ipv4Addr, seed: u64) -> (String, &'static str) {
    let (first, count) = PORTS;
    // The site's own seed, never 0 (which nft would leave out and the kernel draw).
    let seed = ((seed as u32) ^ (seed >> 32) as u32 ^ u32::from(public).rotate_left(7)).max(1);
    let hash = |of: &str| {
        format!(
            "oifname wan meta l4proto udp snat ip to {public} : jhash {of} mod {count} seed \
                {seed:#x} offset {first};"
        )
    };
    match nat {
        Nat::Symmetric => (
            hash("ip saddr . udp sport . ip daddr . udp dport"),
            " fully-random",
        ),
        Nat::SymmetricSequential => {
            // A map, because nftables counts in the byte order of the machine and takes ports in
            // the network's.
            let ports: Vec<String> = (0..COUNTED_PORTS)
                .map(|n| format!("{n} : {}", first + n))
                .collect();
            let next = format!(
                "numgen inc mod {COUNTED_PORTS} map {{ {} }}",
                ports.join(", ")
            );
            (
                format!("oifname wan meta l4proto udp snat ip to {public} : {next};"),
                "",
            )
        }
        Nat::SymmetricPreserving => (String::new(), ""),
        _ => (hash("ip saddr . udp sport"), ""),
    }
}

/// The chains of a full or restricted cone: they learn the mappings of outgoing packets and
/// translate back what the NAT's filtering lets in.
fn let_in_by_mapping(text: &mut String, nat: Nat) {
    let (written_to, allowed) = match nat {
        Nat::Restricted => (
            "oifname wan update @written_to { udp sport . ip daddr };",
            "iifname wan udp dport . ip saddr @written_to dnat ip to udp dport map @inside;",
        ),
        _ => ("", "iifname wan dnat ip to udp dport map @inside;"),
    };
    let _ = write!(
        text,
        "map inside {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; \
            timeout 120s; size 65535; }}
        set written_to {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout 120s; \
        size 65535; }}
        chain learn {{ type filter hook postrouting priority srcnat + 100; policy accept;
            oifname wan update @inside {{ udp sport : ct original ip saddr . ct original \
            proto-src }};
            {written_to}
        }}
        chain filtering {{ type nat hook prerouting priority dstnat; policy accept;
            {allowed}
        }}\n"
    );
}
