//! Joined packets: the kernel delivers TCP and UDP in one piece of up to 64 KiB, behind an offload
//! header that says how to cut it (virtio-net's, in Linux' `virtio_net.h`). Reads that header, and
//! cuts where a link treats packets differently: not into single packets, which would cost a system
//! call and a walk through the network stack each, but into *runs* of neighbours, each again a
//! joined packet with an offload header of its own.

use super::link::Pieces;
use std::{ops::Range, time::Duration};
use tun_rs::{
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
    VIRTIO_NET_HDR_LEN, VirtioNetHdr,
};

/// `VIRTIO_NET_HDR_GSO_ECN`, a flag beside the type: the first piece has CWR set.
const ECN: u8 = 0x80;
/// `VIRTIO_NET_HDR_GSO_NONE`: the packet is one packet.
const NOT_JOINED: u8 = 0;
/// TCP flags that only the first piece keeps, and those that only the last does (RFC 9293 §3.1, RFC
/// 3168 §6.1.2).
const CWR: u8 = 0x80;
const FIN_PSH: u8 = 0x09;

/// Bytes of an IPv6 header; joined packets have no extension headers.
const IPV6_HEADER: usize = 40;

/// A joined packet and its offload header.
struct JoinedPacket<'a> {
    offload: VirtioNetHdr,
    packet: &'a [u8],
    /// Where the transport header begins.
    transport: usize,
    /// Where the payload begins.
    header: usize,
    udp: bool,
    v6: bool,
}

impl JoinedPacket<'_> {
    /// `None` if the packet is a single one, or of a kind that is never cut.
    fn parse(bytes: &[u8]) -> Option<JoinedPacket<'_>> {
        let offload = VirtioNetHdr::decode(bytes).ok()?;
        let packet = &bytes[VIRTIO_NET_HDR_LEN..];
        let udp = match offload.gso_type & !ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6 => false,
            VIRTIO_NET_HDR_GSO_UDP_L4 => true,
            _ => return None,
        };
        let (version, words) = (packet.first()? >> 4, packet.first()? & 15);
        let v6 = version == 6;
        let transport = if v6 {
            IPV6_HEADER
        } else {
            usize::from(words) * 4
        };
        // The header length in the offload header is that of the whole first packet when the kernel
        // forwards, so it is read from the packet.
        let header = transport
            + if udp {
                8
            } else {
                usize::from(packet.get(transport + 12)? >> 4) * 4
            };
        let sensible = matches!(version, 4 | 6)
            && transport >= 20
            && header >= transport + if udp { 8 } else { 20 };
        (sensible && offload.gso_size > 0 && packet.len() > header).then_some(JoinedPacket {
            offload,
            packet,
            transport,
            header,
            udp,
            v6,
        })
    }

    fn pieces(&self) -> Pieces {
        let payload = usize::from(self.offload.gso_size);
        Pieces {
            count: (self.packet.len() - self.header).div_ceil(payload),
            header: self.header,
            payload,
        }
    }

    /// Writes the pieces of `range`, which is not empty, to `out` as a packet of their own.
    fn emit(&self, range: Range<usize>, out: &mut Vec<u8>) {
        let Pieces { count, payload, .. } = self.pieces();
        let start = self.header + range.start * payload;
        let end = (self.header + range.end * payload).min(self.packet.len());
        let (is_first, is_last, single) = (range.start == 0, range.end == count, range.len() == 1);
        let mut offload = self.offload;
        offload.hdr_len = self.header as u16;
        offload.csum_start = self.transport as u16;
        offload.csum_offset = if self.udp { 6 } else { 16 };
        if !is_first {
            offload.gso_type &= !ECN;
        }
        if single {
            (offload.gso_type, offload.gso_size) = (NOT_JOINED, 0);
        }
        out.clear();
        out.resize(VIRTIO_NET_HDR_LEN, 0);
        offload
            .encode(out)
            .expect("the buffer has just been given the length of an offload header");
        out.extend_from_slice(&self.packet[..self.header]);
        out.extend_from_slice(&self.packet[start..end]);

        let packet = &mut out[VIRTIO_NET_HDR_LEN..];
        let length = packet.len() as u16;
        let (ip, transport) = packet.split_at_mut(self.transport);
        if self.v6 {
            put(ip, 4, length - IPV6_HEADER as u16);
        } else {
            put(ip, 2, length);
            put(ip, 4, get(ip, 4).wrapping_add(range.start as u16));
            put(ip, 10, 0);
            put(ip, 10, !sum(ip, 0));
        }
        if self.udp {
            put(transport, 4, transport.len() as u16);
        } else {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            transport[4..8].copy_from_slice(
                &sequence
                    .wrapping_add((range.start * payload) as u32)
                    .to_be_bytes(),
            );
            let cleared = if is_first { 0 } else { CWR } | if is_last { 0 } else { FIN_PSH };
            transport[13] &= !cleared;
        }
        // The checksum that is still to be completed starts from the sum of the pseudo-header (RFC
        // 9293 §3.1, RFC 8200 §8.1).
        let (addresses, protocol) = if self.v6 {
            (&ip[8..40], ip[6])
        } else {
            (&ip[12..20], ip[9])
        };
        let pseudo = sum(addresses, u32::from(protocol) + transport.len() as u32);
        put(transport, usize::from(offload.csum_offset), pseudo);
    }
}

