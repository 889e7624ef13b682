//! Which way a link's datagrams go. Candidates are probed with sealed pings over the session itself (so that a probe is a
//! punch, proves the far end and measures at once); the best that answers is selected; a silent one is noticed and given up.
//! After RFC 8445 (ICE), less its roles: each side selects for its own direction. Sans-IO.

use super::Path;
use crate::{id::MemberId, link::frame::ROAMED};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Pauses between the probes of a candidate: dense at first, when both NATs are opening, seven in all within some 4 s.
const PROBE_PAUSES_MS: [u64; 7] = [60, 100, 200, 400, 800, 1500, 1500];
/// Data was sent and nothing came back for this long: the path is probed.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1000);
/// Pause between probes of a suspect path: four round trips within these bounds.
const SUSPECT_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(700));
/// So many probes without answer end a path: with [`SUSPECT_AFTER`] that is 2 to 3 s after the last sign of life.
const SUSPECT_PROBES: u32 = 3;
/// So many unanswered, and whatever else answers takes over.
const SILENT_PROBES: u32 = 2;
/// The peer uses another path, and ours was silent for this long: it is probed at once.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// A quiet path whose NAT mappings must live is probed this often (RFC 4787 asks NATs for 2 minutes, many give 30 s).
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// A path that was not selected is forgotten this long after it last answered.
const SPARE_LIFE: Duration = Duration::from_secs(30);
/// Candidates a peer may make us remember.
const MAX_PATHS: usize = 24;
/// While data goes through others, the way in use and the spare ones are measured this often, so that the better one is
/// known and the next one is warm.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Direct ways that once answered, tried again when all is silent.
const MAX_REMEMBERED: usize = 8;
/// Another relay must save this much besides.
const WORTH_CHANGING: Duration = Duration::from_millis(1);
/// After a change of address the first way that the peer is heard by is followed; others do not compete for this long.
const FOLLOW: Duration = Duration::from_secs(5);
/// For so long after a change of this host's addresses its probes ask the peer to follow.
const ROAMING: Duration = Duration::from_secs(10);

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
    /// The ring comes last; a stream comes before relays.
    order: (bool, bool),
    remembered: VecDeque<Path>,
    /// The peer has moved and was heard by this way.
    follow: Option<(Path, Instant)>,
    /// This host has moved.
    roamed: Option<Instant>,
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
    /// UDP does not get through: a stream is better than relays, whose last leg would be one too.
    pub stream_first: bool,
}

/// How good a path is by its kind alone. To a neighbour on the ring anything is better than the ring itself, which rests on
/// such links.
fn class(path: &Path, (ring_last, stream_first): (bool, bool)) -> u8 {
    match path {
        Path::Direct(_) => 0,
        Path::Relayed(_) => 1 + 3 * u8::from(stream_first),
        Path::Ring => 2 + 3 * u8::from(ring_last),
        Path::Stream => 3,
    }
}

impl Paths {
    /// The way data goes now.
    pub fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// Whether `path` is a way to the peer, tried or in use.
    pub fn knows(&self, path: Path) -> bool {
        self.known.contains_key(&path)
    }

