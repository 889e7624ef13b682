//! Packets in pieces, for packets that are too large for the path but may not be refused: IPv6
//! obliges every link to carry 1280 bytes (RFC 8200 §5), IPv4 packets may allow fragments, and
//! until a path's size is known every packet must pass. A piece is a part of a frame; the far end
//! of the link, whichever path a piece took, puts them together. The memory is bounded for each
//! peer, and only the proved peer can fill it.

use crate::link::frame::FRAME_HEADER_LEN;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many pieces a frame may have. Reason: two are enough for any packet of this program.
pub const MAX_PIECES: usize = 4;
/// How many unfinished frames are kept for each peer; the oldest is replaced.
const MAX_UNFINISHED: usize = 32;
/// How long the pieces of a frame are waited for.
const LIFE: Duration = Duration::from_secs(2);
/// How long a frame may be, in bytes.
const MAX_FRAME: usize = 2048;

/// How a frame of `len` bytes is divided into pieces of at most `room` bytes: their number, and the
/// length of each but the last. `None` if it would take too many.
pub fn divide(len: usize, room: usize) -> Option<(usize, usize)> {
    let count = len.div_ceil(room.max(1));
    (len > 0 && count <= MAX_PIECES && len <= MAX_FRAME).then(|| (count, len.div_ceil(count)))
}

struct PartialPacket {
    id: u32,
    began: Instant,
    pieces: [Option<Vec<u8>>; MAX_PIECES],
}

/// The unfinished frames of one peer.
#[derive(Default)]
pub struct Pieces(VecDeque<PartialPacket>);

impl Pieces {
    /// Takes one piece. Returns the frame if that was its last missing one.
    pub fn take(
        &mut self,
        now: Instant,
        id: u32,
        index: u8,
        count: u8,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let (index, count) = (usize::from(index), usize::from(count));
        if count == 0 || count > MAX_PIECES || index >= count || bytes.len() > MAX_FRAME {
            return None;
        }
        self.0
            .retain(|u| now.saturating_duration_since(u.began) < LIFE);
        let at = match self.0.iter().position(|u| u.id == id) {
            Some(at) => at,
            None => {
                if self.0.len() >= MAX_UNFINISHED {
                    self.0.pop_front();
                }
                self.0.push_back(PartialPacket {
                    id,
                    began: now,
                    pieces: Default::default(),
                });
                self.0.len() - 1
            }
        };
        self.0[at].pieces[index] = Some(bytes.to_vec());
        if self.0[at].pieces[..count].iter().any(Option::is_none) {
            return None;
        }
        let whole: Vec<u8> = self
            .0
            .remove(at)?
            .pieces
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        (whole.len() >= FRAME_HEADER_LEN && whole.len() <= MAX_FRAME).then_some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_divided_frame_becomes_whole_in_any_order(
            frame in proptest::collection::vec(any::<u8>(), 12..1400), room in 700usize..1300,
            backwards: bool
        ) {
            let (count, size) = divide(frame.len(), room).unwrap();
            prop_assert!(size <= room);
            let mut pieces: Vec<_> = frame.chunks(size).enumerate().collect();
            prop_assert_eq!(pieces.len(), count);
            if backwards { pieces.reverse(); }
            let (mut kept, now) = (Pieces::default(), Instant::now());
            let whole: Vec<_> = pieces.iter().filter_map(
                |(i, p)| kept.take(now, 7, *i as u8, count as u8, p)
            ).collect();
            prop_assert_eq!(whole, vec![frame]);
        }

        #[test]
        fn any_pieces_are_taken_without_panic(
            pieces in proptest::collection::vec(
                (0u32..60, any::<u8>(), 0u8..6, proptest::collection::vec(any::<u8>(), 0..40)),
                0..200
            )
        ) {
            let (mut kept, now) = (Pieces::default(), Instant::now());
            for (id, index, count, bytes) in pieces {
                let _ = kept.take(now, id, index, count, &bytes);
            }
            prop_assert!(kept.0.len() <= MAX_UNFINISHED);
        }
    }

    #[test]
    fn a_frame_that_lacks_a_piece_is_forgotten() {
        let (mut kept, now) = (Pieces::default(), Instant::now());
        assert_eq!(kept.take(now, 1, 0, 2, &[1; 20]), None);
        assert_eq!(kept.take(now + LIFE, 1, 1, 2, &[2; 20]), None);
    }
}
