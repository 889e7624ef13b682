//! The DHCP server of a guest port (RFC 2131): it has exactly one address to give, so it holds no
//! state. An offer can be made again at any time, on any host the guest has moved to.

use super::{DHCP_SERVER_PORT, PortConfig, frame};
use dhcproto::{
    Decodable, Decoder, Encodable, Name,
    v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode},
};
use std::net::{IpAddr, Ipv4Addr};

const CLIENT_PORT: u16 = 68;
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
const ETHERNET_ADDRESS_BYTES: u8 = 6;

pub(super) fn answer(config: &PortConfig, payload: &[u8]) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(payload)).ok()?;
    // The length is checked first: `chaddr()` of dhcproto 0.15 panics for one above 16.
    let from_guest = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        && request.hlen() == ETHERNET_ADDRESS_BYTES
        && request.chaddr() == config.vm_mac
        && request.giaddr().is_unspecified();
    if !from_guest {
        return None;
    }
    let reply = match request.opts().msg_type()? {
        MessageType::Discover => lease(config, &request, MessageType::Offer),
        MessageType::Request => answer_request(config, &request)?,
        MessageType::Inform => settings(config, &request, MessageType::Ack),
        // The address stays the guest's whether it releases it or finds it in conflict: nobody else
        // is on its link.
        MessageType::Decline | MessageType::Release => return None,
        _ => return None,
    };
    let payload = reply.to_vec().ok()?;
    let (to, mac) = destination(config, &request, &reply);
    let from = (IpAddr::V4(config.subnet.gateway()), DHCP_SERVER_PORT);
    Some(frame::udp(
        config,
        mac,
        from,
        (IpAddr::V4(to), CLIENT_PORT),
        &payload,
    ))
}

/// RFC 2131 §4.3.2: the three kinds of request differ by which fields are filled in.
fn answer_request(config: &PortConfig, request: &Message) -> Option<Message> {
    match request.opts().get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) if *server != config.subnet.gateway() => {
            return None;
        }
        _ => {}
    }
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(ip)) => *ip,
        _ => request.ciaddr(),
    };
    if wanted == config.v4 {
        return Some(lease(config, request, MessageType::Ack));
    }
    let mut refusal = reply(config, request, MessageType::Nak);
    refusal.opts_mut().insert(DhcpOption::Message(format!(
        "this port's address is {}",
        config.v4
    )));
    Some(refusal)
}

fn reply(config: &PortConfig, request: &Message, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(request.xid(), none, none, none, none, &config.vm_mac);
    reply
        .set_opcode(Opcode::BootReply)
        .set_flags(request.flags());
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(config.subnet.gateway()));
    // RFC 6842: a client that names itself is named back.
    if let Some(id) = request.opts().get(OptionCode::ClientIdentifier) {
        options.insert(id.clone());
    }
    reply
}

fn settings(config: &PortConfig, request: &Message, kind: MessageType) -> Message {
    let mut reply = reply(config, request, kind);
    reply.set_ciaddr(request.ciaddr());
    let own_domain = format!("vm.{}", config.domain);
    let search: Vec<Name> = [&own_domain, &config.domain]
        .into_iter()
        .filter_map(|domain| Name::from_ascii(format!("{domain}.")).ok())
        .collect();
    let options = reply.opts_mut();
    options.insert(DhcpOption::SubnetMask(config.subnet.netmask()));
    options.insert(DhcpOption::BroadcastAddr(config.subnet.broadcast()));
    options.insert(DhcpOption::Router(vec![config.subnet.gateway()]));
    options.insert(DhcpOption::DomainNameServer(vec![config.dns]));
    options.insert(DhcpOption::InterfaceMtu(config.mtu));
    options.insert(DhcpOption::Hostname(config.host_name.clone()));
    options.insert(DhcpOption::DomainName(own_domain));
    options.insert(DhcpOption::DomainSearch(search));
    reply
}

fn lease(config: &PortConfig, request: &Message, kind: MessageType) -> Message {
    let mut reply = settings(config, request, kind);
    reply.set_yiaddr(config.v4);
    let seconds = u32::try_from(config.lease.as_secs()).unwrap_or(u32::MAX);
    let options = reply.opts_mut();
    options.insert(DhcpOption::AddressLeaseTime(seconds));
    options.insert(DhcpOption::Renewal(seconds / 2));
    options.insert(DhcpOption::Rebinding(seconds / 8 * 7));
    reply
}

/// RFC 2131 §4.1: to the address the client has; else to the one it is given, unless it asked for a
/// broadcast because it cannot hear unicast yet. A refusal is always broadcast.
fn destination(config: &PortConfig, request: &Message, reply: &Message) -> (Ipv4Addr, [u8; 6]) {
    let refused = reply.opts().has_msg_type(MessageType::Nak);
    if !refused && !request.ciaddr().is_unspecified() {
        (request.ciaddr(), config.vm_mac)
    } else if refused || request.flags().broadcast() || reply.yiaddr().is_unspecified() {
        (Ipv4Addr::BROADCAST, BROADCAST_MAC)
    } else {
        (reply.yiaddr(), config.vm_mac)
    }
}
