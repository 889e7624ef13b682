//! Which way a link's datagrams go. Candidates are probed with sealed pings over the session itself
//! (so that a probe is a punch, proves the far end and measures at once); the best that answers is
//! selected; a silent one is noticed and given up. After RFC 8445 (ICE), less its roles: each side
//! selects for its own direction. Sans-IO.

use super::Path;
use crate::{id::MemberId, link::frame::ROAMED};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Pauses between the probes of a candidate: dense at first, when both NATs are opening, seven in
/// all within some 4 s.
const PROBE_PAUSES_MS: [u64; 7] = [60, 100, 200, 400, 800, 1500, 1500];
/// Data was sent and nothing came back for this long: the path is probed.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1000);
/// Pause between probes of a suspect path: four round trips within these bounds.
const SUSPECT_PAUSE: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_millis(700));
/// So many probes without answer end a path: with [`SUSPECT_AFTER`] that is 2 to 3 s after the last
/// sign of life.
const SUSPECT_PROBES: u32 = 3;
/// So many unanswered, and whatever else answers takes over.
const SILENT_PROBES: u32 = 2;
/// The peer uses another path, and ours was silent for this long: it is probed at once.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// A quiet path whose NAT mappings must live is probed this often (RFC 4787 asks NATs for 2
/// minutes, many give 30 s).
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// A path that was not selected is forgotten this long after it last answered.
const SPARE_LIFE: Duration = Duration::from_secs(30);
/// Candidates a peer may make us remember.
const MAX_PATHS: usize = 24;
/// While data goes through others, the way in use and the spare ones are measured this often, so
/// that the better one is known and the next one is warm.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Direct ways that once answered, tried again when all is silent.
const MAX_REMEMBERED: usize = 8;
/// Another relay must save this much besides.
const WORTH_CHANGING: Duration = Duration::from_millis(1);
/// After a change of address the first way that the peer is heard by is followed; others do not
/// compete for this long.
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
    /// The way in use does not answer: whoever knows of another may look for it now.
    Silent,
}

/// The ways to one peer.
#[derive(Default)]
pub struct Paths {
    known: BTreeMap<Path, Known>,
    selected: Option<Path>,
    since: Option<Instant>,
    suspect_probes: u32,
    /// Since when nothing has shown that the way in use lives, nor another that has taken over.
    silence: Option<Instant>,
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

/// How good a path is by its kind alone. To a neighbour on the ring anything is better than the
/// ring itself, which rests on such links.
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

