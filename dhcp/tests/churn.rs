//! A hundred members in virtual time of whom a third is replaced in ten minutes, with addresses,
//! names and records kept by the code that the daemon runs. Figures are printed;
//! `P2PVM_FIGURES=docs/figures` also writes them there, for docs/dht.md.
#![allow(missing_docs)]

use p2pvm_dhcp::{Addresses, Error, Lease, Subnet};
use p2pvm_dht::{Dht, DhtOptions, MemoryStore, Record, Records};
use p2pvm_figures::{Figure, Recorder};
use p2pvm_overlay::{MemberId, RingAddr, UnixTime, fabric::memory::MemoryNet, identity::KeyPair};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};

const MEMBERS: usize = 100;
const REPLACED: usize = 30;
const CHURN: Duration = Duration::from_secs(600);
/// As in the daemon, a lease is renewed at half its time; shortened from an hour so that ten
/// minutes have five renewals.
const TTL: Duration = Duration::from_secs(240);
const RENEW: Duration = Duration::from_secs(120);
/// A dead member is noticed when QUIC gives it up.
const NOTICE: Duration = Duration::from_secs(11);
const RECORDS: u16 = 300;

/// What a member believes to hold, and since when.
type Beliefs = Arc<Mutex<BTreeMap<MemberId, (Ipv4Addr, Instant)>>>;

struct Member {
    id: MemberId,
    dht: Arc<Dht>,
    tenant: JoinHandle<()>,
}

struct World {
    net: MemoryNet,
    members: Vec<Member>,
    beliefs: Beliefs,
    dir: tempfile::TempDir,
    rng: StdRng,
    began: Instant,
    made: u32,
    failed_claims: Arc<Mutex<u32>>,
}

/// Claims an address and a name and renews them, as the daemon does; claims anew when told that it
/// has lost it.
async fn tenant(
    addresses: Addresses,
    keys: KeyPair,
    id: MemberId,
    name: String,
    beliefs: Beliefs,
    failed: Arc<Mutex<u32>>,
) {
    let mut lease: Option<Lease> = None;
    loop {
        let outcome = match &lease {
            Some(held) => addresses.renew(&keys, held).await,
            None => addresses.claim_host(&keys, id, &name).await,
        };
        let wait = match outcome {
            Ok(new) => {
                let mut beliefs = beliefs.lock().unwrap();
                let since = beliefs
                    .get(&id)
                    .filter(|(v4, _)| *v4 == new.v4)
                    .map_or_else(Instant::now, |(_, since)| *since);
                beliefs.insert(id, (new.v4, since));
                lease = Some(new);
                RENEW
            }
            Err(Error::Lost { .. }) => {
                beliefs.lock().unwrap().remove(&id);
                lease = None;
                Duration::ZERO
            }
            Err(_) => {
                *failed.lock().unwrap() += 1;
                Duration::from_secs(5)
            }
        };
        tokio::time::sleep(wait).await;
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let net = MemoryNet::new(Duration::from_millis(25));
        net.set_notice(NOTICE);
        Self {
            net,
            members: Vec::new(),
            beliefs: Beliefs::default(),
            dir: tempfile::tempdir().unwrap(),
            rng: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            made: 0,
            failed_claims: Arc::default(),
        }
    }

    fn join(&mut self) -> MemberId {
        self.made += 1;
        let n = self.made;
        let keys = KeyPair::from_seed(&self.rng.random());
        let id = MemberId(keys.public());
        let began = self.began;
        let options = DhtOptions {
            clock: Arc::new(move || UnixTime(1_800_000_000 + began.elapsed().as_secs())),
            seed: Some(self.rng.random()),
            republish_every: Duration::from_secs(300),
            ..DhtOptions::default()
        };
        let dht = Dht::start(self.net.add(id), Arc::new(MemoryStore::default()), options);
        // 253 addresses for 100 members: draws meet.
        let subnet = Subnet::new(Ipv4Addr::new(10, 66, 0, 0), 24);
        let cache = self.dir.path().join(format!("leases{n}"));
        let addresses = Addresses::new(dht.clone(), subnet, cache)
            .with_ttl(TTL)
            .with_seed(self.rng.random());
        let tenant = tokio::spawn(tenant(
            addresses,
            keys,
            id,
            format!("m{n}"),
            self.beliefs.clone(),
            self.failed_claims.clone(),
        ));
        self.members.push(Member { id, dht, tenant });
        id
    }

    fn kill(&mut self, index: usize) {
        let dead = self.members.swap_remove(index);
        dead.tenant.abort();
        self.net.kill(dead.id);
        self.beliefs.lock().unwrap().remove(&dead.id);
    }

    fn churned(&self) {
        self.members.iter().for_each(|m| m.dht.membership_changed());
    }

    /// Addresses believed by two live members at once.
    fn shared_addresses(&self) -> usize {
        let beliefs = self.beliefs.lock().unwrap();
        let mut holders: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        beliefs
            .values()
            .for_each(|(v4, _)| *holders.entry(*v4).or_default() += 1);
        holders.values().filter(|n| **n > 1).count()
    }
}

