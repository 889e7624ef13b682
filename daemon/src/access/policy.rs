//! Puts the network's policy that stands in force. Enforcing is the packet plane's part, deciding
//! the document's, spreading the notices'.

use crate::parts::Parts;
use p2pvm_overlay::{
    membership::{
        NetworkPolicy, SignedPolicy,
        policy::{Action, Party, Traffic},
    },
    plane::Directory,
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How often the VMs that rules mention are looked up again.
const NAMES_EVERY: Duration = Duration::from_secs(60);

/// The policy that is in force here.
pub struct Policies {
    parts: Arc<Parts>,
    standing: Mutex<Option<(SignedPolicy, Arc<NetworkPolicy>)>>,
    /// Whether nothing is let in, since no member has said yet whether there is a policy.
    closed: AtomicBool,
}

impl Policies {
    /// Puts the policy that was known when the daemon last ran in force, before anything arrives. A
    /// member that has not heard of any lets nothing in until it has met another; a founder, which
    /// would know, does not wait.
    pub fn start(parts: Arc<Parts>, founder: bool) -> Arc<Self> {
        let closed = !founder && !parts.notices.heard();
        if closed {
            parts.plane.await_policy();
        }
        let policies = Arc::new(Self {
            parts,
            standing: Mutex::default(),
            closed: closed.into(),
        });
        policies.apply();
        policies
    }

    /// Whether what no rule allows is denied; also as long as no member has said whether there are
    /// rules.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
            || self
                .standing()
                .is_some_and(|(_, policy)| policy.default == Action::Deny)
    }

    /// The policy that stands.
    pub fn standing(&self) -> Option<(SignedPolicy, Arc<NetworkPolicy>)> {
        self.standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the policy lets an echo request through, as far as it is known here.
    pub fn lets_probe(&self, from: &Party, to: &Party) -> bool {
        let Ok(echo) = "icmp".parse::<Traffic>() else {
            return true;
        };
        self.standing()
            .is_none_or(|(_, policy)| policy.decide(from, to, echo).action == Action::Allow)
    }

    /// Puts the policy that stands in force; whether it is another than before.
    pub(crate) fn apply(&self) -> bool {
        let signed = self.parts.notices.policy();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let opens = (signed.is_some() || self.parts.notices.heard())
            && self.closed.swap(false, Ordering::AcqRel);
        if !opens && standing.as_ref().map(|(signed, _)| signed) == signed.as_ref() {
            return false;
        }
        *standing = signed.and_then(|signed| {
            let policy = Arc::new(signed.policy()?);
            Some((signed, policy))
        });
        let directory: Arc<dyn Directory> = self.parts.book.clone();
        self.parts.plane.set_policy(
            standing
                .as_ref()
                .map(|(_, policy)| (policy.clone(), directory)),
        );
        if let Some((signed, policy)) = &*standing {
            tracing::info!(
                version = signed.version(), rules = policy.rules.len(), default = %policy.default,
                "policy in force"
            );
        }
        true
    }

    /// The VMs that its rules mention, by name.
    pub(super) fn mentioned(&self) -> BTreeSet<String> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing
            .iter()
            .flat_map(|(_, policy)| policy.vm_names())
            .map(str::to_owned)
            .collect()
    }

    /// Follows what the members tell, until the daemon ends.
    pub async fn run(&self) {
        let mut changes = self.parts.notices.changes();
        loop {
            self.parts
                .book
                .find_names(self.mentioned(), &self.parts.addresses)
                .await;
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.apply();
                }
                () = self.parts.book.doubted() => {}
                () = tokio::time::sleep(NAMES_EVERY) => {}
            }
        }
    }
}
