//! Seats for what members ask of this one: a member gets so many of them, so that one that takes
//! its share and stalls leaves the others theirs. Those of one member wait in the order in which
//! they came, without keeping a seat from the others.

use crate::id::MemberId;
use crate::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many members are remembered before those without a seat are forgotten.
const REMEMBERED: usize = 256;

/// See the module.
pub struct Seats {
    all: Arc<Semaphore>,
    each: usize,
    members: Mutex<HashMap<MemberId, Arc<Semaphore>>>,
}

/// A seat taken; dropping it gives it back.
pub struct Seat {
    _of_member: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Seats {
    /// `all` seats, of which a member has `each` at most.
    pub fn new(all: usize, each: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            each,
            members: Mutex::default(),
        }
    }

    /// Waits for a seat.
    pub async fn take(&self, member: MemberId) -> Seat {
        const OPEN: &str = "it is never closed";
        let of_member = self.of_member(member).acquire_owned().await.expect(OPEN);
        Seat {
            _of_member: of_member,
            _of_all: self.all.clone().acquire_owned().await.expect(OPEN),
        }
    }

    /// Takes a seat if one is free.
    pub fn try_take(&self, member: MemberId) -> Option<Seat> {
        Some(Seat {
            _of_member: self.of_member(member).try_acquire_owned().ok()?,
            _of_all: self.all.clone().try_acquire_owned().ok()?,
        })
    }

    fn of_member(&self, member: MemberId) -> Arc<Semaphore> {
        let mut members = lock(&self.members);
        if members.len() >= REMEMBERED && !members.contains_key(&member) {
            // Each seat and each that waits for one holds a clone.
            members.retain(|_, seats| Arc::strong_count(seats) > 1);
        }
        let seats = members
            .entry(member)
            .or_insert_with(|| Arc::new(Semaphore::new(self.each)));
        seats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_member_with_all_its_seats_taken_leaves_the_others_theirs() {
        let (seats, [a, b, c]) = (Seats::new(5, 2), [1, 2, 3].map(|i| MemberId([i; 32])));
        let mut taken: Vec<Seat> = (0..9).filter_map(|_| seats.try_take(a)).collect();
        assert_eq!(taken.len(), 2);
        let waiting = seats.take(a);
        taken.extend((0..9).filter_map(|_| seats.try_take(b)));
        taken.extend((0..9).filter_map(|_| seats.try_take(c)));
        assert_eq!(taken.len(), 5, "all seats are taken");
        drop(taken.remove(0));
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn members_without_a_seat_are_forgotten() {
        let seats = Seats::new(1000, 1);
        let id = |i: usize| MemberId([(i >> 8) as u8, i as u8].repeat(16).try_into().unwrap());
        let kept: Vec<Seat> = (0..10).filter_map(|i| seats.try_take(id(i))).collect();
        for i in 10..1000 {
            drop(seats.try_take(id(i)));
        }
        assert!(seats.members.lock().unwrap().len() <= REMEMBERED);
        assert!((0..10).all(|i| seats.try_take(id(i)).is_none()));
        drop(kept);
    }
}
