//! A bandwidth as people write it.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Bits a second; 0 for no limit. Its text is "100 Mbit", with units of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BitRate(pub u64);

/// The least that can be set. Reason: below it a guest's own connections time out.
const LEAST: u64 = 64_000;
/// The most. Reason: more is a typing mistake.
const MOST: u64 = 1_000_000_000_000;
const UNITS: [(&str, u64); 4] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1000),
    ("bit", 1),
];

/// The text is not a bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a bandwidth: write 64 kbit to 1000 Gbit, such as 100 Mbit, or 0 for no limit"
)]
pub struct BitRateError(String);

impl BitRate {
    /// The limit; `None` for none.
    pub fn limit(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }

    /// Whether it can be set.
    pub fn is_possible(self) -> bool {
        self.0 == 0 || (LEAST..=MOST).contains(&self.0)
    }
}

impl FromStr for BitRate {
    type Err = BitRateError;

    fn from_str(text: &str) -> Result<Self, BitRateError> {
        let wrong = || BitRateError(text.to_owned());
        let text = text.trim();
        if text == "0" {
            return Ok(Self(0));
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(end.ok_or_else(wrong)?);
        let unit = unit.trim().trim_end_matches("/s");
        let is_unit = |known: &&(&str, u64)| known.0.eq_ignore_ascii_case(unit);
        let (_, unit) = UNITS.iter().find(is_unit).ok_or_else(wrong)?;
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let rate = Self((number * *unit as f64).round() as u64);
        if rate.0 == 0 || !rate.is_possible() {
            return Err(wrong());
        }
        Ok(rate)
    }
}

impl TryFrom<String> for BitRate {
    type Error = BitRateError;

    fn try_from(text: String) -> Result<Self, BitRateError> {
        text.parse()
    }
}

impl From<BitRate> for String {
    fn from(rate: BitRate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        match UNITS.iter().find(whole) {
            Some((word, unit)) => write!(f, "{} {word}", self.0 / unit),
            None => f.write_str("0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bandwidth_is_read_with_its_unit_and_written_the_same() {
        for (text, bits, said) in [
            ("100 Mbit", 100_000_000, "100 Mbit"),
            ("100mbit/s", 100_000_000, "100 Mbit"),
            ("1.5 Gbit", 1_500_000_000, "1500 Mbit"),
            ("64kbit", 64_000, "64 kbit"),
            ("0", 0, "0"),
        ] {
            let rate: BitRate = text.parse().unwrap();
            assert_eq!((rate.0, rate.to_string().as_str()), (bits, said), "{text}");
        }
        for text in ["", "100", "10 MB", "63 kbit", "2000 Gbit", "-1 Mbit", "x"] {
            let said = text.parse::<BitRate>().unwrap_err().to_string();
            assert!(said.contains("100 Mbit"), "{text}: {said}");
        }
        assert_eq!(BitRate(0).limit(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bits in LEAST..MOST) {
            prop_assert_eq!(BitRate(bits).to_string().parse(), Ok(BitRate(bits)));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<BitRate>();
        }
    }
}
