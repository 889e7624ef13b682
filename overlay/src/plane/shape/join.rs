//! Joins packets of one flow that follow each other into one large packet behind a virtio-net
//! header, for the TUN or a guest: the other end of [`super::cut`]. One buffer, one copy of each
//! payload, no allocation.
//!
//! The rules are those of the kernel's GRO: a packet continues a run if it starts where the
//! previous one ended, differs in nothing else that matters, and its checksum verifies; a shorter
//! one, or one with PSH, ends the run. Packets never overtake each other: any other packet ends the
//! run first. A lost datagram ends a run too, and costs nothing else.

use super::{checksum, cut::NEEDS_CHECKSUM, packet::ETHERNET_LEN};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// Types of `virtio_net_hdr`.
const TSO4: u8 = 1;
const TSO6: u8 = 4;
const USO: u8 = 5;
/// How long an IP packet may be: its length field has 16 bits.
const MAX_PACKET: usize = 65_535;
/// How many datagrams the kernel takes in one packet (UDP_MAX_SEGMENTS; 64 before Linux 6.9).
const MAX_DATAGRAMS: usize = 64;
/// Room in front of the packet for a virtio-net and an Ethernet header.
pub(crate) const FRONT: usize = VIRTIO_NET_HDR_LEN + ETHERNET_LEN;

/// The headers of a packet that may be joined to others.
#[derive(Clone, Copy)]
struct Shape {
    protocol: u8,
    /// Length of the IP header.
    ip: usize,
    /// Of both headers.
    headers: usize,
}

impl Shape {
    fn of(packet: &[u8], udp: bool) -> Option<Self> {
        let (protocol, ip) = match packet.first()? {
            // No options, no fragment, and of the length that its header states.
            0x45 => {
                let header = packet.first_chunk::<20>()?;
                let whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
                (whole && usize::from(u16::from_be_bytes([header[2], header[3]])) == packet.len())
                    .then_some((header[9], 20))?
            }
            0x60..=0x6f => {
                let header = packet.first_chunk::<40>()?;
                (usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 == packet.len())
                    .then_some((header[6], 40))?
            }
            _ => return None,
        };
        let headers = match protocol {
            TCP => {
                let transport = packet.get(ip..)?.first_chunk::<20>()?;
                let len = usize::from(transport[12] >> 4) * 4;
                // Data only: a segment that opens, ends or resets a connection is not joined.
                (len >= 20 && transport[12] & 0x0f == 0 && transport[13] & !PSH == ACK)
                    .then_some(ip + len)?
            }
            UDP if udp => {
                let transport = packet.get(ip..)?.first_chunk::<8>()?;
                let len = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
                (ip + len == packet.len() && transport[6..8] != [0, 0]).then_some(ip + 8)?
            }
            _ => return None,
        };
        (packet.len() > headers).then_some(Self {
            protocol,
            ip,
            headers,
        })
    }

    fn verifies(&self, packet: &[u8]) -> bool {
        let sum = checksum::add(
            &packet[self.ip..],
            checksum::pseudo(packet, self.protocol, packet.len() - self.ip),
        );
        checksum::fold(sum) == [0xff, 0xff]
    }

    fn sequence(&self, packet: &[u8]) -> u32 {
        let at = self.ip + 4;
        u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
    }
}

/// A run that may be continued.
struct Run {
    shape: Shape,
    /// Payload bytes of every packet but the last.
    size: usize,
    next: u32,
}

/// Packets gathered into one.
#[derive(Default)]
pub(crate) struct Join {
    /// [`FRONT`] bytes, then the packet; allocated with the first packet.
    buf: Box<[u8]>,
    len: usize,
    count: usize,
    run: Option<Run>,
}

