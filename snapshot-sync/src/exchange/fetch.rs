//! A fetch: every missing chunk of a manifest's tree, from several providers at once. One loop owns
//! the plan; each provider has a task that keeps a stream to it; verified chunks go to disk in
//! groups.
//!
//! What was committed before a fetch was cut or killed is here for the next one.

mod job;
mod provider;

use super::{
    plan::{MAX_PROVIDERS, Plan},
    shared::Core,
    wire,
};
use crate::{
    ChunkId, Error, Hold, ManifestId, Progress, error::blocking, store::Batch, tree::Role,
};
use job::{Job, JobResult, ReceivedChunk, role_bytes};
use p2pvm_overlay::MemberId;
use provider::Event;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

/// How many chunks one job verifies and writes.
const GROUP: usize = 32;
/// How many bytes wait to be verified before the streams are no longer read.
/// Reason: bounds memory.
const STAGED_BYTES: usize = 4 << 20;
/// How many bytes are written before they are made durable.
/// Reason: bounds what is fetched again after a crash.
const COMMIT_BYTES: u64 = 32 << 20;
/// How long a written chunk waits at most to be made durable.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// How many chunks wait to be asked for before no further node is opened.
/// Reason: bounds memory for huge files.
const QUEUE_LOW: usize = 16 << 10;
/// How often to look for stalled providers.
const TICK: Duration = Duration::from_millis(500);
/// How long to wait before a provider is dialled again after its stream broke.
const REDIAL_BROKEN: Duration = Duration::from_millis(250);
/// How long to wait before a provider is dialled again after it could not be reached.
const REDIAL_FAILED: Duration = Duration::from_secs(2);

/// What a fetch did.
#[derive(Debug)]
pub struct FetchReport {
    /// Chunks that were fetched.
    pub fetched_chunks: u64,
    /// Their bytes on the wire.
    pub fetched_bytes: u64,
    /// Chunks that were here already.
    pub present_chunks: u64,
    /// Chunks that came again: a slow provider sent what another one had taken over.
    pub duplicate_chunks: u64,
    /// Bytes on the wire by provider.
    pub by_provider: BTreeMap<MemberId, u64>,
    /// Keeps the manifest's chunks from collections. The caller pins the manifest before dropping
    /// this.
    pub hold: Hold,
}

/// What a fetch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The nodes of the manifest, without the content.
    Nodes,
    /// All of it, as long as `reserve` bytes stay free.
    All { reserve: u64 },
}

/// The state of a fetch's loop.
struct Fetch<'a> {
    core: &'a Core,
    plan: Plan,
    begun: Instant,
    tasks: JoinSet<()>,
    abort: BTreeMap<MemberId, tokio::task::AbortHandle>,
    events: mpsc::Sender<Event>,
    ask: BTreeMap<MemberId, mpsc::Sender<Vec<ChunkId>>>,
    came: VecDeque<ReceivedChunk>,
    came_bytes: usize,
    open: VecDeque<(Role, ChunkId)>,
    /// Content that is here and still to be read, as it may be damaged.
    verify: VecDeque<(Role, ChunkId)>,
    scope: Scope,
    report: FetchReport,
    progress: Progress,
    last_gain: Instant,
    trouble: String,
}

impl Core {
    pub(super) async fn fetch(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
        scope: Scope,
        progress: &watch::Sender<Progress>,
    ) -> Result<FetchReport, Error> {
        let me = self.fabric.me();
        let providers: Vec<MemberId> = providers
            .iter()
            .copied()
            .filter(|p| *p != me)
            .take(MAX_PROVIDERS)
            .collect();
        let (events, mut received) = mpsc::channel(16);
        let mut batch = self.store.batch();
        let present = batch.is_known(manifest.0);
        let mut fetch = Fetch {
            core: self,
            plan: Plan::new(&providers, self.options.window_bytes),
            begun: Instant::now(),
            tasks: JoinSet::new(),
            abort: BTreeMap::new(),
            events,
            ask: BTreeMap::new(),
            came: VecDeque::new(),
            came_bytes: 0,
            open: VecDeque::new(),
            verify: VecDeque::new(),
            scope,
            report: FetchReport {
                fetched_chunks: 0,
                fetched_bytes: 0,
                present_chunks: 0,
                duplicate_chunks: 0,
                by_provider: BTreeMap::new(),
                hold: self.store.hold(),
            },
            progress: Progress::default(),
            last_gain: Instant::now(),
            trouble: "none answered".to_owned(),
        };
        if present {
            fetch.open.push_back((Role::Root, manifest.0));
        } else {
            fetch.plan.want(Role::Root, manifest.0);
        }
        let result = fetch
            .run(manifest, &providers, batch, &mut received, progress)
            .await;
        fetch.tasks.abort_all();
        let batch = result?;
        let mut report = fetch.report;
        report.hold = blocking("storing chunks", move || batch.finish()).await?;
        Ok(report)
    }
}

