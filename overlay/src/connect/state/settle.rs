//! Brings a link to the best path, once two members have met: waits for the direct probes, then
//! tries relays, two at a time, then opens a stream.

use super::{Host, State};
use crate::{
    connect::message::{NatKind, Reachability},
    id::MemberId,
    plane::Path,
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How long to wait for direct probes, at least and at most, before a relay is tried beside them.
pub(crate) const PATIENCE: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_millis(1500));
/// How long to wait for slow direct probes before a stream is opened.
const BEFORE_STREAM: Duration = Duration::from_millis(1000);
/// How long before a stream that was opened is a path.
const STREAM_LIMIT: Duration = Duration::from_secs(5);

/// The paths that satisfy a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Any.
    Any,
    /// Any that does not itself rest on the ring: the link is to be one of its edges.
    Edge,
    /// Direct or by stream: the link is used to relay for others, or leads to a relay.
    WithoutRelay,
}

impl Reach {
    /// The path, if it satisfies the caller.
    pub fn served_by(self, path: Option<Path>) -> Option<Path> {
        path.filter(|path| match self {
            Self::Any => true,
            Self::Edge => *path != Path::Ring,
            Self::WithoutRelay => !matches!(path, Path::Ring | Path::Relayed(_)),
        })
    }
}

/// What the driver is to do, and to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait until the NAT's mapping is known: [`Input::MappingKnown`].
    AwaitMapping,
    /// Wait for at most this long until the link has a path that satisfies: [`Input::Path`].
    AwaitPath(Reach, Duration),
    /// List the members that may relay: [`Input::Relays`].
    ListRelays,
    /// Make the member relay: [`Input::Relayed`].
    TryRelay(MemberId),
    /// Prefer a stream to relays from now on. Nothing to report.
    PreferStream,
    /// Open a stream: [`Input::Stream`].
    OpenStream,
}

/// The result of an action.
pub(crate) enum Input {
    MappingKnown,
    /// The path, if there is one that satisfies.
    Path(Option<Path>),
    Relays(Vec<MemberId>),
    /// The path through the relay, if it satisfies.
    Relayed(Option<Path>),
    /// Whether a stream was opened.
    Stream(bool),
}

pub(crate) struct View<'a> {
    pub host: &'a Host,
    /// The path in use, if data can leave at once.
    pub path: Option<Path>,
    /// Whether the ring wants it as an edge.
    pub is_edge: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Mapping,
    Direct,
    /// Relays that are being tried.
    Relays(usize),
    Last,
    Stream,
    StreamPath,
    Done(Option<Path>),
}

/// The settling of one link.
#[derive(Debug)]
pub(crate) struct Settling {
    reach: Reach,
    theirs: Reachability,
    /// How long the meeting took.
    took: Duration,
    is_blocked: bool,
    /// Nothing but relays is tried.
    only_relays: bool,
    relays: VecDeque<MemberId>,
    phase: Phase,
    actions: VecDeque<Action>,
}

impl Settling {
    /// `theirs` is the member's reachability, `took` the duration of the call.
    pub fn new(
        now: Instant,
        state: &State,
        host: &Host,
        reach: Reach,
        (theirs, took): (Reachability, Duration),
    ) -> Self {
        let mut settling = Self {
            reach,
            theirs,
            took,
            is_blocked: false,
            only_relays: false,
            relays: VecDeque::new(),
            phase: Phase::Mapping,
            actions: VecDeque::new(),
        };
        if state.knows_enough_to_punch(host, settling.theirs.nat) {
            settling.wait_for_direct(now, state, host);
        } else {
            // The direct probes start only then.
            settling.actions.push_back(Action::AwaitMapping);
        }
        settling
    }

    /// Finds a relay, and nothing else.
    pub fn by_relay(theirs: Reachability) -> Self {
        Self {
            reach: Reach::Edge,
            theirs,
            took: Duration::ZERO,
            is_blocked: false,
            only_relays: true,
            relays: VecDeque::new(),
            phase: Phase::Relays(0),
            actions: VecDeque::from([Action::ListRelays]),
        }
    }

    /// The next action. Several may be carried out at the same time.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The path found, or none, once all is over.
    pub fn outcome(&self) -> Option<Option<Path>> {
        match self.phase {
            Phase::Done(path) => Some(path),
            _ => None,
        }
    }

