//! Keeps this machine's programs finding the network's names, whatever manages its name servers and
//! however that changes.
//!
//! One thread looks at the whole scene whenever something in it changes, and every few seconds:
//! whether systemd-resolved is alive and knows us; whether the list of name servers leads to it, or
//! else begins with our server. Then it asks as programs do ([`super::proof`]) and writes on the
//! board what does not work. It remembers nothing that it could look at instead, so that any
//! program may change anything at any time.

use super::{
    file,
    proof::{self, OutsideCheck},
    scene::{self, Resolved, Scene},
    settings::{Forwarder, NameSettings, Neighbour, Settings},
    text::{self, Block, NameServer},
    watch::Watch,
};
use crate::lock;
use crate::{Board, Finding, links};
use std::{
    collections::VecDeque,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The area of the board that is the keeper's.
pub const AREA: &str = "names";
/// How often everything is looked at without a reported change.
/// Reason: not every file system reports changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often everything is looked at while something does not work.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long a failure lasts before it is on the board.
/// Reason: programs ask twice too.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long before systemd-resolved is configured again if it does not know our names.
const TELL_AGAIN: Duration = Duration::from_secs(6);
/// How many times a minute another program may rewrite the list of name servers before it is
/// corrected with growing delay.
const REWRITES: usize = 12;
const MINUTE: Duration = Duration::from_secs(60);

/// Called with a file before it is changed for the first time.
pub type BeforeChange = Box<dyn Fn(&Path) -> io::Result<()> + Send>;

#[derive(Default)]
struct Orders {
    wanted: Option<NameSettings>,
    end: bool,
}

/// The running keeper. Dropping it removes our lines and settings.
pub struct Keeper {
    told: Arc<Mutex<Orders>>,
    bell: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
    /// Starts it, in the network and mount namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn start(
        settings: Settings,
        forwarder: Arc<dyn Forwarder>,
        board: Board,
        before: BeforeChange,
    ) -> io::Result<Self> {
        let (bell, rung) = UnixStream::pair()?;
        rung.set_nonblocking(true)?;
        let told = Arc::new(Mutex::new(Orders::default()));
        let keeping = KeeperThread {
            settings,
            forwarder,
            board,
            before,
            watch: Watch::new()?,
            edited: None,
            said: None,
            rewrites: VecDeque::new(),
            unproved: None,
            outside: OutsideCheck::new(bell.try_clone()?),
            way: String::new(),
            ways: VecDeque::new(),
        };
        let orders = told.clone();
        let thread = std::thread::Builder::new()
            .name("names".into())
            .spawn(move || keeping.run(&orders, &rung))?;
        Ok(Self {
            told,
            bell,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Sets what is wanted; `None` removes our lines and settings.
    pub fn want(&self, wanted: Option<NameSettings>) {
        let mut told = lock(&self.told);
        if told.wanted != wanted {
            told.wanted = wanted;
            let _ = (&self.bell).write_all(&[0]);
        }
    }

    /// Removes our lines and settings, and waits until that is done.
    pub fn end(&self) {
        lock(&self.told).end = true;
        let _ = (&self.bell).write_all(&[0]);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// The list of name servers as it is.
struct List {
    text: Vec<u8>,
    /// The servers of other programs.
    others: Vec<NameServer>,
    /// The lines of the machine's networks.
    blocks: Vec<Block>,
}

struct KeeperThread {
    settings: Settings,
    forwarder: Arc<dyn Forwarder>,
    board: Board,
    before: BeforeChange,
    watch: Watch,
    /// The file with our lines, and whether our server is the only one there.
    edited: Option<(PathBuf, bool)>,
    /// The server that systemd-resolved was given, its socket's inode, and when.
    said: Option<(SocketAddr, u64, Instant)>,
    /// When another program removed our lines.
    rewrites: VecDeque<Instant>,
    /// Since when something has not worked.
    unproved: Option<Instant>,
    outside: OutsideCheck,
    /// How programs find names, for the log, and when that was logged.
    way: String,
    ways: VecDeque<Instant>,
}

impl KeeperThread {
    fn run(mut self, orders: &Mutex<Orders>, rung: &UnixStream) {
        loop {
            // In this order nothing is missed: a later change or order wakes the thread again.
            let mut bells = [0; 64];
            while io::Read::read(&mut &*rung, &mut bells).is_ok_and(|length| length == bells.len())
            {
            }
            let (wanted, end) = {
                let told = lock(orders);
                (told.wanted.clone(), told.end)
            };
            self.watch_everything();
            let next = match wanted.filter(|_| !end) {
                Some(wanted) => self.turn(&wanted),
                None => {
                    self.leave();
                    LOOK_EVERY
                }
            };
            if end {
                return;
            }
            self.watch_everything();
            self.watch.wait(rung.as_fd(), next);
        }
    }

    fn watch_everything(&mut self) {
        let places = &self.settings.places;
        let mut files = file::links_of(&places.resolv_conf)
            .unwrap_or_else(|_| vec![places.resolv_conf.clone()]);
        files.extend([places.nsswitch.clone(), places.resolved.clone()]);
        self.watch.over(files);
    }

    /// Looks at everything and corrects it. Returns how long to wait if nothing changes.
    fn turn(&mut self, wanted: &NameSettings) -> Duration {
        let mut next = LOOK_EVERY;
        let mut cannot = None;
        // First the part that waits for no other program.
        if let (Some((_, alone)), Some(server)) = (self.edited.clone(), wanted.server) {
            self.put(server, alone, &mut next, &mut cannot);
        }
        let scene = Scene::look(&self.settings.places);
        let told = self.tell(wanted, &scene);
        let leads_there = self.list().is_ok_and(|list| scene::is_stub(&list.others));
        let by_resolved =
            told.is_ok() && scene.resolved == Resolved::Alive && self.resolved_knows(wanted);
        if leads_there && by_resolved {
            self.take_out();
        } else if let Some(server) = wanted.server {
            self.put(server, scene.alone(), &mut next, &mut cannot);
        }
        match self.list() {
            Ok(list) => {
                let leads = self.lead(&list);
                self.say_way(&list, &scene, by_resolved && leads_there);
                let mut found = self.prove(wanted, &scene, &list, told.err(), cannot);
                found.extend(
                    self.outside
                        .look(Self::first(&list), &leads, &*self.forwarder),
                );
                self.say(found, &mut next);
            }
            Err(error) => {
                let path = self.settings.places.resolv_conf.display();
                self.say(
                    vec![proof::unreadable(&path.to_string(), &error)],
                    &mut next,
                );
            }
        }
        next
    }

    /// The server that programs ask first.
    fn first(list: &List) -> Option<SocketAddr> {
        scene::asked(&list.text)
            .first()
            .and_then(NameServer::address)
    }

    fn list(&self) -> io::Result<List> {
        let text = file::read(&file::behind_links(&self.settings.places.resolv_conf)?)?
            .unwrap_or_default();
        let parsed = text::parse(&text);
        Ok(List {
            others: text::name_servers(&parsed.original),
            blocks: parsed.blocks,
            text,
        })
    }

    fn block(&self, server: Ipv4Addr) -> Block {
        let Settings {
            id,
            domain,
            subnets,
            ..
        } = &self.settings;
        Block {
            id: id.clone(),
            server,
            domain: domain.clone(),
            subnets: subnets.clone(),
            made: None,
        }
    }

    /// Puts our lines into the list, unless that has been done too often lately.
    fn put(
        &mut self,
        server: Ipv4Addr,
        alone: bool,
        next: &mut Duration,
        cannot: &mut Option<proof::WriteFailure>,
    ) {
        let path = self.settings.places.resolv_conf.clone();
        let now = Instant::now();
        self.rewrites.retain(|at| now.duration_since(*at) < MINUTE);
        if let Some(last) = self.rewrites.back() {
            let pause = match self.rewrites.len() {
                0..REWRITES => Duration::ZERO,
                many if many < 3 * REWRITES => Duration::from_secs(1),
                _ => Duration::from_secs(5),
            };
            let left = pause.saturating_sub(now.duration_since(*last));
            if !left.is_zero() {
                *next = left.min(*next);
                return;
            }
        }
        match file::put(&path, &self.block(server), alone, |path| {
            (self.before)(path)
        }) {
            Ok(edited) => {
                *cannot = None;
                let before = self.edited.replace((edited.path.clone(), alone));
                match before {
                    Some((old, _)) if old != edited.path => {
                        if let Err(error) = file::take_out(&old, &self.settings.id) {
                            tracing::warn!(
                                error = %crate::chain(&error),
                                file = %old.display(),
                                "lines of ours stay where the list of name servers was"
                            );
                        }
                    }
                    Some((_, was)) if edited.written && was == alone => {
                        self.rewrites.push_back(now)
                    }
                    _ => {}
                }
            }
            Err(error) => {
                let at = file::behind_links(&path).unwrap_or(path);
                *cannot = Some(proof::WriteFailure {
                    immutable: file::is_immutable(&at),
                    path: at,
                    error,
                    server,
                });
            }
        }
    }

    fn take_out(&mut self) {
        if let Some((path, _)) = &self.edited {
            match file::take_out(path, &self.settings.id) {
                Ok(()) => self.edited = None,
                Err(error) => {
                    tracing::debug!(
                        error = %crate::chain(&error),
                        file = %path.display(),
                        "lines of ours stay in the list of name servers"
                    )
                }
            }
        }
    }

    /// Configures systemd-resolved, if it is alive and that has not been done.
    fn tell(&mut self, wanted: &NameSettings, scene: &Scene) -> io::Result<()> {
        let Some(link) = wanted.link.filter(|_| scene.resolved == Resolved::Alive) else {
            self.said = None;
            return Ok(());
        };
        // After a restart it has another socket.
        let which =
            std::fs::metadata(&self.settings.places.resolved).map_or(0, |about| about.ino());
        if let Some((known, same, at)) = self.said
            && (known, same) == (link, which)
            && (at.elapsed() < TELL_AGAIN || self.resolved_knows(wanted))
        {
            return Ok(());
        }
        let server = if link.port() == 53 {
            link.ip().to_string()
        } else {
            link.to_string()
        };
        let domains: Vec<String> = std::iter::once(&self.settings.domain)
            .chain(&self.settings.reverse)
            .cloned()
            .collect();
        self.said = None;
        scene::tell_resolved(&self.settings.device, &server, &domains)?;
        self.said = Some((link, which, Instant::now()));
        Ok(())
    }

    fn resolved_knows(&self, wanted: &NameSettings) -> bool {
        let (name, address) = &wanted.probe;
        scene::by_resolved(&self.settings.places.resolved, name)
            .is_ok_and(|found| found.contains(address))
    }

    /// Tells the forwarder the servers for other names. Returns them.
    fn lead(&self, list: &List) -> Vec<SocketAddr> {
        let links = links::links().unwrap_or_default();
        let is_ours = |ip: &IpAddr| {
            list.blocks
                .iter()
                .any(|block| IpAddr::V4(block.server) == *ip)
                || links::is_inside(&links, ip)
        };
        let mut servers: Vec<SocketAddr> = list
            .others
            .iter()
            .filter(|server| !is_ours(&server.ip))
            .filter_map(NameServer::address)
            .collect();
        if list.others.is_empty() {
            servers.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        let others = list
            .blocks
            .iter()
            .filter(|block| block.id != self.settings.id);
        let neighbours = others.map(|block| Neighbour {
            server: (block.server, 53).into(),
            domain: block.domain.clone(),
            subnets: block.subnets.clone(),
        });
        self.forwarder.lead(servers.clone(), neighbours.collect());
        servers
    }

    fn say_way(&mut self, list: &List, scene: &Scene, by_resolved: bool) {
        let path = self.settings.places.resolv_conf.display();
        let ours = list.blocks.iter().any(|block| block.id == self.settings.id);
        let way = match (by_resolved, self.said.is_some(), ours) {
            (true, ..) => "systemd-resolved".to_owned(),
            (false, true, true) => format!("systemd-resolved and {path}"),
            (false, _, true) => path.to_string(),
            _ => "nothing".to_owned(),
        };
        let now = Instant::now();
        self.ways.retain(|at| now.duration_since(*at) < MINUTE);
        // Not every time if another program keeps writing the list.
        if way != self.way && self.ways.len() < REWRITES / 2 {
            self.ways.push_back(now);
            tracing::info!(by = %way, resolved = ?scene.resolved, "programs of this machine find \
                the network's names");
            self.way = way;
        }
    }

    fn prove(
        &self,
        wanted: &NameSettings,
        scene: &Scene,
        list: &List,
        untold: Option<io::Error>,
        unwritten: Option<proof::WriteFailure>,
    ) -> Vec<Finding> {
        let question = proof::Question {
            settings: &self.settings,
            wanted,
            scene,
            text: &list.text,
            untold,
            unwritten,
            rewritten: self.rewrites.len() >= REWRITES / 2,
        };
        proof::own_names(&question)
    }

    /// Writes lasting findings on the board; a new one may be gone in a moment.
    fn say(&mut self, found: Vec<Finding>, next: &mut Duration) {
        if found.is_empty() {
            self.unproved = None;
            self.board.set(AREA, found);
            return;
        }
        let since = *self.unproved.get_or_insert_with(Instant::now);
        *next = (*next).min(if since.elapsed() < MINUTE {
            LOOK_AGAIN
        } else {
            LOOK_EVERY
        });
        if since.elapsed() >= PATIENCE {
            self.board.set(AREA, found);
        }
    }

    /// Removes our lines and settings.
    fn leave(&mut self) {
        self.take_out();
        if self.said.take().is_some()
            && let Err(error) = scene::run("resolvectl", &["revert", &self.settings.device])
        {
            // It forgets a removed interface, but not at once.
            tracing::debug!(
                error = %crate::chain(&error),
                "systemd-resolved keeps our settings until it notices"
            );
        }
        self.unproved = None;
        self.board.set(AREA, Vec::new());
    }
}
