//! How large a datagram each path carries, found by probing (RFC 8899, DPLPMTUD): sealed pings
//! padded to a size, sent with "don't fragment", are answered or are not; ICMP messages are neither
//! needed nor believed. A new path is probed for the full size first, which most carry; if that
//! fails, for a ladder of sizes at once, of which the largest that is answered is used. Until the
//! result is certain, packets too large for the smallest size that every path must carry go in
//! pieces, so that nothing is lost meanwhile. A size in use is probed again regularly, since a
//! route can change under a working path (a black hole in the sense of RFC 8899 §4.3). Sans-IO.

use crate::plane::types::Path;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many bytes of UDP payload every direct path carries (RFC 8899 §5.1.2, BASE_PLPMTU).
const BASE_DIRECT: u16 = 1200;
/// How many bytes every path through other members carries: 1280 bytes of IPv6 less its headers,
/// the datagram's and those of routing.
const BASE_OTHER: u16 = 1120;
/// How many bytes lie between the ladder's steps.
const STEP: usize = 16;
/// Sizes that use common links fully: 1280 bytes with IPv4 and IPv6, direct and through a relay.
const COMMON: [u16; 4] = [1252, 1232, 1208, 1188];
/// How many times the full size is probed before the ladder.
const FULL_TRIES: u32 = 2;
/// How many rounds the ladder has. Reason: one lost answer must not cost the size.
const LADDER_ROUNDS: u32 = 2;
/// How many unanswered probes of a size that was certain make it be given up (RFC 8899,
/// MAX_PROBES).
const CHECK_TRIES: u32 = 3;
/// How long an answer is waited for, at least and at most.
const WAIT: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(700));
/// How often a size that large packets use is probed again. Reason: a TCP connection that loses
/// them stands still until the retransmission after the smaller size is found, and each pause is
/// twice the one before (RFC 6298): found within 3 s, it goes on within 4 s; within 5 s, after 8 s.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long, at first and at last, before a path found small is probed for more; doubled each time,
/// up to RFC 8899's PMTU_RAISE_TIMER. Reason: loss, such as a relay at its limit, may have made it
/// look small.
const RAISE_AFTER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No path, or one without limit.
    Idle,
    Full(u32),
    Ladder(u32),
    Settled,
    Check(u32),
}

/// A padded ping to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// This way.
    pub path: Path,
    /// With this token.
    pub token: u64,
    /// As a datagram of so many bytes.
    pub size: u16,
}

/// The search on the path in use to one peer.
pub struct Pmtu {
    /// The largest datagram ever sent: a full packet of the TUN, sealed.
    full: u16,
    path: Option<Path>,
    phase: Phase,
    best: u16,
    asked: Vec<(u64, u16)>,
    next: Option<Instant>,
    /// When the search ended, or the check began.
    since: Instant,
    raise_after: Duration,
    /// A small question was answered during the check.
    alive: bool,
    /// Large packets were sent since the last check began. Kept until the next one is due: a
    /// connection that loses them sends ever more rarely.
    unchecked: bool,
    questions: VecDeque<Question>,
}

impl Pmtu {
    /// Starts knowing nothing. `full`: the largest datagram that is ever sent.
    pub fn new(full: u16, now: Instant) -> Self {
        Self {
            full,
            path: None,
            phase: Phase::Idle,
            best: full.min(BASE_OTHER),
            asked: Vec::new(),
            next: None,
            since: now,
            raise_after: RAISE_AFTER.0,
            alive: false,
            unchecked: false,
            questions: VecDeque::new(),
        }
    }

    fn base(&self) -> u16 {
        self.full
            .min(if matches!(self.path, Some(Path::Direct(_))) {
                BASE_DIRECT
            } else {
                BASE_OTHER
            })
    }

    /// The largest datagram to send, and whether it is certain that larger ones do not get through.
    pub fn limit(&self) -> (u16, bool) {
        (
            self.best,
            matches!(self.phase, Phase::Settled | Phase::Check(_)),
        )
    }

    /// Whether an answer is waited for.
    pub fn busy(&self) -> bool {
        matches!(
            self.phase,
            Phase::Full(_) | Phase::Ladder(_) | Phase::Check(_)
        )
    }

    /// Notes that data takes this path from now on.
    pub fn selected(&mut self, path: Option<Path>, now: Instant) {
        if self.path != path {
            self.path = path;
            self.restart(now);
        }
    }

    /// Starts the search again: what is known of the path may be wrong.
    pub fn restart(&mut self, now: Instant) {
        self.asked.clear();
        self.unchecked = false;
        self.best = self.base();
        self.raise_after = RAISE_AFTER.0;
        (self.phase, self.next) = match self.path {
            None => (Phase::Idle, None),
            Some(Path::Stream) => {
                self.best = self.full;
                (Phase::Settled, None)
            }
            Some(_) => (Phase::Full(0), Some(now)),
        };
    }

