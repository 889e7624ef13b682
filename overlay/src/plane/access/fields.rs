//! The fields of an IP packet that access rules look at. Checked accessors, no copies; a bounded
//! number of IPv6 extension headers is walked (RFC 8200).

/// How many extension headers are walked. Reason: real packets have one or two.
const MAX_EXTENSIONS: usize = 6;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketKind<'a> {
    /// A TCP segment; whether it opens a connection.
    Tcp { from: u16, to: u16, opens: bool },
    /// A UDP datagram.
    Udp { from: u16, to: u16 },
    /// An ICMP echo request with its identifier.
    EchoRequest(u16),
    /// An ICMP echo reply with its identifier.
    EchoReply(u16),
    /// An ICMP error with the beginning of the packet that it is about.
    Error(&'a [u8]),
    /// Any other ICMP message.
    Icmp,
    /// A fragment without ports.
    LaterFragment,
    /// Another protocol.
    Other(u8),
    /// Cut short, or so fragmented that its ports are hidden (RFC 1858).
    Broken,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)
        .map(|b| u16::from_be_bytes([b[0], b[1]]))
}

impl<'a> PacketKind<'a> {
    /// Looks at a whole packet.
    pub fn of(packet: &'a [u8]) -> Self {
        Self::look(packet, false)
    }

    /// Looks at the beginning of a packet that an ICMP error quotes: eight bytes behind the IP
    /// header may be all there is.
    pub fn of_quoted(packet: &'a [u8]) -> Self {
        Self::look(packet, true)
    }

    fn look(packet: &'a [u8], quoted: bool) -> Self {
        let found = match packet.first().map(|b| b >> 4) {
            Some(4) => behind_v4(packet),
            Some(6) => behind_v6(packet),
            _ => None,
        };
        match found {
            None => Self::Broken,
            Some(IpPayload::LaterFragment) => Self::LaterFragment,
            Some(IpPayload::Transport(protocol, payload)) => {
                transport(protocol, payload, quoted).unwrap_or(Self::Broken)
            }
        }
    }
}

enum IpPayload<'a> {
    LaterFragment,
    Transport(u8, &'a [u8]),
}

fn behind_v4(packet: &[u8]) -> Option<IpPayload<'_>> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(header[0] & 15) * 4;
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    match offset {
        0 => packet
            .get(length.max(20)..)
            .map(|payload| IpPayload::Transport(header[9], payload)),
        // Only an attacker begins the second fragment inside a transport header (RFC 3128).
        1 => None,
        _ => Some(IpPayload::LaterFragment),
    }
}

fn behind_v6(packet: &[u8]) -> Option<IpPayload<'_>> {
    let header = packet.first_chunk::<40>()?;
    let (mut next, mut rest) = (header[6], packet.get(40..)?);
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            // Hop-by-hop, routing, destination options.
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            44 => {
                if word(rest, 2)? & 0xfff8 != 0 {
                    return Some(IpPayload::LaterFragment);
                }
                8
            }
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            _ => return Some(IpPayload::Transport(next, rest)),
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
    None
}

fn transport(protocol: u8, payload: &[u8], quoted: bool) -> Option<PacketKind<'_>> {
    let ports = || Some((word(payload, 0)?, word(payload, 2)?));
    Some(match protocol {
        TCP => {
            let (from, to) = ports()?;
            let opens = match payload.get(13) {
                Some(flags) => flags & (SYN | ACK) == SYN,
                None if quoted => false,
                None => return None,
            };
            PacketKind::Tcp { from, to, opens }
        }
        UDP => {
            let (from, to) = ports()?;
            PacketKind::Udp { from, to }
        }
        ICMP | ICMP6 => match (protocol, *payload.first()?) {
            (ICMP, 8) | (ICMP6, 128) => PacketKind::EchoRequest(word(payload, 4)?),
            (ICMP, 0) | (ICMP6, 129) => PacketKind::EchoReply(word(payload, 4)?),
            // Unreachable, time exceeded, parameter problem; in IPv6 packet too big besides.
            (ICMP, 3 | 11 | 12) | (ICMP6, 1..=4) => PacketKind::Error(payload.get(8..)?),
            _ => PacketKind::Icmp,
        },
        other => PacketKind::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[test]
    fn ports_are_found_behind_options_and_extension_headers() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .udp(5, 6)
            .write(&mut packet, b"x")
            .unwrap();
        assert_eq!(PacketKind::of(&packet), PacketKind::Udp { from: 5, to: 6 });
        let mut packet = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 9)
            .tcp(7, 22, 1, 9)
            .syn()
            .write(&mut packet, b"")
            .unwrap();
        assert_eq!(
            PacketKind::of(&packet),
            PacketKind::Tcp {
                from: 7,
                to: 22,
                opens: true
            }
        );
        // The same behind a hop-by-hop header of eight bytes.
        packet[6] = 0;
        packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(
            PacketKind::of(&packet),
            PacketKind::Tcp {
                from: 7,
                to: 22,
                opens: true
            }
        );
    }

    #[test]
    fn fragments_that_hide_ports_are_broken_and_later_ones_are_told_apart() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
            .tcp(5, 6, 1, 1)
            .write(&mut packet, &[0; 60])
            .unwrap();
        assert_eq!(
            PacketKind::of(&packet[..28]),
            PacketKind::Broken,
            "its flags are in the next fragment"
        );
        packet[7] = 1;
        assert_eq!(PacketKind::of(&packet), PacketKind::Broken);
        packet[7] = 2;
        assert_eq!(PacketKind::of(&packet), PacketKind::LaterFragment);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool,
            protocol in prop_oneof![
                Just(6u8), Just(17), Just(1), Just(58), Just(44), Just(0), Just(43), any::<u8>()
            ]
        ) {
            let _ = (PacketKind::of(&bytes), PacketKind::of_quoted(&bytes));
            if bytes.len() > 10 {
                (
                    bytes[0], bytes[if v6 { 6 } else { 9 }]
                ) = (if v6 { 0x60 } else { 0x45 }, protocol);
            }
            let _ = (PacketKind::of(&bytes), PacketKind::of_quoted(&bytes));
        }
    }
}
