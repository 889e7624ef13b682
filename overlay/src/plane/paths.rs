//! Which way a link's datagrams go. Candidates are probed with sealed pings over the session itself (so that a probe is a
//! punch, proves the far end and measures at once); the best that answers is selected; a silent one is noticed and given up.
//! After RFC 8445 (ICE), less its roles: each side selects for its own direction. Sans-IO.

use super::Path;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Pauses between the probes of a candidate: dense at first, when both NATs are opening, seven in all within some 4 s.
const PROBE_PAUSES_MS: [u64; 7] = [60, 100, 200, 400, 800, 1500, 1500];
/// Data was sent and nothing came back for this long: the path is probed.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(2000);
/// Pause between probes of a suspect path: four round trips within these bounds.
const SUSPECT_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(700));
/// So many probes without answer end a path: with [`SUSPECT_AFTER`] that is 3 to 4 s after the last sign of life.
const SUSPECT_PROBES: u32 = 3;
/// The peer uses another path, and ours was silent for this long: it is probed at once.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// A quiet path whose NAT mappings must live is probed this often (RFC 4787 asks NATs for 2 minutes, many give 30 s).
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// A path that was not selected is forgotten this long after it last answered.
const SPARE_LIFE: Duration = Duration::from_secs(30);
/// Candidates a peer may make us remember.
const MAX_PATHS: usize = 24;

struct Known {
    tried: usize,
    next_probe: Option<Instant>,
    /// Tokens under way and when they left.
    probes: VecDeque<(u64, Instant)>,
    rtt: Option<Duration>,
    answered: Option<Instant>,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a ping with this token this way.
    Probe(Path, u64),
    /// Send data this way from now on; `None`: there is no way.
    Select(Option<Path>),
}

/// The ways to one peer.
#[derive(Default)]
pub struct Paths {
    known: BTreeMap<Path, Known>,
    selected: Option<Path>,
    since: Option<Instant>,
    suspect_probes: u32,
    ring: bool,
    ring_last: bool,
    steps: VecDeque<Step>,
}

/// When the peer's traffic last went either way, as far as liveness is concerned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Something verified came.
    pub received: Option<Instant>,
    /// The oldest data sent since then.
    pub unanswered: Option<Instant>,
    /// Anything at all was sent.
    pub sent: Option<Instant>,
    /// This side keeps the mapping alive.
    pub keep_alive: bool,
    /// There is a ring: where a path fails and no other is known, the ring carries on at once.
    pub ring: bool,
    /// Even a stream is better than the ring.
    pub ring_last: bool,
}

/// How good a path is by its kind alone. To a neighbour on the ring anything is better than the ring itself, which rests on
/// such links.
fn class(path: &Path, ring_last: bool) -> u8 {
    match path {
        Path::Direct(_) => 0,
        Path::Relayed(_) => 1,
        Path::Ring => 2 + 2 * u8::from(ring_last),
        Path::Stream => 3,
    }
}

impl Paths {
    /// The way data goes now.
    pub fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// Since when it goes that way.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The last measured round trip of the selected path.
    pub fn rtt(&self) -> Option<Duration> {
        self.known.get(&self.selected?)?.rtt
    }

    /// Whether any candidate is still being tried.
    pub fn probing(&self) -> bool {
        self.suspect_probes > 0 || self.known.iter().any(|(path, k)| Some(*path) != self.selected && k.next_probe.is_some())
    }

    /// Tries `path` from `now` on, again if it was tried before; one that lives already is left alone.
    pub fn add(&mut self, path: Path, now: Instant) {
        if self.selected == Some(path) || (!self.known.contains_key(&path) && self.known.len() >= MAX_PATHS) {
            return;
        }
        let known = Known { tried: 0, next_probe: Some(now), probes: VecDeque::new(), rtt: None, answered: None };
        let kept = self.known.entry(path).or_insert(known);
        (kept.tried, kept.next_probe) = (0, Some(now));
    }

    /// Uses `path` from now on if there is none, and probes it: something else has just shown that it works.
    pub fn assume(&mut self, path: Path, now: Instant) {
        if self.selected.is_none() {
            let known = Known { tried: 0, next_probe: None, probes: VecDeque::new(), rtt: None, answered: Some(now) };
            self.known.insert(path, known);
            self.select(Some(path), now);
            self.probe(path, now);
        }
    }

    /// A verified datagram came by `path`, which is not the one in use: worth trying if we do not know it or gave it up.
    /// `received`: when the path in use last showed life; the peer may have found it dead before us.
    pub fn heard(&mut self, path: Path, now: Instant, received: Option<Instant>) {
        if let Some(selected) = self.selected
            && self.suspect_probes == 0
            && received.is_none_or(|at| now.saturating_duration_since(at) >= DOUBT_AFTER)
        {
            self.suspect_probes = 1;
            self.probe(selected, now);
        }
        if self.known.get(&path).is_none_or(|k| k.answered.is_none() && (k.next_probe.is_none() || k.tried > 2)) {
            self.add(path, now);
        }
    }

