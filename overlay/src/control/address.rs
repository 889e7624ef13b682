//! Multiaddresses and peer ids, and which addresses are worth publishing.

use crate::{
    id::MemberId, membership::NetworkConfig, plane::packet::is_site_local, underlay::View,
};
use libp2p::{Multiaddr, PeerId, identity, multiaddr::Protocol, swarm::dial_opts::DialOpts};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

/// The member that a peer id names: the key is in the id itself.
pub fn member_of(peer: &PeerId) -> Option<MemberId> {
    let multihash = peer.as_ref();
    let key = (multihash.code() == 0)
        .then(|| identity::PublicKey::try_decode_protobuf(multihash.digest()).ok())??;
    Some(MemberId(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The peer id of a member, unless its 32 bytes are no key.
pub fn peer_of(member: MemberId) -> Option<PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(&member.0).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// Whether it leads through a relay.
pub fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|p| p == Protocol::P2pCircuit)
}

/// Whether it is QUIC, which detects a dead peer by itself.
pub fn is_quic(address: &Multiaddr) -> bool {
    !is_relayed(address) && address.iter().any(|p| p == Protocol::QuicV1)
}

/// The relay that it leads through.
pub fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut last = None;
    for part in address {
        match part {
            Protocol::P2p(peer) => last = Some(peer),
            Protocol::P2pCircuit => return last,
            _ => {}
        }
    }
    None
}

/// The peer that its last part names, and the address without that.
pub fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.pop() {
        Some(Protocol::P2p(peer)) => (address, Some(peer)),
        Some(other) => (address.with(other), None),
        None => (address, None),
    }
}

/// One dial for each member in the addresses, so that each results in one connection, over the
/// transport that works first.
pub fn dials(addresses: &[Multiaddr]) -> Vec<DialOpts> {
    let mut of_peer: BTreeMap<PeerId, Vec<Multiaddr>> = BTreeMap::new();
    let mut dials = Vec::new();
    for address in addresses {
        match split_peer(address.clone()).1 {
            Some(peer) => of_peer.entry(peer).or_default().push(address.clone()),
            None => dials.push(DialOpts::unknown_peer_id().address(address.clone()).build()),
        }
    }
    dials.extend(
        of_peer
            .into_iter()
            .map(|(peer, addresses)| DialOpts::peer_id(peer).addresses(addresses).build()),
    );
    dials
}

/// The IP address that it starts with.
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether another site can be expected to reach it: not private (RFC 1918, 6598, 4193), loopback,
/// link-local. The benchmarking range 198.18.0.0/15 counts as public: emulated internets use it.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            let special = ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast();
            !(special || shared || ip == Ipv4Addr::BROADCAST || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
    }
}

/// Whether it may be published and dialled: not inside the overlay itself or another network of
/// this machine, which would carry the overlay's own connections in circles, and not an address
/// that is another machine on each link, such as a link-local one.
pub fn is_usable(address: &Multiaddr, network: &NetworkConfig, view: &View) -> bool {
    if ip_of(address).is_some_and(|ip| view.is_inside(&ip)) {
        return false;
    }
    match ip_of(address) {
        Some(IpAddr::V4(ip)) => {
            !network.subnet.contains(ip) && !ip.is_unspecified() && !ip.is_multicast()
        }
        Some(IpAddr::V6(ip)) => {
            let ours = ip.octets()[..6] == network.ula_prefix().octets()[..6];
            !(ours
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || is_site_local(&ip.into()))
        }
        None => matches!(
            address.iter().next(),
            Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
        ),
    }
}

/// Whether only this machine reaches it.
pub fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    #[test]
    fn a_member_and_its_peer_id_name_each_other() {
        let member = MemberId(KeyPair::from_seed(&[3; 32]).public());
        let peer = peer_of(member).unwrap();
        assert_eq!(member_of(&peer), Some(member));
        assert_eq!(member_of(&PeerId::random()), None);
    }

    #[test]
    fn a_circuit_names_its_relay() {
        let relay = PeerId::random();
        let circuit: Multiaddr = format!("/ip4/198.18.0.1/udp/5/quic-v1/p2p/{relay}/p2p-circuit")
            .parse()
            .unwrap();
        assert!(is_relayed(&circuit) && !is_quic(&circuit));
        assert_eq!(relay_of(&circuit), Some(relay));
        let target = PeerId::random();
        assert_eq!(
            split_peer(circuit.clone().with(Protocol::P2p(target))),
            (circuit, Some(target))
        );
    }

    #[test]
    fn public_means_reachable_from_elsewhere() {
        for private in [
            "10.1.2.3",
            "192.168.0.1",
            "172.16.9.9",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "fd00::1",
            "fe80::1",
            "::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["198.18.3.4", "8.8.8.8", "100.128.0.1", "2a00::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
