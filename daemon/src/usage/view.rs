//! The accounts as the control API tells them.

use super::{book::Book, desk::State, service::Accounting, sums::Rows};
use p2pvm_api::{ReceiptState, UsageBy, UsageReceipts, UsageRequest, UsageRow, UsageView};
use p2pvm_authority::Usage;
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

/// The one whose host, or whose VM it is, of rows beyond the bound.
const OTHERS: &str = "others";
/// The row of a member's replicas.
const REPLICAS: &str = "replicas";

/// One row before names are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    host: Option<MemberId>,
    owner: Option<MemberId>,
    vm: Option<VmId>,
}

/// Sums by the text of a group, with the entries in each.
type Groups = BTreeMap<Vec<String>, (BTreeSet<Entry>, Usage)>;

impl Accounting {
    /// What was used since some time ago.
    pub(crate) fn show(&self, request: &UsageRequest) -> UsageView {
        let (me, now) = (self.parts.me(), UnixTime::now());
        let from = UnixTime(now.0.saturating_sub(request.seconds));
        let state = self.desk.state();
        let mut view = UsageView {
            since: time(from),
            ..UsageView::default()
        };
        if request.here {
            let entry = |owner, vm| Entry {
                host: Some(me),
                owner,
                vm,
            };
            let rows = entries(state.ledger.sums.since(from), entry);
            view.here = self.rows(&state, rows, request.by, now);
        }
        if request.mine {
            let of_host = |(host, book): (&MemberId, &Book)| {
                let host = Some(*host);
                let entry = |_, vm| Entry {
                    host,
                    owner: Some(me),
                    vm,
                };
                entries(book.sums.since(from), entry)
            };
            let rows = state.books.iter().flat_map(of_host).collect();
            view.mine = self.rows(&state, rows, request.by, now);
        }
        view
    }

    fn rows(
        &self,
        state: &State,
        entries: Vec<(Entry, Usage)>,
        by: Option<UsageBy>,
        now: UnixTime,
    ) -> Vec<UsageRow> {
        let mut groups = Groups::new();
        for (entry, used) in entries {
            let group = match by {
                None => vec![self.name(entry.host), self.name(entry.owner)],
                Some(UsageBy::Owner) => vec![self.name(entry.owner)],
                Some(UsageBy::Host) => vec![self.name(entry.host)],
                Some(UsageBy::Vm) => vec![
                    vm_name(state, &entry),
                    entry.vm.map_or_else(String::new, |vm| vm.to_string()),
                    self.name(entry.owner),
                ],
            };
            let (among, sum) = groups.entry(group).or_default();
            among.insert(entry);
            *sum += used;
        }
        let row = |(among, sum): (BTreeSet<Entry>, Usage)| {
            let host = common(&among, |entry| entry.host);
            let owner = common(&among, |entry| entry.owner);
            let vm = common(&among, |entry| entry.vm);
            let first = among.first().copied();
            let is_of_vm = by == Some(UsageBy::Vm) && vm.is_some();
            UsageRow {
                cpu_seconds: sum.cpu_ms as f64 / 1e3,
                disk_gib_hours: gib_hours(sum.disk_mib_s),
                host: host.map(|host| self.name(host)),
                memory_gib_hours: gib_hours(sum.memory_mib_s),
                owner: owner.map(|owner| self.name(owner)),
                receipts: match (host.flatten(), owner.flatten()) {
                    (Some(host), Some(owner)) => Some(self.receipts(state, host, owner, now)),
                    _ => None,
                },
                received_bytes: sum.received,
                replica_gib_hours: gib_hours(sum.kept_mib_s),
                sent_bytes: sum.sent,
                vm: first
                    .filter(|_| is_of_vm)
                    .map(|entry| vm_name(state, &entry)),
            }
        };
        groups.into_values().map(row).collect()
    }

    pub(super) fn name(&self, member: Option<MemberId>) -> String {
        member.map_or_else(|| OTHERS.to_owned(), |member| self.parts.name_of(member))
    }

    fn receipts(
        &self,
        state: &State,
        host: MemberId,
        owner: MemberId,
        now: UnixTime,
    ) -> UsageReceipts {
        let me = self.parts.me();
        let account = state.ledger.accounts.of(owner).filter(|_| host == me);
        let book = state.books.get(&host).filter(|_| owner == me);
        let (confirmed, refused, is_behind) = match (account, book) {
            (Some(account), _) => (
                account.confirmed(),
                account.refused(),
                account.is_behind(now),
            ),
            (None, Some(book)) => (book.confirmed(), book.refused(), false),
            (None, None) => (None, None, true),
        };
        UsageReceipts {
            confirmed_until: confirmed.map(time),
            refused: refused.map(str::to_owned),
            state: match (refused, is_behind) {
                _ if host == owner => ReceiptState::Own,
                (Some(_), _) => ReceiptState::Refused,
                (None, true) => ReceiptState::Open,
                (None, false) => ReceiptState::Confirmed,
            },
        }
    }
}

fn entries(
    rows: Rows,
    entry: impl Fn(Option<MemberId>, Option<VmId>) -> Entry,
) -> Vec<(Entry, Usage)> {
    let entries = rows.into_iter();
    entries
        .map(|(key, used)| (entry(key.member, key.vm), used))
        .collect()
}

/// What all entries have in common; `None` if they differ.
fn common<T: PartialEq>(among: &BTreeSet<Entry>, of: impl Fn(&Entry) -> T) -> Option<T> {
    let first = of(among.first()?);
    among
        .iter()
        .all(|entry| of(entry) == first)
        .then_some(first)
}

fn vm_name(state: &State, entry: &Entry) -> String {
    let Some(vm) = entry.vm else {
        return if entry.host.is_some() && entry.owner.is_some() {
            REPLICAS.to_owned()
        } else {
            OTHERS.to_owned()
        };
    };
    let book = entry.host.and_then(|host| state.books.get(&host));
    let known = state.ledger.name(vm).or_else(|| book?.name(vm));
    known.map_or_else(|| vm.short(), str::to_owned)
}

fn gib_hours(mib_s: u64) -> f64 {
    mib_s as f64 / 1024.0 / 3600.0
}

fn time(at: UnixTime) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(at.0));
    at.map_or_else(
        || "never".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}