    /// A pong came by `path`.
    pub fn pong(&mut self, path: Path, token: u64, now: Instant) {
        let Some(known) = self.known.get_mut(&path) else { return };
        let Some(at) = known.probes.iter().position(|(t, _)| *t == token) else { return };
        let (_, left) = known.probes[at];
        let rtt = now.saturating_duration_since(left);
        (known.rtt, known.answered, known.next_probe) = (Some(rtt), Some(now), None);
        known.probes.clear();
        if self.selected == Some(path) {
            self.suspect_probes = 0;
            return;
        }
        let better = match self.selected {
            None => true,
            // A fifth better before a path of the same class replaces the one in use: no flapping.
            Some(old) => (class(&path, self.ring_last), Some(rtt)) < (class(&old, self.ring_last), self.rtt().map(|r| r * 4 / 5)),
        };
        if better {
            self.select(Some(path), now);
        }
    }

    /// Gives up `path`; the next best that has answered takes over.
    pub fn remove(&mut self, path: Path, now: Instant) {
        self.known.remove(&path);
        if self.selected == Some(path) {
            let living = self.known.iter().filter(|(_, k)| k.answered.is_some());
            match living.min_by_key(|(p, k)| (class(p, self.ring_last), k.rtt)).map(|(p, _)| *p) {
                None if self.ring && path != Path::Ring => {
                    self.select(None, now);
                    self.assume(Path::Ring, now);
                }
                next => self.select(next, now),
            }
        }
    }

    /// Forgets every way.
    pub fn remove_all(&mut self, now: Instant) {
        self.known.clear();
        if self.selected.is_some() {
            self.select(None, now);
        }
    }

    fn select(&mut self, path: Option<Path>, now: Instant) {
        (self.selected, self.since, self.suspect_probes) = (path, path.map(|_| now), 0);
        self.steps.push_back(Step::Select(path));
    }

    fn probe(&mut self, path: Path, now: Instant) {
        // The high bit tells a path's probe from a ping that a user asked for.
        let token = rand::random::<u64>() >> 1;
        if let Some(known) = self.known.get_mut(&path) {
            known.probes.push_back((token, now));
            if known.probes.len() > PROBE_PAUSES_MS.len() {
                known.probes.pop_front();
            }
        }
        self.steps.push_back(Step::Probe(path, token));
    }

    /// What is due at `now`.
    pub fn tick(&mut self, now: Instant, activity: Activity) {
        (self.ring, self.ring_last) = (activity.ring, activity.ring_last);
        let due: Vec<Path> = self
            .known
            .iter()
            .filter(|(p, k)| Some(**p) != self.selected && k.next_probe.is_some_and(|t| t <= now))
            .map(|(p, _)| *p)
            .collect();
        for path in due {
            let Some(known) = self.known.get_mut(&path) else { continue };
            match PROBE_PAUSES_MS.get(known.tried) {
                Some(pause) => {
                    known.tried += 1;
                    known.next_probe = Some(now + Duration::from_millis(*pause));
                    self.probe(path, now);
                }
                None => known.next_probe = None,
            }
        }
        let selected = self.selected;
        self.known.retain(|path, k| {
            Some(*path) == selected || k.next_probe.is_some() || k.answered.is_some_and(|at| now.saturating_duration_since(at) < SPARE_LIFE)
        });
        if let Some(path) = selected {
            self.watch(path, now, activity);
        }
    }

