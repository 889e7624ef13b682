//! Which provider is asked for which chunk, and when: the state of one fetch, without IO or clock.
//!
//! A provider is asked for as much as it has lately delivered within about a second (its window,
//! doubled when a window's worth came in less, halved when it took much more: slow start, Jacobson
//! 1988), so a slow one never owes much. The chunks that a lost provider owes go back to the queue;
//! an idle provider takes over those that another has owed for long. A chunk that every provider
//! lacks ends the fetch.

use crate::{ChunkId, tree::Role};
use p2pvm_overlay::MemberId;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// How fast a window's worth comes before the window is doubled.
const FAST: Duration = Duration::from_millis(1000);
/// How slowly a window's worth comes before the window is halved.
const SLOW: Duration = Duration::from_millis(2500);
/// How long a provider owes a chunk before an idle one takes it over.
const TAKE_OVER: Duration = Duration::from_secs(3);
/// How large the window is at first.
const FIRST_WINDOW_BYTES: u64 = 4 << 20;
/// How small the window may become.
const LEAST_WINDOW_BYTES: u64 = 256 << 10;
/// How many bytes a node of a manifest counts as.
/// Reason: its size is unknown until it comes.
const NODE_BYTES: u32 = 64 << 10;
/// How many chunks of the queue are searched for one that a provider may have.
const LOOK: usize = 512;
/// How many providers one fetch has at most.
/// Reason: the providers that lack a chunk are the bits of a `u32`.
pub(super) const MAX_PROVIDERS: usize = super::wire::MAX_PROVIDERS;

/// One fetch.
pub(super) struct Plan {
    max_window: u64,
    providers: Vec<Provider>,
    wants: HashMap<ChunkId, WantedChunk>,
    queue: VecDeque<ChunkId>,
}

struct Provider {
    member: MemberId,
    up: bool,
    window: u64,
    owed: u64,
    /// When the current round began, and how many bytes came in it.
    round: (Duration, u64),
    last_heard: Duration,
}

struct WantedChunk {
    role: Role,
    /// Bit i: provider i has said that it lacks the chunk.
    lacking: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// In the queue.
    Queued,
    /// This provider was asked, at this time.
    Asked(usize, Duration),
    /// It came, and is being verified.
    Arrived,
}

impl Plan {
    pub(super) fn new(providers: &[MemberId], max_window: u64) -> Self {
        let mut plan = Self {
            max_window,
            providers: Vec::new(),
            wants: HashMap::new(),
            queue: VecDeque::new(),
        };
        for member in providers.iter().take(MAX_PROVIDERS) {
            if plan.index(*member).is_none() {
                let provider = Provider {
                    member: *member,
                    up: false,
                    window: FIRST_WINDOW_BYTES,
                    owed: 0,
                    round: (Duration::ZERO, 0),
                    last_heard: Duration::ZERO,
                };
                plan.providers.push(provider);
            }
        }
        plan
    }

    fn index(&self, member: MemberId) -> Option<usize> {
        self.providers.iter().position(|p| p.member == member)
    }

    /// Adds a missing chunk. Returns whether it is new.
    pub(super) fn want(&mut self, role: Role, id: ChunkId) -> bool {
        if self.wants.contains_key(&id) {
            return false;
        }
        self.wants.insert(
            id,
            WantedChunk {
                role,
                lacking: 0,
                state: State::Queued,
            },
        );
        // Nodes first: they say what else there is to ask for.
        match role {
            Role::Data { .. } => self.queue.push_back(id),
            _ => self.queue.push_front(id),
        }
        true
    }

    /// The provider can be asked from now on.
    pub(super) fn up(&mut self, now: Duration, member: MemberId) {
        if let Some(index) = self.index(member) {
            let provider = &mut self.providers[index];
            provider.up = true;
            provider.window = FIRST_WINDOW_BYTES.min(self.max_window);
            provider.owed = 0;
            provider.round = (now, 0);
            provider.last_heard = now;
        }
    }

    /// The provider is lost for now: the chunks it owes go back to the queue.
    pub(super) fn down(&mut self, member: MemberId) {
        let Some(index) = self.index(member) else {
            return;
        };
        self.providers[index].up = false;
        self.providers[index].owed = 0;
        for (id, want) in &mut self.wants {
            if matches!(want.state, State::Asked(who, _) if who == index) {
                want.state = State::Queued;
                self.queue.push_front(*id);
            }
        }
    }

    /// The provider sent a damaged chunk and is never asked again.
    pub(super) fn ban(&mut self, member: MemberId) {
        self.down(member);
        if let Some(index) = self.index(member) {
            self.wants
                .values_mut()
                .for_each(|want| want.lacking |= 1 << index);
        }
    }

    /// A chunk came from the provider, not verified yet. Returns its role; `None` if it was not
    /// asked for.
    pub(super) fn arrived(&mut self, now: Duration, member: MemberId, id: ChunkId) -> Option<Role> {
        let index = self.index(member)?;
        self.providers[index].last_heard = now;
        let want = self.wants.get_mut(&id)?;
        let State::Asked(who, _) = want.state else {
            return None;
        };
        want.state = State::Arrived;
        let (role, weight) = (want.role, want.weight());
        self.providers[who].owed = self.providers[who].owed.saturating_sub(weight);
        self.pace(now, index, weight);
        Some(role)
    }

