//! Counts the uses of invites. Each use is a slot record in the DHT that `create` gives to one
//! joiner only, so that members that admit at the same time agree. It is also a line in a log on
//! this host's disk, flushed before the joiner gets its answer, so that a crash of all replicas
//! loses no use counted here.

use async_trait::async_trait;
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::{Addresses, NameKind, Subject};
use p2pvm_dht::{RecordError, Records};
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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long a slot outlives its invite. Reason: clocks differ.
const SLOT_GRACE: Duration = Duration::from_secs(24 * 3600);

/// The uses counted on this host.
struct Counted {
    path: PathBuf,
    file: File,
    uses: HashMap<InviteId, HashSet<MemberId>>,
}

impl Counted {
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

/// Counts in the DHT and on this host's disk.
pub struct SlotAdmission {
    records: Arc<dyn Records>,
    addresses: Arc<Addresses>,
    counted: Arc<Mutex<Counted>>,
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
            counted: Arc::new(Mutex::new(Counted::open(path)?)),
        })
    }

    /// Takes a slot for the joiner, or finds the one it has.
    async fn take_slot(&self, invite: &Invite, joiner: MemberId) -> Result<(), Refusal> {
        let left = Duration::from_secs(invite.terms().expires.0.saturating_sub(UnixTime::now().0));
        let first = u32::from_be_bytes([joiner.0[0], joiner.0[1], joiner.0[2], joiner.0[3]]);
        for i in 0..invite.uses() {
            // Joiners begin at different slots, so that many at once seldom meet.
            let slot = (u64::from(first) + u64::from(i)) % u64::from(invite.uses());
            // Each slot has a key of its own, so that nobody, this host included, can give a taken
            // slot to another.
            let owner = KeyPair::generate();
            match self
                .records
                .create(
                    &owner,
                    slot_key(invite.id(), slot as u32),
                    joiner.0.to_vec(),
                    left + SLOT_GRACE,
                )
                .await
            {
                Ok(_) => return Ok(()),
                Err(RecordError::Exists(other))
                    if other.value.as_deref() == Some(&joiner.0[..]) =>
                {
                    return Ok(());
                }
                Err(RecordError::Exists(_)) => {}
                Err(e) => return Err(undecided(e)),
            }
        }
        Err(Refusal::UsedUp)
    }
}

#[async_trait]
impl Admission for SlotAdmission {
    async fn admit(&self, invite: &Invite, joiner: MemberId, name: &str) -> Result<(), Refusal> {
        let counted = |map: &Counted| {
            map.uses
                .get(&invite.id())
                .map(|joiners| (joiners.len(), joiners.contains(&joiner)))
        };
        let known = counted(&self.counted.lock().unwrap_or_else(PoisonError::into_inner));
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
        let written = tokio::task::spawn_blocking(move || {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(invite, joiner)
        });
        written.await.map_err(undecided)?.map_err(undecided)
    }
}

/// The admission between the control plane's start and the DHT's.
pub struct NotYet;

#[async_trait]
impl Admission for NotYet {
    async fn admit(&self, _invite: &Invite, _joiner: MemberId, _name: &str) -> Result<(), Refusal> {
        Err(Refusal::Undecided(
            "this member is only starting: try again".to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_counted_before_a_crash_is_counted_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admissions.log");
        let (invite, joiner) = (InviteId([7; 16]), MemberId([9; 32]));
        Counted::open(&path).unwrap().add(invite, joiner).unwrap();
        // The crash cut the next line short.
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"0707")
            .unwrap();
        let mut again = Counted::open(&path).unwrap();
        assert!(again.uses[&invite].contains(&joiner));
        again.add(invite, MemberId([10; 32])).unwrap();
        assert_eq!(Counted::open(&path).unwrap().uses[&invite].len(), 2);
    }
}