fn key(n: u16) -> RingAddr {
    RingAddr::of("a record of the churn test", &n.to_be_bytes())
}

#[derive(Debug, Default)]
struct Figures {
    lookups: u32,
    failed: u32,
    wrong: u32,
    lost: u32,
    shared_seconds: u32,
    longest_shared: u32,
    holding: usize,
    failed_claims: u32,
    slowest_ms: u128,
    healed_after: Option<u32>,
}

/// A run in progress: the members, and what is to happen to them.
struct Life {
    world: World,
    figures: Figures,
    records: Vec<Record>,
    /// In which second one joins, or dies; the next is last.
    joins: Vec<u32>,
    deaths: Vec<u32>,
    /// The second in which the network is cut in two, and the one in which the cut ends.
    cut: Option<(u32, u32)>,
    halves: BTreeMap<MemberId, bool>,
    /// In which seconds the members learn which others are here.
    tell_at: Vec<u32>,
    /// For how many seconds an address has had two holders.
    sharing: u32,
}

impl Life {
    async fn begin(seed: u64, cut: Option<(u32, u32)>) -> Self {
        let mut world = World::new(seed);
        for _ in 0..MEMBERS {
            world.join();
        }
        world.churned();
        tokio::time::sleep(Duration::from_secs(30)).await;
        let records = publish(&mut world).await;
        let mut seconds = || {
            let mut drawn: Vec<u32> = (0..REPLACED)
                .map(|_| world.rng.random_range(0..CHURN.as_secs() as u32))
                .collect();
            drawn.sort_unstable_by(|a, b| b.cmp(a));
            drawn
        };
        let (joins, deaths) = (seconds(), seconds());
        Self {
            world,
            figures: Figures::default(),
            records,
            joins,
            deaths,
            cut,
            halves: BTreeMap::new(),
            tell_at: Vec::new(),
            sharing: 0,
        }
    }

    /// Cuts the network into two halves, or joins them again, if this is the second for it.
    fn cut_or_join_halves(&mut self, second: u32) {
        let Some((from, to)) = self.cut else { return };
        if second != from && second != to {
            return;
        }
        let ids: Vec<MemberId> = self.world.members.iter().map(|m| m.id).collect();
        if second == from {
            self.halves = ids
                .iter()
                .map(|id| (*id, self.world.rng.random()))
                .collect();
        }
        let side = |id: &MemberId| self.halves.get(id).copied().unwrap_or(false);
        for a in &ids {
            ids.iter()
                .filter(|b| *b < a && side(b) != side(a))
                .for_each(|b| self.world.net.set_cut(*a, *b, second == from));
        }
        self.tell_at.push(second + 1);
        self.tell_at.push(second + NOTICE.as_secs() as u32 + 1);
    }

