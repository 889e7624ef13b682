//! The pushing side: a manifest is durable once `k` other members have all of it, pinned and
//! flushed.

use super::{
    Core, Exchange, is_transient,
    wire::{Answer, Request},
};
use crate::{Error, ManifestId, Progress, error::blocking};
use futures::{StreamExt, stream::FuturesUnordered};
use p2pvm_overlay::{MemberId, chain};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long the other member fetches before it answers with its progress.
const WAIT: Duration = Duration::from_secs(5);

/// How long to wait before candidates are tried again after all have failed.
const RETRY: Duration = Duration::from_secs(20);

/// How safe a manifest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicationState {
    /// Only this member has it.
    Local,
    /// `n` of `k` other members have all of it.
    Replicating {
        /// Members that have it.
        n: usize,
        /// Members wanted.
        k: usize,
    },
    /// As many other members as are wanted have all of it.
    Durable,
}

impl fmt::Display for ReplicationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Replicating { n, k } => write!(f, "replicating {n} of {k}"),
            Self::Durable => f.write_str("durable"),
        }
    }
}

/// How safe a manifest is, and which members hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// The state in a word.
    pub state: ReplicationState,
    /// The other members that have all of it, pinned.
    pub holders: Vec<MemberId>,
    /// The progress of a transfer under way.
    pub progress: Progress,
    /// Why the last candidate failed.
    pub trouble: Option<String>,
}

impl Exchange {
    /// Has `to` fetch and pin `manifest`, and returns when it is durable there. A repeated push
    /// continues.
    ///
    /// # Errors
    /// `Incomplete` if not all of it is here, `Peer` if `to` refuses or cannot be reached for
    /// [`super::ExchangeOptions::patience`].
    pub async fn push(
        &self,
        manifest: ManifestId,
        label: &str,
        to: MemberId,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let store = self.core.store.clone();
        let hold = blocking("holding what is pushed", move || store.hold_all(manifest)).await?;
        self.core
            .push_held(manifest, label, to, &[], progress)
            .await?;
        drop(hold);
        Ok(())
    }

    /// Replicates `manifest` under `label` to `k` of the `candidates`, the first ones preferred;
    /// the next replaces one that fails. The replication ends when the manifest is durable or the
    /// receiver is dropped, and at once if the manifest is incomplete here, as
    /// [`Replication::trouble`] then says. The caller pins it here and records the holders where
    /// other members find them.
    pub fn replicate(
        &self,
        manifest: ManifestId,
        label: &str,
        k: usize,
        candidates: &[MemberId],
    ) -> watch::Receiver<Replication> {
        let candidates = candidates.to_vec();
        self.replicate_among(manifest, label, k, move || candidates.clone())
    }

    /// As [`Self::replicate`]; `candidates` is asked for the present ones whenever all of them have
    /// been tried, so that members that come later are tried as well.
    pub fn replicate_among(
        &self,
        manifest: ManifestId,
        label: &str,
        k: usize,
        candidates: impl Fn() -> Vec<MemberId> + Send + Sync + 'static,
    ) -> watch::Receiver<Replication> {
        let start = Replication {
            state: ReplicationState::Local,
            holders: Vec::new(),
            progress: Progress::default(),
            trouble: None,
        };
        let (sender, receiver) = watch::channel(start);
        let (core, label) = (self.core.clone(), label.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = core.replicate_to(manifest, &label, k, &candidates, &sender) => {}
            }
        });
        receiver
    }
}

