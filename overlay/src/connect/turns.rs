//! One dial to a member at a time: the second caller waits and finds the first one's link. The
//! entry of a member is removed with the last caller that has its turn or waits, whether the dial
//! ended or was dropped.

use crate::id::MemberId;
use crate::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::OwnedMutexGuard;

type Door = Arc<tokio::sync::Mutex<()>>;

/// The locks of the members that are being dialled.
#[derive(Default)]
pub(crate) struct Turns {
    doors: Mutex<HashMap<MemberId, Door>>,
}

/// The right to dial the member; dropping it gives the next caller its turn.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    member: MemberId,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    fn doors(&self) -> MutexGuard<'_, HashMap<MemberId, Door>> {
        lock(&self.doors)
    }

    /// Waits for the turn.
    pub async fn of(&self, member: MemberId) -> Turn<'_> {
        // Made before the wait, so that a dropped wait is cleaned up too.
        let mut turn = Turn {
            turns: self,
            member,
            held: None,
        };
        let door = self.doors().entry(member).or_default().clone();
        turn.held = Some(door.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut doors = self.turns.doors();
        if doors
            .get(&self.member)
            .is_some_and(|door| Arc::strong_count(door) == 1)
        {
            doors.remove(&self.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const A: MemberId = MemberId([1; 32]);
    const B: MemberId = MemberId([2; 32]);

    #[tokio::test]
    async fn another_members_turn_that_ends_gives_nobody_elses_away() {
        let turns = Turns::default();
        let a = turns.of(A).await;
        drop(turns.of(B).await);
        let second = turns.of(A);
        tokio::pin!(second);
        assert!(
            second.as_mut().now_or_never().is_none(),
            "the first has not ended"
        );
        drop(a);
        assert!(second.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn nothing_is_kept_for_a_member_that_nobody_dials() {
        let turns = Turns::default();
        let a = turns.of(A).await;
        assert!(
            turns.of(A).now_or_never().is_none(),
            "given up while it waited"
        );
        drop(a);
        assert!(turns.doors().is_empty());
    }
}
