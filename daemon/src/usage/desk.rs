//! Receipts between members: sends those of this host, and answers those of other hosts. Service
//! `usage`; a member of the previous version does not have it, and its receipt waits.

use super::{
    book::{self, Book, FoundVm, KnownVm, Proof, Proofs},
    files::Files,
    ledger::Ledger,
};
use async_trait::async_trait;
use futures::StreamExt;
use p2pvm_authority::{Receipt, ReceiptRefusal, Reply, Size, Terms};
use p2pvm_host::{chain, lock};
use p2pvm_overlay::{
    Fabric, FabricError, MemberId, Serve, UnixTime, VmId,
    identity::{Identity, Signature},
};
use p2pvm_vm_manager::{Definition, directory::Directory};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

/// The service that takes receipts.
const SERVICE: &str = "usage";
/// The file of what members used of this host.
const HERE: &str = "here";
/// How long an owner may take to answer.
/// Reason: it looks up VMs in the network's records.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long the look-ups for one receipt may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);
/// How long one host has to wait before this member checks its next receipt.
/// Reason: a period has at least a minute, so an honest host does not send sooner.
const PACE: Duration = Duration::from_secs(20);
/// How many hosts' last receipts are remembered for that, before the oldest are forgotten.
const MAX_PACED: usize = 1024;
/// How many hosts have a book, half a MiB each at most.
const MAX_BOOKS: usize = 128;
/// How long to wait before a receipt is sent again; doubled each time, [`MAX_DOUBLED`] times.
const AGAIN: Duration = Duration::from_secs(60);
const MAX_DOUBLED: u32 = 6;
/// How many receipts are sent at once.
const AT_ONCE: usize = 8;

/// What the network's records say of VMs.
#[async_trait]
pub trait Definitions: Send + Sync + 'static {
    /// A VM with the member that it was made for; `None` if there is no such VM.
    ///
    /// # Errors
    /// A sentence, if too few members answer.
    async fn find(&self, vm: VmId) -> Result<Option<(FoundVm, Option<MemberId>)>, String>;
}

#[async_trait]
impl Definitions for Directory {
    async fn find(&self, vm: VmId) -> Result<Option<(FoundVm, Option<MemberId>)>, String> {
        let record = self.record(vm).await.map_err(|error| chain(&error))?;
        Ok(record.map(|record| {
            let found = FoundVm {
                created: record.definition.created,
                known: KnownVm {
                    size: size_of(&record.definition),
                    name: record.definition.name,
                },
            };
            (found, record.owner)
        }))
    }
}

/// A VM's size, the same for its host and its owner.
pub fn size_of(vm: &Definition) -> Size {
    Size {
        cpus: vm.cpus,
        memory_mib: vm.memory_mib,
        disk_mib: vm.disk_bytes.div_ceil(1 << 20),
    }
}

/// What is kept.
#[derive(Default)]
pub struct State {
    /// What was used of this host.
    pub ledger: Ledger,
    /// What this member used of others.
    pub books: BTreeMap<MemberId, Book>,
    /// When the last receipt of a host was checked.
    seen: HashMap<MemberId, Instant>,
    /// How often an owner did not answer, and when it is asked again.
    tries: HashMap<MemberId, (u32, Instant)>,
}

/// See the module.
pub struct Desk {
    fabric: Arc<dyn Fabric>,
    identity: Arc<Identity>,
    definitions: Arc<dyn Definitions>,
    files: Files,
    state: Mutex<State>,
}

/// Why a receipt is not confirmed.
enum Unconfirmed {
    Refused(ReceiptRefusal),
    Later(String),
}