impl Core {
    pub(super) async fn push_held(
        &self,
        manifest: ManifestId,
        label: &str,
        to: MemberId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let step = "keeping a replica";
        let wait_ms = WAIT.as_millis() as u32;
        let request = Request::Keep {
            manifest,
            label: label.to_owned(),
            providers: providers.to_vec(),
            wait_ms,
        };
        let mut heard = Instant::now();
        let mut pause = Duration::from_millis(250);
        loop {
            let failed = match self
                .ask(to, step, &request, WAIT + self.options.call_timeout)
                .await
            {
                Ok(Answer::Kept) => return Ok(()),
                Ok(Answer::Keeping(now)) => {
                    if *progress.borrow() != now {
                        heard = Instant::now();
                    }
                    progress.send_replace(now);
                    pause = Duration::from_millis(250);
                    None
                }
                Ok(Answer::Failed(reason)) => Some(Error::Peer {
                    step,
                    source: p2pvm_overlay::FabricError::Refused(to, reason),
                }),
                Ok(_) => return Err(super::unexpected(step)),
                Err(Error::Peer { source, .. }) if is_transient(&source) => {
                    Some(Error::Peer { step, source })
                }
                Err(e) => return Err(e),
            };
            if let Some(e) = failed {
                if heard.elapsed() >= self.options.patience {
                    return Err(e);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(4));
            }
        }
    }

    async fn replicate_to(
        &self,
        manifest: ManifestId,
        label: &str,
        k: usize,
        candidates: &(dyn Fn() -> Vec<MemberId> + Send + Sync),
        report: &watch::Sender<Replication>,
    ) {
        let store = self.store.clone();
        let _hold = match blocking("holding what is replicated", move || {
            store.hold_all(manifest)
        })
        .await
        {
            Ok(hold) => hold,
            Err(e) => return report.send_modify(|r| r.trouble = Some(chain(&e))),
        };
        let mut holders: Vec<MemberId> = Vec::new();
        let me = self.fabric.me();
        while holders.len() < k {
            let mut untried: VecDeque<MemberId> = candidates().into();
            untried.retain(|c| *c != me && !holders.contains(c));
            let job = (manifest, label, k);
            self.replicate_round(job, &mut untried, &mut holders, report)
                .await;
            if holders.len() < k {
                tokio::time::sleep(RETRY).await;
            }
        }
        report.send_modify(|r| {
            r.state = ReplicationState::Durable;
            r.holders = holders;
            r.trouble = None;
        });
    }

    /// Pushes to as many of the `untried` at once as are missing, until `k` members hold it or no
    /// candidate is left.
    async fn replicate_round(
        &self,
        (manifest, label, k): (ManifestId, &str, usize),
        untried: &mut VecDeque<MemberId>,
        holders: &mut Vec<MemberId>,
        report: &watch::Sender<Replication>,
    ) {
        let mut pushes = FuturesUnordered::new();
        loop {
            while holders.len() + pushes.len() < k {
                let Some(to) = untried.pop_front() else { break };
                let providers = holders.clone();
                pushes.push(async move {
                    let pushed = self.push_reported(manifest, label, to, &providers, report);
                    (to, pushed.await)
                });
            }
            report.send_modify(|r| {
                let n = holders.len();
                r.state = if n >= k {
                    ReplicationState::Durable
                } else {
                    ReplicationState::Replicating { n, k }
                };
                r.holders.clone_from(holders);
            });
            match pushes.next().await {
                Some((to, Ok(()))) => holders.push(to),
                Some((to, Err(e))) => {
                    let why = chain(&e);
                    tracing::warn!(member = %to, manifest = %manifest, "a replica was not kept: \
                        {why}");
                    report.send_modify(|r| r.trouble = Some(why));
                }
                None => return,
            }
        }
    }

    /// As [`Self::push_held`], with its progress in the report.
    async fn push_reported(
        &self,
        manifest: ManifestId,
        label: &str,
        to: MemberId,
        providers: &[MemberId],
        report: &watch::Sender<Replication>,
    ) -> Result<(), Error> {
        let (progress, mut seen) = watch::channel(Progress::default());
        let push = self.push_held(manifest, label, to, providers, &progress);
        tokio::pin!(push);
        loop {
            tokio::select! {
                result = &mut push => return result,
                Ok(()) = seen.changed() => {
                    let now = *seen.borrow_and_update();
                    report.send_modify(|r| r.progress = now);
                }
            }
        }
    }
}
