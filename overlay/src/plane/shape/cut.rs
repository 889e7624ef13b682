//! Cuts a TSO or USO packet, as a TUN or a guest gives it behind a virtio-net header, into packets
//! at equal distances in one buffer, each with its own lengths, sequence number and checksums. One
//! pass copies, one adds up, both while the bytes are in the cache.
//!
//! The header comes from the kernel or from a guest and is not trusted: one that contradicts itself
//! or its packet is refused.

use super::{checksum, packet::complete_checksum};
use tun_rs::VirtioNetHdr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
/// Types of `virtio_net_hdr`: TCP over IPv4, TCP over IPv6, UDP datagrams. ECN is a flag beside
/// them.
const TSO4: u8 = 1;
const TSO6: u8 = 4;
const USO: u8 = 5;
const ECN: u8 = 0x80;
/// Flag of `virtio_net_hdr`: the checksum has to be completed.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;

/// Where the pieces go: each behind `head` bytes, `stride` apart, at most `room` bytes long.
pub(crate) struct Target<'a> {
    pub buf: &'a mut [u8],
    pub head: usize,
    pub stride: usize,
    pub room: usize,
}

impl Target<'_> {
    fn slot(&mut self, i: usize, len: usize) -> Option<&mut [u8]> {
        let start = i * self.stride + self.head;
        if len > self.room {
            None
        } else {
            self.buf.get_mut(start..start + len)
        }
    }
}

/// Cuts `packet` into `target`, or copies it with its checksum completed if it is a single one.
/// Returns the number of pieces and writes their sizes into `sizes`. `None` if the header and the
/// packet contradict each other, or if there is no room.
pub(crate) fn cut(
    packet: &[u8],
    header: &VirtioNetHdr,
    mut target: Target<'_>,
    sizes: &mut [usize],
) -> Option<usize> {
    if header.gso_type & !ECN == 0 {
        let piece = target.slot(0, packet.len())?;
        piece.copy_from_slice(packet);
        if header.flags & NEEDS_CHECKSUM != 0 {
            let (start, offset) = (header.csum_start.into(), header.csum_offset.into());
            complete_checksum(piece, start, offset).then_some(())?;
        }
        *sizes.first_mut()? = packet.len();
        return Some(1);
    }
    let large = LargePacket::read(packet, header)?;
    let (head, payload) = packet.split_at(large.headers);
    let count = payload.len().div_ceil(large.size);
    if count > sizes.len() {
        return None;
    }
    for (i, part) in payload.chunks(large.size).enumerate() {
        let len = large.headers + part.len();
        let piece = target.slot(i, len)?;
        piece[..large.headers].copy_from_slice(head);
        piece[large.headers..].copy_from_slice(part);
        large.rewrite(piece, i, i + 1 == count)?;
        sizes[i] = len;
    }
    Some(count)
}

/// A packet to cut: what its headers say.
struct LargePacket {
    is_v6: bool,
    protocol: u8,
    /// Length of the IP header.
    ip: usize,
    /// Length of both headers.
    headers: usize,
    /// Where the transport checksum is.
    sum_at: usize,
    /// Payload bytes of each piece but the last.
    size: usize,
    ip_id: u16,
    sequence: u32,
}

impl LargePacket {
    fn read(packet: &[u8], header: &VirtioNetHdr) -> Option<Self> {
        let is_v6 = match packet.first()? >> 4 {
            4 => false,
            6 => true,
            _ => return None,
        };
        let protocol = match (header.gso_type & !ECN, is_v6) {
            (TSO4, false) | (TSO6, true) => TCP,
            (USO, _) => UDP,
            _ => return None,
        };
        let ip = usize::from(header.csum_start);
        if ip < if is_v6 { 40 } else { 20 } {
            return None;
        }
        // The header's own length field is not used: some senders put the length of the first piece
        // there.
        let transport = if protocol == TCP {
            usize::from(*packet.get(ip + 12)? >> 4) * 4
        } else {
            8
        };
        let headers = ip + transport;
        let (sum_at, least) = if protocol == TCP {
            (ip + 16, 20)
        } else {
            (ip + 6, 8)
        };
        let size = usize::from(header.gso_size);
        if transport < least || size == 0 || packet.len() <= headers || sum_at + 2 > headers {
            return None;
        }
        Some(Self {
            is_v6,
            protocol,
            ip,
            headers,
            sum_at,
            size,
            ip_id: u16::from_be_bytes([packet[4], packet[5]]),
            sequence: u32::from_be_bytes(packet[ip + 4..ip + 8].try_into().ok()?),
        })
    }

    /// Makes the copied headers of piece number `i` its own.
    #[inline]
    fn rewrite(&self, piece: &mut [u8], i: usize, is_last: bool) -> Option<()> {
        let (ip, len) = (self.ip, piece.len());
        if self.is_v6 {
            piece[4..6].copy_from_slice(&u16::try_from(len - 40).ok()?.to_be_bytes());
        } else {
            piece[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            piece[4..6].copy_from_slice(&self.ip_id.wrapping_add(i as u16).to_be_bytes());
            piece[10..12].fill(0);
            let sum = checksum::finish(checksum::add(&piece[..ip], 0));
            piece[10..12].copy_from_slice(&sum);
        }
        if self.protocol == TCP {
            let sequence = self.sequence.wrapping_add((i * self.size) as u32);
            piece[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            // FIN and PSH belong to the last piece alone, CWR to the first (RFC 3168).
            if !is_last {
                piece[ip + 13] &= !FIN_PSH;
            }
            if i > 0 {
                piece[ip + 13] &= !CWR;
            }
        } else {
            piece[ip + 4..ip + 6].copy_from_slice(&u16::try_from(len - ip).ok()?.to_be_bytes());
        }
        piece[self.sum_at..self.sum_at + 2].fill(0);
        let sum = checksum::add(
            &piece[ip..],
            checksum::pseudo(piece, self.protocol, len - ip),
        );
        let mut sum = checksum::finish(sum);
        if self.protocol == UDP && sum == [0, 0] {
            // Zero means that there is no checksum (RFC 768).
            sum = [0xff, 0xff];
        }
        piece[self.sum_at..self.sum_at + 2].copy_from_slice(&sum);
        Some(())
    }
}
