//! The revocations that this member signed, one file each, until the tokens would have ended
//! anyway.

use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_authority::{Resource, Revocation, Serial};
use p2pvm_host::lock;
use p2pvm_overlay::durable::write_atomically;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

/// How many revocations are kept.
const MAX_KEPT: usize = 1024;
/// The file names' suffix.
const SUFFIX: &str = ".revocation";

/// What was taken back, by the serial number of the link.
pub(super) struct TakenBack {
    dir: PathBuf,
    all: Mutex<BTreeMap<Serial, (Resource, Revocation)>>,
}

impl TakenBack {
    /// Reads those in `dir`, which need not exist. A file that cannot be read is left alone.
    pub fn open(dir: PathBuf) -> Self {
        let mut all = BTreeMap::new();
        for path in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = path.path();
            if !path.to_string_lossy().ends_with(SUFFIX) {
                continue;
            }
            match read(&path) {
                Ok(read) => {
                    all.insert(read.1.serial, read);
                }
                Err(error) => tracing::warn!(
                    file = %path.display(),
                    error = %p2pvm_host::chain(&error),
                    "cannot read a revocation"
                ),
            }
        }
        Self {
            dir,
            all: all.into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Serial, (Resource, Revocation)>> {
        lock(&self.all)
    }

    pub fn all(&self) -> Vec<(Resource, Revocation)> {
        self.lock().values().copied().collect()
    }

    pub fn has(&self, serial: &Serial) -> bool {
        self.lock().contains_key(serial)
    }

    /// Keeps a revocation.
    pub fn add(&self, resource: Resource, revocation: Revocation) -> Outcome<()> {
        let mut all = self.lock();
        if !all.contains_key(&revocation.serial) && all.len() >= MAX_KEPT {
            return Err(Failure::refused(format!(
                "{MAX_KEPT} revocations are kept here already: wait until one of the tokens would \
                 have expired"
            )));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .and_then(|()| {
                let message = revocation.to_message(resource);
                write_atomically(&self.file(&revocation.serial), &message, 0o600)
            })
            .doing("keeping the revocation")?;
        all.insert(revocation.serial, (resource, revocation));
        Ok(())
    }

    /// Forgets a revocation that has no effect.
    pub fn remove(&self, serial: &Serial) {
        let mut all = self.lock();
        if all.remove(serial).is_some()
            && let Err(error) = fs::remove_file(self.file(serial))
        {
            tracing::warn!(error = %p2pvm_host::chain(&error), "cannot remove a revocation's file");
        }
    }

    /// Forgets those whose tokens have ended by themselves.
    pub fn drop_ended(&self, now: u64) {
        let ended = |(_, one): &(Resource, Revocation)| (one.until <= now).then_some(one.serial);
        let ended: Vec<Serial> = self.lock().values().filter_map(ended).collect();
        ended.iter().for_each(|serial| self.remove(serial));
    }

    fn file(&self, serial: &Serial) -> PathBuf {
        let name = data_encoding::HEXLOWER.encode(serial);
        self.dir.join(format!("{name}{SUFFIX}"))
    }
}

fn read(path: &Path) -> io::Result<(Resource, Revocation)> {
    let bytes = fs::read(path)?;
    Revocation::from_message(&bytes).ok_or_else(|| io::Error::other("it is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::{VmId, identity::KeyPair};

    #[test]
    fn revocations_survive_a_restart_until_their_tokens_end() {
        let dir = tempfile::tempdir().unwrap();
        let open = || TakenBack::open(dir.path().join("revoked"));
        let (web, keys) = (Resource::Vm(VmId([7; 32])), KeyPair::from_seed(&[1; 32]));
        let of = |serial: u8, until| Revocation::sign(&keys, web, [serial; 16], until);
        let kept = open();
        kept.add(web, of(1, 100)).unwrap();
        kept.add(web, of(2, 200)).unwrap();
        assert_eq!(open().all(), [(web, of(1, 100)), (web, of(2, 200))]);
        fs::write(dir.path().join("revoked/broken.revocation"), b"x").unwrap();
        let kept = open();
        kept.drop_ended(100);
        assert!(!kept.has(&[1; 16]) && kept.has(&[2; 16]));
        assert_eq!(open().all(), [(web, of(2, 200))]);
    }
}
