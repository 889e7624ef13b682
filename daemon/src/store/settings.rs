//! `[store]` in `node.toml`.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[store]`: how stored chunks are searched for damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// In how many days every stored chunk is read once; 0 for never.
    pub scrub_days: u32,
    /// How much of the disk's throughput that takes at most, MiB per second.
    pub scrub_rate: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scrub_days: 30,
            scrub_rate: 8,
        }
    }
}

impl Settings {
    /// Checks the settings. The error is a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.scrub_rate == 0 {
            return Err(
                "[store] scrub_rate must be 1 or more: scrub_days = 0 ends the search".to_owned(),
            );
        }
        Ok(())
    }

    /// In which time all is read, if it is.
    pub(crate) fn period(&self) -> Option<Duration> {
        let days = u64::from(self.scrub_days);
        (days > 0).then(|| Duration::from_secs(days * 86_400))
    }

    /// The most that is read in a second, bytes.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        u64::from(self.scrub_rate) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_can_be_ended_and_not_starved() {
        let settings = Settings::default();
        assert_eq!(settings.period(), Some(Duration::from_secs(30 * 86_400)));
        let off = Settings {
            scrub_days: 0,
            ..settings.clone()
        };
        assert_eq!((off.period(), off.check()), (None, Ok(())));
        let starved = Settings {
            scrub_rate: 0,
            ..settings
        };
        assert!(starved.check().unwrap_err().contains("scrub_rate"));
    }
}