pub(super) fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Internet checksum (RFC 1071) of an even number of bytes on top of `start`, not complemented.
pub(super) fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = bytes
        .chunks_exact(2)
        .fold(start, |total, pair| total + u32::from(get(pair, 0)));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// How many packets on the wire a packet from a router stands for.
pub(super) fn pieces(bytes: &[u8]) -> Pieces {
    JoinedPacket::parse(bytes).map_or(
        Pieces {
            count: 1,
            header: 0,
            payload: 0,
        },
        |joined| joined.pieces(),
    )
}

/// Cuts a joined packet into runs of the pieces that arrive, none longer than `longest`, and passes
/// each to `take` with the time of its last piece. `dues` has the time at which each piece arrives,
/// if it does; `out` is room to build in.
pub(super) fn runs(
    bytes: &[u8],
    dues: &[Option<Duration>],
    longest: Duration,
    out: &mut Vec<u8>,
    mut take: impl FnMut(Duration, &[u8]),
) {
    let Some(joined) = JoinedPacket::parse(bytes) else {
        return;
    };
    let count = joined.pieces().count.min(dues.len());
    let mut start = 0;
    while start < count {
        let Some(begin) = dues[start] else {
            start += 1;
            continue;
        };
        let (mut end, mut last) = (start + 1, begin);
        while let Some(Some(due)) = dues[..count].get(end)
            && *due - begin <= longest
        {
            (end, last) = (end + 1, *due);
        }
        joined.emit(start..end, out);
        take(last, out);
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tun_rs::gso_split;

    /// A joined packet as the kernel makes it: complete but for the transport checksum, which holds
    /// the pseudo-header's sum.
    fn joined(v6: bool, udp: bool, payload: &[u8], piece: u16, flags: u8) -> Vec<u8> {
        let (ip, protocol) = (if v6 { 40 } else { 20 }, if udp { 17 } else { 6 });
        let mut packet = vec![0; ip + if udp { 8 } else { 32 }];
        if v6 {
            packet[0] = 0x60;
            (packet[6], packet[7]) = (protocol, 64);
            packet[8..24].copy_from_slice(&[0x20, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 10]);
            packet[24..40].copy_from_slice(&[0x20, 1, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 11]);
        } else {
            packet[0] = 0x45;
            (packet[8], packet[9]) = (64, protocol);
            packet[12..20].copy_from_slice(&[198, 18, 1, 1, 198, 18, 2, 10]);
        }
        packet[ip..ip + 4].copy_from_slice(&[10, 1, 20, 2]);
        if !udp {
            packet[ip + 4..ip + 8].copy_from_slice(&0xffff_fff0u32.to_be_bytes());
            packet[ip + 12] = 8 << 4;
            packet[ip + 13] = flags;
        }
        packet.extend_from_slice(payload);
        let length = packet.len() as u16;
        if v6 {
            put(&mut packet, 4, length - 40);
        } else {
            put(&mut packet, 2, length);
            put(&mut packet, 4, 0xfffe);
            let header_sum = !sum(&packet[..20], 0);
            put(&mut packet, 10, header_sum);
        }
        if udp {
            put(&mut packet, ip + 4, length - ip as u16);
        }
        let addresses = if v6 { 8..40 } else { 12..20 };
        let pseudo = sum(
            &packet[addresses],
            u32::from(protocol) + u32::from(length - ip as u16),
        );
        put(&mut packet, ip + if udp { 6 } else { 16 }, pseudo);
        let offload = VirtioNetHdr {
            flags: 1,
            gso_type: match (udp, v6) {
                (true, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
                (false, false) => VIRTIO_NET_HDR_GSO_TCPV4,
                (false, true) => VIRTIO_NET_HDR_GSO_TCPV6,
            },
            // As the kernel sets it for forwarded packets.
            hdr_len: 1500,
            gso_size: piece,
            csum_start: ip as u16,
            csum_offset: if udp { 6 } else { 16 },
        };
        let mut bytes = vec![0; VIRTIO_NET_HDR_LEN];
        offload.encode(&mut bytes).unwrap();
        bytes.extend_from_slice(&packet);
        bytes
    }

    /// Cuts to single complete packets by the code of tun-rs.
    fn singles(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut offload = VirtioNetHdr::decode(bytes).unwrap();
        let mut packet = bytes[VIRTIO_NET_HDR_LEN..].to_vec();
        if offload.gso_type == NOT_JOINED {
            tun_rs_checksum(&mut packet, offload);
            return vec![packet];
        }
        let count = pieces(bytes).count;
        offload.hdr_len = pieces(bytes).header as u16;
        let (mut room, mut sizes) = (vec![vec![0; 65536]; count], vec![0; count]);
        let v6 = packet[0] >> 4 == 6;
        let made = gso_split(&mut packet, offload, &mut room, &mut sizes, 0, v6).unwrap();
        room.truncate(made);
        room.into_iter()
            .zip(sizes)
            .map(|(piece, size)| piece[..size].to_vec())
            .collect()
    }

    fn tun_rs_checksum(packet: &mut [u8], offload: VirtioNetHdr) {
        let (start, offset) = (
            usize::from(offload.csum_start),
            usize::from(offload.csum_offset),
        );
        let mut even = packet[start..].to_vec();
        even.resize(even.len().next_multiple_of(2), 0);
        put(packet, start + offset, !sum(&even, 0));
    }

    proptest! {
        #[test]
        fn runs_hold_exactly_the_pieces_that_arrive(
            v6: bool, udp: bool, flags: u8, piece in 8u16..1460,
            payload in prop::collection::vec(any::<u8>(), 1..9000),
            lost in prop::collection::vec(prop::bool::weighted(0.1), 2000), gap_us in 0u64..3000,
        ) {
            // An acknowledgement without SYN, RST or URG, as joined packets are.
            let bytes = joined(v6, udp, &payload, piece, flags & 0x59 | 0x10);
            let count = pieces(&bytes).count;
            prop_assert_eq!(count, payload.len().div_ceil(usize::from(piece)));
            let at = |i: usize| Duration::from_micros(gap_us * i as u64);
            let dues: Vec<_> = (0..count).map(|i| (!lost[i]).then(|| at(i))).collect();
            let all = singles(&bytes);
            let due = all.iter().zip(&dues).filter(|(_, due)| due.is_some());
            let expected: Vec<_> = due.map(|(piece, _)| piece.clone()).collect();
            let (mut got, mut last) = (Vec::new(), Duration::ZERO);
            let longest = Duration::from_millis(3);
            runs(&bytes, &dues, longest, &mut Vec::new(), |due, run| {
                assert!(due >= last && gap_us * (pieces(run).count as u64 - 1) <= 3000);
                last = due;
                got.extend(singles(run));
            });
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let count = pieces(&bytes).count;
            runs(
                &bytes, &vec![Some(Duration::ZERO); count], Duration::ZERO, &mut Vec::new(), |_,
                _| {}
            );
        }
    }
}