    /// Probes the size in use at once: the kernel refused a datagram as too large for its
    /// interface.
    pub fn doubt(&mut self, now: Instant) {
        if self.phase == Phase::Settled && self.best > self.base() {
            self.check(now);
        }
    }

    fn check(&mut self, now: Instant) {
        (self.phase, self.next, self.since) = (Phase::Check(0), Some(now), now);
        self.unchecked = false;
        self.asked.clear();
    }

    fn settle(&mut self, now: Instant) {
        (self.phase, self.since, self.next) = (Phase::Settled, now, None);
        self.asked.clear();
    }

    /// Takes an answer; false if this search did not ask.
    pub fn pong(&mut self, token: u64, now: Instant) -> bool {
        let Some(&(_, size)) = self.asked.iter().find(|(t, _)| *t == token) else {
            return false;
        };
        self.alive = true;
        self.best = self.best.max(size);
        let enough = size == self.full
            || (size > self.base() && matches!(self.phase, Phase::Check(_)) && size >= self.best);
        if enough {
            self.settle(now);
        }
        true
    }

    fn ask(&mut self, size: u16) {
        let Some(path) = self.path else { return };
        // The two high bits tell other pings from those of paths.
        let token = rand::random::<u64>() >> 2;
        self.asked.push((token, size));
        self.questions.push_back(Question { path, token, size });
    }

    fn ladder(&self) -> Vec<u16> {
        let mut sizes: Vec<u16> = (self.base()..=self.full)
            .rev()
            .step_by(STEP)
            .chain(COMMON)
            .collect();
        sizes.retain(|s| *s > self.best && *s <= self.full);
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Does what is due. `large`: large packets were sent since the last call.
    pub fn tick(&mut self, now: Instant, rtt: Option<Duration>, large: bool) {
        self.unchecked |= large;
        if self.phase == Phase::Settled && self.path != Some(Path::Stream) {
            let age = now.saturating_duration_since(self.since);
            if self.best < self.full && age >= self.raise_after {
                self.raise_after = (self.raise_after * 2).min(RAISE_AFTER.1);
                (self.phase, self.next) = (Phase::Full(0), Some(now));
            } else if self.unchecked && self.best > self.base() && age >= CHECK_EVERY {
                self.check(now);
            }
        }
        if self.next.is_none_or(|at| at > now) {
            return;
        }
        let wait = rtt.map_or(WAIT.1, |rtt| rtt * 2).clamp(WAIT.0, WAIT.1);
        match self.phase {
            Phase::Full(tries) if tries < FULL_TRIES => {
                self.ask(self.full);
                self.phase = Phase::Full(tries + 1);
            }
            Phase::Full(_) => return self.climb(0, now, wait),
            Phase::Ladder(rounds) if rounds < LADDER_ROUNDS => {
                return self.climb(rounds, now, wait);
            }
            Phase::Ladder(_) => return self.settle(now),
            Phase::Check(tries) if tries < CHECK_TRIES => {
                // A small one beside it tells a path that became small from one that is dead.
                self.alive &= tries > 0;
                self.ask(self.base());
                self.ask(self.best);
                self.phase = Phase::Check(tries + 1);
            }
            // If small ones are lost too the path is dead, which others notice; if only large ones
            // are, it is a black hole.
            Phase::Check(_) if !self.alive => return self.settle(now),
            Phase::Check(_) => {
                (self.best, self.raise_after) = (self.base(), RAISE_AFTER.0);
                return self.climb(0, now, wait);
            }
            Phase::Idle | Phase::Settled => {}
        }
        self.next = Some(now + wait);
    }

    fn climb(&mut self, rounds: u32, now: Instant, wait: Duration) {
        let sizes = self.ladder();
        if sizes.is_empty() {
            return self.settle(now);
        }
        sizes.into_iter().for_each(|size| self.ask(size));
        (self.phase, self.next) = (Phase::Ladder(rounds + 1), Some(now + wait));
    }

    pub fn poll(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: u16 = 1384;

    fn direct() -> Option<Path> {
        Some(Path::Direct(([192, 0, 2, 1], 7).into()))
    }

    /// Runs the search for `ms` over a path that carries `carries(now)` bytes; answers come `rtt`
    /// later.
    fn run(
        pmtu: &mut Pmtu,
        start: Instant,
        ms: u64,
        large: bool,
        carries: impl Fn(u64) -> u16,
    ) -> u32 {
        let (mut answers, mut sent) = (Vec::<(u64, u64)>::new(), 0);
        for at in (0..ms).step_by(10) {
            let now = start + Duration::from_millis(at);
            answers.retain(|(due, token)| {
                if *due <= at {
                    pmtu.pong(*token, now);
                }
                *due > at
            });
            pmtu.tick(now, Some(Duration::from_millis(40)), large);
            while let Some(question) = pmtu.poll() {
                sent += 1;
                if question.size <= carries(at) {
                    answers.push((at + 40, question.token));
                }
            }
        }
        sent
    }

    #[test]
    fn a_path_that_carries_everything_is_sure_after_one_question() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(direct(), now);
        assert_eq!(pmtu.limit(), (1200, false));
        assert_eq!(run(&mut pmtu, now, 3000, false, |_| 1472), 1);
        assert_eq!(pmtu.limit(), (FULL, true));
    }

    #[test]
    fn a_link_of_1280_bytes_is_found_within_a_second() {
        for carries in [1252, 1232, 1208] {
            let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
            pmtu.selected(direct(), now);
            run(&mut pmtu, now, 1000, false, |_| carries);
            assert_eq!(pmtu.limit(), (carries, true));
        }
    }

    #[test]
    fn a_path_that_shrinks_under_large_packets_is_noticed_within_four_seconds() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(direct(), now);
        run(&mut pmtu, now, 4500, true, |at| {
            if at < 500 { 1472 } else { 1252 }
        });
        assert_eq!(pmtu.limit(), (1252, true));
    }