impl Join {
    /// Adds a packet if it continues the run, or starts one. False: [`Join::take`] has to be called
    /// first. `udp`: whether the receiver takes joined datagrams too.
    pub fn push(&mut self, packet: &[u8], udp: bool) -> bool {
        if packet.len() > MAX_PACKET {
            // Not an IP packet: dropped.
            return true;
        }
        if self.count > 0 {
            return self.continues(packet);
        }
        if self.buf.is_empty() {
            self.buf = vec![0; FRONT + MAX_PACKET].into();
        }
        self.buf[FRONT..FRONT + packet.len()].copy_from_slice(packet);
        (self.len, self.count) = (packet.len(), 1);
        self.run = Shape::of(packet, udp).and_then(|shape| {
            let size = packet.len() - shape.headers;
            let pushes = shape.protocol == TCP && packet[shape.ip + 13] & PSH != 0;
            let next = shape.sequence(packet).wrapping_add(size as u32);
            (!pushes && shape.verifies(packet)).then_some(Run { shape, size, next })
        });
        true
    }

    fn continues(&mut self, packet: &[u8]) -> bool {
        let Some(run) = &mut self.run else {
            return false;
        };
        let Shape {
            protocol,
            ip,
            headers,
        } = run.shape;
        let head = &self.buf[FRONT..FRONT + headers];
        if packet.len() <= headers || self.len + packet.len() - headers > MAX_PACKET {
            return false;
        }
        let size = packet.len() - headers;
        let same_ip = if ip == 20 {
            // All but length, id and checksum. If fragments are allowed the ids count up, as they
            // do when the packet is cut again.
            let id = |p: &[u8]| u16::from_be_bytes([p[4], p[5]]);
            let fixed = packet[6] & 0x40 != 0;
            packet[..2] == head[..2]
                && packet[6..10] == head[6..10]
                && packet[12..20] == head[12..20]
                && (fixed || id(packet) == id(head).wrapping_add(self.count as u16))
                && usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len()
        } else {
            packet[..4] == head[..4]
                && packet[6..40] == head[6..40]
                && usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40 == packet.len()
        };
        let (ours, theirs) = (&packet[ip..headers], &head[ip..headers]);
        let same = same_ip
            && size <= run.size
            && if protocol == TCP {
                // Ports, acknowledgement, flags but PSH, window, options.
                ours[..4] == theirs[..4]
                    && ours[8..13] == theirs[8..13]
                    && ours[13] & !PSH == theirs[13] & !PSH
                    && ours[14..16] == theirs[14..16]
                    && ours[18..] == theirs[18..]
                    && run.shape.sequence(packet) == run.next
            } else {
                ours[..4] == theirs[..4]
                    && usize::from(u16::from_be_bytes([ours[4], ours[5]])) == packet.len() - ip
                    && ours[6..8] != [0, 0]
                    && self.count < MAX_DATAGRAMS
            };
        if !same || !run.shape.verifies(packet) {
            return false;
        }
        let pushes = protocol == TCP && ours[13] & PSH != 0;
        run.next = run.next.wrapping_add(size as u32);
        let ends = size < run.size || pushes;
        self.buf[FRONT + self.len..FRONT + self.len + size].copy_from_slice(&packet[headers..]);
        self.len += size;
        self.count += 1;
        if pushes {
            self.buf[FRONT + ip + 13] |= PSH;
        }
        if ends {
            self.seal();
        }
        true
    }

