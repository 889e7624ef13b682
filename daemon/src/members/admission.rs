//! Counts the uses of invites. Each use is a slot record in the DHT that `create` gives to one
//! joiner only, so that members that admit at the same time agree. It is also a line in a log on
//! this host's disk, flushed before the joiner gets its answer, so that a crash of all replicas
//! loses no use counted here.

use async_trait::async_trait;
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::{Addresses, NameKind, Subject};
use p2pvm_dht::{RecordError, Records};
use p2pvm_host::lock;
use p2pvm_host::reserve;
use p2pvm_overlay::{
    MemberId, RingAddr, UnixTime,
    identity::KeyPair,
    membership::{Admission, Invite, InviteId, Refusal},
};
use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// How many slots are tried for one request to join. Reason: each costs some members a record, and
/// an invite may have thousands; those found taken are remembered, and the next request goes on.
const MAX_TRIED: usize = 256;
/// How many invites' taken slots are remembered.
const MAX_INVITES: usize = 16;
/// How long a slot outlives its invite. Reason: clocks differ.
const SLOT_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The uses counted on this host.
struct UseLog {
    path: PathBuf,
    file: File,
    uses: HashMap<InviteId, HashSet<MemberId>>,
}

impl UseLog {
    /// Reads the log. An incomplete last line, after a crash, does not count, since its joiner got
    /// no answer.
    fn open(path: &Path) -> Outcome<Self> {
        let doing = format!("reading {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .doing(&doing)?;
        let mut text = String::new();
        file.read_to_string(&mut text).doing(&doing)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").doing(&doing)?;
        }
        let mut uses: HashMap<InviteId, HashSet<MemberId>> = HashMap::new();
        for (invite, joiner) in text.lines().filter_map(|line| line.split_once(' ')) {
            if let (Ok(invite), Ok(joiner)) = (invite.parse(), joiner.parse()) {
                uses.entry(invite).or_default().insert(joiner);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            uses,
        })
    }

    fn add(&mut self, invite: InviteId, joiner: MemberId) -> std::io::Result<()> {
        let (line, end) = (format!("{invite} {joiner}\n"), self.file.metadata()?.len());
        let written = reserve::retrying(&self.path, || {
            self.file
                .write_all(line.as_bytes())
                .inspect_err(|_| drop(self.file.set_len(end)))
        });
        written?;
        self.file.sync_data()?;
        self.uses.entry(invite).or_default().insert(joiner);
        Ok(())
    }
}

/// The slots found taken, with the joiner that has each. A slot is never free again.
#[derive(Default)]
struct TakenSlots(HashMap<InviteId, HashMap<u32, MemberId>>);

impl TakenSlots {
    fn of(&mut self, invite: InviteId) -> &mut HashMap<u32, MemberId> {
        if self.0.len() >= MAX_INVITES && !self.0.contains_key(&invite) {
            self.0.clear();
        }
        self.0.entry(invite).or_default()
    }
}

/// Counts in the DHT and on this host's disk.
pub struct SlotAdmission {
    records: Arc<dyn Records>,
    addresses: Arc<Addresses>,
    counted: Arc<Mutex<UseLog>>,
    taken: Mutex<TakenSlots>,
}

fn slot_key(invite: InviteId, slot: u32) -> RingAddr {
    let mut bytes = invite.0.to_vec();
    bytes.extend(slot.to_be_bytes());
    RingAddr::of("p2pvm 2026 slot of an invite", &bytes)
}

fn undecided(cause: impl std::error::Error) -> Refusal {
    Refusal::Undecided(p2pvm_host::chain(&cause))
}

impl SlotAdmission {
    /// Continues with the uses in the log at `path`.
    pub fn open(
        records: Arc<dyn Records>,
        addresses: Arc<Addresses>,
        path: &Path,
    ) -> Outcome<Self> {
        Ok(Self {
            records,
            addresses,
            counted: Arc::new(Mutex::new(UseLog::open(path)?)),
            taken: Mutex::default(),
        })
    }