    /// Asks at once whether the path in use lives, unless that is being asked.
    pub fn doubt(&mut self, now: Instant) {
        if let Some(path) = self.selected
            && self.suspect_probes == 0
        {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// Since when it goes that way.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The last measured round trip of the selected path.
    pub fn rtt(&self) -> Option<Duration> {
        self.known.get(&self.selected?)?.rtt
    }

    /// The relays through which the peer has answered.
    pub fn relays(&self) -> Vec<MemberId> {
        let relay = |(path, known): (&Path, &Known)| match path {
            Path::Relayed(relay) if known.answered.is_some() => Some(*relay),
            _ => None,
        };
        self.known.iter().filter_map(relay).collect()
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
        self.remember(path);
        if self.selected == Some(path) {
            self.suspect_probes = 0;
            return;
        }
        let follows = self.follow.is_some_and(|(to, since)| to == path && now.saturating_duration_since(since) < FOLLOW);
        let better = match self.selected {
            None => true,
            Some(old) if self.suspect_probes >= SILENT_PROBES => path != Path::Stream || old == Path::Stream,
            Some(old) if follows && class(&path, self.order) <= class(&old, self.order) => true,
            // A fifth better before a path of the same class replaces the one in use: no flapping.
            Some(old) => (class(&path, self.order), Some(rtt)) < (class(&old, self.order), self.rtt().map(|r| r * 4 / 5)),
        };
        // Among relays a fraction of a millisecond is noise.
        let alike = matches!((path, self.selected), (Path::Relayed(_), Some(Path::Relayed(_)))) && self.suspect_probes < SILENT_PROBES;
        if better && !(alike && self.rtt().is_some_and(|old| rtt + WORTH_CHANGING > old)) {
            self.select(Some(path), now);
        }
    }

    /// Gives up `path`; the next best that has answered takes over. False if it was not known.
    pub fn remove(&mut self, path: Path, now: Instant) -> bool {
        let known = self.known.remove(&path).is_some();
        if self.selected == Some(path) {
            let living = self.known.iter().filter(|(_, k)| k.answered.is_some());
            match living.min_by_key(|(p, k)| (class(p, self.order), k.rtt)).map(|(p, _)| *p) {
                None if self.ring && path != Path::Ring => {
                    self.select(None, now);
                    self.assume(Path::Ring, now);
                }
                None => self.select(None, now),
                Some(next) => {
                    self.select(Some(next), now);
                    // It answered a while ago: it has to show that it still does.
                    self.suspect_probes = 1;
                    self.probe(next, now);
                }
            }
        }
        known
    }

    /// Gives up every way that `is_bad`, for good.
    pub fn forget(&mut self, is_bad: impl Fn(&Path) -> bool, now: Instant) {
        self.remembered.retain(|path| !is_bad(path));
        let bad: Vec<Path> = self.known.keys().filter(|path| is_bad(path)).copied().collect();
        // The one in use last: its successor must not be another of them.
        let (last, first): (Vec<Path>, Vec<Path>) = bad.into_iter().partition(|path| self.selected == Some(*path));
        for path in first.into_iter().chain(last) {
            self.remove(path, now);
        }
    }

    /// Forgets every way.
    pub fn remove_all(&mut self, now: Instant) {
        self.known.clear();
        if self.selected.is_some() {
            self.select(None, now);
        }
    }

    fn remember(&mut self, path: Path) {
        if matches!(path, Path::Direct(_)) && !self.remembered.contains(&path) {
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(path);
        }
    }

    /// Tries again every direct way that once worked.
    pub fn try_remembered(&mut self, now: Instant) {
        for path in self.remembered.clone() {
            self.add(path, now);
        }
    }

    /// This host's addresses changed, or it slept: everything known is tried at once, and the peer asked to follow.
    pub fn rouse(&mut self, now: Instant) {
        self.roamed = Some(now);
        self.try_remembered(now);
        for path in self.known.keys().copied().collect::<Vec<_>>() {
            self.add(path, now);
        }
        if let Some(path) = self.selected {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// The peer's addresses changed, and `path` is where it is heard from now.
    pub fn peer_moved(&mut self, path: Path, now: Instant) {
        let taken = self.follow.is_some_and(|(_, since)| now.saturating_duration_since(since) < FOLLOW);
        if self.selected != Some(path) && !taken {
            self.follow = Some((path, now));
            self.add(path, now);
        }
    }

    fn select(&mut self, path: Option<Path>, now: Instant) {
        (self.selected, self.since, self.suspect_probes) = (path, path.map(|_| now), 0);
        self.steps.push_back(Step::Select(path));
    }

    fn probe(&mut self, path: Path, now: Instant) {
        // The highest bit, clear, tells a path's probe from a ping that a user asked for.
        let roaming = self.roamed.is_some_and(|at| now.saturating_duration_since(at) < ROAMING);
        let token = rand::random::<u64>() >> 2 | if roaming { ROAMED } else { 0 };
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
        (self.ring, self.order) = (activity.ring, (activity.ring_last, activity.stream_first));
        self.measure_spares(now, activity);
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

    /// While data goes through others, the spare ways are asked now and then.
    fn measure_spares(&mut self, now: Instant, activity: Activity) {
        let lively = activity.sent.is_some_and(|at| now.saturating_duration_since(at) < MEASURE_EVERY);
        if !lively || !matches!(self.selected, Some(Path::Relayed(_) | Path::Stream)) {
            return;
        }
        for (path, known) in &mut self.known {
            let due = known.answered.is_some_and(|at| now.saturating_duration_since(at) >= MEASURE_EVERY);
            if due && Some(*path) != self.selected && known.next_probe.is_none() && *path != Path::Stream {
                (known.tried, known.next_probe) = (PROBE_PAUSES_MS.len() - 2, Some(now));
            }
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
            if self.suspect_probes == SILENT_PROBES {
                self.try_remembered(now);
            }
            self.probe(path, now);
            return;
        }
        let keep = activity.keep_alive
            && since(activity.sent).is_none_or(|age| age >= KEEPALIVE)
            && since(self.since).is_some_and(|a| a >= KEEPALIVE);
        let measure = matches!(path, Path::Relayed(_))
            && since(activity.sent).is_some_and(|age| age < MEASURE_EVERY)
            && since(self.known.get(&path).and_then(|k| k.answered)).is_some_and(|age| age >= MEASURE_EVERY)
            && under_way.is_none();
        if keep || measure {
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
    fn ways_that_turn_out_bad_are_given_up_for_good_and_none_of_them_follows() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        for path in [direct(1), direct(2), RELAY] {
            paths.add(path, now);
        }
        paths.tick(now, Activity::default());
        for (path, token) in probes(&mut paths) {
            paths.pong(path, token, now);
        }
        assert_eq!(paths.selected(), Some(direct(1)));
        paths.forget(|path| matches!(path, Path::Direct(_)), now);
        assert_eq!(paths.selected(), Some(RELAY));
        paths.rouse(now);
        paths.tick(now, Activity::default());
        assert!(probes(&mut paths).iter().all(|(path, _)| *path == RELAY));
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

    fn living(paths: &mut Paths, path: Path, now: Instant, rtt_ms: u64) {
        paths.add(path, now);
        paths.tick(now, Activity::default());
        for (p, token) in probes(paths) {
            paths.pong(p, token, now + Duration::from_millis(rtt_ms));
        }
    }

    #[test]
    fn a_peer_that_says_it_moved_is_followed_at_its_first_answer() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        living(&mut paths, direct(1), start, 10);
        let turn = start + Duration::from_secs(3);
        paths.peer_moved(direct(2), turn);
        paths.peer_moved(direct(3), turn);
        paths.tick(turn, Activity { received: Some(turn), ..Activity::default() });
        let sent = probes(&mut paths);
        // Slower than what was, but where the peer is now.
        paths.pong(direct(2), sent.iter().find(|(p, _)| *p == direct(2)).unwrap().1, turn + Duration::from_millis(50));
        assert_eq!(paths.selected(), Some(direct(2)));
        assert!(sent.iter().all(|(p, _)| *p != direct(3)), "the first that it is heard by");
    }

    #[test]
    fn roused_it_asks_every_way_and_the_peer_to_follow() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        living(&mut paths, direct(1), start, 10);
        living(&mut paths, direct(2), start, 9);
        let turn = start + Duration::from_secs(100);
        paths.tick(turn, Activity::default());
        paths.rouse(turn);
        paths.tick(turn, Activity::default());
        let sent = probes(&mut paths);
        assert!([direct(1), direct(2)].iter().all(|path| sent.iter().any(|(p, _)| p == path)), "{sent:?}");
        assert!(sent.iter().all(|(_, token)| token & ROAMED != 0 && token >> 63 == 0));
    }

    #[test]
    fn the_other_family_takes_over_when_the_one_in_use_falls_silent() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        let v6 = Path::Direct("[2001:db8::1]:7".parse().unwrap());
        living(&mut paths, v6, start, 30);
        living(&mut paths, direct(1), start, 10);
        assert_eq!(paths.selected(), Some(direct(1)));
        // Long after the spare was forgotten.
        let silent = start + Duration::from_secs(300);
        let mut now = silent;
        while paths.selected() == Some(direct(1)) && now < silent + Duration::from_secs(10) {
            paths.tick(now, Activity { unanswered: Some(silent), sent: Some(now), ..Activity::default() });
            for (path, token) in probes(&mut paths) {
                if path == v6 {
                    paths.pong(path, token, now + Duration::from_millis(30));
                }
            }
            now += Duration::from_millis(20);
        }
        assert_eq!(paths.selected(), Some(v6));
        assert!(now < silent + Duration::from_secs(3), "took {:?}", now - silent);
    }

    #[test]
    fn a_spare_relay_stays_warm_and_takes_over_within_three_seconds() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        let other = Path::Relayed(MemberId([8; 32]));
        living(&mut paths, RELAY, start, 10);
        living(&mut paths, other, start, 12);
        assert_eq!(paths.relays().len(), 2);
        let (mut now, died) = (start, start + Duration::from_secs(95));
        while now < died + Duration::from_secs(5) && paths.selected() != Some(other) {
            let dead = now >= died;
            let heard = if dead { died } else { now };
            paths.tick(now, Activity { received: Some(heard), sent: Some(now), unanswered: dead.then_some(died), ..Activity::default() });
            for (path, token) in probes(&mut paths) {
                if path == other || !dead {
                    paths.pong(path, token, now + Duration::from_millis(10));
                }
            }
            now += Duration::from_millis(20);
        }
        assert_eq!(paths.selected(), Some(other));
        assert!(now < died + Duration::from_secs(3), "took {:?}", now - died);
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
