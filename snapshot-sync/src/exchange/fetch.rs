//! A fetch: everything below a manifest that is not here, from several providers at once. One loop
//! owns the plan; each provider has a task that keeps a stream to it; verified chunks go to disk in
//! groups.
//!
//! What was committed before a fetch was cut or killed is found again by the next one.

use super::{
    Core, Exchange, SERVICE,
    plan::{MAX_PROVIDERS, Plan},
    wire::{self, Frame},
};
use crate::{
    ChunkId, Error, Hold, ManifestId, Progress,
    chunk::{self, MAX_CHUNK_BYTES},
    error::blocking,
    manifest::{self, Role},
    store::Batch,
};
use p2pvm_overlay::{Fabric, MemberId, chain};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

/// Chunks verified and written in one go off the async threads.
const GROUP: usize = 32;
/// What waits to be verified, at most; beyond, the streams are not read.
const STAGED_BYTES: usize = 4 << 20;
/// What is written before it is made durable, at most.
const COMMIT_BYTES: u64 = 32 << 20;
/// How long something written waits to be made durable, at most.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Nodes that are here are looked into only while fewer chunks than this wait to be asked for:
/// bounds memory for huge files.
const QUEUE_LOW: usize = 16 << 10;
/// How often stalls and take-overs are looked for.
const TICK: Duration = Duration::from_millis(500);
/// The pause before a provider is dialled again whose stream broke.
const REDIAL_BROKEN: Duration = Duration::from_millis(250);
/// The pause before a provider is dialled again that could not be reached.
const REDIAL_FAILED: Duration = Duration::from_secs(2);

/// What a fetch did.
#[derive(Debug)]
pub struct FetchReport {
    /// Chunks that came.
    pub fetched_chunks: u64,
    /// Their bytes on the wire.
    pub fetched_bytes: u64,
    /// Chunks that were here already.
    pub present_chunks: u64,
    /// Chunks that came twice, because a slow provider sent what another had taken over.
    pub duplicate_chunks: u64,
    /// Bytes on the wire by provider.
    pub by_provider: BTreeMap<MemberId, u64>,
    /// Keeps all of it until it is dropped: pin it before.
    pub hold: Hold,
}

enum Event {
    Up(MemberId, mpsc::Sender<Vec<ChunkId>>),
    Chunk(MemberId, ChunkId, Vec<u8>),
    Missing(MemberId, ChunkId),
    Down(MemberId, String),
}

/// A chunk that came.
struct Came {
    from: MemberId,
    role: Role,
    id: ChunkId,
    stored: Vec<u8>,
}

/// Work for a thread that may block: verify and write, look into nodes that are here, make durable.
#[derive(Default)]
struct Job {
    came: Vec<Came>,
    open: Vec<(Role, ChunkId)>,
    commit: bool,
}

/// What came of a [`Job`].
#[derive(Default)]
struct Done {
    stored: Vec<(MemberId, ChunkId, usize, u64)>,
    bad: Vec<(MemberId, ChunkId, String)>,
    wanted: Vec<(Role, ChunkId)>,
    open: Vec<(Role, ChunkId)>,
    present: u64,
    present_bytes: u64,
}

impl Job {
    fn is_empty(&self) -> bool {
        self.came.is_empty() && self.open.is_empty() && !self.commit
    }

    fn run(self, batch: &mut Batch) -> Result<Done, Error> {
        let mut done = Done::default();
        for Came {
            from,
            role,
            id,
            stored,
        } in self.came
        {
            match chunk::decode(id, &stored) {
                Ok(content) => {
                    batch.put_stored(id, &stored)?;
                    done.stored.push((from, id, stored.len(), role_bytes(role)));
                    look_into(role, &content, batch, &mut done)?;
                }
                Err(e) => done.bad.push((from, id, chain(&e))),
            }
        }
        for (role, id) in self.open {
            match batch.get(id) {
                Ok(content) => look_into(role, &content, batch, &mut done)?,
                Err(Error::NotFound(_) | Error::Corrupt { .. }) => done.wanted.push((role, id)),
                Err(e) => return Err(e),
            }
        }
        if self.commit {
            batch.commit()?;
        }
        Ok(done)
    }
}

