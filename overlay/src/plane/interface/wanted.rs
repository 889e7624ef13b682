//! What the TUN has to be like, and what became of keeping it so.

use super::{
    proof::ProofFailure,
    repairs::{MAX_REPAIRS, PERIOD, RepairLine, RepairLog},
};
use p2pvm_host::links::Mark;
use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long a repair waits after the previous one, once there were [`MAX_REPAIRS`] within
/// [`PERIOD`].
const PAUSE: Duration = Duration::from_secs(4);

pub(crate) struct WantedDevice {
    pub name: String,
    pub mtu: u16,
    /// The largest TSO packet, bytes.
    pub largest: usize,
    pub mark: Mark,
    pub addresses: Vec<(IpAddr, u8)>,
    /// The plane has ended: the device is left alone.
    pub closed: bool,
    /// What cannot be put back, in words.
    pub faults: Vec<String>,
    /// Packets that leave by another interface although the device is complete: a rule or a longer
    /// route comes first.
    pub elsewhere: Vec<ProofFailure>,
    /// IPv6 is switched off; logged when it changes.
    pub without_v6: bool,
    /// When something was last put back.
    mended: VecDeque<Instant>,
    log: RepairLog,
}

impl WantedDevice {
    pub fn new(name: String, mtu: u16, largest: usize, mark: Mark) -> Self {
        Self {
            name,
            mtu,
            largest,
            mark,
            addresses: Vec::new(),
            closed: false,
            faults: Vec::new(),
            elsewhere: Vec::new(),
            without_v6: false,
            mended: VecDeque::new(),
            log: RepairLog::default(),
        }
    }

    /// Whether there were so many repairs that the next has to wait.
    pub fn is_slowed(&mut self, now: Instant) -> bool {
        while self
            .mended
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > PERIOD)
        {
            self.mended.pop_front();
        }
        self.mended.len() >= MAX_REPAIRS
            && self
                .mended
                .back()
                .is_some_and(|at| now.saturating_duration_since(*at) < PAUSE)
    }

    /// Logs what was put back and what could not be; of a change that is made again and again only
    /// the first times.
    pub fn log_repairs(&mut self, mended: &[String], faults: Vec<String>, now: Instant) {
        let device = self.name.as_str();
        if !mended.is_empty() {
            self.mended.push_back(now);
            match self.log.worth(mended, MAX_REPAIRS, now) {
                RepairLine::Line => tracing::warn!(
                    "put the interface {device} back after another program changed it: {}",
                    mended.join(", ")
                ),
                RepairLine::LastLine => tracing::warn!(
                    "another program keeps changing the interface {device}: {}",
                    mended.join(", ")
                ),
                RepairLine::NoLine => {}
            }
        }
        if faults != self.faults {
            if faults.is_empty() {
                tracing::info!("the interface {device} is as it should be again");
            } else {
                tracing::warn!(
                    "the interface {device} cannot be put back: {}",
                    faults.join("; ")
                );
            }
            self.faults = faults;
        }
    }

    pub fn log_elsewhere(&mut self, elsewhere: Vec<ProofFailure>) {
        for new in elsewhere.iter().filter(|new| !self.elsewhere.contains(new)) {
            tracing::warn!("{new}, because of a rule or a longer route of another program");
        }
        if elsewhere.is_empty() && !self.elsewhere.is_empty() {
            tracing::info!("packets to this network leave by {} again", self.name);
        }
        self.elsewhere = elsewhere;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_repairs_are_made_at_once_and_many_more_slowly() {
        let mark = Mark {
            network: "n".into(),
            link_port: 1,
            control_port: 2,
            misses: None,
        };
        let (mut wanted, start) = (
            WantedDevice::new("p2pvm0".into(), 1340, 65_000, mark),
            Instant::now(),
        );
        for n in 0..MAX_REPAIRS {
            let now = start + Duration::from_millis(100 * n as u64);
            assert!(!wanted.is_slowed(now));
            wanted.log_repairs(&["it was down".into()], Vec::new(), now);
        }
        let last = start + Duration::from_millis(100 * (MAX_REPAIRS as u64 - 1));
        assert!(
            wanted.is_slowed(last + Duration::from_millis(100)) && !wanted.is_slowed(last + PAUSE)
        );
        assert!(!wanted.is_slowed(last + PERIOD + Duration::from_secs(1)));
        assert!(wanted.mended.is_empty());
    }
}
