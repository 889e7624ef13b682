//! Which path a link's datagrams take. Candidates are probed with sealed pings over the session
//! itself (a probe opens NATs, proves the far end and measures the round trip at once); the best
//! that answers is selected; a silent one is noticed and given up. After RFC 8445 (ICE) without its
//! roles: each side selects for its own direction. Sans-IO: the driver passes times and events in
//! and does the [`Step`]s that [`Paths::poll`] returns.

use crate::{id::MemberId, link::frame::ROAMED, plane::types::Path};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Pauses after each of a candidate's probes, in milliseconds: short at first, while both NATs
/// open; some 4 s in all.
const PROBE_PAUSES_MS: [u64; 7] = [60, 100, 200, 400, 800, 1500, 1500];
/// How long data may stay unanswered before the path is probed.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1000);
/// How long at least and at most between probes of a suspect path; in between, four round trips.
const SUSPECT_PAUSE: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_millis(700));
/// How many unanswered probes end a path: with [`SUSPECT_AFTER`], 2 to 3 s after the last sign of
/// life.
const SUSPECT_PROBES: u32 = 3;
/// How many unanswered probes let any other path that answers take over.
const SILENT_PROBES: u32 = 2;
/// How long the selected path must have been silent to be probed when the peer uses another one.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// How often a quiet path is probed to keep its NAT mappings (RFC 4787 asks NATs for 2 minutes,
/// many give 30 s).
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// How long a path that is not selected is remembered after its last answer.
const SPARE_LIFE: Duration = Duration::from_secs(30);
/// How many paths to a peer are remembered at once.
const MAX_PATHS: usize = 24;
/// How often selected and spare paths are measured while data goes through other members. Reason:
/// the better one is known, and the next one is ready.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How many direct paths that once answered are remembered, to be tried when all is silent.
const MAX_REMEMBERED: usize = 8;
/// How much another relay must save to be selected. Reason: less is noise.
const WORTH_CHANGING: Duration = Duration::from_millis(1);
/// How long, after the peer's addresses changed, the first path by which it is heard is preferred.
const FOLLOW: Duration = Duration::from_secs(5);
/// How long probes ask the peer to follow after this host's addresses changed.
const ROAMING: Duration = Duration::from_secs(10);

struct KnownPath {
    tried: usize,
    next_probe: Option<Instant>,
    /// Tokens under way and when they left.
    probes: VecDeque<(u64, Instant)>,
    rtt: Option<Duration>,
    answered: Option<Instant>,
}

/// One thing for the driver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a ping with this token by this path.
    Probe(Path, u64),
    /// Send data by this path from now on; `None`: there is none.
    Select(Option<Path>),
    /// Report that the selected path does not answer, so that another one is sought.
    Silent,
}

/// The paths to one peer.
#[derive(Default)]
pub struct Paths {
    known: BTreeMap<Path, KnownPath>,
    selected: Option<Path>,
    since: Option<Instant>,
    suspect_probes: u32,
    /// Since when nothing has shown that the selected path, or one that took over, works.
    silence: Option<Instant>,
    ring: bool,
    /// Whether the ring comes last, and whether a stream comes before relays.
    order: (bool, bool),
    remembered: VecDeque<Path>,
    /// The path by which the peer was heard after it moved, and when.
    follow: Option<(Path, Instant)>,
    /// When this host last moved.
    roamed: Option<Instant>,
    steps: VecDeque<Step>,
}

/// What traffic to and from the peer says about its paths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// When something verified last came.
    pub received: Option<Instant>,
    /// When the oldest data was sent that nothing has answered.
    pub unanswered: Option<Instant>,
    /// When anything was last sent.
    pub sent: Option<Instant>,
    /// This side keeps the mapping alive.
    pub keep_alive: bool,
    /// There is a ring, which replaces a failed path at once if no other path is known.
    pub ring: bool,
    /// Even a stream is preferred to the ring.
    pub ring_last: bool,
    /// UDP does not get through: a stream is preferred to relays, whose last leg would be one too.
    pub stream_first: bool,
}

/// The rank of a path by its kind, the best first. To a neighbour on the ring any path is better
/// than the ring itself, which rests on such links.
fn class(path: &Path, (ring_last, stream_first): (bool, bool)) -> u8 {
    match path {
        Path::Direct(_) => 0,
        Path::Relayed(_) => 1 + 3 * u8::from(stream_first),
        Path::Ring => 2 + 3 * u8::from(ring_last),
        Path::Stream => 3,
    }
}

impl Paths {
    /// The path that data takes.
    pub fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// Whether `path` is known, tried or selected.
    pub fn knows(&self, path: Path) -> bool {
        self.known.contains_key(&path)
    }