    /// The slots to try for a joiner, at most [`MAX_TRIED`]; none if it is known to have one.
    ///
    /// # Errors
    /// All are known to be taken by others.
    fn slots(&self, invite: &Invite, joiner: MemberId) -> Result<Vec<u32>, Refusal> {
        let mut taken = lock(&self.taken);
        let taken = taken.of(invite.id());
        if taken.values().any(|has| *has == joiner) {
            return Ok(Vec::new());
        }
        let first = u32::from_be_bytes([joiner.0[0], joiner.0[1], joiner.0[2], joiner.0[3]]);
        let uses = u64::from(invite.uses());
        // Joiners begin at different slots, so that many at once seldom meet.
        let slots: Vec<u32> = (0..uses)
            .map(|i| ((u64::from(first) + i) % uses) as u32)
            .filter(|slot| !taken.contains_key(slot))
            .take(MAX_TRIED)
            .collect();
        if slots.is_empty() {
            return Err(Refusal::UsedUp);
        }
        Ok(slots)
    }

    /// Takes a slot for the joiner, or finds the one it has.
    async fn take_slot(&self, invite: &Invite, joiner: MemberId) -> Result<(), Refusal> {
        let left = Duration::from_secs(invite.terms().expires.0.saturating_sub(UnixTime::now().0));
        let slots = self.slots(invite, joiner)?;
        let is_known = slots.is_empty();
        for slot in slots {
            // A key of its own for each slot: nobody, this host included, can give a taken slot to
            // another.
            let owner = KeyPair::generate();
            let key = slot_key(invite.id(), slot);
            let created = self
                .records
                .create(&owner, key, joiner.0.to_vec(), left + SLOT_GRACE);
            let has = match created.await {
                Ok(_) => joiner,
                Err(RecordError::Exists(other)) => {
                    let value = other.value.as_deref().and_then(|v| v.try_into().ok());
                    // What is no member's id is nobody's, and taken.
                    MemberId(value.unwrap_or_default())
                }
                Err(e) => return Err(undecided(e)),
            };
            lock(&self.taken).of(invite.id()).insert(slot, has);
            if has == joiner {
                return Ok(());
            }
        }
        if is_known {
            return Ok(());
        }
        // Either there are more to try, or the next request finds that there are none.
        self.slots(invite, joiner)?;
        Err(Refusal::Undecided(
            "nearly all uses of the invite are taken: try again".to_owned(),
        ))
    }
}

#[async_trait]
impl Admission for SlotAdmission {
    async fn admit(&self, invite: &Invite, joiner: MemberId, name: &str) -> Result<(), Refusal> {
        let counted = |map: &UseLog| {
            map.uses
                .get(&invite.id())
                .map(|joiners| (joiners.len(), joiners.contains(&joiner)))
        };
        let known = counted(&lock(&self.counted));
        let counted = match known {
            Some((used, false)) if used >= invite.uses() as usize => return Err(Refusal::UsedUp),
            known => known.is_some_and(|(_, counted)| counted),
        };
        // A joiner that asks again may ask for another name: a machine that left and was renamed.
        let slot = async {
            if counted {
                Ok(())
            } else {
                self.take_slot(invite, joiner).await
            }
        };
        let (named, slot) = tokio::join!(self.addresses.resolve_name(name, NameKind::Host), slot);
        if named
            .map_err(undecided)?
            .is_some_and(|named| named.subject != Subject::Member(joiner))
        {
            return Err(Refusal::NameTaken);
        }
        slot?;
        if counted {
            return Ok(());
        }
        let (log, invite) = (self.counted.clone(), invite.id());
        let written = tokio::task::spawn_blocking(move || lock(&log).add(invite, joiner));
        written.await.map_err(undecided)?.map_err(undecided)
    }
}

/// The admission between the control plane's start and the DHT's.
pub struct EarlyAdmission;

