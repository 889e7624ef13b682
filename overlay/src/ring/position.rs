//! Places on the ring of 2^64 positions, the ways between them, and the members' places.
//!
//! A member's position is computed from its id wherever it is needed and never read from the wire,
//! so that nobody can claim a place that its key does not hash to.

use crate::id::MemberId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A place on the ring: the first eight bytes of a [`crate::RingAddr`], big endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position(pub u64);

impl Position {
    /// Where a member stands.
    pub fn of(member: &MemberId) -> Self {
        let addr = member.ring_addr().0;
        Self(u64::from_be_bytes(std::array::from_fn(|i| addr[i])))
    }

    /// How far `to` is when one goes clockwise only.
    pub fn clockwise(self, to: Self) -> u64 {
        to.0.wrapping_sub(self.0)
    }

    /// How far `to` is by the shorter way.
    pub fn distance(self, to: Self) -> u64 {
        self.clockwise(to).min(to.clockwise(self))
    }

    /// How close `other` is to this place, as a value that sorts: the shorter way, and of two
    /// equally long ones the clockwise first. No two places have the same closeness, so that all
    /// members agree on the closest, and a path along which it falls has no loop.
    pub fn closeness(self, other: Self) -> (u64, bool) {
        let (clockwise, back) = (self.clockwise(other), other.clockwise(self));
        (clockwise.min(back), back < clockwise)
    }

    /// The place `steps` further clockwise.
    pub fn plus(self, steps: u64) -> Self {
        Self(self.0.wrapping_add(steps))
    }

    /// The place `steps` back.
    pub fn minus(self, steps: u64) -> Self {
        Self(self.0.wrapping_sub(steps))
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:016x}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A member with its place, so that the hash is computed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Its place, which follows from its id.
    pub position: Position,
    /// Its id.
    pub member: MemberId,
}

impl From<MemberId> for Node {
    fn from(member: MemberId) -> Self {
        Self {
            position: Position::of(&member),
            member,
        }
    }
}

/// The places strictly between two, going clockwise. With both ends the same: the whole ring but
/// that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// The place before the first.
    pub after: Position,
    /// The place behind the last.
    pub before: Position,
}

impl Range {
    /// The whole ring but `place`.
    pub fn all_but(place: Position) -> Self {
        Self {
            after: place,
            before: place,
        }
    }

    /// Whether `place` is inside.
    pub fn contains(&self, place: Position) -> bool {
        let (offset, width) = (
            self.after.clockwise(place),
            self.after.clockwise(self.before),
        );
        offset != 0 && (width == 0 || offset < width)
    }

    /// Whether this range lies within `other`.
    pub fn within(&self, other: &Self) -> bool {
        let width = |r: &Self| r.after.clockwise(r.before).wrapping_sub(1);
        let offset = other.after.clockwise(self.after);
        other.after == other.before && offset.checked_add(width(self)).is_some()
            || offset
                .checked_add(width(self))
                .is_some_and(|end| end <= width(other))
    }

    /// Whether no place is inside.
    pub fn is_empty(&self) -> bool {
        self.after.clockwise(self.before) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_holds_what_is_between_its_ends_and_wraps() {
        let range = Range {
            after: Position(u64::MAX - 1),
            before: Position(2),
        };
        let inside: Vec<bool> = [u64::MAX - 1, u64::MAX, 0, 1, 2, 77]
            .map(|p| range.contains(Position(p)))
            .into();
        assert_eq!(inside, [false, true, true, true, false, false]);
        assert!(
            Range {
                after: Position(5),
                before: Position(6)
            }
            .is_empty()
        );
        assert!(!Range::all_but(Position(5)).is_empty());
        assert!(
            range.within(&Range::all_but(Position(77)))
                && !range.within(&Range::all_but(Position(0)))
        );
        assert!(!Range::all_but(Position(77)).within(&range));
    }

    proptest! {
        #[test]
        fn of_two_places_one_is_closer_and_never_both(at: u64, a: u64, b: u64) {
            let (at, a, b) = (Position(at), Position(a), Position(b));
            prop_assert_eq!(at.closeness(a) == at.closeness(b), a == b);
            prop_assert_eq!(at.closeness(a).0, at.distance(a));
            prop_assert_eq!(at.distance(a), a.distance(at));
        }
    }
}
