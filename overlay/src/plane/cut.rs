//! Cuts a TSO or USO packet, as a TUN or a guest gives it behind a virtio-net header, into packets
//! at equal distances in one buffer, each with its own lengths, sequence number and checksums. One
//! pass copies, one adds up, both while the bytes are in the cache.
//!
//! The header comes from the kernel or from a guest and is not trusted: whatever does not fit
//! together is refused.

use super::{checksum, packet::complete_checksum};
use tun_rs::VirtioNetHdr;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
/// Of `virtio_net_hdr`: TCP over IPv4, TCP over IPv6, UDP datagrams; a bit says that the TCP has
/// ECN set.
const TSO4: u8 = 1;
const TSO6: u8 = 4;
const USO: u8 = 5;
const ECN: u8 = 0x80;
/// Of `virtio_net_hdr`: the checksum is to be completed.
pub(super) const NEEDS_CHECKSUM: u8 = 1;

/// Where the pieces go: each behind `head` bytes, `stride` apart, at most `room` bytes long.
pub(super) struct Into<'a> {
    pub buf: &'a mut [u8],
    pub head: usize,
    pub stride: usize,
    pub room: usize,
}

impl Into<'_> {
    fn slot(&mut self, i: usize, len: usize) -> Option<&mut [u8]> {
        let start = i * self.stride + self.head;
        if len > self.room {
            None
        } else {
            self.buf.get_mut(start..start + len)
        }
    }
}

/// Cuts `packet`, or copies it with its checksum completed if it is a single one; how many pieces,
/// `sizes` of each. `None`: it makes no sense or has no room.
pub(super) fn cut(
    packet: &[u8],
    header: &VirtioNetHdr,
    mut into: Into<'_>,
    sizes: &mut [usize],
) -> Option<usize> {
    let start = usize::from(header.csum_start);
    if header.gso_type & !ECN == 0 {
        let piece = into.slot(0, packet.len())?;
        piece.copy_from_slice(packet);
        if header.flags & NEEDS_CHECKSUM != 0 {
            complete_checksum(piece, start, usize::from(header.csum_offset)).then_some(())?;
        }
        *sizes.first_mut()? = packet.len();
        return Some(1);
    }
    let v6 = match packet.first()? >> 4 {
        4 => false,
        6 => true,
        _ => return None,
    };
    let protocol = match (header.gso_type & !ECN, v6) {
        (TSO4, false) | (TSO6, true) => TCP,
        (USO, _) => UDP,
        _ => return None,
    };
    if start < if v6 { 40 } else { 20 } {
        return None;
    }
    // The header's length is worked out again: what the sender says about it may be the length of
    // the first piece.
    let transport = if protocol == TCP {
        usize::from(*packet.get(start + 12)? >> 4) * 4
    } else {
        8
    };
    let headers = start + transport;
    let (field, least) = if protocol == TCP {
        (start + 16, 20)
    } else {
        (start + 6, 8)
    };
    let size = usize::from(header.gso_size);
    if transport < least || size == 0 || packet.len() <= headers || field + 2 > headers {
        return None;
    }
    let (head, payload) = packet.split_at(headers);
    let count = payload.len().div_ceil(size);
    if count > sizes.len() {
        return None;
    }
    let id = u16::from_be_bytes([packet[4], packet[5]]);
    let sequence = u32::from_be_bytes(packet[start + 4..start + 8].try_into().ok()?);
    for (i, part) in payload.chunks(size).enumerate() {
        let len = headers + part.len();
        let piece = into.slot(i, len)?;
        piece[..headers].copy_from_slice(head);
        piece[headers..].copy_from_slice(part);
        if v6 {
            piece[4..6].copy_from_slice(&u16::try_from(len - 40).ok()?.to_be_bytes());
        } else {
            piece[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            piece[4..6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
            piece[10..12].fill(0);
            let sum = checksum::finish(checksum::add(&piece[..start], 0));
            piece[10..12].copy_from_slice(&sum);
        }
        if protocol == TCP {
            let sequence = sequence.wrapping_add((i * size) as u32);
            piece[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            // What ends the stream or pushes it belongs to the last piece; that the window was
            // reduced to the first (RFC 3168).
            if i + 1 < count {
                piece[start + 13] &= !FIN_PSH;
            }
            if i > 0 {
                piece[start + 13] &= !CWR;
            }
        } else {
            piece[start + 4..start + 6]
                .copy_from_slice(&u16::try_from(len - start).ok()?.to_be_bytes());
        }
        piece[field..field + 2].fill(0);
        let sum = checksum::add(
            &piece[start..],
            checksum::pseudo(piece, protocol, len - start),
        );
        let mut sum = checksum::finish(sum);
        if protocol == UDP && sum == [0, 0] {
            // Zero says that there is none (RFC 768).
            sum = [0xff, 0xff];
        }
        piece[field..field + 2].copy_from_slice(&sum);
        sizes[i] = len;
    }
    Some(count)
}