    /// Ends the run: the headers become those of one large packet, and nothing can be added.
    fn seal(&mut self) {
        let Some(Run {
            shape:
                Shape {
                    protocol,
                    ip,
                    headers,
                },
            size,
            ..
        }) = self.run.take()
        else {
            return;
        };
        if self.count < 2 {
            return;
        }
        let (front, packet) = self.buf[..FRONT + self.len].split_at_mut(FRONT);
        let len = packet.len();
        if ip == 20 {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let sum = checksum::finish(checksum::add(&packet[..20], 0));
            packet[10..12].copy_from_slice(&sum);
        } else {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let (offset, kind) = match (protocol, ip) {
            (TCP, 20) => (16, TSO4),
            (TCP, _) => (16, TSO6),
            _ => (6, USO),
        };
        if protocol == UDP {
            packet[ip + 4..ip + 6].copy_from_slice(&((len - ip) as u16).to_be_bytes());
        }
        // Every part was verified, so the kernel need not check again; the pseudo-header's sum is
        // there in case it cuts the packet.
        let sum = checksum::fold(checksum::pseudo(packet, protocol, len - ip));
        packet[ip + offset..ip + offset + 2].copy_from_slice(&sum);
        let header = VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: kind,
            hdr_len: headers as u16,
            gso_size: size as u16,
            csum_start: ip as u16,
            csum_offset: offset as u16,
        };
        // Kept in the buffer for `take`; the receiver puts it where it belongs.
        let _ = header.encode(&mut front[..VIRTIO_NET_HDR_LEN]);
    }

    /// Takes the packet gathered so far: its virtio-net header, and [`FRONT`] bytes followed by the
    /// packet.
    pub fn take(&mut self) -> Option<(VirtioNetHdr, &mut [u8])> {
        if self.count == 0 {
            return None;
        }
        self.seal();
        let header = if self.count > 1 {
            VirtioNetHdr::decode(&self.buf).unwrap_or_default()
        } else {
            VirtioNetHdr::default()
        };
        self.count = 0;
        Some((header, &mut self.buf[..FRONT + self.len]))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::cut::{Target, cut},
        *,
    };
    use proptest::prelude::*;

    const ROOM: usize = 1500;

