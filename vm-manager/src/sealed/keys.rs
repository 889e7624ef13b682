//! The keys that seal a VM's snapshots: one for each holding, so that a former host, which keeps
//! what it knew, does not open what a later host stores.
//!
//! The first host of a VM seals with a key derived from the VM's own, as the previous release does
//! and reads. Each later host draws a random secret before its first snapshot, writes it down, and
//! hands it on with the VM: in the offer of a move, and in the sealed part of each snapshot. So a
//! holder opens all older snapshots, and no newer ones once it has lost the VM. From the same
//! secret comes the key that ends a snapshot's replicas, named in the snapshot.

use crate::{definition::VmSecret, directory::MAX_SNAPSHOTS};
use p2pvm_overlay::{Epoch, VmId, identity::KeyPair};
use p2pvm_snapshot_sync::SealKey;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroize;

/// How many keys a host keeps for a VM at most: the newest ones.
/// Reason: a VM has no more snapshots. What an older key sealed, the VM's voters open.
const MAX_KEYS: usize = MAX_SNAPSHOTS;
/// How long one key is as a field: the epoch, then the secret.
const FIELD_BYTES: usize = 8 + 32;
/// The first epoch of every VM, in which the host has it that made it.
const FIRST: Epoch = Epoch(1);
/// What derives the key that ends replicas.
const RELEASER: &str = "p2pvm 2026 end of a holding's replicas";

/// The secret of one holding. It is wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HoldingKey {
    /// The epoch in which it was drawn. A majority grants an epoch to one member, so two holdings
    /// never have the same.
    since: Epoch,
    secret: [u8; 32],
}

impl HoldingKey {
    fn releaser(&self) -> KeyPair {
        KeyPair::from_seed(&blake3::derive_key(RELEASER, &self.secret))
    }
}

impl fmt::Debug for HoldingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HoldingKey(since {})", self.since)
    }
}

impl Drop for HoldingKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// The keys of the holdings of one VM, as far as its host knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingKeys {
    /// With growing epochs.
    keys: Vec<HoldingKey>,
    /// Whether no former host knows the key that seals the next snapshot.
    is_own: bool,
}

impl HoldingKeys {
    /// None, as in a VM's first holding and after a holder of the previous release.
    pub const NONE: Self = Self {
        keys: Vec::new(),
        is_own: false,
    };

    /// Whether there is nothing to write down.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// Whether the host that has the VM since `arrived` has to draw a key before its next snapshot.
    pub(crate) fn needs_own(&self, arrived: Epoch) -> bool {
        !self.is_own && arrived > FIRST
    }

    /// Draws a key for the present holding, in `epoch`.
    pub(crate) fn draw(&mut self, epoch: Epoch) {
        let mut secret = [0; 32];
        rand::fill(&mut secret);
        self.keys.retain(|key| key.since < epoch);
        self.keys.push(HoldingKey {
            since: epoch,
            secret,
        });
        self.is_own = true;
        self.trim();
    }

    /// The holding whose key seals the next snapshot; `None` for the key derived from the VM's.
    pub(crate) fn newest(&self) -> Option<Epoch> {
        self.keys.last().map(|key| key.since)
    }

    /// The key of a holding; `None` if it is not known here.
    pub(crate) fn key(&self, holding: Option<Epoch>, vm: &VmSecret) -> Option<SealKey> {
        let Some(since) = holding else {
            return Some(SealKey::derive(&vm.keys().seed()));
        };
        let key = self.keys.iter().find(|key| key.since == since)?;
        Some(SealKey::derive(&key.secret))
    }

    /// The keys that end replicas of the VM's snapshots: the VM's own first, which does for those
    /// of its first holding, then one for each holding.
    pub(crate) fn releasers(&self, vm: &VmSecret) -> Vec<KeyPair> {
        let later = self.keys.iter().map(HoldingKey::releaser);
        [vm.keys()].into_iter().chain(later).collect()
    }

    /// The public key that ends replicas of the next snapshot; in the snapshot it has the place of
    /// the VM's id.
    pub(crate) fn newest_releaser(&self, vm: VmId) -> VmId {
        self.keys.last().map_or(vm, |key| key.releaser().vm_id())
    }