    /// The addresses of all direct paths, known or remembered.
    pub fn direct_addresses(&self) -> Vec<SocketAddr> {
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

    /// Probes the selected path at once, unless it is being probed.
    pub fn doubt(&mut self, now: Instant) {
        if let Some(path) = self.selected
            && self.suspect_probes == 0
        {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// Whether there is no selected path, or it leaves probes unanswered, or it is the ring, which
    /// is only assumed to work.
    pub fn is_silent(&self) -> bool {
        self.suspect_probes >= SILENT_PROBES || self.selected.is_none_or(|path| path == Path::Ring)
    }

    /// When that path was selected.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The last measured round trip of the selected path.
    pub fn rtt(&self) -> Option<Duration> {
        self.known.get(&self.selected?)?.rtt
    }

    /// The relays through which the peer has answered.
    pub fn relays(&self) -> Vec<MemberId> {
        let relay = |(path, known): (&Path, &KnownPath)| match path {
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

    /// Probes `path` from `now` on, again if it was tried before. The selected path is left alone.
    pub fn add(&mut self, path: Path, now: Instant) {
        if self.selected == Some(path)
            || (!self.known.contains_key(&path) && self.known.len() >= MAX_PATHS)
        {
            return;
        }
        let known = KnownPath {
            tried: 0,
            next_probe: Some(now),
            probes: VecDeque::new(),
            rtt: None,
            answered: None,
        };
        let kept = self.known.entry(path).or_insert(known);
        (kept.tried, kept.next_probe) = (0, Some(now));
    }

    /// Selects `path` if none is selected, and probes it: something else has just shown that it
    /// works.
    pub fn assume(&mut self, path: Path, now: Instant) {
        if self.selected.is_none() {
            let known = KnownPath {
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

    /// Notes that a verified datagram came by `path`, which is not selected: it is probed if it is
    /// unknown or was given up. `received`: when the selected path last showed life; the peer may
    /// have found it dead first.
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

    /// Takes a pong that came by `path`. False if no ping with this token went there.
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
            // A stream takes over only if no other path has answered.
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

    /// Whether a path other than `old` and a stream has answered since `old` fell silent.
    fn has_spare(&self, old: Path) -> bool {
        self.known
            .iter()
            .any(|(path, known)| ![old, Path::Stream].contains(path) && self.is_proven(known))
    }

    /// Whether the path has answered since the selected one fell silent. Reason: the same cause may
    /// have ended both.
    fn is_proven(&self, known: &KnownPath) -> bool {
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
                    // The cause that ended the path may have ended the ring's links too.
                    self.suspect_probes = 1;
                }
                None => self.select(None, now),
                Some((next, is_proven)) => {
                    self.select(Some(next), now);
                    // Its last answer is old: it is probed, and any other path that answers is
                    // selected instead.
                    self.suspect_probes = if is_proven { 1 } else { SILENT_PROBES };
                    self.silence = silence.filter(|_| !is_proven);
                    self.probe(next, now);
                }
            }
        }
        known
    }

    /// Gives up every path that `is_bad`, and forgets it.
    pub fn forget(&mut self, is_bad: impl Fn(&Path) -> bool, now: Instant) {
        self.remembered.retain(|path| !is_bad(path));
        let bad: Vec<Path> = self
            .known
            .keys()
            .filter(|path| is_bad(path))
            .copied()
            .collect();
        // The selected one last: its successor must not be another bad one.
        let (last, first): (Vec<Path>, Vec<Path>) = bad
            .into_iter()
            .partition(|path| self.selected == Some(*path));
        for path in first.into_iter().chain(last) {
            self.remove(path, now);
        }
    }

    /// Gives up every path.
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

    /// Probes again every direct path that once worked.
    pub fn try_remembered(&mut self, now: Instant) {
        for path in self.remembered.clone() {
            self.add(path, now);
        }
    }

    /// Probes again every known path.
    fn try_known(&mut self, now: Instant) {
        for path in self.known.keys().copied().collect::<Vec<_>>() {
            self.add(path, now);
        }
    }

    /// Probes every path at once and asks the peer to follow: this host's addresses changed, or it
    /// slept.
    pub fn rouse(&mut self, now: Instant) {
        self.roamed = Some(now);
        self.try_remembered(now);
        self.try_known(now);
        if let Some(path) = self.selected {
            self.suspect_probes = 1;
            self.probe(path, now);
        }
    }

    /// Notes that the peer's addresses changed and that it is heard by `path`.
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

    /// Does what is due at `now`.
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

    /// Probes spare paths regularly while data goes through other members.
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

    /// Watches the selected path: liveness and keepalives.
    fn watch(&mut self, path: Path, now: Instant, activity: Activity) {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let under_way = self.known.get(&path).and_then(|k| k.probes.back().copied());
        let probe_age = under_way.map(|(_, at)| now.saturating_duration_since(at));
        let heard_since_probe =
            under_way.is_some_and(|(_, at)| activity.received.is_some_and(|r| r > at));
        if heard_since_probe {
            // The pong may be lost or late; something that came later shows that the path works.
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
                // All other paths are probed now, so that one that works is known when this one is
                // given up.
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