    /// The addresses of all direct ways, known or of before.
    pub fn direct_ways(&self) -> Vec<SocketAddr> {
        let ways = self.known.keys().chain(&self.remembered);
        ways.filter_map(|path| {
            if let Path::Direct(to) = path {
                Some(*to)
            } else {
                None
            }
        })
        .collect()
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

    /// Whether the way in use, if there is one, has left something unanswered for long, or is no
    /// more than assumed.
    pub fn is_silent(&self) -> bool {
        self.suspect_probes >= SILENT_PROBES || self.selected.is_none_or(|path| path == Path::Ring)
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
        self.suspect_probes > 0
            || self
                .known
                .iter()
                .any(|(path, k)| Some(*path) != self.selected && k.next_probe.is_some())
    }

    /// Tries `path` from `now` on, again if it was tried before; one that lives already is left
    /// alone.
    pub fn add(&mut self, path: Path, now: Instant) {
        if self.selected == Some(path)
            || (!self.known.contains_key(&path) && self.known.len() >= MAX_PATHS)
        {
            return;
        }
        let known = Known {
            tried: 0,
            next_probe: Some(now),
            probes: VecDeque::new(),
            rtt: None,
            answered: None,
        };
        let kept = self.known.entry(path).or_insert(known);
        (kept.tried, kept.next_probe) = (0, Some(now));
    }

    /// Uses `path` from now on if there is none, and probes it: something else has just shown that
    /// it works.
    pub fn assume(&mut self, path: Path, now: Instant) {
        if self.selected.is_none() {
            let known = Known {
                tried: 0,
                next_probe: None,
                probes: VecDeque::new(),
                rtt: None,
                answered: Some(now),
            };
            self.known.insert(path, known);
            self.select(Some(path), now);
            self.probe(path, now);
        }
    }

    /// A verified datagram came by `path`, which is not the one in use: worth trying if we do not
    /// know it or gave it up. `received`: when the path in use last showed life; the peer may have
    /// found it dead before us.
    pub fn heard(&mut self, path: Path, now: Instant, received: Option<Instant>) {
        if let Some(selected) = self.selected
            && self.suspect_probes == 0
            && received.is_none_or(|at| now.saturating_duration_since(at) >= DOUBT_AFTER)
        {
            self.suspect_probes = 1;
            self.probe(selected, now);
        }
        if self
            .known
            .get(&path)
            .is_none_or(|k| k.answered.is_none() && (k.next_probe.is_none() || k.tried > 2))
        {
            self.add(path, now);
        }
    }

    /// A pong came by `path`. False if nothing was asked there with this token.
    pub fn pong(&mut self, path: Path, token: u64, now: Instant) -> bool {
        let Some(known) = self.known.get_mut(&path) else {
            return false;
        };
        let Some(at) = known.probes.iter().position(|(t, _)| *t == token) else {
            return false;
        };
        let (_, left) = known.probes[at];
        let rtt = now.saturating_duration_since(left);
        (known.rtt, known.answered, known.next_probe) = (Some(rtt), Some(now), None);
        known.probes.clear();
        self.remember(path);
        if self.selected == Some(path) {
            (self.suspect_probes, self.silence) = (0, None);
            return true;
        }
        let follows = self
            .follow
            .is_some_and(|(to, since)| to == path && now.saturating_duration_since(since) < FOLLOW);
        let better = match self.selected {
            None => true,
            // A stream takes over where nothing better has answered that could.
            Some(old) if self.suspect_probes >= SILENT_PROBES => {
                path != Path::Stream || !self.has_spare(old)
            }
            Some(old) if follows && class(&path, self.order) <= class(&old, self.order) => true,
            // A fifth better before a path of the same class replaces the one in use: no flapping.
            Some(old) => {
                (class(&path, self.order), Some(rtt))
                    < (class(&old, self.order), self.rtt().map(|r| r * 4 / 5))
            }
        };
        // Among relays a fraction of a millisecond is noise.
        let alike = matches!(
            (path, self.selected),
            (Path::Relayed(_), Some(Path::Relayed(_)))
        ) && self.suspect_probes < SILENT_PROBES;
        if better && !(alike && self.rtt().is_some_and(|old| rtt + WORTH_CHANGING > old)) {
            self.select(Some(path), now);
        }
        true
    }

    /// Whether another way than `old` and a stream has answered since `old` does not.
    fn has_spare(&self, old: Path) -> bool {
        self.known
            .iter()
            .any(|(path, known)| ![old, Path::Stream].contains(path) && self.is_proven(known))
    }

    /// Whether it has answered, and that since the way in use fell silent: what ended that one may
    /// have ended others.
    fn is_proven(&self, known: &Known) -> bool {
        known
            .answered
            .is_some_and(|at| self.silence.is_none_or(|since| at >= since))
    }

    /// Gives up `path`; the next best that has answered takes over. False if it was not known.
    pub fn remove(&mut self, path: Path, now: Instant) -> bool {
        let known = self.known.remove(&path).is_some();
        if self.selected == Some(path) {
            let (silence, living) = (
                self.silence,
                self.known.iter().filter(|(_, k)| k.answered.is_some()),
            );
            let best =
                living.min_by_key(|(p, k)| (!self.is_proven(k), class(p, self.order), k.rtt));
            match best.map(|(p, k)| (*p, self.is_proven(k))) {
                None if self.ring && path != Path::Ring => {
                    self.select(None, now);
                    self.assume(Path::Ring, now);
                    // What ended the path may have ended the ring's too.
                    self.suspect_probes = 1;
                }
                None => self.select(None, now),
                Some((next, is_proven)) => {
                    self.select(Some(next), now);
                    // It answered a while ago: it has to show that it still does, and any other
                    // that does is taken.
                    self.suspect_probes = if is_proven { 1 } else { SILENT_PROBES };
                    self.silence = silence.filter(|_| !is_proven);
                    self.probe(next, now);
                }
            }
        }
        known
    }

    /// Gives up every way that `is_bad`, for good.
    pub fn forget(&mut self, is_bad: impl Fn(&Path) -> bool, now: Instant) {
        self.remembered.retain(|path| !is_bad(path));
        let bad: Vec<Path> = self
            .known
            .keys()
            .filter(|path| is_bad(path))
            .copied()
            .collect();
        // The one in use last: its successor must not be another of them.
        let (last, first): (Vec<Path>, Vec<Path>) = bad
            .into_iter()
            .partition(|path| self.selected == Some(*path));
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

    /// Tries again every way that is known.
    fn try_known(&mut self, now: Instant) {
        for path in self.known.keys().copied().collect::<Vec<_>>() {
            self.add(path, now);
        }
    }

    /// This host's addresses changed, or it slept: everything known is tried at once, and the peer
    /// asked to follow.
    pub fn rouse(&mut self, now: Instant) {
        self.roamed = Some(now);
        self.try_remembered(now);
        self.try_known(now);
        if let Some(path) = self.selected {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// The peer's addresses changed, and `path` is where it is heard from now.
    pub fn peer_moved(&mut self, path: Path, now: Instant) {
        let taken = self
            .follow
            .is_some_and(|(_, since)| now.saturating_duration_since(since) < FOLLOW);
        if self.selected != Some(path) && !taken {
            self.follow = Some((path, now));
            self.add(path, now);
        }
    }

    fn select(&mut self, path: Option<Path>, now: Instant) {
        (self.selected, self.since, self.suspect_probes, self.silence) =
            (path, path.map(|_| now), 0, None);
        self.steps.push_back(Step::Select(path));
    }

    fn probe(&mut self, path: Path, now: Instant) {
        // The highest bit, clear, tells a path's probe from a ping that a user asked for.
        let roaming = self
            .roamed
            .is_some_and(|at| now.saturating_duration_since(at) < ROAMING);
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
            let Some(known) = self.known.get_mut(&path) else {
                continue;
            };
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
            Some(*path) == selected
                || k.next_probe.is_some()
                || k.answered
                    .is_some_and(|at| now.saturating_duration_since(at) < SPARE_LIFE)
        });
        if let Some(path) = selected {
            self.watch(path, now, activity);
        }
    }

    /// While data goes through others, the spare ways are asked now and then.
    fn measure_spares(&mut self, now: Instant, activity: Activity) {
        let lively = activity
            .sent
            .is_some_and(|at| now.saturating_duration_since(at) < MEASURE_EVERY);
        if !lively || !matches!(self.selected, Some(Path::Relayed(_) | Path::Stream)) {
            return;
        }
        for (path, known) in &mut self.known {
            let due = known
                .answered
                .is_some_and(|at| now.saturating_duration_since(at) >= MEASURE_EVERY);
            if due
                && Some(*path) != self.selected
                && known.next_probe.is_none()
                && *path != Path::Stream
            {
                (known.tried, known.next_probe) = (PROBE_PAUSES_MS.len() - 2, Some(now));
            }
        }
    }

    /// Liveness and keepalive of the path in use.
    fn watch(&mut self, path: Path, now: Instant, activity: Activity) {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let under_way = self.known.get(&path).and_then(|k| k.probes.back().copied());
        let probe_age = under_way.map(|(_, at)| now.saturating_duration_since(at));
        let heard_since_probe =
            under_way.is_some_and(|(_, at)| activity.received.is_some_and(|r| r > at));
        if heard_since_probe {
            // Its pong may be lost or late: it says nothing about what comes after.
            (self.suspect_probes, self.silence) = (0, None);
            if let Some(known) = self.known.get_mut(&path) {
                known.probes.clear();
            }
        }
        let suspect = since(activity.unanswered).is_some_and(|age| age >= SUSPECT_AFTER)
            || (self.suspect_probes > 0 && under_way.is_some());
        if suspect && !heard_since_probe {
            let pause = self.rtt().map_or(SUSPECT_PAUSE.1, |rtt| {
                (rtt * 4).clamp(SUSPECT_PAUSE.0, SUSPECT_PAUSE.1)
            });
            if probe_age.is_some_and(|age| age < pause) {
                return;
            }
            if self.suspect_probes >= SUSPECT_PROBES {
                self.remove(path, now);
                return;
            }
            self.suspect_probes += 1;
            if self.suspect_probes == SILENT_PROBES {
                self.silence.get_or_insert(now);
                // Whatever still lives shows it now, and need not be waited for behind what does
                // not.
                self.try_remembered(now);
                self.try_known(now);
                if path != Path::Stream {
                    self.steps.push_back(Step::Silent);
                }
            }
            self.probe(path, now);
            return;
        }
        let keep = activity.keep_alive
            && since(activity.sent).is_none_or(|age| age >= KEEPALIVE)
            && since(self.since).is_some_and(|a| a >= KEEPALIVE);
        let measure = matches!(path, Path::Relayed(_))
            && since(activity.sent).is_some_and(|age| age < MEASURE_EVERY)
            && since(self.known.get(&path).and_then(|k| k.answered))
                .is_some_and(|age| age >= MEASURE_EVERY)
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
#[path = "paths_tests.rs"]
mod tests;
