//! Finds events in the log, and gives them as the API does.

use super::{EventLog, file, wall_ms};
use p2pvm_api::{Doing, EventKind, EventView, EventsPage, EventsWanted, Outcome};
use p2pvm_authority::{Event, EventProof, HostChain, KeptEvent, Subject};
use p2pvm_overlay::{VmId, membership::Certificate};
use std::{
    collections::VecDeque,
    io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// How many events a page has at most.
pub(super) const MOST: usize = 1000;

/// Which events are wanted, without names to look up.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    kind: Option<EventKind>,
    member: Option<String>,
    vm: Option<String>,
    since_ms: u64,
}

impl Filter {
    pub fn of(wanted: &EventsWanted) -> Self {
        let ms = |seconds: u64| wall_ms().saturating_sub(seconds.saturating_mul(1000));
        Self {
            kind: wanted.kind.clone(),
            member: wanted.member.clone(),
            vm: wanted.vm.clone(),
            since_ms: wanted.seconds.map_or(0, ms),
        }
    }

    /// Whether an event is wanted.
    pub fn takes(&self, event: &Event) -> bool {
        let (vm, member) = match &event.subject {
            Subject::Host => (None, None),
            Subject::Member(member, name) => (None, Some((member.to_string(), name))),
            Subject::Vm(vm, name) => (Some((vm.to_string(), name)), None),
        };
        let is = |wanted: &Option<String>, found: Option<(String, &String)>| {
            let Some(wanted) = wanted else { return true };
            found.is_some_and(|(id, name)| *wanted == id || wanted == name)
        };
        event.at_ms >= self.since_ms
            && self
                .kind
                .as_ref()
                .is_none_or(|kind| *kind.as_str() == event.kind)
            && is(&self.vm, vm)
            && is(&self.member, member)
    }
}

/// The whole files and events of the log, in order; a file that goes meanwhile is passed over.
fn each(dir: &Path, mut take: impl FnMut(KeptEvent, Event) -> bool) -> io::Result<()> {
    for path in file::paths(dir)? {
        let kept = match file::read(&path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for kept in kept {
            let Ok(event) = kept.event() else { continue };
            if !take(kept, event) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Events: from a number or a time on the oldest ones, otherwise the newest. With whether there are
/// more.
pub(super) fn find(
    dir: &Path,
    filter: &Filter,
    after: Option<u64>,
    limit: usize,
) -> io::Result<(Vec<Event>, bool)> {
    let from_start = after.is_some() || filter.since_ms > 0;
    let (mut found, mut more) = (VecDeque::new(), false);
    each(dir, |_, event| {
        if event.seq <= after.unwrap_or(0) || !filter.takes(&event) {
            return true;
        }
        if found.len() < limit {
            found.push_back(event);
            return true;
        }
        if from_start {
            more = true;
            return false;
        }
        found.pop_front();
        found.push_back(event);
        true
    })?;
    Ok((found.into(), more))
}

/// An event as the API gives it.
pub(super) fn view(event: &Event, host: &str) -> EventView {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(event.at_ms));
    let (member, vm, name) = match &event.subject {
        Subject::Host => (None, None, None),
        Subject::Member(member, name) => (Some(member.to_string().into()), None, Some(name)),
        Subject::Vm(vm, name) => (None, Some(vm.to_string().into()), Some(name)),
    };
    EventView {
        at: at.map_or_else(String::new, |at| {
            humantime::format_rfc3339_millis(at).to_string()
        }),
        fields: event.fields.iter().cloned().collect(),
        host: host.to_owned(),
        kind: event.kind.clone().into(),
        member,
        name: name.cloned(),
        seq: event.seq,
        text: event.sentence.clone(),
        vm,
    }
}

impl EventLog {
    /// Runs a question to the files apart from other tasks.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Outcome<T> {
        let dir = self.dir.clone();
        let turn = self.readers.acquire().await;
        let _turn = turn.expect("nothing closes the readers' semaphore");
        let asked = tokio::task::spawn_blocking(move || ask(&dir)).await;
        asked
            .doing("reading the log of events")?
            .doing("reading the log of events")
    }

    /// A page of events of the host of that name.
    pub(crate) async fn page(&self, wanted: &EventsWanted, host: &str) -> Outcome<EventsPage> {
        let (filter, after) = (Filter::of(wanted), wanted.after);
        let limit = wanted.limit.unwrap_or(MOST).clamp(1, MOST);
        let found = self.read(move |dir| find(dir, &filter, after, limit)).await;
        let (events, more) = found?;
        let next = events.last().map(|event| event.seq).filter(|_| more);
        let events = events.iter().map(|event| view(event, host)).collect();
        Ok(EventsPage { events, next })
    }

    /// The chain of a VM's events on this host, whose certificate is `host`.
    pub(crate) async fn proof(&self, host: &Certificate, vm: VmId) -> Outcome<EventProof> {
        let found = self.read(move |dir| {
            let mut found = Vec::new();
            each(dir, |kept, event| {
                if event.vm() == Some(vm) {
                    found.push(kept);
                }
                true
            })?;
            Ok(found)
        });
        Ok(EventProof {
            vm,
            chains: vec![HostChain {
                certificate: host.clone(),
                events: found.await?,
            }],
        })
    }
}