    fn pace(&mut self, now: Duration, index: usize, weight: u64) {
        let max_window = self.max_window;
        let provider = &mut self.providers[index];
        provider.round.1 += weight;
        let elapsed = now.saturating_sub(provider.round.0);
        if provider.round.1 >= provider.window {
            if elapsed < FAST {
                provider.window = (provider.window * 2).min(max_window);
            } else if elapsed > SLOW {
                provider.window = (provider.window / 2).max(LEAST_WINDOW_BYTES);
            }
            provider.round = (now, 0);
        } else if elapsed > SLOW {
            provider.window = (provider.window / 2).max(LEAST_WINDOW_BYTES);
            provider.round = (now, 0);
        }
    }

    /// The chunk is here and verified.
    pub(super) fn stored(&mut self, id: ChunkId) {
        self.wants.remove(&id);
    }

    /// The chunk that came was damaged.
    pub(super) fn refused(&mut self, id: ChunkId) {
        if let Some(want) = self.wants.get_mut(&id) {
            want.state = State::Queued;
            self.queue.push_front(id);
        }
    }

    /// The provider lacks the chunk.
    pub(super) fn lacks(&mut self, now: Duration, member: MemberId, id: ChunkId) {
        let Some(index) = self.index(member) else {
            return;
        };
        self.providers[index].last_heard = now;
        let Some(want) = self.wants.get_mut(&id) else {
            return;
        };
        want.lacking |= 1 << index;
        if matches!(want.state, State::Asked(who, _) if who == index) {
            self.providers[index].owed = self.providers[index].owed.saturating_sub(want.weight());
            want.state = State::Queued;
            self.queue.push_front(id);
        }
    }

    /// The chunks to ask the provider for now; the caller sends the request at once.
    pub(super) fn next(&mut self, now: Duration, member: MemberId, most: usize) -> Vec<ChunkId> {
        let mut ask = Vec::new();
        let Some(index) = self.index(member) else {
            return ask;
        };
        let Provider {
            up, window, owed, ..
        } = self.providers[index];
        // Half a window at a time: fewer and larger messages.
        if !up || owed > window / 2 {
            return ask;
        }
        if owed == 0 {
            self.providers[index].round = (now, 0);
            self.providers[index].last_heard = now;
        }
        let mut room = window - owed;
        let mut passed = Vec::new();
        while ask.len() < most && room > 0 && passed.len() < LOOK {
            let Some(id) = self.queue.pop_front() else {
                break;
            };
            let Some(want) = self.wants.get_mut(&id) else {
                continue;
            };
            if want.state != State::Queued {
                continue; // it is in the queue twice
            }
            if want.lacking >> index & 1 == 1 {
                passed.push(id);
                continue;
            }
            room = room.saturating_sub(want.weight());
            want.state = State::Asked(index, now);
            ask.push(id);
        }
        passed
            .into_iter()
            .rev()
            .for_each(|id| self.queue.push_front(id));
        if ask.is_empty() && owed == 0 {
            self.take_over(now, index, most, &mut ask);
        }
        self.providers[index].owed += ask
            .iter()
            .filter_map(|id| self.wants.get(id))
            .map(WantedChunk::weight)
            .sum::<u64>();
        ask
    }

    fn take_over(&mut self, now: Duration, index: usize, most: usize, ask: &mut Vec<ChunkId>) {
        let mut room = self.providers[index].window;
        for (id, want) in &mut self.wants {
            if ask.len() == most || room == 0 {
                break;
            }
            let State::Asked(who, since) = want.state else {
                continue;
            };
            if who != index
                && now.saturating_sub(since) >= TAKE_OVER
                && want.lacking >> index & 1 == 0
            {
                room = room.saturating_sub(want.weight());
                self.providers[who].owed = self.providers[who].owed.saturating_sub(want.weight());
                want.state = State::Asked(index, now);
                ask.push(*id);
            }
        }
    }

    /// A provider that owes chunks and has sent nothing for `stall`.
    pub(super) fn stalled(&self, now: Duration, stall: Duration) -> Option<MemberId> {
        self.providers
            .iter()
            .find(|p| p.up && p.owed > 0 && now.saturating_sub(p.last_heard) >= stall)
            .map(|p| p.member)
    }

    /// A chunk that every provider lacks.
    pub(super) fn nowhere(&self) -> Option<ChunkId> {
        let all = ((1u64 << self.providers.len()) - 1) as u32;
        // Only a chunk that a provider has just said to lack can be lacking everywhere, and it was
        // put at the queue's head.
        self.queue.iter().take(LOOK).copied().find(|id| {
            self.wants
                .get(id)
                .is_some_and(|want| want.lacking & all == all)
        })
    }

    /// How many chunks are missing.
    pub(super) fn missing(&self) -> usize {
        self.wants.len()
    }

    /// How many chunks no provider has been asked for.
    pub(super) fn unasked(&self) -> usize {
        self.queue.len()
    }
}

impl WantedChunk {
    fn weight(&self) -> u64 {
        u64::from(match self.role {
            Role::Data { bytes } => bytes,
            _ => NODE_BYTES,
        })
    }
}

#[cfg(test)]
mod tests;
