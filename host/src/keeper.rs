//! The owner of what a network changes in the machine's kernel: a thread that makes what is wanted,
//! watches it, and restores what another program removed.
//!
//! It wakes when the kernel reports a change (rtnetlink's links, addresses, routes, rules, settings
//! of interfaces; any change of nftables), when it is asked, and every [`LOOK_EVERY`] in case a
//! message was lost. A look ends in the steps of [`crate::plan::plan`], each of which is noted in
//! the journal before it is made. A failed step is retried, after twice the wait each time.

mod report;
mod watch;

pub use report::Report;

use crate::lock;
use crate::{
    causes::chain,
    error::Error,
    finding::{Board, Finding},
    forwarding,
    journal::{Change, Entries, Journal},
    kernel,
    links::{links, set_alias},
    look::{HostState, RulesCache, look},
    netlink::Netlink,
    observed::NeighbourRoute,
    opening,
    outbound::CarriedVpn,
    plan::{Step, plan},
    routes, undo,
    wanted::NetworkNeeds,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use watch::Watch;

/// How long before the thread looks without a message.
/// Reason: a message may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait for further changes after one.
/// Reason: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(150);
/// How long before a step that failed is retried; doubled each time.
const RETRY: Duration = Duration::from_secs(1);
/// How long before a step that keeps failing is retried at most.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// How long before the same restored thing is logged again.
/// Reason: a program may remove it again and again.
const QUIET: Duration = Duration::from_secs(60);
/// How long [`Keeper::settle`] waits for the thread.
/// Reason: longer than a look and its steps take, other programs' time limits included.
const ANSWER: Duration = Duration::from_secs(30);

/// The name of steps for the network's own nftables table.
const FORWARDING_RULES: &str = "forwarding rules";

enum Order {
    Want(Box<NetworkNeeds>, Option<mpsc::Sender<Report>>),
    Look,
    End,
}

/// The handle of the thread.
pub struct Keeper {
    orders: mpsc::Sender<Order>,
    waker: UnixStream,
    report: Arc<Mutex<Report>>,
    added: Arc<Mutex<Vec<Finding>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts the thread, in the network namespace of the calling thread, with nothing wanted yet.
    ///
    /// # Errors
    /// The kernel gives no socket or no thread.
    pub fn start(wanted: NetworkNeeds, journal: Journal, board: Board) -> io::Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        let report = Arc::new(Mutex::new(Report::default()));
        let added = Arc::new(Mutex::new(Vec::new()));
        let watch = Watch::open(woken)?;
        let mut thread = Thread {
            wanted,
            journal,
            board,
            report: report.clone(),
            added: added.clone(),
            rules: RulesCache::default(),
            settled: false,
            held: BTreeSet::new(),
            carried: None,
            failing: BTreeMap::new(),
            told: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("p2pvm-host".into())
            .spawn(move || thread.run(&ordered, watch))?;
        Ok(Self {
            orders,
            waker,
            report,
            added,
            thread: Mutex::new(Some(thread)),
        })
    }

    fn order(&self, order: Order) {
        // A thread that has ended wants nothing; a full pipe wakes it anyway.
        let _ = self.orders.send(order);
        let _ = (&self.waker).write(&[1]);
    }

    /// Sets what is wanted from now on.
    pub fn want(&self, wanted: NetworkNeeds) {
        self.order(Order::Want(Box::new(wanted), None));
    }

    /// Sets what is wanted from now on and waits until it was tried once.
    pub fn settle(&self, wanted: NetworkNeeds) -> Report {
        let (tell, told) = mpsc::channel();
        self.order(Order::Want(Box::new(wanted), Some(tell)));
        told.recv_timeout(ANSWER).unwrap_or_else(|_| self.report())
    }

    /// Makes the thread look now.
    pub fn look(&self) {
        self.order(Order::Look);
    }

    /// Sets the caller's own findings for the board's area "routes".
    pub fn add_findings(&self, findings: Vec<Finding>) {
        let mut added = lock(&self.added);
        if *added != findings {
            *added = findings;
            drop(added);
            self.look();
        }
    }

    /// The result of the last look.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Ends the thread, which undoes everything first; a second time does nothing.
    pub fn close(&self) {
        self.order(Order::End);
        if let Some(thread) = lock(&self.thread).take() {
            // A panic there has been reported, and the next daemon undoes what is noted.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

struct Thread {
    wanted: NetworkNeeds,
    journal: Journal,
    board: Board,
    report: Arc<Mutex<Report>>,
    added: Arc<Mutex<Vec<Finding>>>,
    rules: RulesCache,
    /// Whether everything that is wanted has been made. A step that is due then restores what
    /// another program removed.
    settled: bool,
    /// What other networks of this machine held at the last look. A step that is due after a change
    /// of it restores nothing.
    held: BTreeSet<NeighbourRoute>,
    /// The VPN that own packets were led past at the last look.
    carried: Option<CarriedVpn>,
    /// Steps that failed, by what they do: the time of the next try, the wait after it, and why.
    failing: BTreeMap<String, (Instant, Duration, String)>,
    /// What was restored, and when that was logged.
    told: BTreeMap<String, Instant>,
}

impl Thread {
    fn run(&mut self, orders: &mpsc::Receiver<Order>, mut watch: Watch) {
        loop {
            let mut asked = Vec::new();
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Want(wanted, tell) => {
                        if *wanted != self.wanted {
                            (self.wanted, self.settled) = (*wanted, false);
                            self.failing.clear();
                        }
                        asked.extend(tell);
                    }
                    Order::Look => {}
                    Order::End => return self.end(),
                }
            }
            let began = Instant::now();
            let report = self.look();
            *lock(&self.report) = report.clone();
            for tell in asked {
                let _ = tell.send(report.clone());
            }
            // Looking at a million routes must not keep the machine busy.
            let rest = (began.elapsed() * 4).min(LOOK_EVERY);
            // Others are told at once: a look may take long, and so may the rest after it.
            let heard = watch.wait(rest, self.next_look(), || self.board.stir());
            if heard.rules {
                self.rules.forget();
            }
        }
    }

    fn next_look(&self) -> Duration {
        let now = Instant::now();
        let due = self
            .failing
            .values()
            .map(|(at, ..)| at.saturating_duration_since(now))
            .min();
        due.unwrap_or(LOOK_EVERY).clamp(SETTLE, LOOK_EVERY)
    }

    /// Looks, makes the steps that are due, and reports.
    fn look(&mut self) -> Report {
        let entries = self.journal.load();
        let seen = match look(&self.wanted, &entries, &mut self.rules) {
            Ok(seen) => seen,
            Err(error) => {
                let report = Report::unseen(chain(&error));
                self.show(&report);
                return report;
            }
        };
        self.keep_alias();
        if seen.observed.held != self.held {
            (self.held, self.settled) = (seen.observed.held.clone(), false);
        }
        let server = |carried: &Option<CarriedVpn>| carried.as_ref().map(|carried| carried.server);
        if server(&seen.observed.carried) != server(&self.carried) {
            self.settled = false;
        }
        let steps = plan(&self.wanted, &seen.observed);
        let done = if steps.is_empty() {
            Vec::new()
        } else {
            self.make(steps, &seen)
        };
        self.say(&done);
        let seen = match done.is_empty() {
            true => seen,
            false => look(&self.wanted, &self.journal.load(), &mut self.rules).unwrap_or(seen),
        };
        self.say_carried(&seen);
        self.failing.retain(|what, _| {
            plan(&self.wanted, &seen.observed)
                .iter()
                .any(|step| what_of(step) == *what)
        });
        self.settled = self.failing.is_empty();
        let failing = self
            .failing
            .iter()
            .map(|(what, (_, _, why))| (what.clone(), why.clone()));
        let report = Report::of(&self.wanted, &seen, failing);
        self.show(&report);
        report
    }

    fn show(&self, report: &Report) {
        let added = lock(&self.added).clone();
        report.show(&self.board, added);
    }

    /// Logs when own packets begin to go past a VPN, cannot, or no longer need to.
    fn say_carried(&mut self, seen: &HostState) {
        if seen.observed.carried == self.carried {
            return;
        }
        self.carried = seen.observed.carried.clone();
        let device = &self.wanted.device;
        match &self.carried {
            Some(carried) if carried.is_passed => tracing::info!("{}", carried.sentence()),
            Some(carried) => tracing::warn!("{}", carried.sentence()),
            None => tracing::info!("no VPN that takes all packets is carried by {device} any more"),
        }
    }

    /// Writes the interface's mark if it is missing.
    fn keep_alias(&self) {
        let Ok(links) = links() else { return };
        if let Some(link) = links.iter().find(|link| link.name == self.wanted.device)
            && link.alias.is_none()
            && let Err(error) = set_alias(link.index, &self.wanted.mark().to_string())
        {
            tracing::debug!(error = %chain(&error), "the interface has no mark");
        }
    }

    /// Makes the steps that are due. Returns those that were made.
    fn make(&mut self, steps: Vec<Step>, seen: &HostState) -> Vec<Step> {
        let now = Instant::now();
        let due = |step: &Step| {
            self.failing
                .get(&what_of(step))
                .is_none_or(|(at, ..)| *at <= now)
        };
        let steps: Vec<Step> = steps.into_iter().filter(due).collect();
        if let Err(cause) = self.note(&steps) {
            for step in &steps {
                self.failed(
                    step,
                    Error::Journal(io::Error::new(cause.kind(), cause.to_string())),
                );
            }
            return Vec::new();
        }
        let mut made = Vec::new();
        for step in steps {
            // Forwarding is switched on only behind the guard in the table.
            if matches!(step, Step::Switch { .. }) && self.failing.contains_key(FORWARDING_RULES) {
                continue;
            }
            match self.step(&step, seen) {
                Ok(()) => {
                    // A passage that another program keeps removing is opened after ever longer
                    // waits.
                    let again = matches!(step, Step::Open(_)) && self.settled;
                    if again {
                        self.postpone(&step, "another program removes it again and again".into());
                    } else {
                        self.failing.remove(&what_of(&step));
                    }
                    made.push(step);
                }
                Err(error) => self.failed(&step, error),
            }
        }
        if let Err(error) = self.forget(&made, seen) {
            tracing::debug!(error = %chain(&error), "the journal still has what is undone");
        }
        made
    }

    fn failed(&mut self, step: &Step, error: Error) {
        self.postpone(step, chain(&error));
    }

    fn postpone(&mut self, step: &Step, why: String) {
        let wait = self
            .failing
            .get(&what_of(step))
            .map_or(RETRY, |(_, wait, _)| (*wait * 2).min(RETRY_LIMIT));
        self.failing
            .insert(what_of(step), (Instant::now() + wait, wait, why));
    }

    /// Notes in the journal what will have to be undone.
    fn note(&self, steps: &[Step]) -> io::Result<()> {
        let wanted = &self.wanted;
        let changes = |step: &Step| match step {
            Step::Route(_) | Step::Throw(_) | Step::Rule(_) => Some(Change::Routes {
                table: wanted.routing_table(),
            }),
            Step::Table(_) => Some(Change::Table {
                name: wanted.nft_table(),
            }),
            Step::Switch { interface, .. } => Some(Change::Forwarding {
                interface: interface.clone(),
            }),
            Step::Open(passage) => Some(Change::Passage {
                device: wanted.device.clone(),
                passage: passage.clone(),
            }),
            _ => None,
        };
        let changes: Vec<Change> = steps.iter().filter_map(changes).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.journal
            .alter(|entries| changes.into_iter().for_each(|change| entries.note(change)))
    }

    /// Removes from the journal what is undone.
    fn forget(&self, made: &[Step], seen: &HostState) -> io::Result<()> {
        let gone = |change: &Change| {
            made.iter().any(|step| match (step, change) {
                (Step::Close(a), Change::Passage { passage: b, .. }) => a == b,
                (Step::Restore { interface: a, .. }, Change::Forwarding { interface: b }) => a == b,
                (Step::DropTable, Change::Table { name }) => *name == self.wanted.nft_table(),
                _ => false,
            })
        };
        let routed = !self.wanted.accepted.is_empty() || seen.observed.carried.is_some();
        let forget = |entries: &mut Entries| {
            entries.kernel.retain(|change| {
                !gone(change) && (routed || !matches!(change, Change::Routes { .. }))
            });
        };
        let may_forget = |step: &Step| {
            matches!(
                step,
                Step::Unrule(_) | Step::Close(_) | Step::Restore { .. } | Step::DropTable
            )
        };
        if made.iter().any(may_forget) {
            self.journal.alter(forget)
        } else {
            Ok(())
        }
    }

    fn step(&mut self, step: &Step, seen: &HostState) -> Result<(), Error> {
        let kernel = |doing: String| move |cause| Error::Kernel(doing, cause);
        let (device, table) = (self.wanted.device.clone(), self.wanted.routing_table());
        let netlink = || Netlink::open().map_err(kernel("ask the kernel".into()));
        match step {
            Step::Close(passage) => {
                self.rules.forget();
                opening::close(passage, &device)
            }
            Step::Open(passage) => {
                self.rules.forget();
                opening::open(passage, &device)
            }
            Step::Route(net) => {
                let (index, silent) = (seen.observed.device, self.wanted.silent.contains(net));
                routes::make(&mut netlink()?, *net, table, index, silent)
                    .map_err(kernel(format!("route {net} into {device}")))
            }
            Step::Unroute(net) => {
                let index = seen.observed.device;
                routes::remove(&mut netlink()?, *net, table, index)
                    .map_err(kernel(format!("remove the route to {net}")))
            }
            Step::Throw(net) => routes::make(&mut netlink()?, *net, table, None, false)
                .map_err(kernel(format!("except {net} from the routes"))),
            Step::Unthrow(net) => routes::remove(&mut netlink()?, *net, table, None)
                .map_err(kernel(format!("remove the exception of {net}"))),
            Step::Rule(rule) => rule
                .make(&mut netlink()?)
                .map_err(kernel("make a routing rule".into())),
            Step::Unrule(rule) => rule
                .remove(&mut netlink()?)
                .map_err(kernel("remove a routing rule".into())),
            Step::Table(text) => {
                kernel::nft("set up forwarding", text)?;
                self.rules.made(&self.wanted.nft_table(), text.clone());
                Ok(())
            }
            Step::DropTable => {
                self.rules.forget();
                kernel::drop_table(&self.wanted.nft_table())
            }
            Step::Switch {
                interface,
                change: true,
                ..
            } => forwarding::set_forwarding(interface, true),
            Step::Restore {
                interface,
                change: true,
            } => forwarding::set_forwarding(interface, false),
            Step::Switch { .. } | Step::Restore { .. } => Ok(()),
        }
    }

    /// Logs what was restored or opened.
    fn say(&mut self, made: &[Step]) {
        let opened: Vec<String> = made
            .iter()
            .filter_map(|s| {
                if let Step::Open(p) = s {
                    Some(p.to_string())
                } else {
                    None
                }
            })
            .collect();
        if !opened.is_empty() && !self.settled {
            tracing::info!(device = %self.wanted.device, "opened {} for the network's own \
                interface", opened.join(", "));
        }
        let mut back: Vec<String> = if self.settled {
            made.iter().filter(|s| is_made(s)).map(what_of).collect()
        } else {
            Vec::new()
        };
        back.dedup();
        let now = Instant::now();
        self.told.retain(|_, at| now.duration_since(*at) < QUIET);
        let news: Vec<String> = back
            .into_iter()
            .filter(|what| self.told.insert(what.clone(), now).is_none())
            .collect();
        if !news.is_empty() {
            tracing::info!(device = %self.wanted.device, "put back what was \
                removed: {}", news.join(", "));
        }
    }

    fn end(&mut self) {
        match self.journal.hold() {
            Ok(mut held) => {
                for error in undo::undo(&mut held.entries) {
                    tracing::warn!("{}", chain(&error));
                }
                if let Err(error) = held.save() {
                    tracing::warn!(
                        error = %chain(&error),
                        "cannot remove undone changes from the journal"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = %chain(&error),
                    "cannot open the journal: the changes of this machine are not undone"
                );
            }
        }
    }
}

/// Whether the step makes something rather than removes it.
fn is_made(step: &Step) -> bool {
    matches!(
        step,
        Step::Route(_)
            | Step::Rule(_)
            | Step::Table(_)
            | Step::Switch { change: true, .. }
            | Step::Open(_)
    )
}

/// What a step does, for the log and for counting its failures.
fn what_of(step: &Step) -> String {
    match step {
        Step::Route(net) | Step::Unroute(net) | Step::Throw(net) | Step::Unthrow(net) => {
            format!("route {net}")
        }
        Step::Rule(_) | Step::Unrule(_) => "routing rules".to_owned(),
        Step::Table(_) | Step::DropTable => FORWARDING_RULES.to_owned(),
        Step::Switch { interface, .. } | Step::Restore { interface, .. } => {
            format!("forwarding of {interface}")
        }
        Step::Open(passage) | Step::Close(passage) => format!("{passage} ({:?})", passage.way),
    }
}