    /// When a TCP connection that stands still since `shrinks` gets its first packet through: the
    /// moments of RFC 6298's retransmissions, with the size in use at each. Nothing else is sent.
    fn first_carried(shrinks: u64) -> u64 {
        let (mut pmtu, start) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        let (mut answers, mut retransmits) = (Vec::<(u64, u64)>::new(), Vec::new());
        let mut pause = 250;
        pmtu.selected(direct(), start);
        for at in (0..shrinks + 60_000).step_by(10) {
            let now = start + Duration::from_millis(at);
            answers.retain(|(due, token)| {
                if *due <= at {
                    pmtu.pong(*token, now);
                }
                *due > at
            });
            let retransmit = at == shrinks + retransmits.iter().sum::<u64>() + pause;
            if retransmit {
                if pmtu.limit().0 <= 1252 {
                    return at - shrinks;
                }
                retransmits.push(pause);
                pause *= 2;
            }
            // As the clock's thread: often while an answer is awaited, else every 250 ms, where a
            // packet of any moment since the last tick counts.
            if at % 250 == 0 || pmtu.busy() && at % 20 == 0 {
                let large = at < shrinks || retransmits.iter().sum::<u64>() + 250 > at - shrinks;
                pmtu.tick(now, Some(Duration::from_millis(40)), large);
            }
            while let Some(question) = pmtu.poll() {
                if question.size <= if at < shrinks { 1472 } else { 1252 } {
                    answers.push((at + 40, question.token));
                }
            }
        }
        panic!("found nothing in a minute")
    }

    #[test]
    fn a_shrinking_path_is_found_before_a_streams_fourth_retransmission() {
        for shrinks in (10_000..16_000).step_by(50) {
            let took = first_carried(shrinks);
            assert!(took <= 3750, "shrunk at {shrinks} ms: {took} ms");
        }
    }

    #[test]
    fn a_path_that_loss_made_look_small_is_soon_used_fully() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(Some(Path::Relayed(crate::id::MemberId([1; 32]))), now);
        run(
            &mut pmtu,
            now,
            5000,
            true,
            |at| if at < 2000 { 0 } else { 1472 },
        );
        assert_eq!(pmtu.limit(), (BASE_OTHER, true));
        run(
            &mut pmtu,
            now + Duration::from_secs(5),
            10_000,
            true,
            |_| 1472,
        );
        assert_eq!(pmtu.limit(), (FULL, true));
    }

    #[test]
    fn a_path_that_is_small_is_asked_ever_less_often() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(direct(), now);
        run(&mut pmtu, now, 1000, false, |_| 1232);
        let mut from = now + Duration::from_secs(1);
        let in_ten_minutes: Vec<u32> = (0..3)
            .map(|_| {
                from += Duration::from_secs(600);
                run(&mut pmtu, from, 600_000, false, |_| 1232)
            })
            .collect();
        assert!(
            in_ten_minutes[0] > in_ten_minutes[2] && in_ten_minutes[2] <= 40,
            "{in_ten_minutes:?} questions"
        );
        assert_eq!(pmtu.limit(), (1232, true));
    }

    #[test]
    fn a_dead_path_is_not_taken_for_a_small_one() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(direct(), now);
        run(&mut pmtu, now, 1000, true, |_| 1472);
        for ms in (1000..20_000).step_by(20) {
            pmtu.tick(now + Duration::from_millis(ms), None, true);
        }
        assert_eq!(pmtu.limit(), (FULL, true));
    }

    #[test]
    fn a_stream_has_no_limit_and_no_path_is_asked_nothing() {
        let (mut pmtu, now) = (Pmtu::new(FULL, Instant::now()), Instant::now());
        pmtu.selected(Some(Path::Stream), now);
        assert_eq!(
            (run(&mut pmtu, now, 20_000, true, |_| 0), pmtu.limit()),
            (0, (FULL, true))
        );
        pmtu.selected(None, now);
        assert_eq!(run(&mut pmtu, now, 1000, true, |_| 0), 0);
    }
}
