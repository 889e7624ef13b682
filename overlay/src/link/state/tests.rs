//! Two links against each other in virtual time, over a wire that loses, doubles and reorders.

use super::*;
use crate::link::{
    frame::{FRAME_HEADER_LEN, Frame},
    wire::{Datagram, HEADER_LEN, TAG_LEN},
};
use proptest::prelude::*;
use std::collections::HashMap;
use zeroize::Zeroizing;

/// A link and what a driver keeps for it.
struct End {
    keys: Arc<Keys>,
    link: Link,
    open: HashMap<u32, Arc<Session>>,
    seal: Option<Arc<Session>>,
    indices: u32,
    gave_up: bool,
}

impl End {
    fn pair() -> (Self, Self) {
        let keys = |b| Arc::new(Keys::new(Zeroizing::new([b; 32])));
        let (a, b) = (keys(1), keys(2));
        let end = |keys: &Arc<Keys>, peer: &Arc<Keys>, indices| Self {
            keys: keys.clone(),
            link: Link::new(keys.clone(), peer.public()),
            open: HashMap::new(),
            seal: None,
            indices,
            gave_up: false,
        };
        (end(&a, &b, 100), end(&b, &a, 900))
    }

    fn index(&mut self) -> u32 {
        self.indices += 1;
        self.indices
    }

    /// Does what the link asks, returns what is to be sent.
    fn run(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(output) = self.link.poll() {
            match output {
                Output::Transmit(message) => out.push(message),
                Output::Install(session) => drop(self.open.insert(session.local_index(), session)),
                Output::SendWith(session) => self.seal = session,
                Output::Retire(index) => drop(self.open.remove(&index)),
                Output::GaveUp => self.gave_up = true,
            }
        }
        out
    }

    fn start(&mut self, now: Instant) -> Vec<u8> {
        let index = self.index();
        self.link.open(now, index).expect("a valid key")
    }

    fn tick(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let index = self.index();
        self.link.tick(now, true, index);
        self.run()
    }

    fn data(&self, number: u64) -> Option<Vec<u8>> {
        let mut buf = vec![0; HEADER_LEN + FRAME_HEADER_LEN + TAG_LEN];
        Frame::Ping(number).write_header(&mut buf[HEADER_LEN..]);
        self.seal.as_ref()?.seal(&mut buf, FRAME_HEADER_LEN)?;
        Some(buf)
    }

    /// Handles any datagram: answers, and the number of a data frame.
    fn receive(&mut self, now: Instant, datagram: &[u8]) -> (Vec<Vec<u8>>, Option<u64>) {
        let mut out = Vec::new();
        let mut got = None;
        match wire::parse(datagram) {
            Ok(Datagram::Initiation { sender, noise }) => {
                let index = self.index();
                if let Ok(answer) = OpenedInitiation::read(&self.keys, sender, noise)
                    .and_then(|o| self.link.accept(now, o, index, false, &[]))
                {
                    out.push(answer);
                }
            }
            Ok(Datagram::Response { .. }) if self.link.answered(now, datagram).is_ok() => {
                self.run();
                out.extend(self.data(u64::MAX));
            }
            Ok(Datagram::Data { receiver, counter }) => {
                if let Some(session) = self.open.get(&receiver).cloned() {
                    let mut bytes = datagram.to_vec();
                    if let Ok(plain) = session.open(&mut bytes, counter) {
                        let Some(Frame::Ping(number)) = Frame::parse(plain) else {
                            panic!("not what was sealed")
                        };
                        got = Some(number);
                        if session.confirm() {
                            self.link.confirmed(receiver);
                        }
                    }
                }
            }
            _ => {}
        }
        out.extend(self.run());
        (out, got)
    }
}

#[test]
fn one_round_trip_gives_both_sides_the_same_keys() {
    let now = Instant::now();
    let (mut a, mut b) = End::pair();
    let first = a.start(now);
    let (answers, _) = b.receive(now, &first);
    assert!(
        b.seal.is_none(),
        "the responder does not seal before the initiator has proved its keys"
    );
    let (confirmation, _) = a.receive(now, &answers[0]);
    assert_eq!(b.receive(now, &confirmation[0]).1, Some(u64::MAX));
    assert_eq!(a.receive(now, &b.data(7).expect("confirmed")).1, Some(7));
    assert_eq!(
        a.seal.as_ref().map(|s| s.cipher()),
        b.seal.as_ref().map(|s| s.cipher())
    );
}

