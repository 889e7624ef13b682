//! How much of a host was used: amounts, and the most that a VM of a size can have used.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// How many bytes a second a guest can send or receive at most, for [`Size::most`].
/// Reason: no host here has more than 100 Gbit/s.
const MAX_BYTES_A_SECOND: u64 = 12_500_000_000;
/// How many MiB the replicas of one owner on one host can take at most, for [`most_kept`].
/// Reason: a PiB is more than any host's disk.
const MAX_KEPT_MIB: u64 = 1 << 30;

/// Amounts of a host's resources. Sums saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time, milliseconds.
    pub cpu_ms: u64,
    /// Promised memory, MiB times seconds.
    pub memory_mib_s: u64,
    /// Promised disk, MiB times seconds.
    pub disk_mib_s: u64,
    /// Replicas stored, MiB times seconds.
    pub kept_mib_s: u64,
    /// Bytes that guests sent.
    pub sent: u64,
    /// Bytes that guests received.
    pub received: u64,
}

impl Usage {
    /// The names of the amounts, in the order of the fields.
    const NAMES: [&'static str; 6] = [
        "processor time",
        "memory",
        "disk",
        "stored replicas",
        "bytes sent",
        "bytes received",
    ];

    fn all(&self) -> [u64; 6] {
        [
            self.cpu_ms,
            self.memory_mib_s,
            self.disk_mib_s,
            self.kept_mib_s,
            self.sent,
            self.received,
        ]
    }

    fn of(all: [u64; 6]) -> Self {
        let [cpu_ms, memory_mib_s, disk_mib_s, kept_mib_s, sent, received] = all;
        Self {
            cpu_ms,
            memory_mib_s,
            disk_mib_s,
            kept_mib_s,
            sent,
            received,
        }
    }

    /// Whether nothing was used.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The name of the first amount that is larger than in `most`.
    pub fn excess(&self, most: &Self) -> Option<&'static str> {
        let (here, most) = (self.all(), most.all());
        let at = (0..here.len()).find(|&i| here[i] > most[i])?;
        Some(Self::NAMES[at])
    }

    /// The amounts, none larger than in `most`.
    pub fn at_most(&self, most: &Self) -> Self {
        let (here, most) = (self.all(), most.all());
        Self::of(std::array::from_fn(|i| here[i].min(most[i])))
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let (here, other) = (self.all(), other.all());
        *self = Self::of(std::array::from_fn(|i| here[i].saturating_add(other[i])));
    }
}

/// The size of a VM, from its definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The disk's virtual size, MiB.
    pub disk_mib: u64,
}

impl Size {
    /// The most that a VM of this size uses in `seconds`.
    pub fn most(&self, seconds: u64) -> Usage {
        let times = |each: u64| each.saturating_mul(seconds);
        Usage {
            cpu_ms: times(u64::from(self.cpus) * 1000),
            memory_mib_s: times(self.memory_mib),
            disk_mib_s: times(self.disk_mib),
            kept_mib_s: 0,
            sent: times(MAX_BYTES_A_SECOND),
            received: times(MAX_BYTES_A_SECOND),
        }
    }
}

/// The most that replicas use in `seconds`.
pub fn most_kept(seconds: u64) -> Usage {
    Usage {
        kept_mib_s: MAX_KEPT_MIB.saturating_mul(seconds),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_amount_above_the_most_is_named() {
        let size = Size {
            cpus: 2,
            memory_mib: 512,
            disk_mib: 4096,
        };
        let most = size.most(10);
        assert_eq!(most.excess(&most), None);
        for (cpu_ms, memory_mib_s, name) in [
            (20_001, 5120, "processor time"),
            (20_000, 5121, "memory"),
            (u64::MAX, u64::MAX, "processor time"),
        ] {
            let used = Usage {
                cpu_ms,
                memory_mib_s,
                ..Usage::default()
            };
            assert_eq!(used.excess(&most), Some(name));
            assert_eq!(used.at_most(&most).excess(&most), None);
        }
        let kept = Usage {
            kept_mib_s: 1,
            ..Usage::default()
        };
        assert_eq!(kept.excess(&most), Some("stored replicas"));
        assert_eq!(kept.excess(&most_kept(1)), None);
        let largest = Size {
            cpus: u32::MAX,
            memory_mib: u64::MAX,
            disk_mib: u64::MAX,
        };
        assert_eq!(largest.most(u64::MAX).memory_mib_s, u64::MAX);
    }
}
