//! Replicas kept for other members: each is fetched and pinned for the member that asked, within
//! that member's share of the disk. That member releases it, or a member that has the VM's key.
//!
//! The nodes of the manifest are fetched first: they give the size, and a replica that does not fit
//! is refused before its content is fetched.

use super::{
    Core, Exchange,
    fetch::Scope,
    wire::{self, Answer},
};
use crate::{
    Checkpoint, ChunkStore, Error, Progress,
    error::blocking,
    store::{Pin, Size},
};
use p2pvm_overlay::{
    MemberId, chain,
    identity::{self, Signature},
};
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle};

/// A replica being fetched for another member.
pub(super) struct ReplicaFetch {
    state: watch::Receiver<Answer>,
    task: AbortHandle,
}

impl Drop for ReplicaFetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Exchange {
    /// Begins or continues to keep a replica; answers after `wait` at the latest.
    pub(super) async fn keep(
        self: &Arc<Self>,
        pin: Pin,
        providers: Vec<MemberId>,
        wait: Duration,
    ) -> Result<Answer, Error> {
        let mut state = self.begin_keeping(&pin, providers)?;
        let finished = |answer: &Answer| !matches!(answer, Answer::Keeping(_));
        let waited = tokio::time::timeout(wait, state.wait_for(finished))
            .await
            .map(|ended| ended.is_ok());
        let answer = match waited {
            Ok(false) => Answer::Failed("it was released meanwhile".to_owned()),
            _ => state.borrow().clone(),
        };
        if finished(&answer) {
            self.keeping().remove(&pin);
        }
        Ok(answer)
    }

    fn begin_keeping(
        &self,
        pin: &Pin,
        providers: Vec<MemberId>,
    ) -> Result<watch::Receiver<Answer>, Error> {
        let mut keeping = self.keeping();
        if let Some(running) = keeping.get(pin) {
            return Ok(running.state.clone());
        }
        let of_same = keeping
            .keys()
            .filter(|other| other.owner == pin.owner)
            .count();
        if of_same >= self.core.options.max_keeping {
            return Err(Error::TooMany(of_same));
        }
        let (sender, state) = watch::channel(Answer::Keeping(Progress::default()));
        let (core, wanted) = (self.core.clone(), pin.clone());
        let task = tokio::spawn(async move {
            let answer = match core.keep_now(&wanted, &providers, &sender).await {
                Ok(()) => Answer::Kept,
                Err(e) => Answer::Failed(chain(&e)),
            };
            sender.send_replace(answer);
        });
        let fetch = ReplicaFetch {
            state: state.clone(),
            task: task.abort_handle(),
        };
        keeping.insert(pin.clone(), fetch);
        Ok(state)
    }

    /// Removes the caller's pin; with the VM's signature all pins of the manifest under the label.
    pub(super) async fn let_go(&self, pin: Pin, proof: Option<Signature>) -> Result<(), Error> {
        let (store, me) = (self.core.store.clone(), self.me());
        let (manifest, label) = (pin.manifest, pin.label.clone());
        self.keeping().remove(&pin);
        let is_proved = blocking("removing a pin", move || {
            let is_proved = proof.is_some_and(|proof| is_of_the_vm(&store, &pin, me, &proof));
            remove(&store, &pin, is_proved).map(|()| is_proved)
        })
        .await?;
        if is_proved {
            self.keeping()
                .retain(|pin, _| pin.manifest != manifest || pin.label != label);
        }
        Ok(())
    }
}

fn remove(store: &ChunkStore, pin: &Pin, is_proved: bool) -> Result<(), Error> {
    let there = store.pins_of(pin.manifest, &pin.label)?;
    let (meant, others): (Vec<_>, Vec<_>) = there
        .into_iter()
        .partition(|found| is_proved || found == pin);
    let removed = meant.len();
    for found in meant {
        store.remove_pin(&found)?;
    }
    if removed > 0 || others.is_empty() {
        return Ok(());
    }
    Err(Error::NotYours {
        manifest: pin.manifest,
        owners: others.into_iter().filter_map(|pin| pin.owner).collect(),
    })
}

/// Whether `proof` is a signature over the release by `me`, with the key that the pinned checkpoint
/// names.
fn is_of_the_vm(store: &ChunkStore, pin: &Pin, me: MemberId, proof: &Signature) -> bool {
    let message = wire::release_message(pin.manifest, &pin.label, me);
    Checkpoint::load(store, pin.manifest).is_ok_and(|checkpoint| {
        identity::verify(&checkpoint.vm.0, wire::RELEASE_DOMAIN, &message, proof)
    })
}

impl Core {
    async fn keep_now(
        &self,
        pin: &Pin,
        providers: &[MemberId],
        state: &watch::Sender<Answer>,
    ) -> Result<(), Error> {
        let turn = self.turn_of(pin.owner.unwrap_or(self.fabric.me()));
        let _turn = turn.lock_owned().await;
        let reserve = self.options.reserve_bytes;
        self.in_store("looking for room", move |store| store.has_room(0, reserve))
            .await?;
        let (progress, mut seen) = watch::channel(Progress::default());
        let nodes = self
            .fetch(pin.manifest, providers, Scope::Nodes, &progress)
            .await?;
        self.admit(pin).await?;
        let scope = Scope::All { reserve };
        let fetch = self.fetch(pin.manifest, providers, scope, &progress);
        tokio::pin!(fetch);
        let report = loop {
            tokio::select! {
                report = &mut fetch => break report?,
                Ok(()) = seen.changed() => {
                    state.send_replace(Answer::Keeping(*seen.borrow_and_update()));
                }
            }
        };
        let pin = pin.clone();
        self.in_store("pinning", move |store| store.set_pin(&pin))
            .await?;
        drop((nodes, report));
        Ok(())
    }

    /// Checks that the content fits on the disk and into the member's share.
    async fn admit(&self, pin: &Pin) -> Result<(), Error> {
        let (reserve, percent) = (self.options.reserve_bytes, self.options.replica_percent);
        let (manifest, owner) = (pin.manifest, pin.owner);
        self.in_store("looking for room", move |store| {
            let Size { missing_bytes, .. } = store.size_of(manifest)?;
            store.has_room(missing_bytes, reserve)?;
            let Some(member) = owner else { return Ok(()) };
            let allowed = store.room()?.size / 100 * u64::from(percent);
            let wanted = store.kept_with(member, manifest)?;
            if wanted <= allowed {
                return Ok(());
            }
            Err(Error::Share {
                member,
                wanted_mib: wanted.div_ceil(1 << 20),
                allowed_mib: allowed >> 20,
            })
        })
        .await
    }

    async fn in_store<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&ChunkStore) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store.clone();
        blocking(step, move || work(&store)).await
    }

    fn turn_of(&self, member: MemberId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // A turn that no task holds is dropped.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(member).or_default().clone()
    }
}