    /// A member joins, during the cut in one of its halves.
    fn join(&mut self, second: u32) {
        let new = self.world.join();
        if self
            .cut
            .is_some_and(|(from, to)| (from..to).contains(&second))
        {
            let side: bool = self.world.rng.random();
            self.halves.insert(new, side);
            for other in self.world.members.iter().map(|m| m.id) {
                if self.halves.get(&other) != Some(&side) {
                    self.world.net.set_cut(new, other, true);
                }
            }
        }
        self.tell_at.push(second);
    }

    fn replace_members(&mut self, second: u32) {
        while self.joins.pop_if(|at| *at <= second).is_some() {
            self.join(second);
        }
        while self.deaths.pop_if(|at| *at <= second).is_some() {
            let who = self.world.rng.random_range(0..self.world.members.len());
            self.world.kill(who);
            self.tell_at.push(second + NOTICE.as_secs() as u32 + 1);
        }
        if self.tell_at.contains(&second) {
            self.tell_at.retain(|at| *at > second);
            self.world.churned();
        }
    }

    /// Five lookups, each by anyone of anything.
    async fn look_up(&mut self) {
        for _ in 0..5 {
            let (by, n) = (
                self.world.rng.random_range(0..self.world.members.len()),
                self.world.rng.random_range(0..RECORDS),
            );
            let asked = Instant::now();
            let found = self.world.members[by].dht.get(key(n)).await;
            let figures = &mut self.figures;
            figures.slowest_ms = figures.slowest_ms.max(asked.elapsed().as_millis());
            figures.lookups += 1;
            match found {
                Ok(Some(record)) if record == self.records[usize::from(n)] => {}
                Ok(Some(_)) => figures.wrong += 1,
                Ok(None) | Err(_) => figures.failed += 1,
            }
        }
    }

    fn count_shared(&mut self, second: u32) {
        let shared = self.world.shared_addresses() > 0;
        self.sharing = if shared { self.sharing + 1 } else { 0 };
        let figures = &mut self.figures;
        figures.shared_seconds += u32::from(shared);
        figures.longest_shared = figures.longest_shared.max(self.sharing);
        if let Some((_, to)) = self.cut.filter(|(_, to)| second >= *to) {
            if shared {
                figures.healed_after = None;
            } else {
                figures.healed_after.get_or_insert(second - to);
            }
        }
    }

    async fn end(mut self) -> Figures {
        for record in &self.records {
            let found = self.world.members[0].dht.get(record.key).await;
            self.figures.lost += u32::from(found.as_ref() != Ok(&Some(record.clone())));
        }
        self.figures.holding = self.world.beliefs.lock().unwrap().len();
        self.figures.failed_claims = *self.world.failed_claims.lock().unwrap();
        assert_eq!(self.world.members.len(), MEMBERS);
        self.world.members.iter().for_each(|m| m.tenant.abort());
        self.figures
    }
}

/// Publishes all records. They have two owners: one owner may only have 256.
async fn publish(world: &mut World) -> Vec<Record> {
    let owners = [[1; 32], [2; 32]].map(|seed| KeyPair::from_seed(&seed));
    let mut records = Vec::new();
    for n in 0..RECORDS {
        let owner = &owners[usize::from(n % 2)];
        let by = world.rng.random_range(0..MEMBERS);
        let dht = &world.members[by].dht;
        let value = n.to_be_bytes().to_vec();
        records.push(dht.create(owner, key(n), value, CHURN * 10).await.unwrap());
    }
    records
}