#[test]
fn a_replayed_initiation_is_refused_and_a_replayed_datagram_too() {
    let now = Instant::now();
    let (mut a, mut b) = End::pair();
    let first = a.start(now);
    let (answers, _) = b.receive(now, &first);
    let (confirmation, _) = a.receive(now, &answers[0]);
    b.receive(now, &confirmation[0]);
    assert_eq!(b.receive(now, &confirmation[0]).1, None);
    assert!(b.receive(now, &first).0.is_empty());
    assert!(a.receive(now, &answers[0]).0.is_empty());
}

#[test]
fn a_strangers_initiation_is_no_key_to_this_link() {
    let now = Instant::now();
    let (_, mut b) = End::pair();
    let stranger = Arc::new(Keys::new(Zeroizing::new([9; 32])));
    let message = Link::new(stranger, b.keys.public())
        .open(now, 5)
        .expect("a valid key");
    assert!(b.receive(now, &message).0.is_empty());
}

#[test]
fn an_unanswered_handshake_is_retried_and_then_given_up() {
    let start = Instant::now();
    let (mut a, _) = End::pair();
    a.start(start);
    let sent: usize = (1..=30)
        .map(|s| a.tick(start + Duration::from_secs(s)).len())
        .sum();
    assert!(a.gave_up);
    assert!((8..=10).contains(&sent), "{sent} tries");
}