impl From<ReceiptRefusal> for Unconfirmed {
    fn from(refusal: ReceiptRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl State {
    /// Whether a host has a book or may have one.
    fn check_room(&self, host: MemberId) -> Result<(), Unconfirmed> {
        if self.books.contains_key(&host) || self.books.len() < MAX_BOOKS {
            return Ok(());
        }
        let full = format!("receipts of {MAX_BOOKS} hosts are kept here already");
        Err(Unconfirmed::Later(full))
    }
}

impl Desk {
    /// Reads what was kept, and answers other members from now on.
    pub fn open(
        fabric: Arc<dyn Fabric>,
        identity: Arc<Identity>,
        definitions: Arc<dyn Definitions>,
        files: Files,
    ) -> Arc<Self> {
        let books = files.names().into_iter().filter_map(|name| {
            let host = book::host_of(&name)?;
            Some((host, files.read(&name)?))
        });
        let state = State {
            books: books.collect(),
            ledger: files.read(HERE).unwrap_or_default(),
            ..State::default()
        };
        let desk = Arc::new(Self {
            fabric,
            identity,
            definitions,
            files,
            state: state.into(),
        });
        let answering = Answering(Arc::downgrade(&desk));
        desk.fabric.serve(SERVICE, Arc::new(answering));
        desk
    }

    /// What is kept.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn me(&self) -> MemberId {
        self.identity.member_id()
    }

    /// Folds what is old and writes what was used of this host; false if it cannot be written.
    pub fn keep(&self, now: UnixTime) -> bool {
        self.state().ledger.tidy(now);
        let written = self.files.write(HERE, || self.state().ledger.clone());
        if let Err(error) = &written {
            tracing::warn!(error = %chain(error), "cannot write what members used of this host");
        }
        written.is_ok()
    }

    /// Keeps everything and sends the receipts that are due.
    pub async fn settle(&self, now: UnixTime) {
        self.state()
            .ledger
            .accounts
            .close_due(self.identity.keys(), now);
        // A receipt is on the disk before its owner sees it, or a kill would make another one for
        // the same period.
        if !self.keep(now) {
            return;
        }
        let mut waiting = self.state().ledger.accounts.waiting();
        {
            let (mut state, clock) = (self.state(), Instant::now());
            let tries = &mut state.tries;
            tries.retain(|owner, _| waiting.iter().any(|(waits, _)| waits == owner));
            let is_due = |owner: &MemberId| tries.get(owner).is_none_or(|(_, next)| *next <= clock);
            waiting.retain(|(owner, _)| is_due(owner));
        }
        let sending = futures::stream::iter(waiting)
            .for_each_concurrent(AT_ONCE, |(owner, receipt)| self.send(owner, receipt));
        sending.await;
    }

    async fn send(&self, owner: MemberId, receipt: Receipt) {
        let asked = self
            .fabric
            .call(owner, SERVICE, receipt.to_bytes(), ANSWER_LIMIT)
            .await;
        let answer = match asked {
            Ok(answer) => Reply::from_bytes(&answer),
            // The previous version: it may be updated some day.
            Err(FabricError::NoSuchService(..)) => None,
            Err(error) => {
                tracing::debug!(?owner, error = %chain(&error), "a receipt waits");
                None
            }
        };
        match answer {
            Some(Reply::Confirmed(confirmed)) => self.confirmed(owner, receipt, confirmed),
            Some(Reply::Refused(why)) => {
                let why = book::reason(&why);
                tracing::info!(?owner, why, "an owner does not confirm what it used here");
                let mut state = self.state();
                state.tries.remove(&owner);
                state.ledger.accounts.refuse(owner, &receipt, why);
            }
            Some(Reply::Later(_)) | None => {
                let mut state = self.state();
                let (count, next) = state.tries.entry(owner).or_insert((0, Instant::now()));
                *next = Instant::now() + AGAIN * 2u32.pow(*count);
                *count = MAX_DOUBLED.min(*count + 1);
            }
        }
    }

    fn confirmed(&self, owner: MemberId, receipt: Receipt, confirmed: Signature) {
        {
            let mut state = self.state();
            state.tries.remove(&owner);
            let accounts = &mut state.ledger.accounts;
            if !accounts.confirm(owner, &receipt, &confirmed) {
                return;
            }
        }
        let name = book::of_owner(owner);
        let mut proofs: Proofs = self.files.read(&name).unwrap_or_default();
        proofs.add(Proof { receipt, confirmed });
        if let Err(error) = self.files.write(&name, || proofs) {
            tracing::warn!(?owner, error = %chain(&error), "cannot write a confirmed receipt");
        }
    }

    /// Answers a receipt of `host`.
    pub async fn answer(&self, host: MemberId, body: &[u8], now: UnixTime) -> Reply {
        if !self.may_ask(host) {
            let seconds = PACE.as_secs();
            return Reply::Later(format!("it checks one receipt of a host in {seconds} s"));
        }
        match self.judge(host, body, now).await {
            Ok(signature) => Reply::Confirmed(signature),
            Err(Unconfirmed::Later(why)) => Reply::Later(why),
            Err(Unconfirmed::Refused(refusal)) => {
                let why = refusal.to_string();
                tracing::debug!(?host, why, "a receipt is not confirmed");
                if let Some(book) = self.state().books.get_mut(&host) {
                    book.refuse(&why);
                }
                Reply::Refused(why)
            }
        }
    }

    fn may_ask(&self, host: MemberId) -> bool {
        let mut state = self.state();
        let seen = &mut state.seen;
        if seen.len() >= MAX_PACED {
            seen.retain(|_, at| at.elapsed() < PACE);
        }
        let is_paced = seen.get(&host).is_some_and(|at| at.elapsed() < PACE);
        if is_paced || seen.len() >= MAX_PACED {
            return false;
        }
        seen.insert(host, Instant::now());
        true
    }

    async fn judge(
        &self,
        host: MemberId,
        body: &[u8],
        now: UnixTime,
    ) -> Result<Signature, Unconfirmed> {
        let receipt = Receipt::from_bytes(body)?;
        let terms = receipt.open(host, self.me())?;
        let unknown = {
            let state = self.state();
            state.check_room(host)?;
            let none = Book::default();
            let book = state.books.get(&host).unwrap_or(&none);
            if let Some(signed) = book.repeated(&receipt) {
                drop(state);
                self.write_book(host)?;
                return Ok(signed);
            }
            book.check_period(&terms, now)?;
            book.unknown(&terms)
        };
        let looked_up = tokio::time::timeout(LOOKUP_LIMIT, self.look_up(unknown)).await;
        let found = looked_up
            .unwrap_or_else(|_| Err(Unconfirmed::Later("the VMs cannot be looked up".into())))?;
        let signed = self.accept((&receipt, &terms), found, now)?;
        self.write_book(host)?;
        Ok(signed)
    }

    fn accept(
        &self,
        (receipt, terms): (&Receipt, &Terms),
        found: BTreeMap<VmId, FoundVm>,
        now: UnixTime,
    ) -> Result<Signature, Unconfirmed> {
        let mut state = self.state();
        // Those of other hosts may have come during the look-up.
        state.check_room(terms.host)?;
        let books = &mut state.books;
        // A refused receipt makes no book.
        let mut book = books.remove(&terms.host);
        let is_new = book.is_none();
        let signed =
            book.get_or_insert_default()
                .accept(self.identity.keys(), (receipt, terms), found, now);
        if let Some(book) = book.filter(|_| signed.is_ok() || !is_new) {
            books.insert(terms.host, book);
        }
        Ok(signed?)
    }

    async fn look_up(&self, vms: Vec<VmId>) -> Result<BTreeMap<VmId, FoundVm>, Unconfirmed> {
        let mut found = BTreeMap::new();
        for vm in vms {
            match self.definitions.find(vm).await {
                Ok(Some((one, owner))) if owner == Some(self.me()) => found.insert(vm, one),
                Ok(Some(_)) => return Err(ReceiptRefusal::OthersVm(vm).into()),
                Ok(None) => return Err(ReceiptRefusal::NoVm(vm).into()),
                Err(why) => return Err(Unconfirmed::Later(why)),
            };
        }
        Ok(found)
    }

    fn write_book(&self, host: MemberId) -> Result<(), Unconfirmed> {
        let newest = || self.state().books.get(&host).cloned().unwrap_or_default();
        let written = self.files.write(&book::of_host(host), newest);
        written.map_err(|error| {
            tracing::warn!(?host, error = %chain(&error), "cannot write a receipt");
            Unconfirmed::Later("the receipt cannot be written".to_owned())
        })
    }
}

/// Answers other members as long as the desk is there.
struct Answering(Weak<Desk>);

#[async_trait]
impl Serve for Answering {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let desk = self.0.upgrade().ok_or("the node is shutting down")?;
        Ok(desk.answer(from, &body, UnixTime::now()).await.to_bytes())
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
