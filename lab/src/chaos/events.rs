//! The events of a chaos run, as data.
//!
//! Scripts run on the host, in its own root, with these in their environment: `DEV` p2pvm's
//! interface, `ADDR`, `OTHER` and `GW` the host's own, a free and its router's address on `eth0`,
//! `SECOND` its address on `eth1`, `SERVER` its provider's name server, `LAN_THERE` the network
//! behind another member, `P2PVM` the program, `P2PVM_DIR` its state directory, and `NETWORK_B` the
//! state directory of a second network.

use crate::hosts::{DOCKER, FIREWALLD, Program};
use std::time::Duration;

/// One kind of event.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// The cause.
    pub cause: Cause,
}

/// How an event is caused and undone.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    /// A script whose effect is immediate and needs no undoing.
    Once(&'static str),
    /// A script, how many seconds its effect lasts, and the script that undoes it.
    Lasting(&'static str, u64, &'static str),
    /// Another program: started if it does not run, else stopped.
    Toggle(Program),
    /// The router's kernel forgets all connections.
    RouterForgets,
    /// The link to the first member is cut for so many seconds.
    Cut(u64),
}

impl Event {
    /// How long the cause lasts.
    pub fn lasts(&self) -> Duration {
        match self.cause {
            Cause::Lasting(_, seconds, _) | Cause::Cut(seconds) => Duration::from_secs(seconds),
            Cause::Once(_) | Cause::Toggle(_) | Cause::RouterForgets => Duration::ZERO,
        }
    }

    /// The event of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        EVENTS.iter().find(|event| event.name == name)
    }
}

const fn once(name: &'static str, script: &'static str) -> Event {
    Event {
        name,
        cause: Cause::Once(script),
    }
}

const fn lasting(
    name: &'static str,
    script: &'static str,
    seconds: u64,
    end: &'static str,
) -> Event {
    Event {
        name,
        cause: Cause::Lasting(script, seconds, end),
    }
}

const UPLINK_BACK: &str = "ip link set eth0 up; ip route replace default via $GW dev eth0";

/// All kinds of events.
pub const EVENTS: &[Event] = &[
    once("device down", "ip link set $DEV down"),
    once("device deleted", "ip link del $DEV"),
    once("device's addresses flushed", "ip addr flush dev $DEV"),
    once("device's routes flushed", "ip route flush dev $DEV"),
    once("device's MTU set", "ip link set $DEV mtu 700"),
    once(
        "accepted route deleted",
        "ip route show table all $LAN_THERE | while read -r route; do ip route del $route; done",
    ),
    once(
        "policy rules deleted",
        "ip rule | awk -F: '$1 >= 5300 && $1 < 5400 { print $1 }' | while read -r n; do ip rule \
            del pref $n; done",
    ),
    once("nft flushed", "nft flush ruleset"),
    Event {
        name: "Docker starts or stops",
        cause: Cause::Toggle(DOCKER),
    },
    Event {
        name: "firewalld starts or stops",
        cause: Cause::Toggle(FIREWALLD),
    },
    once(
        "resolv.conf rewritten",
        "echo nameserver $SERVER >/etc/resolv.conf.new; mv /etc/resolv.conf.new /etc/resolv.conf",
    ),
    lasting(
        "resolved's socket is there and dead",
        "mkdir -p /run/systemd/resolve; python3 -c 'import socket
socket.socket(socket.AF_UNIX).bind(\"/run/systemd/resolve/io.systemd.Resolve\")'",
        6,
        "rm -r /run/systemd/resolve",
    ),
    lasting(
        "IPv6 off",
        "cd /proc/sys/net/ipv6/conf; grep -H . */disable_ipv6 | grep -v ^$DEV \
            >/var/lib/ipv6.before; echo 1 >all/disable_ipv6",
        5,
        "cd /proc/sys/net/ipv6/conf; echo 0 >all/disable_ipv6
while IFS=: read -r file value; do [ ! -e $file ] || echo $value >$file; done \
</var/lib/ipv6.before; rm /var/lib/ipv6.before",
    ),
    lasting("cable pulled", "ip link set eth0 down", 4, UPLINK_BACK),
    lasting(
        "uplink renamed",
        "ip link set eth0 down; ip link set eth0 name up0; ip link set up0 up; ip route replace \
            default via $GW dev up0",
        6,
        "ip link set up0 down; ip link set up0 name eth0; ip link set eth0 up; ip route replace \
            default via $GW dev eth0",
    ),
    lasting(
        "default route gone",
        "ip route del default",
        3,
        "ip route replace default via $GW dev eth0",
    ),
    lasting(
        "default route moved to the second uplink",
        "ip route replace default via $GW dev eth1 src $SECOND",
        8,
        "ip route replace default via $GW dev eth0",
    ),
    lasting(
        "address changed",
        "ip addr del $ADDR/24 dev eth0; ip addr add $OTHER/24 dev eth0; ip route replace default \
            via $GW dev eth0",
        8,
        "ip addr del $OTHER/24 dev eth0; ip addr add $ADDR/24 dev eth0; ip route replace default \
            via $GW dev eth0",
    ),
    once(
        "connections forgotten by the host",
        "conntrack -F 2>/dev/null",
    ),
    Event {
        name: "connections forgotten by the router",
        cause: Cause::RouterForgets,
    },
    lasting(
        "clock a day ahead",
        "echo +1d >/var/lib/clock",
        10,
        "echo +0 >/var/lib/clock",
    ),
    lasting(
        "clock a day behind",
        "echo -1d >/var/lib/clock",
        10,
        "echo +0 >/var/lib/clock",
    ),
    lasting(
        "daemon killed",
        "kill -9 $(cat $P2PVM_DIR/daemon.pid)",
        2,
        "$P2PVM up --detach",
    ),
    lasting(
        "forwarding on and off by somebody else",
        "sysctl -q net.ipv4.ip_forward=1",
        3,
        "sysctl -q net.ipv4.ip_forward=0",
    ),
    lasting(
        "a second network comes and goes",
        "$P2PVM --dir $NETWORK_B up --detach",
        6,
        "$P2PVM --dir $NETWORK_B down",
    ),
    once(
        "guest's tap down",
        "for tap in $(ip -br link | awk '$1 ~ /^pv/ { print $1 }'); do ip link set $tap \
            down; done",
    ),
    lasting(
        "UDP dropped on the way out",
        "nft 'add table ip by_hand; add chain ip by_hand out { type filter hook output priority \
            0; }; \
         add rule ip by_hand out oifname { eth0, eth1 } ip protocol udp drop'",
        8,
        "nft delete table ip by_hand 2>/dev/null || true",
    ),
    lasting(
        "small MTU on the uplink",
        "ip link set eth0 mtu 1280",
        8,
        "ip link set eth0 mtu 1500",
    ),
    once(
        "a hundred interfaces come and go",
        "for n in $(seq 100); do echo link add v$n type veth peer name w$n; done | ip -batch -
for n in $(seq 100); do echo link del v$n; done | ip -batch -",
    ),
    lasting(
        "strict reverse path filter",
        "sysctl -q net.ipv4.conf.all.rp_filter=1",
        5,
        "sysctl -q net.ipv4.conf.all.rp_filter=0",
    ),
    Event {
        name: "link to another member cut",
        cause: Cause::Cut(6),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_twenty_events_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = EVENTS.iter().map(|event| event.name).collect();
        assert_eq!(names.len(), EVENTS.len());
        assert!(names.len() > 20);
        assert!(names.iter().all(|name| Event::named(name).is_some()));
    }
}