    /// The keys as a host gets them that has the VM from `epoch` on: from the host before, or out
    /// of a snapshot. None of them is its own.
    pub(crate) fn handed_on(mut self, epoch: Epoch) -> Self {
        self.keys.retain(|key| key.since < epoch);
        self.is_own = false;
        self
    }

    /// The keys after a restore over an older copy on the same host, which had these and had the
    /// VM since `arrived`. If it held the VM, no other member has come to know its newest key.
    pub(crate) fn with_older(mut self, older: &Self, arrived: Epoch, was_held: bool) -> Self {
        self.learn(older);
        self.is_own = was_held && !older.needs_own(arrived) && self.newest() == older.newest();
        self
    }

    /// Adds the keys of other holdings.
    pub(crate) fn learn(&mut self, others: &Self) {
        for key in &others.keys {
            if self.keys.iter().all(|known| known.since != key.since) {
                self.keys.push(key.clone());
            }
        }
        self.keys.sort_by_key(|key| key.since);
        self.trim();
    }

    fn trim(&mut self) {
        let over = self.keys.len().saturating_sub(MAX_KEYS);
        self.keys.drain(..over);
    }

    /// The keys as optional fields of a message or document, one each.
    pub(crate) fn fields(&self) -> impl Iterator<Item = [u8; FIELD_BYTES]> {
        self.keys.iter().map(|key| {
            let mut field = [0; FIELD_BYTES];
            field[..8].copy_from_slice(&key.since.0.to_be_bytes());
            field[8..].copy_from_slice(&key.secret);
            field
        })
    }

