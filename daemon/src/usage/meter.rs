//! Turns readings of this host into amounts. A VM counts for the time between two readings if it is
//! in both: one that came or went between them does not count for that round, so that no VM counts
//! while it did not run.

use p2pvm_authority::{Size, Usage};
use p2pvm_overlay::{MemberId, VmId};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

/// A VM as a reading finds it.
#[derive(Clone, Debug)]
pub struct SeenVm {
    /// The VM.
    pub vm: VmId,
    /// The member that it was made for.
    pub owner: MemberId,
    /// Its size.
    pub size: Size,
    /// Whether a guest has its memory.
    pub has_memory: bool,
    /// Processor time of its guest's process since the process began.
    pub cpu: Option<Duration>,
    /// Its addresses.
    pub addresses: [IpAddr; 2],
}

/// Bytes that a pair of addresses has exchanged since it was first seen.
#[derive(Clone, Copy, Debug)]
pub struct SeenFlow {
    /// The address here.
    pub local: IpAddr,
    /// The other one.
    pub remote: IpAddr,
    /// Bytes from here.
    pub sent: u64,
    /// Bytes to here.
    pub received: u64,
}

/// One reading of this host.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// When, by a clock that only runs while this machine does.
    pub at: Duration,
    /// The VMs here, each once.
    pub vms: Vec<SeenVm>,
    /// The pairs of addresses that exchange packets.
    pub flows: Vec<SeenFlow>,
    /// MiB of replicas stored for other members.
    pub kept: BTreeMap<MemberId, u64>,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// The member that used it.
    pub owner: MemberId,
    /// The VM with its size; `None` for replicas.
    pub vm: Option<(VmId, Size)>,
    /// How much.
    pub used: Usage,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<Reading>,
}

impl Meter {
    /// How much time has passed since the last reading, and what was used.
    pub fn measure(&mut self, reading: Reading) -> (Duration, Vec<Amount>) {
        let Some(last) = self.last.replace(reading.clone()) else {
            return (Duration::ZERO, Vec::new());
        };
        let elapsed = reading.at.saturating_sub(last.at);
        let before: HashMap<VmId, &SeenVm> = last.vms.iter().map(|vm| (vm.vm, vm)).collect();
        let bytes = bytes(&last.flows, &reading.flows);
        let of_vm = |vm: &SeenVm| {
            let before = before
                .get(&vm.vm)
                .filter(|before| before.owner == vm.owner)?;
            let mut used = between(before, vm, elapsed);
            for (sent, received) in vm.addresses.iter().filter_map(|at| bytes.get(at)) {
                used.sent = used.sent.saturating_add(*sent);
                used.received = used.received.saturating_add(*received);
            }
            Some(Amount {
                owner: vm.owner,
                vm: Some((vm.vm, vm.size)),
                used,
            })
        };
        let of_replicas = |(owner, mib): (&MemberId, &u64)| {
            let mib = *last.kept.get(owner)?.min(mib);
            let used = Usage {
                kept_mib_s: times(mib, elapsed),
                ..Usage::default()
            };
            Some(Amount {
                owner: *owner,
                vm: None,
                used,
            })
        };
        let vms = reading.vms.iter().filter_map(of_vm);
        let all = vms.chain(reading.kept.iter().filter_map(of_replicas));
        let used = all.filter(|amount| !amount.used.is_nothing()).collect();
        (elapsed, used)
    }
}

fn between(before: &SeenVm, now: &SeenVm, elapsed: Duration) -> Usage {
    let busy = match (before.cpu, now.cpu) {
        // A smaller figure is a new process's.
        (Some(before), Some(now)) => now.checked_sub(before).unwrap_or(now),
        _ => Duration::ZERO,
    };
    let most = millis(elapsed).saturating_mul(u64::from(now.size.cpus));
    let memory_mib = if before.has_memory && now.has_memory {
        now.size.memory_mib
    } else {
        0
    };
    Usage {
        cpu_ms: millis(busy).min(most),
        memory_mib_s: times(memory_mib, elapsed),
        disk_mib_s: times(now.size.disk_mib, elapsed),
        ..Usage::default()
    }
}

