//! The host's side of receipts: for each owner the use that is in no receipt yet, and at most one
//! receipt that it has not answered. While that one waits, the next one grows, so an owner that is
//! away for a month costs no more than one that answers at once.

use p2pvm_authority::{Line, MAX_LINES, MIN_PERIOD, Receipt, Size, Terms, Usage, possible};
use p2pvm_overlay::{
    MemberId, UnixTime, VmId,
    identity::{KeyPair, Signature},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How often an owner gets a receipt, in seconds.
const EVERY: u64 = 3600;
/// How many seconds in the future a period may begin. Reason: beyond, the clock was set back.
const AHEAD: u64 = 86_400;
/// How many owners have an account.
/// Reason: beyond them this host keeps its own sums only.
const MAX_OWNERS: usize = 128;
/// How many VMs of an owner an account remembers to have been in a receipt.
const MAX_TOLD: usize = 256;

/// What a VM or the replicas used since the last receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct OpenLine {
    size: Option<Size>,
    used: Usage,
}

/// A receipt that the owner has not answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    receipt: Receipt,
    seq: u64,
    to: UnixTime,
}

/// One owner's account with this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    open: BTreeMap<Option<VmId>, OpenLine>,
    /// When the open period began.
    since: UnixTime,
    /// The VMs of this owner that were in a receipt and are still here.
    told: BTreeSet<VmId>,
    /// Whether one of them has left since.
    has_left: bool,
    /// The end and the number of the last receipt.
    closed: (UnixTime, u64),
    waiting: Option<Waiting>,
    confirmed: Option<UnixTime>,
    refused: Option<String>,
}

impl Account {
    /// Until when the owner has confirmed what it used.
    pub fn confirmed(&self) -> Option<UnixTime> {
        self.confirmed
    }

    /// Why the owner refused the last receipt, if it did.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Whether use that was due for a receipt is not confirmed yet.
    pub fn is_behind(&self, now: UnixTime) -> bool {
        let is_late = self.since.plus(2 * EVERY) < now;
        self.confirmed.is_none() || self.waiting.is_some() || !self.open.is_empty() && is_late
    }

    fn note(&mut self, now: UnixTime, elapsed: u64, vm: Option<(VmId, Size)>, used: Usage) {
        let (closed, _) = self.closed;
        if self.open.is_empty() || self.since > now.plus(AHEAD) {
            let began = UnixTime(now.0.saturating_sub(elapsed));
            let is_wrong = closed > now.plus(AHEAD);
            self.since = if is_wrong { began } else { began.max(closed) };
        }
        let line = self.open.entry(vm.map(|(vm, _)| vm)).or_default();
        line.size = vm.map(|(_, size)| size);
        line.used += used;
    }

    /// Whether it is time for a receipt: after an hour, or sooner if a VM is new, so that the owner
    /// knows it before it is deleted, or has left.
    fn is_due(&self, now: UnixTime) -> bool {
        let is_new = |vm: &Option<VmId>| vm.is_some_and(|vm| !self.told.contains(&vm));
        let is_early = self.has_left || self.open.keys().any(is_new);
        let period = now.0.saturating_sub(self.since.0);
        let least = if is_early { MIN_PERIOD } else { EVERY };
        self.waiting.is_none() && !self.open.is_empty() && period >= least
    }

    /// Closes the period. What does not fit into the receipt stays open.
    fn close(&mut self, host: &KeyPair, owner: MemberId, now: UnixTime) {
        let seconds = now.0.saturating_sub(self.since.0);
        let mut lines = Vec::new();
        while lines.len() < MAX_LINES
            && let Some((vm, line)) = self.open.pop_first()
        {
            // More than is possible is a clock that was set back: the owner would refuse it all.
            let used = line.used.at_most(&possible(line.size, seconds));
            lines.push(Line { vm, used });
            self.told.extend(vm);
        }
        while self.told.len() > MAX_TOLD {
            self.told.pop_first();
        }
        let (from, to) = (std::mem::replace(&mut self.since, now), now);
        let seq = now.0.max(self.closed.1.saturating_add(1));
        (self.closed, self.has_left) = ((to, seq), false);
        let terms = Terms {
            host: MemberId(host.public()),
            owner,
            seq,
            from,
            to,
            lines,
        };
        let receipt = Receipt::sign(host, &terms);
        self.waiting = Some(Waiting { receipt, seq, to });
    }
}

