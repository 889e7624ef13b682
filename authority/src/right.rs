//! Rights, the resources that they are about, and amounts.

use p2pvm_overlay::{MemberId, NetworkId, VmId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An action that a resource's owner can allow another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Right {
    /// Its state and settings.
    See,
    /// Booting it.
    Start,
    /// Shutting it down, or cutting its power.
    Stop,
    /// Its serial console.
    Console,
    /// Moving it to another host, and cancelling a move.
    Move,
    /// Taking snapshots.
    Snapshot,
    /// Bringing it back from a snapshot.
    Restore,
    /// Removing it with its disk.
    Delete,
    /// On a host or network: making a VM there.
    Create,
}

impl Right {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Right; 9] = [
        Right::See,
        Right::Start,
        Right::Stop,
        Right::Console,
        Right::Move,
        Right::Snapshot,
        Right::Restore,
        Right::Delete,
        Right::Create,
    ];

    /// The word for it on the command line and in messages.
    pub fn word(self) -> &'static str {
        match self {
            Right::See => "see",
            Right::Start => "start",
            Right::Stop => "stop",
            Right::Console => "console",
            Right::Move => "move",
            Right::Snapshot => "snapshot",
            Right::Restore => "restore",
            Right::Delete => "delete",
            Right::Create => "create",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The word is not a right.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a right; the rights are {all}", all = Rights::all())]
pub struct ParseRightError(String);

impl FromStr for Right {
    type Err = ParseRightError;
    fn from_str(word: &str) -> Result<Right, ParseRightError> {
        // "May run VMs there" is how people say it.
        let word = if word == "run" { "create" } else { word };
        Right::ALL
            .into_iter()
            .find(|right| right.word() == word)
            .ok_or_else(|| ParseRightError(word.to_owned()))
    }
}

/// A set of rights. An unknown bit, of a later version, is kept and allows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights(u32);

impl Rights {
    /// Every right of this version.
    pub fn all() -> Rights {
        Right::ALL.into_iter().collect()
    }

    /// Whether the set has `right`.
    pub fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// Whether every right of this set is in `other` too.
    pub fn within(self, other: Rights) -> bool {
        self.0 & !other.0 == 0
    }

    /// The rights that both sets have.
    pub fn and(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// Whether it has no right of this version.
    pub fn is_empty(self) -> bool {
        self.and(Rights::all()).0 == 0
    }

    /// The known rights in the set.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Rights {
        Rights(
            rights
                .into_iter()
                .fold(0, |bits, right| bits | 1 << right as u8),
        )
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Right::word).collect();
        f.write_str(&words.join(", "))
    }
}

/// The thing that a right is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// One VM, with its snapshots.
    Vm(VmId),
    /// An image, by the hash of its content.
    Image([u8; 32]),
    /// A host's processors, memory and disk.
    Host(MemberId),
    /// A whole network.
    Network(NetworkId),
}

/// How much of a resource a request takes, or a link allows at most. `None` in a link is no bound;
/// in a request it is more than any bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Disk in bytes.
    pub disk_bytes: Option<u64>,
    /// Bandwidth in bit/s.
    pub bits_per_second: Option<u64>,
}

impl Amounts {
    /// The lesser of both, amount by amount.
    pub fn and(self, other: Amounts) -> Amounts {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            match (one, other) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            }
        }
        Amounts {
            cpus: least(self.cpus, other.cpus),
            memory_mib: least(self.memory_mib, other.memory_mib),
            disk_bytes: least(self.disk_bytes, other.disk_bytes),
            bits_per_second: least(self.bits_per_second, other.bits_per_second),
        }
    }

    /// The sum of both. An amount that one of them leaves open stays open.
    pub fn plus(self, other: Amounts) -> Amounts {
        let cpus = self.cpus.zip(other.cpus);
        let sum = |one: Option<u64>, other: Option<u64>| {
            one.zip(other).map(|(one, other)| one.saturating_add(other))
        };
        Amounts {
            cpus: cpus.map(|(one, other)| one.saturating_add(other)),
            memory_mib: sum(self.memory_mib, other.memory_mib),
            disk_bytes: sum(self.disk_bytes, other.disk_bytes),
            bits_per_second: sum(self.bits_per_second, other.bits_per_second),
        }
    }

    /// The first amount of which a request asks for more than is allowed.
    pub(crate) fn excess(&self, allowed: &Amounts) -> Option<&'static str> {
        fn more<T: PartialOrd>(asked: Option<T>, most: Option<T>) -> bool {
            match (asked, most) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(asked), Some(most)) => asked > most,
            }
        }
        [
            (more(self.cpus, allowed.cpus), "processors"),
            (more(self.memory_mib, allowed.memory_mib), "memory"),
            (more(self.disk_bytes, allowed.disk_bytes), "disk"),
            (
                more(self.bits_per_second, allowed.bits_per_second),
                "bandwidth",
            ),
        ]
        .into_iter()
        .find_map(|(is_more, what)| is_more.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_right_has_its_word_and_its_bit() {
        for right in Right::ALL {
            assert_eq!(right.word().parse(), Ok(right));
            let alone: Rights = [right].into_iter().collect();
            assert_eq!(alone.iter().collect::<Vec<_>>(), [right]);
            assert!(alone.within(Rights::all()) && !Rights::all().within(alone));
        }
        let error = "fly".parse::<Right>().unwrap_err().to_string();
        assert!(
            error.contains("'fly'") && error.contains("console"),
            "{error}"
        );
    }

    #[test]
    fn an_amount_left_open_is_more_than_any() {
        let two = Amounts {
            cpus: Some(2),
            ..Amounts::default()
        };
        let three = Amounts {
            cpus: Some(3),
            memory_mib: Some(512),
            ..Amounts::default()
        };
        assert_eq!(two.excess(&three), Some("memory"));
        assert_eq!(three.excess(&two), Some("processors"));
        assert_eq!(three.excess(&three), None);
        assert_eq!(Amounts::default().excess(&two), Some("processors"));
        assert_eq!(two.excess(&Amounts::default()), None);
        let five = two.plus(three);
        assert_eq!((five.cpus, five.memory_mib), (Some(5), None));
        assert_eq!(five.excess(&three), Some("processors"));
        let both = two.and(three);
        assert_eq!((both.cpus, both.memory_mib), (Some(2), Some(512)));
        assert_eq!(both.excess(&two).or(both.excess(&three)), None);
    }
}