    /// Takes the result of an action.
    pub fn handle(&mut self, now: Instant, state: &State, view: &View<'_>, input: Input) {
        match (&mut self.phase, input) {
            (Phase::Mapping, Input::MappingKnown) => {
                self.wait_for_direct(now, state, view.host);
            }
            (Phase::Direct | Phase::Last | Phase::StreamPath, Input::Path(Some(path)))
            | (Phase::Relays(_), Input::Relayed(Some(path))) => {
                self.phase = Phase::Done(Some(path));
            }
            (Phase::Direct, Input::Path(None)) => {
                if self.reach == Reach::WithoutRelay || self.is_blocked {
                    return self.wait_last();
                }
                self.phase = Phase::Relays(0);
                self.actions.push_back(Action::ListRelays);
            }
            (Phase::Relays(_), Input::Relays(relays)) => {
                self.relays = relays.into();
                self.try_relays();
            }
            (Phase::Relays(trying), Input::Relayed(None)) => {
                *trying = trying.saturating_sub(1);
                if *trying > 0 {
                    return;
                }
                // A direct probe may have come through meanwhile.
                match Reach::Edge.served_by(view.path) {
                    Some(path) => self.phase = Phase::Done(Some(path)),
                    None => self.try_relays(),
                }
            }
            (Phase::Last, Input::Path(None)) => self.open_stream(view),
            (Phase::Stream, Input::Stream(true)) => {
                self.phase = Phase::StreamPath;
                let wait = Action::AwaitPath(self.reach, STREAM_LIMIT);
                self.actions.push_back(wait);
            }
            (Phase::Stream, Input::Stream(false)) | (Phase::StreamPath, Input::Path(None)) => {
                self.phase = Phase::Done(None);
            }
            _ => {}
        }
    }

    fn wait_for_direct(&mut self, now: Instant, state: &State, host: &Host) {
        self.is_blocked = [state.nat.kind, self.theirs.nat].contains(&NatKind::Blocked);
        let patience = if state.may_reach(now, host, &self.theirs) {
            (self.took * 3).clamp(PATIENCE.0, PATIENCE.1)
        } else {
            Duration::ZERO
        };
        self.phase = Phase::Direct;
        self.actions
            .push_back(Action::AwaitPath(self.reach, patience));
    }

    fn try_relays(&mut self) {
        let count = self.relays.len().min(super::relays::AT_ONCE);
        if count == 0 && self.only_relays {
            self.phase = Phase::Done(None);
            return;
        }
        if count == 0 {
            return self.wait_last();
        }
        self.phase = Phase::Relays(count);
        let next = self.relays.drain(..count).map(Action::TryRelay);
        self.actions.extend(next);
    }

    /// A stream is the last resort: the last direct probes are waited for, unless UDP is known not
    /// to get through.
    fn wait_last(&mut self) {
        let last = if self.is_blocked {
            Duration::ZERO
        } else {
            BEFORE_STREAM
        };
        self.phase = Phase::Last;
        self.actions.push_back(Action::AwaitPath(self.reach, last));
    }

    fn open_stream(&mut self, view: &View<'_>) {
        if self.is_blocked {
            // One hop by stream is better than several of which the first is a stream too.
            self.actions.push_back(Action::PreferStream);
        } else if !view.is_edge && view.path == Some(Path::Ring) {
            self.phase = Phase::Done(Some(Path::Ring));
            return;
        }
        self.phase = Phase::Stream;
        self.actions.push_back(Action::OpenStream);
    }
}

/// The next step of a try to get a link off its path, after the members have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Wait for the direct probes under way.
    Probes,
    /// Add a relay.
    Relay,
    /// Open a stream, and prefer it to relays from now on.
    Stream,
}

/// Which remedy there is for a link that goes over `path`.
pub(crate) fn remedy(path: Path, ours: NatKind, theirs: NatKind) -> Remedy {
    let is_blocked = [ours, theirs].contains(&NatKind::Blocked);
    match path {
        // A stream is a last resort: a relay that has appeared since is better.
        Path::Ring | Path::Stream if !is_blocked => Remedy::Relay,
        // If UDP does not get through, a relay's last leg is a stream too: a stream of our own is
        // shorter.
        Path::Ring | Path::Relayed(_) if is_blocked => Remedy::Stream,
        _ => Remedy::Probes,
    }
}
