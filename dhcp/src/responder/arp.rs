//! ARP at a guest port: the gateway's MAC for the gateway and for every other address of the subnet
//! but the guest's own (whose probes and announcements, RFC 5227, must find it free).

use super::PortConfig;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, ArpPacketSlice, EtherType, PacketBuilder,
};
use std::net::Ipv4Addr;

pub(super) fn answer(config: &PortConfig, request: &ArpPacketSlice<'_>) -> Option<Vec<u8>> {
    let well_formed = request.operation() == ArpOperation::REQUEST
        && request.hw_addr_type() == ArpHardwareId::ETHERNET
        && request.proto_addr_type() == EtherType::IPV4
        && request.sender_hw_addr() == config.vm_mac;
    if !well_formed {
        return None;
    }
    let sender: [u8; 4] = request.sender_protocol_addr().try_into().ok()?;
    let target: [u8; 4] = request.target_protocol_addr().try_into().ok()?;
    let wanted = Ipv4Addr::from(target);
    let proxied = wanted == config.subnet.gateway() || config.subnet.claimable(wanted);
    if !proxied || wanted == config.v4 || sender == target {
        return None;
    }
    let reply = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REPLY,
        &config.gateway_mac,
        &target,
        &config.vm_mac,
        &sender,
    )
    .ok()?;
    let builder = PacketBuilder::ethernet2(config.gateway_mac, config.vm_mac).arp(reply);
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).expect("writing to memory");
    Some(frame)
}