/// One run; `cut` is when the network falls into two halves and when it is whole again.
async fn live(seed: u64, cut: Option<(u32, u32)>) -> Figures {
    let mut life = Life::begin(seed, cut).await;
    let seconds = CHURN.as_secs() as u32 + 2 * RENEW.as_secs() as u32;
    for second in 0..seconds {
        life.cut_or_join_halves(second);
        life.replace_members(second);
        life.look_up().await;
        let next = life.world.began + Duration::from_secs(u64::from(second) + 120);
        tokio::time::sleep_until(next).await;
        life.count_shared(second);
    }
    life.end().await
}

fn run(seed: u64, cut: Option<(u32, u32)>) -> Figures {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(live(seed, cut))
}

fn seeds(default: std::ops::Range<u64>) -> Vec<u64> {
    let only = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    only.map_or_else(|| default.collect(), |seed| vec![seed])
}

/// Prints the figures, and writes them where that is asked for. `kind` begins their names.
fn report(kind: &str, rows: &[(u64, Figures)]) {
    let recorder = Recorder::from_environment();
    let mut figures = Vec::new();
    let mut add = |name: &str, what: &str, unit: &str, of: &dyn Fn(&Figures) -> Option<f64>| {
        figures.extend(rows.iter().filter_map(|(seed, f)| {
            let name = format!("{kind}-{name}");
            let figure = Figure::new(&name, what, unit, [of(f)?]).of(seed.to_string());
            Some(if unit == "%" {
                figure.digits(2)
            } else {
                figure
            })
        }));
    };
    add("lookups", "lookups", "", &|f| Some(f.lookups.into()));
    add("succeeded", "lookups that succeeded", "%", &|f| {
        let right = f.lookups - f.failed - f.wrong;
        Some(100.0 * f64::from(right) / f64::from(f.lookups))
    });
    add("wrong", "wrong answers", "", &|f| Some(f.wrong.into()));
    add("slowest", "slowest lookup", "ms", &|f| {
        Some(f.slowest_ms as f64)
    });
    add("lost", "records lost", "", &|f| Some(f.lost.into()));
    add("shared", "address with two holders, longest", "s", &|f| {
        Some(f.longest_shared.into())
    });
    add(
        "healed",
        "after heal, each address has one holder",
        "s",
        &|f| f.healed_after.map(f64::from),
    );
    add("claims", "claims repeated", "", &|f| {
        Some(f.failed_claims.into())
    });
    add("holding", "members with an address", "", &|f| {
        Some(f.holding as f64)
    });
    println!("{}", Recorder::overview(&figures));
    let command = "cargo test -p p2pvm-dhcp --test churn";
    recorder
        .record_part("churn", command, &figures)
        .expect("the figures are written");
}

#[test]
fn with_a_third_replaced_records_are_found_and_addresses_unique() {
    let rows: Vec<(u64, Figures)> = seeds(0..5)
        .into_iter()
        .map(|seed| (seed, run(seed, None)))
        .collect();
    report("churn", &rows);
    for (seed, f) in &rows {
        assert!(
            u64::from(f.failed + f.wrong) * 100 <= u64::from(f.lookups),
            "SEED={seed}: lookups {f:?}"
        );
        assert_eq!(
            (f.wrong, f.lost, f.holding),
            (0, 0, MEMBERS),
            "SEED={seed}: {f:?}"
        );
        assert!(
            f.longest_shared <= RENEW.as_secs() as u32,
            "SEED={seed}: an address had two holders: {f:?}"
        );
    }
}

#[test]
fn after_a_partition_each_address_has_one_holder_and_no_lost_record() {
    let rows: Vec<(u64, Figures)> = seeds(10..13)
        .into_iter()
        .map(|seed| (seed, run(seed, Some((120, 420)))))
        .collect();
    report("halves", &rows);
    for (seed, f) in &rows {
        assert_eq!(
            (f.wrong, f.lost, f.holding),
            (0, 0, MEMBERS),
            "SEED={seed}: {f:?}"
        );
        assert!(
            f.healed_after
                .is_some_and(|s| s <= RENEW.as_secs() as u32 + 10),
            "SEED={seed}: {f:?}"
        );
    }
}