/// The accounts of all owners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts(BTreeMap<MemberId, Account>);

impl Accounts {
    /// One owner's.
    pub fn of(&self, owner: MemberId) -> Option<&Account> {
        self.0.get(&owner)
    }

    /// Notes what was used in the `elapsed` seconds until `now`.
    pub fn note(
        &mut self,
        (now, elapsed): (UnixTime, u64),
        owner: MemberId,
        vm: Option<(VmId, Size)>,
        used: Usage,
    ) {
        if !self.0.contains_key(&owner) && self.0.len() >= MAX_OWNERS {
            let is_idle = |a: &&Account| a.open.is_empty() && a.waiting.is_none();
            let idle = self.0.iter().filter(|(_, account)| is_idle(account));
            let oldest = idle.min_by_key(|(_, a)| a.closed).map(|(owner, _)| *owner);
            let Some(oldest) = oldest else { return };
            self.0.remove(&oldest);
        }
        let account = self.0.entry(owner).or_default();
        account.note(now, elapsed, vm, used);
    }

    /// Notes which VMs of which owners are here.
    pub fn note_here(&mut self, here: &BTreeMap<VmId, MemberId>) {
        for (owner, account) in &mut self.0 {
            let before = account.told.len();
            account.told.retain(|vm| here.get(vm) == Some(owner));
            account.has_left |= account.told.len() < before;
        }
    }

    /// Closes the periods that are due; true if there were any.
    pub fn close_due(&mut self, host: &KeyPair, now: UnixTime) -> bool {
        let mut closed = false;
        for (owner, account) in &mut self.0 {
            if account.is_due(now) {
                account.close(host, *owner, now);
                closed = true;
            }
        }
        closed
    }

    /// The receipts to send.
    pub fn waiting(&self) -> Vec<(MemberId, Receipt)> {
        let waiting = |(owner, account): (&MemberId, &Account)| {
            let waiting = account.waiting.as_ref()?;
            Some((*owner, waiting.receipt.clone()))
        };
        self.0.iter().filter_map(waiting).collect()
    }

    /// Takes the owner's signature for the receipt that waits; false if it does not fit.
    pub fn confirm(&mut self, owner: MemberId, receipt: &Receipt, signature: &Signature) -> bool {
        self.answered(owner, receipt, |account, to| {
            let fits = receipt.is_confirmed(owner, signature);
            if fits {
                (account.confirmed, account.refused) = (Some(to), None);
            } else {
                account.refused = Some("the owner's signature does not fit".to_owned());
            }
            fits
        })
    }

    /// Takes the owner's refusal of the receipt that waits.
    pub fn refuse(&mut self, owner: MemberId, receipt: &Receipt, why: String) {
        self.answered(owner, receipt, |account, _| {
            account.refused = Some(why);
            true
        });
    }

