//! The circuits that are reserved with relays.
//!
//! In libp2p-relay 0.22 the answer to a request whose listener was removed meanwhile panics, and
//! the driver ends with it. So a reservation is given up only once the relay has accepted it: until
//! then a slow relay decides when that answer comes.

use libp2p::{PeerId, core::transport::ListenerId};
use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub(super) struct Reservations {
    /// The listener, and whether the relay has accepted.
    by_relay: BTreeMap<PeerId, (ListenerId, bool)>,
}

impl Reservations {
    pub fn len(&self) -> usize {
        self.by_relay.len()
    }

    pub fn contains(&self, relay: &PeerId) -> bool {
        self.by_relay.contains_key(relay)
    }

    /// Notes a request to a relay.
    pub fn asked(&mut self, relay: PeerId, listener: ListenerId) {
        self.by_relay.insert(relay, (listener, false));
    }

    /// Notes that the relay has accepted.
    pub fn accepted(&mut self, relay: &PeerId) {
        if let Some((_, accepted)) = self.by_relay.get_mut(relay) {
            *accepted = true;
        }
    }

    /// Notes that a listener has ended.
    pub fn ended(&mut self, listener: ListenerId) {
        self.by_relay.retain(|_, (id, _)| *id != listener);
    }

    /// Forgets those of relays that are not connected any more.
    pub fn retain(&mut self, is_connected: impl Fn(&PeerId) -> bool) {
        self.by_relay.retain(|relay, _| is_connected(relay));
    }

    /// Takes the listeners of those that may be given up now.
    pub fn give_up(&mut self) -> Vec<ListenerId> {
        let mut given_up = Vec::new();
        self.by_relay.retain(|_, (listener, accepted)| {
            if *accepted {
                given_up.push(*listener);
            }
            !*accepted
        });
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_under_way_is_not_given_up_before_the_relay_accepts() {
        let mut reservations = Reservations::default();
        let (relays, listeners) = (
            [(); 3].map(|()| PeerId::random()),
            [(); 3].map(|()| ListenerId::next()),
        );
        for (relay, listener) in relays.into_iter().zip(listeners) {
            reservations.asked(relay, listener);
        }
        reservations.accepted(&relays[0]);
        assert_eq!(reservations.give_up(), [listeners[0]]);
        assert_eq!(reservations.give_up(), []);
        reservations.accepted(&relays[1]);
        reservations.ended(listeners[2]);
        assert_eq!(reservations.give_up(), [listeners[1]]);
        assert_eq!(reservations.len(), 0);
    }
}