impl Fetch<'_> {
    async fn run(
        &mut self,
        manifest: ManifestId,
        providers: &[MemberId],
        batch: Batch,
        received: &mut mpsc::Receiver<Event>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Batch, Error> {
        let mut idle = Some(batch);
        let mut job = None;
        let mut uncommitted_since: Option<Instant> = None;
        let mut dialled = false;
        let mut tick = tokio::time::interval(TICK);
        loop {
            if let Some(mut batch) = idle.take() {
                let due = uncommitted_since.is_some_and(|since| since.elapsed() >= COMMIT_AFTER)
                    || batch.pending_bytes() >= COMMIT_BYTES;
                let next = self.next_job(due);
                if !next.is_empty() {
                    if next.commit {
                        uncommitted_since = None;
                    } else if !next.came.is_empty() {
                        uncommitted_since.get_or_insert_with(Instant::now);
                    }
                    job = Some(Box::pin(blocking("storing chunks", move || {
                        let done = next.run(&mut batch)?;
                        Ok((batch, done))
                    })));
                } else if self.plan.missing() == 0 {
                    return Ok(batch);
                } else {
                    idle = Some(batch);
                }
            }
            if self.plan.missing() > 0 && !std::mem::replace(&mut dialled, true) {
                providers.iter().for_each(|p| self.dial(*p, Duration::ZERO));
            }
            self.ask_providers();
            tokio::select! {
                done = async { job.as_mut().expect("guarded").await }, if job.is_some() => {
                    job = None;
                    let (batch, done) = done?;
                    idle = Some(batch);
                    self.take(done);
                    progress.send_replace(self.progress);
                }
                Some(event) = received.recv(), if self.came_bytes < STAGED_BYTES => {
                    self.handle(event);
                }
                _ = tick.tick() => self.look_for_stalls(),
            }
            let hopeless =
                self.plan.nowhere().is_some() || providers.is_empty() && self.plan.missing() > 0;
            let tired =
                self.plan.missing() > 0 && self.last_gain.elapsed() >= self.core.options.patience;
            if (hopeless || tired)
                && self.came.is_empty()
                && let Some(mut batch) = idle.take()
            {
                // The chunks that came stay for the next try.
                blocking("storing chunks", move || batch.commit()).await?;
                return Err(Error::NoProvider {
                    manifest,
                    missing: self.plan.missing(),
                    providers: providers.to_vec(),
                    cause: self.trouble.clone().into(),
                });
            }
        }
    }

    fn next_job(&mut self, commit: bool) -> Job {
        let mut next = Job::new(self.scope);
        next.commit = commit;
        while next.came.len() < GROUP
            && let Some(came) = self.came.pop_front()
        {
            self.came_bytes -= came.stored.len();
            next.came.push(came);
        }
        // What one node names is read before the next is opened, which bounds the queue.
        let verify = self.verify.len().min(GROUP);
        next.open.extend(self.verify.drain(..verify));
        if next.open.is_empty()
            && self.plan.unasked() < QUEUE_LOW
            && let Some(open) = self.open.pop_front()
        {
            next.open.push(open);
        }
        next
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn take(&mut self, done: JobResult) {
        for (from, id, wire_bytes, bytes) in done.stored {
            self.plan.stored(id);
            self.report.fetched_chunks += 1;
            self.report.fetched_bytes += wire_bytes as u64;
            *self.report.by_provider.entry(from).or_default() += wire_bytes as u64;
            self.progress.done_bytes += bytes;
            self.last_gain = Instant::now();
        }
        for (member, id, detail) in done.bad {
            tracing::warn!(%member, chunk = %id, "a provider sent a damaged chunk and is not \
                asked again: {detail}");
            self.trouble = format!("{} sent a damaged chunk", member.short());
            self.plan.refused(id);
            self.plan.ban(member);
            self.hang_up(member);
        }
        for (role, id) in done.wanted {
            if self.plan.want(role, id) {
                self.progress.total_bytes += role_bytes(role);
            }
        }
        self.open.extend(done.open);
        self.verify.extend(done.verify);
        self.report.present_chunks += done.present;
        self.progress.done_bytes += done.present_bytes;
        self.progress.total_bytes += done.present_bytes;
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Up(member, ask) => {
                self.ask.insert(member, ask);
                self.plan.up(now, member);
            }
            Event::Chunk(from, id, stored) => match self.plan.arrived(now, from, id) {
                Some(role) => {
                    self.came_bytes += stored.len();
                    self.came.push_back(ReceivedChunk {
                        from,
                        role,
                        id,
                        stored,
                    });
                }
                None => self.report.duplicate_chunks += 1,
            },
            Event::Missing(member, id) => {
                self.trouble = format!("{} lacks chunk {}", member.short(), id.short());
                self.plan.lacks(now, member, id);
            }
            Event::Down(member, reason) => self.lose(member, reason),
        }
    }

    /// Takes back what the provider owes, and dials it again.
    fn lose(&mut self, member: MemberId, reason: String) {
        tracing::debug!(%member, "a provider of chunks is lost for now: {reason}");
        self.trouble = reason;
        self.plan.down(member);
        let was_up = self.ask.remove(&member).is_some();
        self.dial(member, if was_up { REDIAL_BROKEN } else { REDIAL_FAILED });
    }

    fn hang_up(&mut self, member: MemberId) {
        self.ask.remove(&member);
        if let Some(task) = self.abort.remove(&member) {
            task.abort();
        }
    }

    fn dial(&mut self, member: MemberId, pause: Duration) {
        while self.tasks.try_join_next().is_some() {}
        let (fabric, events, patience) = (
            self.core.fabric.clone(),
            self.events.clone(),
            self.core.options.call_timeout,
        );
        let task = self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            let reason = provider::run(&fabric, member, patience, &events).await;
            // Sending fails if the fetch has ended.
            let _ = events.send(Event::Down(member, reason)).await;
        });
        self.abort.insert(member, task);
    }

    fn ask_providers(&mut self) {
        let now = self.now();
        for (member, ask) in &self.ask {
            if let Ok(place) = ask.try_reserve() {
                let ids = self.plan.next(now, *member, wire::MAX_IDS);
                if !ids.is_empty() {
                    place.send(ids);
                }
            }
        }
    }

    fn look_for_stalls(&mut self) {
        while let Some(member) = self.plan.stalled(self.now(), self.core.options.stall) {
            self.hang_up(member);
            self.lose(
                member,
                format!(
                    "{} sent nothing for {:?}",
                    member.short(),
                    self.core.options.stall
                ),
            );
        }
    }
}