/// New bytes (sent, received) by the address here.
fn bytes(before: &[SeenFlow], now: &[SeenFlow]) -> HashMap<IpAddr, (u64, u64)> {
    let pair = |flow: &SeenFlow| (flow.local, flow.remote);
    let known: HashMap<_, _> = before.iter().map(|flow| (pair(flow), flow)).collect();
    let mut bytes: HashMap<IpAddr, (u64, u64)> = HashMap::new();
    for flow in now {
        let (sent, received) = known
            .get(&pair(flow))
            .map_or((0, 0), |before| (before.sent, before.received));
        let sum = bytes.entry(flow.local).or_default();
        // A pair that was forgotten meanwhile counts from zero again.
        let new = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        sum.0 = sum.0.saturating_add(new(flow.sent, sent));
        sum.1 = sum.1.saturating_add(new(flow.received, received));
    }
    bytes
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `mib` for that time, in MiB times seconds.
fn times(mib: u64, elapsed: Duration) -> u64 {
    mib.saturating_mul(millis(elapsed)) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Size = Size {
        cpus: 2,
        memory_mib: 512,
        disk_mib: 4096,
    };
    const GUEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 83, 0, 9));

    fn vm(cpu: Option<u64>) -> SeenVm {
        SeenVm {
            vm: VmId([7; 32]),
            owner: MemberId([1; 32]),
            size: SIZE,
            has_memory: cpu.is_some(),
            cpu: cpu.map(Duration::from_millis),
            addresses: [GUEST, IpAddr::from([0; 16])],
        }
    }

    fn reading(seconds: u64, vms: Vec<SeenVm>) -> Reading {
        Reading {
            at: Duration::from_secs(seconds),
            vms,
            ..Reading::default()
        }
    }

    fn flow(sent: u64, received: u64) -> SeenFlow {
        SeenFlow {
            local: GUEST,
            remote: IpAddr::from([10, 83, 0, 2]),
            sent,
            received,
        }
    }

    fn used(meter: &mut Meter, reading: Reading) -> Vec<Amount> {
        meter.measure(reading).1
    }

    #[test]
    fn what_two_readings_have_in_common_is_counted() {
        let mut meter = Meter::default();
        assert_eq!(used(&mut meter, reading(10, vec![vm(Some(90_000))])), []);
        let sum = used(&mut meter, reading(20, vec![vm(Some(93_000))]))[0].used;
        assert_eq!(
            (sum.cpu_ms, sum.memory_mib_s, sum.disk_mib_s),
            (3000, 5120, 40_960)
        );
        // Stopped: only its disk. Started again: the process's time before this reading is unknown.
        let sum = used(&mut meter, reading(30, vec![vm(None)]))[0].used;
        assert_eq!((sum.cpu_ms, sum.memory_mib_s), (0, 0));
        let sum = used(&mut meter, reading(40, vec![vm(Some(500))]))[0].used;
        assert_eq!((sum.cpu_ms, sum.memory_mib_s), (0, 0));
        let sum = used(&mut meter, reading(50, vec![vm(Some(100))]))[0].used;
        assert_eq!(sum.cpu_ms, 100, "a new process");
        assert_eq!(used(&mut meter, reading(60, Vec::new())), []);
        assert_eq!(used(&mut meter, reading(70, vec![vm(Some(100))])), []);
    }

    #[test]
    fn bytes_and_replicas_count_once() {
        let mut meter = Meter::default();
        let with = |seconds, flow, mib| Reading {
            flows: vec![flow],
            kept: [(MemberId([2; 32]), mib)].into(),
            ..reading(seconds, vec![vm(Some(0))])
        };
        meter.measure(with(0, flow(1000, 50), 100));
        let amounts = used(&mut meter, with(10, flow(1500, 60), 300));
        assert_eq!((amounts[0].used.sent, amounts[0].used.received), (500, 10));
        assert_eq!(
            (amounts[1].vm, amounts[1].used.kept_mib_s),
            (None, 1000),
            "what was kept all the time"
        );
        let amounts = used(&mut meter, with(20, flow(7, 7), 300));
        assert_eq!((amounts[0].used.sent, amounts[0].used.received), (7, 7));
    }

    proptest! {
        #[test]
        fn sums_never_exceed_the_time_that_passed(
            steps in proptest::collection::vec(
                (0u64..100, proptest::option::of(0u64..1_000_000), any::<bool>()), 1..50)
        ) {
            let (mut meter, mut at, mut sum) = (Meter::default(), 0, Usage::default());
            for (seconds, cpu, is_here) in steps {
                at += seconds;
                let vms = if is_here { vec![vm(cpu)] } else { Vec::new() };
                for amount in used(&mut meter, reading(at, vms)) {
                    sum += amount.used;
                }
            }
            prop_assert_eq!(sum.excess(&SIZE.most(at)), None);
        }
    }
}
