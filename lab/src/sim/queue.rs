//! The queue of events in virtual time: microseconds since the start. Events of one instant keep
//! their order.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Microseconds of virtual time.
pub type Micros = u64;
/// A second of virtual time.
pub const SECOND: Micros = 1_000_000;

struct Entry<E> {
    at: Micros,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The events to come.
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    order: u64,
    now: Micros,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            order: 0,
            now: 0,
        }
    }
}

impl<E> Queue<E> {
    /// The time of the last event taken.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Puts an event; one in the past happens now.
    pub fn put(&mut self, at: Micros, event: E) {
        self.order += 1;
        self.heap.push(Reverse(Entry {
            at: at.max(self.now),
            order: self.order,
            event,
        }));
    }

    /// Takes the next event up to and including `until`; if there is none, the time becomes
    /// `until`.
    pub fn take(&mut self, until: Micros) -> Option<E> {
        if self.heap.peek().is_none_or(|Reverse(e)| e.at > until) {
            self.now = self.now.max(until);
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_they_were_put() {
        let mut queue = Queue::default();
        for (at, name) in [(30, 'c'), (10, 'a'), (30, 'd'), (20, 'b')] {
            queue.put(at, name);
        }
        assert_eq!(queue.take(5), None);
        let order: String = std::iter::from_fn(|| queue.take(30)).collect();
        assert_eq!((order.as_str(), queue.now()), ("abcd", 30));
    }

    #[test]
    fn time_does_not_run_backwards() {
        let mut queue = Queue::default();
        assert_eq!(queue.take(100), None);
        queue.put(7, 'x');
        assert_eq!((queue.take(100), queue.now()), (Some('x'), 100));
    }
}