    /// Adds a field that another member wrote. A broken one, one out of order, and one beyond the
    /// bound are passed over.
    pub(crate) fn add_field(&mut self, field: &[u8]) {
        let Some((since, secret)) = field.split_first_chunk::<8>() else {
            return;
        };
        let (since, Ok(secret)) = (Epoch(u64::from_be_bytes(*since)), secret.try_into()) else {
            return;
        };
        if self.keys.len() < MAX_KEYS && self.newest().is_none_or(|newest| newest < since) {
            self.keys.push(HoldingKey { since, secret });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm() -> VmSecret {
        VmSecret::of(&KeyPair::from_seed(&[1; 32]))
    }

    fn read(fields: impl Iterator<Item = Vec<u8>>) -> HoldingKeys {
        let mut keys = HoldingKeys::NONE;
        fields.for_each(|field| keys.add_field(&field));
        keys
    }

    fn drawn(epochs: impl IntoIterator<Item = u64>) -> HoldingKeys {
        let mut keys = HoldingKeys::NONE;
        epochs.into_iter().for_each(|epoch| keys.draw(Epoch(epoch)));
        keys
    }

    #[test]
    fn the_host_that_made_a_vm_seals_as_the_previous_release() {
        let first = HoldingKeys::NONE;
        assert!(!first.needs_own(Epoch(1)) && first.newest().is_none());
        let former = SealKey::derive(&vm().keys().seed());
        assert!(first.key(first.newest(), &vm()) == Some(former));
    }

    #[test]
    fn each_later_host_draws_a_key_and_opens_older_snapshots() {
        let mut second = HoldingKeys::NONE.handed_on(Epoch(2));
        assert!(second.needs_own(Epoch(2)));
        second.draw(Epoch(3));
        assert!(!second.needs_own(Epoch(2)));
        let mut third = second.clone().handed_on(Epoch(4));
        assert!(third.needs_own(Epoch(4)));
        third.draw(Epoch(4));
        for holding in [None, Some(Epoch(3))] {
            assert!(third.key(holding, &vm()) == second.key(holding, &vm()));
        }
        let newest = third.key(third.newest(), &vm());
        assert!(newest.is_some() && newest != second.key(second.newest(), &vm()));
        assert!(second.key(third.newest(), &vm()).is_none(), "a former host");
    }

    #[test]
    fn a_former_host_has_not_the_key_that_ends_later_replicas() {
        let id = vm().keys().vm_id();
        let of = |keys: &HoldingKeys| -> Vec<_> {
            let all = keys.releasers(&vm()).into_iter();
            all.map(|key| key.vm_id()).collect()
        };
        let first = HoldingKeys::NONE;
        assert_eq!(first.newest_releaser(id), id);
        let (second, third) = (drawn([3]), drawn([3, 5]));
        assert_eq!(of(&second), [id, second.newest_releaser(id)]);
        let newest = third.newest_releaser(id);
        assert!(of(&third).contains(&newest) && !of(&second).contains(&newest));
        assert_eq!(of(&third).len(), 3);
    }

    #[test]
    fn a_later_epochs_key_is_not_taken_from_a_former_host() {
        let mut keys = drawn([3, 900]).handed_on(Epoch(5));
        assert_eq!(keys.newest(), Some(Epoch(3)));
        keys.draw(Epoch(5));
        assert_eq!(keys.newest(), Some(Epoch(5)));
    }

    #[test]
    fn a_restore_on_the_same_host_goes_on_with_its_key() {
        let older = drawn([3]);
        let kept = HoldingKeys::NONE.handed_on(Epoch(6));
        let same = kept.clone().with_older(&older, Epoch(3), true);
        assert!(same == older && !same.needs_own(Epoch(6)));
        let lost = kept.clone().with_older(&older, Epoch(3), false);
        assert!(lost.needs_own(Epoch(6)) && lost.newest() == Some(Epoch(3)));
        let newer = drawn([3, 5]).handed_on(Epoch(6));
        assert!(newer.with_older(&older, Epoch(3), true).needs_own(Epoch(6)));
        // It was made here and has never been elsewhere.
        let first = kept.with_older(&HoldingKeys::NONE, Epoch(1), true);
        assert!(!first.needs_own(Epoch(6)) && !first.is_none());
    }

    #[test]
    fn what_is_learnt_later_leaves_the_hosts_own_key_the_newest() {
        let mut keys = drawn([9]);
        keys.learn(&drawn([3, 5]));
        assert_eq!((keys.fields().count(), keys.newest()), (3, Some(Epoch(9))));
        assert!(!keys.needs_own(Epoch(9)));
    }

    #[test]
    fn of_many_keys_the_newest_are_kept() {
        let last = MAX_KEYS as u64 + 9;
        let keys = drawn(2..=last);
        assert_eq!(keys.fields().count(), MAX_KEYS);
        assert_eq!(keys.newest(), Some(Epoch(last)));
        let more = drawn(2..=last + 1);
        assert_eq!(
            read(keys.fields().chain(more.fields()).map(Vec::from))
                .fields()
                .count(),
            MAX_KEYS
        );
    }

    #[test]
    fn the_next_version_reads_a_key_of_a_holding() {
        let field = [vec![0, 0, 0, 0, 0, 0, 1, 2], vec![7; 32]].concat();
        let keys = read([field.clone()].into_iter());
        assert_eq!(keys.newest(), Some(Epoch(258)));
        assert!(keys.key(Some(Epoch(258)), &vm()) == Some(SealKey::derive(&[7; 32])));
        assert_eq!(keys.fields().map(Vec::from).collect::<Vec<_>>(), [field]);
        let text = serde_json::to_string(&keys).unwrap();
        let secret = ["7"; 32].join(",");
        assert_eq!(
            text,
            format!(r#"{{"keys":[{{"since":258,"secret":[{secret}]}}],"is_own":false}}"#)
        );
        assert_eq!(serde_json::from_str::<HoldingKeys>(&text).unwrap(), keys);
    }

    #[test]
    fn a_key_is_not_shown() {
        let keys = read([[vec![0; 7], vec![9], vec![77; 32]].concat()].into_iter());
        let shown = format!("{keys:?}");
        assert!(
            shown.contains("since 9") && !shown.contains("77"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn any_fields_give_keys_in_order_and_within_bounds(
            fields in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..FIELD_BYTES + 2),
                0..2 * MAX_KEYS,
            )
        ) {
            let keys = read(fields.into_iter());
            let is_sorted = keys.keys.is_sorted_by(|a, b| a.since < b.since);
            prop_assert!(is_sorted && keys.keys.len() <= MAX_KEYS);
            prop_assert_eq!(read(keys.fields().map(Vec::from)), keys);
        }
    }
}
