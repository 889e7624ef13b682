//! Puts the network's present policy into force. The packet plane enforces it, the document decides
//! it, the notices spread it.

use crate::parts::Parts;
use p2pvm_host::lock;
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
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long before the VMs named in rules are looked up again.
const NAMES_EVERY: Duration = Duration::from_secs(60);

/// The policy that is in force here.
pub struct Policies {
    parts: Arc<Parts>,
    standing: Mutex<Option<(SignedPolicy, Arc<NetworkPolicy>)>>,
    /// Whether all packets are refused because no member has said yet whether there is a policy.
    closed: AtomicBool,
}

impl Policies {
    /// Puts the policy of the last run into force before any packet arrives. A member that knows of
    /// none refuses all packets until it has met another member; a founder, which would know it,
    /// does not wait.
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

    /// The present policy.
    pub fn standing(&self) -> Option<(SignedPolicy, Arc<NetworkPolicy>)> {
        lock(&self.standing).clone()
    }

    /// Whether the policy lets an echo request through, as far as it is known here.
    pub fn lets_probe(&self, from: &Party, to: &Party) -> bool {
        let Ok(echo) = "icmp".parse::<Traffic>() else {
            return true;
        };
        self.standing()
            .is_none_or(|(_, policy)| policy.decide(from, to, echo).action == Action::Allow)
    }

    /// Puts the present policy into force. Returns whether it has changed.
    pub(crate) fn apply(&self) -> bool {
        let signed = self.parts.notices.policy();
        let mut standing = lock(&self.standing);
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

    /// The names of the VMs in its rules.
    pub(super) fn mentioned(&self) -> BTreeSet<String> {
        let standing = lock(&self.standing);
        standing
            .iter()
            .flat_map(|(_, policy)| policy.vm_names())
            .map(str::to_owned)
            .collect()
    }

    /// Follows the members' notices, until the daemon ends.
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
