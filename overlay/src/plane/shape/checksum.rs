//! The internet checksum (RFC 1071), in the machine's byte order and eight bytes a step: the sum is
//! the same in either byte order, as long as it is read and stored in the same one.

/// The sum of `bytes` on top of `sum`, not folded. `bytes` must begin at an even offset of the
/// summed range.
pub(crate) fn add(bytes: &[u8], sum: u64) -> u64 {
    // Four independent sums, so that no addition waits for another's carry. A packet is far shorter
    // than 2^32 halves, so none overflows.
    let mut sums = [sum, 0, 0, 0];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (sum, word) in sums.iter_mut().zip(block.chunks_exact(8)) {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            *sum += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    let mut sum = sums.iter().sum();
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// The sum folded to the two bytes that stand in a packet, not complemented.
pub(crate) fn fold(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_ne_bytes()
}

/// The checksum of a header whose own field is zero: folded and complemented.
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    let [a, b] = fold(sum);
    [!a, !b]
}

/// The sum of the pseudo-header of `packet` (IPv4 or IPv6, its header of `header_len` bytes) for a
/// payload of `len` bytes.
pub(crate) fn pseudo(packet: &[u8], protocol: u8, len: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let mut tail = [0, 0, 0, 0, 0, 0, 0, protocol];
    tail[..4].copy_from_slice(&(len as u32).to_be_bytes());
    add(&tail, add(addresses, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_big_endian_halves(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000)
        ) {
            let mut sum = 0u32;
            for pair in bytes.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                sum = (sum & 0xffff) + (sum >> 16);
            }
            // Zero has two forms; only an all-zero packet has the one, and both verify.
            prop_assert_eq!(
                u32::from(u16::from_be_bytes(fold(add(&bytes, 0)))) % 0xffff, sum % 0xffff
            );
        }
    }
}