    fn answered(
        &mut self,
        owner: MemberId,
        receipt: &Receipt,
        take: impl FnOnce(&mut Account, UnixTime) -> bool,
    ) -> bool {
        let Some(account) = self.0.get_mut(&owner) else {
            return false;
        };
        match account.waiting.take() {
            Some(waiting) if waiting.receipt == *receipt => take(account, waiting.to),
            other => {
                account.waiting = other;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const WEB: (VmId, Size) = (
        VmId([7; 32]),
        Size {
            cpus: 1,
            memory_mib: 512,
            disk_mib: 0,
        },
    );

    fn keys(number: u8) -> KeyPair {
        KeyPair::from_seed(&[number; 32])
    }

    fn owner() -> MemberId {
        MemberId(keys(2).public())
    }

    fn cpu(cpu_ms: u64) -> Usage {
        Usage {
            cpu_ms,
            ..Usage::default()
        }
    }

    /// Notes a minute of use at `seconds` after the beginning, and closes what is due.
    fn minute(accounts: &mut Accounts, seconds: u64, cpu_ms: u64) -> bool {
        let now = NOW.plus(seconds);
        accounts.note((now, 60), owner(), Some(WEB), cpu(cpu_ms));
        accounts.close_due(&keys(1), now)
    }

    fn terms(accounts: &Accounts) -> Terms {
        accounts.waiting()[0].1.terms().unwrap()
    }

    fn confirm(accounts: &mut Accounts) {
        let (_, receipt) = accounts.waiting().remove(0);
        assert!(accounts.confirm(owner(), &receipt, &receipt.confirm(&keys(2))));
    }

    #[test]
    fn a_new_vm_has_a_receipt_at_once_and_then_every_hour() {
        let mut accounts = Accounts::default();
        assert!(minute(&mut accounts, 60, 1000));
        let first = terms(&accounts);
        assert_eq!((first.from, first.to), (NOW, NOW.plus(60)));
        confirm(&mut accounts);
        for at in 2..61 {
            assert!(!minute(&mut accounts, at * 60, 1000), "minute {at}");
        }
        assert!(minute(&mut accounts, 61 * 60, 1000));
        let second = terms(&accounts);
        assert_eq!((second.from, second.lines[0].used), (first.to, cpu(60_000)));
        assert!(second.seq > first.seq);
    }

    #[test]
    fn a_vm_that_leaves_ends_the_period() {
        let mut accounts = Accounts::default();
        minute(&mut accounts, 60, 1000);
        confirm(&mut accounts);
        minute(&mut accounts, 120, 1000);
        accounts.note_here(&[(WEB.0, owner())].into());
        assert!(!accounts.close_due(&keys(1), NOW.plus(130)));
        accounts.note_here(&BTreeMap::new());
        assert!(accounts.close_due(&keys(1), NOW.plus(130)));
        assert_eq!(terms(&accounts).lines[0].used, cpu(1000));
    }

    #[test]
    fn an_owner_that_is_away_has_one_receipt_waiting_and_loses_nothing() {
        let mut accounts = Accounts::default();
        assert!(minute(&mut accounts, 60, 1000));
        for at in 2..600 {
            assert!(!minute(&mut accounts, at * 60, 1000));
        }
        assert_eq!(accounts.waiting().len(), 1);
        confirm(&mut accounts);
        assert!(minute(&mut accounts, 600 * 60, 1000));
        let second = terms(&accounts);
        assert_eq!(
            (second.seconds(), second.lines[0].used),
            (599 * 60, cpu(599_000))
        );
    }

    #[test]
    fn only_the_owners_answer_to_the_receipt_that_waits_counts() {
        let mut accounts = Accounts::default();
        minute(&mut accounts, 60, 1000);
        let (_, receipt) = accounts.waiting().remove(0);
        let other = Receipt::sign(
            &keys(1),
            &Terms {
                seq: 0,
                ..terms(&accounts)
            },
        );
        assert!(!accounts.confirm(owner(), &other, &other.confirm(&keys(2))));
        assert_eq!(accounts.waiting().len(), 1);
        assert!(!accounts.confirm(owner(), &receipt, &receipt.confirm(&keys(3))));
        let account = accounts.of(owner()).unwrap();
        assert!(account.refused().is_some() && account.confirmed().is_none());
    }

    #[test]
    fn a_clock_set_back_claims_no_more_than_the_period_allows() {
        let mut accounts = Accounts::default();
        minute(&mut accounts, 60, 1000);
        confirm(&mut accounts);
        for at in 2..60 {
            minute(&mut accounts, at * 60, 60_000);
        }
        accounts.note_here(&BTreeMap::new());
        assert!(!accounts.close_due(&keys(1), NOW.plus(60)), "no period");
        assert!(accounts.close_due(&keys(1), NOW.plus(180)));
        let known = |_| Some((WEB.1, UnixTime(0)));
        assert!(terms(&accounts).check_amounts(known).is_ok());
        // Ten days back: a new period begins.
        let mut ahead = Accounts::default();
        assert!(minute(&mut ahead, 864_000, 1000));
        confirm(&mut ahead);
        minute(&mut ahead, 60, 1000);
        assert!(minute(&mut ahead, 7200, 1000));
    }

    #[test]
    fn owners_are_bounded() {
        let mut accounts = Accounts::default();
        for n in 0..=u8::MAX {
            accounts.note((NOW, 10), MemberId([n; 32]), Some(WEB), cpu(1));
        }
        assert_eq!(accounts.0.len(), MAX_OWNERS);
        assert!(accounts.of(MemberId([255; 32])).is_none());
    }
}