fn look_into(role: Role, content: &[u8], batch: &mut Batch, done: &mut Done) -> Result<(), Error> {
    for (role, id) in manifest::children(role, content)? {
        match (batch.is_known(id), role) {
            (false, _) => done.wanted.push((role, id)),
            (true, Role::Data { bytes }) => {
                done.present += 1;
                done.present_bytes += u64::from(bytes);
            }
            (true, _) => {
                done.present += 1;
                done.open.push((role, id));
            }
        }
    }
    Ok(())
}

fn role_bytes(role: Role) -> u64 {
    match role {
        Role::Data { bytes } => u64::from(bytes),
        _ => 0,
    }
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
    came: VecDeque<Came>,
    came_bytes: usize,
    open: VecDeque<(Role, ChunkId)>,
    report: FetchReport,
    progress: Progress,
    last_gain: Instant,
    trouble: String,
}

impl Exchange {
    /// Fetches what is not here of all that `manifest` names (a file's, or a checkpoint's), from
    /// those of `providers` that have it. Durable on return; what came before an error stays for
    /// the next try.
    ///
    /// # Errors
    /// `NoProvider` if some chunk is with none of them, or nothing has come for as long as the
    /// exchange's patience.
    pub async fn fetch(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<FetchReport, Error> {
        self.core.fetch(manifest, providers, progress).await
    }
}

impl Core {
    pub(super) async fn fetch(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
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
            fetch.report.present_chunks = 1;
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
            if self.plan.missing() > 0 && !dialled {
                dialled = true;
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
                Some(event) = received.recv(), if self.came_bytes < STAGED_BYTES => self.handle(event),
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
                // What came is there for the next try.
                blocking("storing chunks", move || batch.commit()).await?;
                return Err(Error::NoProvider {
                    manifest,
                    missing: self.plan.missing(),
                    providers: providers.to_vec(),
                    detail: self.trouble.clone(),
                });
            }
        }
    }

    fn next_job(&mut self, commit: bool) -> Job {
        let mut next = Job {
            commit,
            ..Job::default()
        };
        while next.came.len() < GROUP
            && let Some(came) = self.came.pop_front()
        {
            self.came_bytes -= came.stored.len();
            next.came.push(came);
        }
        if self.plan.unasked() < QUEUE_LOW
            && let Some(open) = self.open.pop_front()
        {
            next.open.push(open);
        }
        next
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn take(&mut self, done: Done) {
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
                    self.came.push_back(Came {
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

    /// The task that dialled has ended; another goes on dialling.
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
            let reason = provider(&fabric, member, patience, &events).await;
            // The loop is gone if nobody listens.
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

/// Keeps one stream to a provider; returns why it ended.
async fn provider(
    fabric: &Arc<dyn Fabric>,
    member: MemberId,
    patience: Duration,
    events: &mpsc::Sender<Event>,
) -> String {
    let stream = match tokio::time::timeout(patience, fabric.open_stream(member, SERVICE)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return chain(&e),
        Err(_) => return format!("{} did not answer within {patience:?}", member.short()),
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (ask, mut asked) = mpsc::channel::<Vec<ChunkId>>(4);
    if events.send(Event::Up(member, ask)).await.is_err() {
        return String::new();
    }
    let write = async {
        while let Some(ids) = asked.recv().await {
            use tokio::io::AsyncWriteExt;
            Frame::Want(ids).write(&mut writer).await?;
            writer.flush().await?;
        }
        std::io::Result::Ok(())
    };
    let read = async {
        while let Some(frame) = Frame::read(&mut reader).await? {
            let event = match frame {
                Frame::Chunk(id, stored) if stored.len() <= MAX_CHUNK_BYTES + 1 => {
                    Event::Chunk(member, id, stored)
                }
                Frame::Missing(id) => Event::Missing(member, id),
                _ => {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::InvalidData,
                        "a frame that only an asker sends",
                    ));
                }
            };
            if events.send(event).await.is_err() {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    let ended = tokio::select! {
        ended = write => ended,
        ended = read => ended,
    };
    match ended {
        Ok(()) => format!("{} closed the stream", member.short()),
        Err(e) => format!("{}: {e}", member.short()),
    }
}