    /// Liveness and keepalive of the path in use.
    fn watch(&mut self, path: Path, now: Instant, activity: Activity) {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let under_way = self.known.get(&path).and_then(|k| k.probes.back().copied());
        let probe_age = under_way.map(|(_, at)| now.saturating_duration_since(at));
        let heard_since_probe = under_way.is_some_and(|(_, at)| activity.received.is_some_and(|r| r > at));
        if heard_since_probe {
            // Its pong may be lost or late: it says nothing about what comes after.
            self.suspect_probes = 0;
            if let Some(known) = self.known.get_mut(&path) {
                known.probes.clear();
            }
        }
        let suspect =
            since(activity.unanswered).is_some_and(|age| age >= SUSPECT_AFTER) || (self.suspect_probes > 0 && under_way.is_some());
        if suspect && !heard_since_probe {
            let pause = self.rtt().map_or(SUSPECT_PAUSE.1, |rtt| (rtt * 4).clamp(SUSPECT_PAUSE.0, SUSPECT_PAUSE.1));
            if probe_age.is_some_and(|age| age < pause) {
                return;
            }
            if self.suspect_probes >= SUSPECT_PROBES {
                self.remove(path, now);
                return;
            }
            self.suspect_probes += 1;
            self.probe(path, now);
        } else if activity.keep_alive
            && since(activity.sent).is_none_or(|age| age >= KEEPALIVE)
            && since(self.since).is_some_and(|a| a >= KEEPALIVE)
        {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MemberId;

    fn probes(paths: &mut Paths) -> Vec<(Path, u64)> {
        std::iter::from_fn(|| paths.poll()).filter_map(|s| if let Step::Probe(p, t) = s { Some((p, t)) } else { None }).collect()
    }

    const RELAY: Path = Path::Relayed(MemberId([7; 32]));

    fn direct(port: u16) -> Path {
        Path::Direct(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn the_first_that_answers_is_used_and_a_direct_path_replaces_a_relay() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        paths.add(RELAY, now);
        paths.add(direct(1), now);
        paths.tick(now, Activity::default());
        let sent = probes(&mut paths);
        let token = |p: Path| sent.iter().find(|(q, _)| *q == p).map(|(_, t)| *t).unwrap();
        paths.pong(RELAY, token(RELAY), now + Duration::from_millis(5));
        assert_eq!(paths.poll(), Some(Step::Select(Some(RELAY))));
        paths.pong(direct(1), token(direct(1)), now + Duration::from_millis(90));
        assert_eq!(paths.poll(), Some(Step::Select(Some(direct(1)))));
        assert_eq!(paths.rtt(), Some(Duration::from_millis(90)));
    }

    #[test]
    fn a_pong_with_a_foreign_token_selects_nothing() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        paths.add(direct(1), now);
        paths.tick(now, Activity::default());
        let token = probes(&mut paths)[0].1;
        paths.pong(direct(1), token ^ 1, now);
        paths.pong(direct(2), token, now);
        assert_eq!(paths.selected(), None);
    }

    #[test]
    fn a_silent_path_is_given_up_within_five_seconds_and_the_spare_takes_over() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        for path in [direct(1), RELAY] {
            paths.add(path, start);
            paths.tick(start, Activity::default());
            for (p, token) in probes(&mut paths) {
                paths.pong(p, token, start + Duration::from_millis(10));
            }
        }
        assert_eq!(paths.selected(), Some(direct(1)));
        let unanswered = Activity { unanswered: Some(start), sent: Some(start), ..Activity::default() };
        let mut now = start;
        while paths.selected() == Some(direct(1)) && now < start + Duration::from_secs(10) {
            now += Duration::from_millis(100);
            paths.tick(now, unanswered);
        }
        assert_eq!(paths.selected(), Some(RELAY));
        assert!(now < start + Duration::from_secs(5), "took {:?}", now - start);
    }

    #[test]
    fn a_peer_that_went_over_to_another_path_is_followed_within_a_second() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.add(direct(1), start);
        paths.tick(start, Activity::default());
        let token = probes(&mut paths)[0].1;
        paths.pong(direct(1), token, start + Duration::from_millis(10));
        let turn = start + Duration::from_secs(9);
        paths.heard(RELAY, turn, Some(start));
        let mut now = turn;
        while paths.selected() != Some(RELAY) && now < turn + Duration::from_secs(5) {
            paths.tick(now, Activity { received: Some(start), ..Activity::default() });
            for (path, token) in probes(&mut paths) {
                if path == RELAY {
                    paths.pong(path, token, now + Duration::from_millis(10));
                }
            }
            now += Duration::from_millis(20);
        }
        assert!(now < turn + Duration::from_secs(1), "took {:?}", now - turn);
    }

    #[test]
    fn the_ring_carries_at_once_and_anything_better_replaces_it_but_a_stream_does_not() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        paths.assume(Path::Ring, now);
        assert_eq!(paths.selected(), Some(Path::Ring));
        let answer = |paths: &mut Paths, path: Path| {
            paths.add(path, now);
            paths.tick(now, Activity::default());
            let token = probes(paths).into_iter().rfind(|(p, _)| *p == path).map(|(_, t)| t).unwrap();
            paths.pong(path, token, now + Duration::from_millis(1));
        };
        answer(&mut paths, Path::Stream);
        assert_eq!(paths.selected(), Some(Path::Ring));
        answer(&mut paths, RELAY);
        assert_eq!(paths.selected(), Some(RELAY));
        paths.assume(Path::Ring, now);
        assert_eq!(paths.selected(), Some(RELAY), "what works is not given up for an assumption");
    }

    #[test]
    fn a_link_whose_only_path_dies_goes_on_over_the_ring_if_there_is_one() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        paths.add(direct(1), now);
        paths.tick(now, Activity { ring: true, ..Activity::default() });
        let token = probes(&mut paths)[0].1;
        paths.pong(direct(1), token, now);
        paths.remove(direct(1), now);
        assert_eq!(paths.selected(), Some(Path::Ring));
        paths.remove(Path::Ring, now);
        assert_eq!(paths.selected(), None, "a dead ring path is not taken again by itself");
    }

    #[test]
    fn a_dead_candidate_costs_seven_probes() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.add(direct(1), start);
        let mut sent = 0;
        for ms in (0..20_000).step_by(20) {
            paths.tick(start + Duration::from_millis(ms), Activity::default());
            sent += probes(&mut paths).len();
        }
        assert_eq!(sent, PROBE_PAUSES_MS.len());
        assert!(!paths.probing());
    }
}
