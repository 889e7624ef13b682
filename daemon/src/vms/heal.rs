//! Protection of VMs and what became of them, in the words of the control API.

use super::service::Vms;
use crate::{clock, failure::OrFailure, http::report::Reporter};
use p2pvm_api::{
    Explained, Failure, Outcome, PartitionWord, ProtectVm, ProtectionView, ReplaceWord, VmView,
};
use p2pvm_vm_manager::{
    host::{Shield, VmStatus},
    protection::{OnPartition, Protect, Protection, Replace},
};
use std::time::Duration;

/// How long a silent host may be waited for.
const LOST_AFTER: std::ops::RangeInclusive<u64> = 5..=24 * 3600;

fn replace(word: ReplaceWord) -> Replace {
    match word {
        ReplaceWord::Auto => Replace::Auto,
        ReplaceWord::Ask => Replace::Ask,
        ReplaceWord::Never => Replace::Never,
    }
}

fn replace_word(replace: Replace) -> ReplaceWord {
    match replace {
        Replace::Auto => ReplaceWord::Auto,
        Replace::Ask => ReplaceWord::Ask,
        Replace::Never => ReplaceWord::Never,
    }
}

fn on_partition(word: PartitionWord) -> OnPartition {
    match word {
        PartitionWord::Freeze => OnPartition::Freeze,
        PartitionWord::RunUntilLeaseEnds => OnPartition::RunUntilLeaseEnds,
        PartitionWord::Stop => OnPartition::Stop,
    }
}

fn partition_word(how: OnPartition) -> PartitionWord {
    match how {
        OnPartition::Freeze => PartitionWord::Freeze,
        OnPartition::RunUntilLeaseEnds => PartitionWord::RunUntilLeaseEnds,
        OnPartition::Stop => PartitionWord::Stop,
    }
}

/// The protection that a request asks for, where the VM has `now`.
fn wanted(now: Protection, r: &ProtectVm) -> Outcome<Protection> {
    let mut wanted = now;
    wanted.protect = match r.protect {
        Some(true) => Protect::Auto,
        Some(false) => Protect::Off,
        None => wanted.protect,
    };
    wanted.replace = r.replace.map_or(wanted.replace, replace);
    wanted.on_partition = r.on_partition.map_or(wanted.on_partition, on_partition);
    if let Some(seconds) = r.lost_after_s {
        if !LOST_AFTER.contains(&seconds) {
            return Err(Failure::usage(format!(
                "a host counts as lost after {} s to {} s of silence, not {seconds} s",
                LOST_AFTER.start(),
                LOST_AFTER.end()
            )));
        }
        wanted.lost_after = Duration::from_secs(seconds);
    }
    if let Some(seconds) = r.replicate_every_s {
        wanted.replicate_every = Some(Duration::from_secs(seconds));
    }
    Ok(wanted)
}

impl Vms {
    /// Sets how a VM here is protected against the loss of this host.
    pub async fn protect(&self, name: &str, r: &ProtectVm) -> Outcome<VmView> {
        let now = self.host.protection(name).or_failure()?;
        let vm = self.host.protect(name, wanted(now, r)?).await;
        Ok(self.view(&vm.or_failure()?))
    }

    /// Starts a VM here whose host is lost, at a person's word.
    pub async fn take_over(
        &self,
        name: &str,
        mut proofs: Vec<Vec<u8>>,
        reporter: &Reporter,
    ) -> Outcome<VmView> {
        reporter.phase("taking over");
        let own = self.tokens.for_vm(name).await;
        proofs.extend(own.iter().map(|token| token.to_bytes()));
        let vm = self.host.take_over_vm(name, &proofs).await;
        Ok(self.view(&vm.or_failure()?))
    }

    /// Whether a VM here is protected; none for one that does not run, or is elsewhere.
    pub(super) fn protection_view(&self, vm: &VmStatus) -> Option<ProtectionView> {
        let shield = self.host.shield(&vm.name)?;
        let protection = self.host.protection(&vm.name).ok()?;
        let heirs = self.host.heirs(vm.definition.vm);
        let heirs: Vec<_> = heirs.iter().map(|m| self.parts.name_of(*m)).collect();
        let protected = shield == Shield::Leased;
        let text = match (protected, protection.replace) {
            (false, _) => shield.to_string(),
            (true, Replace::Never) => "protected, not started elsewhere".to_owned(),
            (true, _) if heirs.is_empty() => "protected, no heir has a copy of it yet".to_owned(),
            (true, _) => format!("protected, heirs {}", heirs.join(", ")),
        };
        Some(ProtectionView {
            text,
            protected,
            heirs,
            replace: replace_word(protection.replace),
            on_partition: partition_word(protection.on_partition),
            lost_after_s: protection.lost_after.as_secs(),
        })
    }

    /// How a VM here came to this host, if its previous one was lost.
    pub(super) fn healed(&self, name: &str) -> Option<Explained> {
        let healed = self.host.healed(name)?;
        let from = self.parts.name_of(healed.from);
        Some(Explained {
            at: clock::shown(healed.at),
            host: String::new(),
            text: format!(
                "started here by itself: its host {from} did not answer, and its lease had ended; \
                    {}",
                healed.lost
            ),
            details: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_leaves_out_stays_as_it_was() {
        let now = Protection {
            replace: Replace::Ask,
            ..Protection::default()
        };
        assert_eq!(wanted(now.clone(), &ProtectVm::default()).unwrap(), now);
        let all = ProtectVm {
            protect: Some(false),
            replace: Some(ReplaceWord::Never),
            on_partition: Some(PartitionWord::Stop),
            lost_after_s: Some(60),
            replicate_every_s: Some(10),
        };
        let set = wanted(now.clone(), &all).unwrap();
        assert_eq!((set.protect, set.replace), (Protect::Off, Replace::Never));
        assert_eq!(set.on_partition, OnPartition::Stop);
        assert_eq!(set.lost_after, Duration::from_secs(60));
        for seconds in [0, 4, 90_000] {
            let wrong = ProtectVm {
                lost_after_s: Some(seconds),
                ..ProtectVm::default()
            };
            let why = wanted(now.clone(), &wrong).unwrap_err();
            assert!(why.to_string().contains("5 s to 86400 s"), "{why}");
        }
    }
}