#[async_trait]
impl Admission for EarlyAdmission {
    async fn admit(&self, _invite: &Invite, _joiner: MemberId, _name: &str) -> Result<(), Refusal> {
        Err(Refusal::Undecided(
            "this member is only starting: try again".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_dht::Record;
    use p2pvm_overlay::membership::{Groups, InviteTerms, Ipv4Subnet, Issuer, NetworkConfig};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Records in memory that are never free again, and how many were to be made.
    #[derive(Default)]
    struct Slots {
        taken: Mutex<HashMap<RingAddr, Record>>,
        creates: AtomicUsize,
    }

    #[async_trait]
    impl Records for Slots {
        async fn create(
            &self,
            owner: &KeyPair,
            key: RingAddr,
            value: Vec<u8>,
            _: Duration,
        ) -> Result<Record, RecordError> {
            self.creates.fetch_add(1, Ordering::Relaxed);
            let mut taken = self.taken.lock().unwrap();
            if let Some(other) = taken.get(&key) {
                return Err(RecordError::Exists(Box::new(other.clone())));
            }
            let record = Record::sign(owner, key, 1, UnixTime::now().plus(60), Some(value));
            taken.insert(key, record.clone());
            Ok(record)
        }

        async fn put(
            &self,
            _: &KeyPair,
            _: RingAddr,
            _: u64,
            _: Vec<u8>,
            _: Duration,
        ) -> Result<Record, RecordError> {
            unreachable!("no slot is written again")
        }

        async fn get(&self, key: RingAddr) -> Result<Option<Record>, RecordError> {
            Ok(self.taken.lock().unwrap().get(&key).cloned())
        }

        async fn delete(&self, _: &KeyPair, _: RingAddr) -> Result<(), RecordError> {
            unreachable!("no slot is given back")
        }
    }

    fn member(n: u32) -> MemberId {
        MemberId(*blake3::hash(&n.to_be_bytes()).as_bytes())
    }

    #[tokio::test]
    async fn a_used_up_invite_costs_a_bounded_number_of_records_per_request() {
        let dir = tempfile::tempdir().unwrap();
        let root = KeyPair::from_seed(&[1; 32]);
        let subnet = Ipv4Subnet::new([10, 9, 0, 0].into(), 16).unwrap();
        let network = NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap();
        let terms = InviteTerms {
            uses: 1000,
            expires: UnixTime::now().plus(60),
            delegate: false,
            groups: Groups::default(),
        };
        let invite = Invite::issue(&Issuer::root(&root), &network, &[], terms).unwrap();
        let records = Arc::new(Slots::default());
        let addresses = Arc::new(Addresses::new(
            records.clone(),
            "10.9.0.0/16".parse().unwrap(),
            dir.path().join("leases"),
        ));
        let log = dir.path().join("admissions.log");
        let other = SlotAdmission::open(records.clone(), addresses, &log).unwrap();
        // Other members admitted them all.
        for n in 0..1000 {
            let (key, value) = (slot_key(invite.id(), n), member(n).0.to_vec());
            let made = records.create(&root, key, value, Duration::ZERO).await;
            assert!(made.is_ok());
        }
        let (mut asked, mut verdict) = (0, Ok(()));
        while verdict != Err(Refusal::UsedUp) {
            let before = records.creates.load(Ordering::Relaxed);
            verdict = other.admit(&invite, member(2000), "a").await;
            let tried = records.creates.load(Ordering::Relaxed) - before;
            assert!(
                verdict.is_err() && tried <= MAX_TRIED,
                "{verdict:?} {tried}"
            );
            asked += 1;
        }
        assert_eq!(asked, 1000usize.div_ceil(MAX_TRIED));
        let before = records.creates.load(Ordering::Relaxed);
        let late = other.admit(&invite, member(2001), "a").await;
        assert_eq!(late, Err(Refusal::UsedUp));
        assert_eq!(records.creates.load(Ordering::Relaxed), before);
        // A joiner that has a slot is admitted by any issuer.
        assert_eq!(other.admit(&invite, member(7), "a").await, Ok(()));
    }

    #[test]
    fn a_use_counted_before_a_crash_is_counted_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admissions.log");
        let (invite, joiner) = (InviteId([7; 16]), MemberId([9; 32]));
        UseLog::open(&path).unwrap().add(invite, joiner).unwrap();
        // The crash cut the next line short.
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"0707")
            .unwrap();
        let mut again = UseLog::open(&path).unwrap();
        assert!(again.uses[&invite].contains(&joiner));
        again.add(invite, MemberId([10; 32])).unwrap();
        assert_eq!(UseLog::open(&path).unwrap().uses[&invite].len(), 2);
    }
}
