//! A site's router as nftables rules: four kinds of NAT by the mapping and filtering rules of RFC 4787, done by the kernel.
//!
//! *Mapping.* The public port is a hash of what it may depend on: of the inside address and port for a cone (so it is the same towards
//! everybody), of both ends for a symmetric NAT (so each destination sees another). Seeded, hence the same at each run.
//! *Filtering.* Port-restricted and symmetric need no rule: conntrack lets back only what answers. A restricted cone remembers per public
//! port whom it was used to write to, a full cone just that it was used; what passes is translated back by a map learnt from outgoing
//! packets. Everything else that comes in is dropped before conntrack confirms it, so that it cannot spoil a later mapping.
//! A mapping lives 120 s after the last outgoing packet (RFC 4787 REQ-5). There is no hairpinning, as in most home routers.

use crate::{plan::SitePlan, sites::Nat};
use std::fmt::Write;

/// First public port and number of them that mappings use.
const PORTS: (u16, u16) = (32768, 28000);

/// The rules of a site's router; the interface towards the core is `wan`. None if nothing is to be filtered or translated.
pub(crate) fn rules(site: &SitePlan, seed: u64) -> Option<String> {
    let mut text = String::from("table ip p2pvm {\n");
    if !site.udp {
        text.push_str("chain no_udp { type filter hook forward priority -10; policy accept; meta l4proto udp drop; }\n");
    }
    if site.nat != Nat::None {
        translate(&mut text, site, seed);
    } else if site.udp {
        return None;
    }
    text.push_str("}\n");
    Some(text)
}

fn translate(text: &mut String, site: &SitePlan, seed: u64) {
    let (first, count) = PORTS;
    let public = site.public;
    // The site's own seed, never 0 (which nft would leave out and the kernel draw).
    let seed = ((seed as u32) ^ (seed >> 32) as u32 ^ u32::from(public).rotate_left(7)).max(1);
    let (depends_on, random) = match site.nat {
        Nat::Symmetric => ("ip saddr . udp sport . ip daddr . udp dport", " fully-random"),
        _ => ("ip saddr . udp sport", ""),
    };
    let _ = write!(
        text,
        "chain mapping {{ type nat hook postrouting priority srcnat; policy accept;
            oifname wan meta l4proto udp snat ip to {public} : jhash {depends_on} mod {count} seed {seed:#x} offset {first};
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
    if matches!(site.nat, Nat::FullCone | Nat::Restricted) {
        let (written_to, allowed) = match site.nat {
            Nat::Restricted => (
                "oifname wan update @written_to { udp sport . ip daddr };",
                "iifname wan udp dport . ip saddr @written_to dnat ip to udp dport map @inside;",
            ),
            _ => ("", "iifname wan dnat ip to udp dport map @inside;"),
        };
        let _ = write!(
            text,
            "map inside {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 120s; size 65535; }}
            set written_to {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout 120s; size 65535; }}
            chain learn {{ type filter hook postrouting priority srcnat + 100; policy accept;
                oifname wan update @inside {{ udp sport : ct original ip saddr . ct original proto-src }};
                {written_to}
            }}
            chain filtering {{ type nat hook prerouting priority dstnat; policy accept;
                {allowed}
            }}\n"
        );
    }
}