#[test]
fn a_carried_handshake_may_be_slow_or_lost() {
    let start = Instant::now();
    let (mut a, mut b) = End::pair();
    let message = a.link.open_carried(start, 50, &[]).expect("a valid key");
    let late = start + Duration::from_secs(5);
    assert!(a.tick(late).is_empty(), "not sent again by itself");
    let (answers, _) = b.receive(late, &message);
    assert!(!a.receive(late, &answers[0]).0.is_empty() && a.seal.is_some());
    a.link.open_carried(late, 51, &[]).expect("a valid key");
    assert!(
        (5..100).all(|s| a.tick(start + Duration::from_secs(s)).is_empty())
            && !a.gave_up
            && a.seal.is_some()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// For ten minutes both sides send each second over a wire that loses, doubles and delays. No
    /// datagram arrives twice, and once the wire is good everything sent arrives, across all
    /// rekeyings.
    #[test]
    fn rekeying_loses_nothing_on_good_wires_and_recovers_on_bad_ones(
        seed in proptest::collection::vec(any::<u8>(), 512), both in any::<bool>()
    ) {
        let start = Instant::now();
        let (mut a, mut b) = End::pair();
        let mut wire: Vec<(u64, bool, Vec<u8>)> = vec![(0, true, a.start(start))];
        if both { wire.push((0, false, b.start(start))); }
        let mut chance = seed.iter().cycle();
        let mut arrived: [HashMap<u64, u32>; 2] = Default::default();
        for second in 0..600u64 {
            let (bad, now) = (second < 200, start + Duration::from_secs(second));
            let due: Vec<_> = wire.extract_if(.., |(at, _, _)| *at <= second).collect();
            for (_, to_b, datagram) in due {
                let mut copies = vec![datagram];
                if bad {
                    match chance.next().copied().unwrap_or(0) % 8 {
                        0 => copies.clear(), 1 => copies.push(copies[0].clone()), _ => {}
                    }
                }
                for datagram in copies {
                    let end = if to_b { &mut b } else { &mut a };
                    let (answers, got) = end.receive(now, &datagram);
                    if let Some(number) = got {
                        *arrived[usize::from(to_b)].entry(number).or_default() += 1;
                    }
                    let late = if bad {
                        u64::from(chance.next().copied().unwrap_or(0) % 3)
                    } else { 0 };
                    wire.extend(answers.into_iter().map(|d| (second + 1 + late, !to_b, d)));
                }
            }
            for (to_b, end) in [(true, &mut a), (false, &mut b)] {
                wire.extend(end.tick(now).into_iter().map(|d| (second + 1, to_b, d)));
                if end.gave_up {
                    end.gave_up = false;
                    let d = end.start(now);
                    wire.push((second + 1, to_b, d));
                }
                if end.seal.is_none() && end.link.opening.is_none() && to_b {
                    let d = end.start(now);
                    wire.push((second + 1, to_b, d));
                }
                if let Some(d) = end.data(second) { wire.push((second + 1, to_b, d)); }
            }
        }
        for side in &arrived {
            prop_assert!(side.iter().all(|(number, times)| *number == u64::MAX || *times == 1));
            let lost: Vec<u64> = (230..598).filter(|n| !side.contains_key(n)).collect();
            prop_assert!(lost.is_empty(), "lost {:?}", lost);
        }
    }
}

#[test]
fn what_a_carried_handshake_says_besides_arrives_sealed_both_ways() {
    let ((mut a, mut b), now) = (End::pair(), Instant::now());
    let hello = vec![7; wire::MAX_EXTRA_LEN];
    let message = a.link.open_carried(now, 50, &hello).expect("it fits");
    assert!(
        !message.windows(32).any(|w| w == &hello[..32]),
        "it travels sealed"
    );
    let Ok(Datagram::Initiation { sender, noise }) = wire::parse(&message) else {
        panic!("an initiation")
    };
    let opened = OpenedInitiation::read(&b.keys, sender, noise).expect("meant for this key");
    assert_eq!(opened.extra, hello);
    let answer = b
        .link
        .accept(now, opened, 60, false, b"here I am")
        .expect("newer than any");
    b.run();
    assert!(
        b.seal.is_none(),
        "nothing proves yet that the message is no replay"
    );
    b.link.seal_if_none(60);
    b.run();
    assert!(b.seal.is_some());
    assert_eq!(
        a.link.answered(now, &answer).expect("the answer"),
        b"here I am"
    );
    assert!(
        a.link
            .open_carried(now, 51, &vec![0; wire::MAX_EXTRA_LEN + 1])
            .is_err()
    );
}

#[test]
fn handshakes_carried_two_ways_at_once_do_not_collide() {
    for order in [[0, 1], [1, 0]] {
        let (mut a, mut b) = End::pair();
        let now = Instant::now();
        let messages =
            [50, 51].map(|index| a.link.open_carried(now, index, &[]).expect("a valid key"));
        // The far end may take only the newer one, if that comes first (the older looks like a
        // replay), but what it answers counts.
        let mut made = 0;
        for which in order {
            let Ok(Datagram::Initiation { sender, noise }) = wire::parse(&messages[which]) else {
                panic!("no initiation")
            };
            let index = b.index();
            let opened = OpenedInitiation::read(&b.keys, sender, noise).expect("genuine");
            let Ok(answer) = b.link.accept(now, opened, index, false, &[]) else {
                continue;
            };
            b.run();
            a.link.answered(now, &answer).expect("asked for");
            a.run();
            let greeting = a.data(7).expect("it seals");
            assert_eq!(b.receive(now, &greeting).1, Some(7));
            made += 1;
        }
        assert!(made >= 1);
        assert!(order == [1, 0] || made == 2, "in order both are answered");
        let back = b.data(8).expect("it seals");
        assert_eq!(a.receive(now, &back).1, Some(8));
    }
}

#[test]
fn of_handshakes_that_are_carried_only_the_newest_are_kept() {
    let (mut a, _) = End::pair();
    let now = Instant::now();
    for index in 0..100 {
        a.link.open_carried(now, index, &[]).expect("a valid key");
    }
    assert_eq!(
        (0..100)
            .filter(|i| a.link.waits_for(*i))
            .collect::<Vec<_>>(),
        [96, 97, 98, 99]
    );
    a.link.tick(now + CARRIED_LIMIT, true, 200);
    assert!(!(0..100).any(|i| a.link.waits_for(i)), "in the end none is");
}

#[test]
fn a_forged_answer_does_not_end_the_handshake() {
    let (mut a, mut b) = End::pair();
    let now = Instant::now();
    let message = a.link.open_carried(now, 50, &[]).expect("a valid key");
    let Ok(Datagram::Initiation { sender, noise }) = wire::parse(&message) else {
        panic!("no initiation")
    };
    let opened = OpenedInitiation::read(&b.keys, sender, noise).expect("genuine");
    let index = b.index();
    let answer = b.link.accept(now, opened, index, false, &[]).expect("new");
    let Ok(Datagram::Response {
        sender,
        receiver,
        noise,
    }) = wire::parse(&answer)
    else {
        panic!("no response")
    };
    // An observer of the initiation knows its index, and every member knows the key that the stamp
    // is made with.
    for changed in [0, noise.len() - 1] {
        let mut noise = noise.to_vec();
        noise[changed] ^= 1;
        let mut forged = wire::response(sender, receiver, &noise);
        cookie::stamp(&mut forged, &a.keys.public().0, None);
        assert_eq!(
            a.link.answered(now, &forged).map(|_| ()),
            Err(LinkRefusal::Forged)
        );
    }
    a.link
        .answered(now, &answer)
        .expect("the genuine one still counts");
    a.run();
    b.run();
    let greeting = a.data(7).expect("it seals");
    assert_eq!(b.receive(now, &greeting).1, Some(7));
}