    /// A super-packet as a TUN gives it: the checksum field holds the pseudo-header's part.
    fn large(v6: bool, protocol: u8, size: u16, payload: &[u8]) -> (VirtioNetHdr, Vec<u8>) {
        let (ip, transport) = (
            if v6 { 40 } else { 20 },
            if protocol == TCP { 32 } else { 8 },
        );
        let mut packet = vec![0; ip + transport];
        packet.extend_from_slice(payload);
        let len = packet.len();
        if v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            packet[6] = protocol;
            packet[8..40]
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = i as u8);
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = checksum::finish(checksum::add(&packet[..20], 0));
            packet[10..12].copy_from_slice(&sum);
        }
        packet[ip..ip + 4].copy_from_slice(&[1, 2, 3, 4]);
        if protocol == TCP {
            packet[ip + 4..ip + 8].copy_from_slice(&0xffff_f000u32.to_be_bytes());
            packet[ip + 12] = 0x80;
            packet[ip + 13] = ACK | PSH;
        } else {
            packet[ip + 4..ip + 6].copy_from_slice(&((len - ip) as u16).to_be_bytes());
        }
        let offset = if protocol == TCP { 16 } else { 6 };
        let sum = checksum::fold(checksum::pseudo(&packet, protocol, len - ip));
        packet[ip + offset..ip + offset + 2].copy_from_slice(&sum);
        let gso_type = match (protocol, v6) {
            (TCP, false) => TSO4,
            (TCP, true) => TSO6,
            _ => USO,
        };
        let hdr_len = (ip + transport) as u16;
        (
            VirtioNetHdr {
                flags: NEEDS_CHECKSUM,
                gso_type,
                hdr_len,
                gso_size: size,
                csum_start: ip as u16,
                csum_offset: offset as u16,
            },
            packet,
        )
    }

    fn pieces(header: &VirtioNetHdr, packet: &[u8]) -> Vec<Vec<u8>> {
        let (mut buf, mut sizes) = (vec![0; ROOM * 128], [0; 128]);
        let count = cut(
            packet,
            header,
            Target {
                buf: &mut buf,
                head: 0,
                stride: ROOM,
                room: ROOM,
            },
            &mut sizes,
        )
        .expect("it is sound");
        (0..count)
            .map(|i| buf[i * ROOM..i * ROOM + sizes[i]].to_vec())
            .collect()
    }

    /// All that comes out when these packets go in.
    fn joined(packets: &[Vec<u8>]) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        let (mut join, mut out) = (Join::default(), Vec::new());
        let take = |join: &mut Join| {
            join.take()
                .map(|(header, bytes)| (header, bytes[FRONT..].to_vec()))
        };
        for packet in packets {
            if !join.push(packet, true) {
                out.extend(take(&mut join));
                assert!(join.push(packet, true));
            }
        }
        out.extend(take(&mut join));
        out
    }

    proptest! {
        #[test]
        fn what_was_cut_joins_to_what_it_was(
            v6: bool, tcp: bool, size in 1u16..1400, parts in 2usize..60, tail in 0usize..1400
        ) {
            let protocol = if tcp { TCP } else { UDP };
            let len = (usize::from(size) * (parts - 1) + tail % usize::from(size) + 1).min(60_000);
            let payload: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            prop_assume!(len > usize::from(size) && len.div_ceil(usize::from(size)) <= 60);
            let (header, packet) = large(v6, protocol, size, &payload);
            let cut = pieces(&header, &packet);
            prop_assert_eq!(cut.len(), len.div_ceil(usize::from(size)));
            for piece in &cut {
                prop_assert!(Shape::of(piece, true).is_some_and(|s| s.verifies(piece)));
            }
            let back = joined(&cut);
            prop_assert_eq!(back.len(), 1);
            prop_assert_eq!(&back[0].1, &packet);
            prop_assert_eq!(back[0].0.gso_size, size);
            prop_assert_eq!(back[0].0.hdr_len, header.hdr_len);
        }

        #[test]
        fn garbage_is_neither_cut_nor_joined_into_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), kind: u8, size: u16,
            start in 0u16..80, offset in 0u16..40
        ) {
            let header = VirtioNetHdr {
                flags: 1, gso_type: kind % 8, hdr_len: 0, gso_size: size, csum_start: start,
                csum_offset: offset
            };
            let (mut buf, mut sizes) = (vec![0; ROOM * 8], [0; 8]);
            let _ = cut(
                &bytes, &header, Target { buf: &mut buf, head: 0, stride: ROOM, room: ROOM },
                &mut sizes
            );
            let _ = joined(&[bytes.clone(), bytes]);
        }
    }

    #[test]
    fn a_lost_segment_costs_itself_and_a_damaged_one_goes_alone() {
        let payload = vec![5; 1000 * 10];
        let (header, packet) = large(false, TCP, 1000, &payload);
        let mut cut = pieces(&header, &packet);
        cut.remove(4);
        cut[6][60] ^= 1;
        let out = joined(&cut);
        let payloads: Vec<usize> = out.iter().map(|(_, p)| (p.len() - 52) / 1000).collect();
        assert_eq!(payloads, [4, 2, 1, 2]);
        assert_eq!(out[2].0.flags, 0, "the kernel is to find the damage itself");
    }

    #[test]
    fn packets_of_other_flows_keep_their_order() {
        let payload = vec![5; 3000];
        let (header, packet) = large(false, TCP, 1000, &payload);
        let one = pieces(&header, &packet);
        let mut other = one.clone();
        for piece in &mut other {
            // Another source port, and the checksum that goes with it.
            piece[20] += 1;
            piece[36..38].fill(0);
            let sum = checksum::finish(checksum::add(
                &piece[20..],
                checksum::pseudo(piece, TCP, piece.len() - 20),
            ));
            piece[36..38].copy_from_slice(&sum);
        }
        let mixed = [
            one[0].clone(),
            one[1].clone(),
            other[0].clone(),
            one[2].clone(),
            other[1].clone(),
            other[2].clone(),
        ];
        let lens: Vec<usize> = joined(&mixed).iter().map(|(_, p)| p.len()).collect();
        assert_eq!(lens, [2052, 1052, 1052, 2052]);
    }
}
