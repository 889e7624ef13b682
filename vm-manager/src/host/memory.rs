//! This host's memory, which is never promised twice: a guest has a [`Promise`] from its admission
//! (at a start, a restore, an arriving move) until its process has ended. What does not fit is
//! refused with the figures.
//!
//! What counts is what guests are given, not what they use: a guest may use all of it at any time.
//! A promise is one atomic step, so that of two that come at once and do not both fit, one is
//! refused.

use crate::Error;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How much memory a host keeps for itself at most, MiB; a small host keeps an eighth. Reason: what
/// the host itself needs does not grow with its memory.
const MOST_KEPT_MIB: u64 = 512;

/// What guests on this host may be given.
pub(crate) struct Memory {
    /// In all, MiB.
    limit: AtomicU64,
    installed: u64,
    promised: Arc<AtomicU64>,
}

/// Memory that one guest is given; dropped when the guest's process has ended.
#[derive(Debug)]
pub(crate) struct Promise {
    promised: Arc<AtomicU64>,
    mib: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.mib, Ordering::AcqRel);
    }
}

impl Memory {
    /// The memory of this machine, of which guests may be given `chosen` MiB at most, or all but a
    /// reserve.
    pub(crate) fn of_this_machine(chosen: Option<u64>) -> Self {
        // Without figures nothing is refused for them.
        let installed =
            nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total() >> 20);
        Self::of(installed, chosen)
    }

    fn of(installed: u64, chosen: Option<u64>) -> Self {
        let memory = Self {
            limit: AtomicU64::default(),
            installed,
            promised: Arc::default(),
        };
        memory.choose(chosen);
        memory
    }

    /// Lets guests be given `chosen` MiB at most from now on, or all but a reserve. What they have
    /// stays theirs.
    pub(crate) fn choose(&self, chosen: Option<u64>) {
        let most = self.installed - (self.installed / 8).min(MOST_KEPT_MIB);
        let limit = chosen.map_or(most, |chosen| chosen.min(most));
        self.limit.store(limit, Ordering::Release);
    }

    /// How many MiB guests may be given in all.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// How many MiB guests have been given.
    pub(crate) fn promised_mib(&self) -> u64 {
        self.promised.load(Ordering::Acquire)
    }

    /// Whether a guest of that size can ever run here.
    ///
    /// # Errors
    /// [`Error::Refused`] with the figures.
    pub(crate) fn can_ever_hold(&self, mib: u64) -> Result<(), Error> {
        let limit = self.limit();
        if mib <= limit {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{mib} MiB of memory do not fit: guests on this host may have {limit} of its {} MiB \
                in all ('p2pvm offer set --all-memory' there may have said less)",
            self.installed
        )))
    }

    /// Gives a guest its memory.
    ///
    /// # Errors
    /// [`Error::Refused`] with the figures, if it does not fit.
    pub(crate) fn promise(&self, mib: u64) -> Result<Promise, Error> {
        self.can_ever_hold(mib)?;
        let limit = self.limit();
        let fits = |promised: u64| promised.checked_add(mib).filter(|all| *all <= limit);
        let (up, down) = (Ordering::AcqRel, Ordering::Acquire);
        match self.promised.fetch_update(up, down, fits) {
            Ok(_) => Ok(self.promised(mib)),
            Err(promised) => Err(Error::Refused(format!(
                "{mib} MiB of memory do not fit: guests here have {promised} of the {limit} MiB \
                    that this host may give: stop or move one, or choose another host"
            ))),
        }
    }

    /// The memory of a guest that runs already.
    pub(crate) fn note(&self, mib: u64) -> Promise {
        self.promised.fetch_add(mib, Ordering::AcqRel);
        self.promised(mib)
    }

    fn promised(&self, mib: u64) -> Promise {
        Promise {
            promised: self.promised.clone(),
            mib,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_promised_once_and_again_when_its_guest_has_ended() {
        let memory = Memory::of(1024, None);
        assert_eq!(memory.limit(), 1024 - 128);
        let first = memory.promise(512).unwrap();
        let said = memory.promise(512).unwrap_err().to_string();
        assert!(said.contains("512 of the 896 MiB"), "{said}");
        let second = memory.promise(384).unwrap();
        assert_eq!(memory.promised_mib(), 896);
        drop(first);
        assert!(memory.promise(512).is_ok());
        drop(second);
        assert_eq!(memory.promised_mib(), 0);
    }

    #[test]
    fn what_can_never_fit_is_refused_with_what_could() {
        for (installed, chosen, limit) in [
            (24_000, None, 23_488),
            (24_000, Some(2048), 2048),
            (1024, Some(4096), 896),
        ] {
            let memory = Memory::of(installed, chosen);
            assert!(memory.can_ever_hold(limit).is_ok());
            for mib in [limit + 1, u64::MAX] {
                let said = memory.promise(mib).unwrap_err().to_string();
                assert!(
                    said.contains(&format!("{limit} of its {installed}")),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn another_limit_counts_at_once_and_takes_nothing_back() {
        let memory = Memory::of(1024, None);
        let _guest = memory.promise(512).unwrap();
        memory.choose(Some(256));
        assert_eq!((memory.limit(), memory.promised_mib()), (256, 512));
        assert!(memory.promise(1).is_err());
        memory.choose(None);
        assert!(memory.promise(128).is_ok());
    }

    #[test]
    fn a_guest_that_runs_already_counts_though_it_does_not_fit() {
        let memory = Memory::of(1024, None);
        let adopted = memory.note(2000);
        assert!(memory.promise(1).is_err());
        drop(adopted);
        assert!(memory.promise(1).is_ok());
    }

    #[test]
    fn of_many_that_come_at_once_only_those_that_fit_are_admitted() {
        let memory = Memory::of(8 << 10, Some(1000));
        let admitted: Vec<_> = std::thread::scope(|scope| {
            let ask = || scope.spawn(|| memory.promise(300).ok());
            let asked: Vec<_> = (0..16).map(|_| ask()).collect();
            asked
                .into_iter()
                .filter_map(|t| t.join().unwrap())
                .collect()
        });
        assert_eq!((admitted.len(), memory.promised_mib()), (3, 900));
    }
}
