//! A key in shares: any `needed` of them give it back, and fewer say nothing about it (Shamir
//! 1979). Each byte is the value at zero of a random polynomial over GF(2^8), with the polynomial
//! of AES; a share has the values at its number. No branch and no index depends on a secret.

use super::KeyShare;
use zeroize::Zeroizing;

/// Cuts `key` into `count` shares, at most 255.
pub(super) fn split(key: &[u8; 32], needed: usize, count: usize) -> Vec<KeyShare> {
    let mut coefficients = Zeroizing::new(vec![[0u8; 32]; needed.saturating_sub(1)]);
    coefficients.iter_mut().for_each(|one| rand::fill(one));
    let numbers = (1..=u8::MAX).take(count);
    numbers
        .map(|number| {
            let mut value = [0; 32];
            for coefficient in coefficients.iter().rev().chain([key]) {
                for (byte, coefficient) in value.iter_mut().zip(coefficient) {
                    *byte = multiply(*byte, number) ^ coefficient;
                }
            }
            KeyShare { number, value }
        })
        .collect()
}

/// The key that exactly as many shares as needed give; another one if any of them is wrong. `None`
/// if two have the same number, or one has none.
pub(super) fn join(shares: &[KeyShare]) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    for (at, share) in shares.iter().enumerate() {
        // Lagrange's polynomial of the share, at zero.
        let mut weight = 1;
        for (_, one) in shares.iter().enumerate().filter(|(other, _)| *other != at) {
            if one.number == share.number {
                return None;
            }
            weight = multiply(weight, one.number);
            weight = multiply(weight, invert(one.number ^ share.number));
        }
        if share.number == 0 {
            return None;
        }
        for (byte, value) in key.iter_mut().zip(share.value) {
            *byte ^= multiply(value, weight);
        }
    }
    Some(key)
}

fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    for _ in 0..8 {
        product ^= a & 0u8.wrapping_sub(b & 1);
        let reduced = 0x1b & 0u8.wrapping_sub(a >> 7);
        a = (a << 1) ^ reduced;
        b >>= 1;
    }
    product
}

/// The inverse, by Fermat: a^254, which is a^2 times a^4 and so on to a^128.
fn invert(a: u8) -> u8 {
    let (mut square, mut product) = (a, 1);
    for _ in 0..7 {
        square = multiply(square, square);
        product = multiply(product, square);
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, 4.2.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        for a in 1..=u8::MAX {
            assert_eq!(multiply(a, invert(a)), 1);
        }
    }

    proptest! {
        #[test]
        fn as_many_shares_as_needed_give_the_key(
            key in any::<[u8; 32]>(), count in 1usize..16, skip in any::<prop::sample::Index>()
        ) {
            let needed = count / 2 + 1;
            let shares = split(&key, needed, count);
            prop_assert_eq!(shares.len(), count);
            let first = skip.index(count - needed + 1);
            let mut some = shares[first..first + needed].to_vec();
            prop_assert_eq!(*join(&some).unwrap(), key);
            some.reverse();
            prop_assert_eq!(*join(&some).unwrap(), key);
            if needed > 1 {
                prop_assert_ne!(*join(&some[1..]).unwrap(), key);
            }
        }
    }

    #[test]
    fn shares_of_one_number_and_of_none_are_refused() {
        let mut shares = split(&[7; 32], 2, 3);
        shares[1].number = 1;
        assert!(join(&shares[..2]).is_none());
        shares[1].number = 0;
        assert!(join(&shares[..2]).is_none());
    }
}
