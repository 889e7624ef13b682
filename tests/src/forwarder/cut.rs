//! Joined packets: the kernel hands TCP and UDP over in one piece of up to 64 KiB with a note how to cut it (virtio-net's header, the format
//! of Linux' `virtio_net.h`). Reads that note, and cuts where a link needs it; the cutting itself is `tun-rs`'.

use super::link::Pieces;
use std::{cell::RefCell, io};
use tun_rs::{VIRTIO_NET_HDR_GSO_UDP_L4, VIRTIO_NET_HDR_LEN, VirtioNetHdr, gso_split};

/// `VIRTIO_NET_HDR_GSO_NONE`: the packet is one packet.
const GSO_NONE: u8 = 0;
/// A joined packet has no more pieces than this: 64 KiB of at least 8 bytes each, more than any sender makes.
const MOST_PIECES: usize = 1024;
/// A piece with headers; the wide area's packets are 1500 bytes.
const PIECE_BYTES: usize = 2048;

/// How many packets on the wire a packet from a router stands for.
pub(super) fn pieces(packet: &[u8]) -> Pieces {
    let single = Pieces { count: 1, header: 0, payload: 0 };
    let Some((note, header)) = parse(packet) else { return single };
    let payload = usize::from(note.gso_size);
    let total = packet.len() - VIRTIO_NET_HDR_LEN;
    if total <= header { single } else { Pieces { count: (total - header).div_ceil(payload), header, payload } }
}

/// The note of a joined packet and the length of the headers each piece repeats. The note's own header length is that of the whole first
/// packet when the kernel forwards, so it is read from the packet.
fn parse(packet: &[u8]) -> Option<(VirtioNetHdr, usize)> {
    let note = VirtioNetHdr::decode(packet).ok()?;
    if note.gso_type == GSO_NONE || note.gso_size == 0 {
        return None;
    }
    let transport = usize::from(note.csum_start);
    let header = if note.gso_type == VIRTIO_NET_HDR_GSO_UDP_L4 {
        transport + 8
    } else {
        transport + usize::from(*packet.get(VIRTIO_NET_HDR_LEN + transport + 12)? >> 4) * 4
    };
    Some((note, header))
}

thread_local! {
    /// Room for the pieces of one packet, made once: only the forwarder's thread cuts.
    static ROOM: RefCell<(Vec<Vec<u8>>, Vec<usize>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Cuts a joined packet and gives each piece, with an offload header of its own, to `take`.
pub(super) fn cut(packet: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let Some((mut note, header)) = parse(packet) else {
        take(packet);
        return Ok(());
    };
    note.hdr_len = u16::try_from(header).map_err(io::Error::other)?;
    ROOM.with_borrow_mut(|(room, sizes)| {
        let count = pieces(packet).count.min(MOST_PIECES);
        if room.len() < count {
            room.resize_with(count, || vec![0; PIECE_BYTES]);
            sizes.resize(count, 0);
        }
        let made = gso_split(&mut packet[VIRTIO_NET_HDR_LEN..], note, &mut room[..count], &mut sizes[..count], VIRTIO_NET_HDR_LEN, false)?;
        for (piece, size) in room.iter_mut().zip(sizes.iter()).take(made) {
            // A complete packet with its checksum: nothing left to note.
            piece[..VIRTIO_NET_HDR_LEN].fill(0);
            take(&piece[..VIRTIO_NET_HDR_LEN + size]);
        }
        Ok(())
    })
}
