//! Why a VM moved or stayed: a bounded history per VM, each entry with the figures that were
//! compared.

use crate::{load::Millis, wire::OfferRefusal};
use p2pvm_overlay::{MemberId, VmId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

/// How many VMs have a history before the one with the oldest last entry is dropped.
/// Reason: bounds memory.
const MAX_VMS: usize = 512;

/// How much affinity there is before the text mentions it.
const WORTH_SAYING: f64 = 0.01;

/// What was decided about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The node is overloaded, but no known peer would be better by enough.
    Kept,
    /// A peer was asked to take it.
    Offered,
    /// The peer refused it.
    Refused(OfferRefusal),
    /// The peer did not answer.
    Unanswered,
    /// The peer takes it: the migration starts.
    Migrating,
    /// The migration succeeded.
    Moved,
    /// The migration failed; the VM stays.
    Failed,
    /// The migration was cancelled on request; the VM stays.
    Cancelled,
    /// This node agreed to take it in.
    TakenIn,
    /// The source withdrew its offer.
    CalledOff,
}

/// One decision about a VM and the figures that it was made by. Loads are shares of a node's CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// When, by the deciding node's clock; with repetitions, the last time.
    pub at: Millis,
    /// The VM.
    #[serde(with = "text")]
    pub vm: VmId,
    /// What was decided.
    pub decision: Decision,
    /// The load of the node that the VM is on.
    pub source_load: f64,
    /// The peer: the target, or the source if this node took the VM in. `None` if no peer was
    /// considered.
    #[serde(with = "optional_text")]
    pub peer: Option<MemberId>,
    /// The load of the target with the VM.
    pub target_load: Option<f64>,
    /// How many CPUs the VM is expected to use.
    pub vm_cpu: f64,
    /// `source_load - target_load`.
    pub gain: Option<f64>,
    /// How much nearer the VM comes to the members it exchanges traffic with, from 1 (all of its
    /// traffic stays on that host) to -1.
    #[serde(default)]
    pub affinity: Option<f64>,
    /// The smallest gain that counts.
    pub min_gain: f64,
    /// How often in a row the same was decided about the same peer.
    pub times: u32,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let peer = self
            .peer
            .map_or_else(|| "no peer".to_owned(), |member| member.short());
        match self.decision {
            Decision::Kept => write!(
                f,
                "kept here: overloaded, but no known peer would be better by enough"
            )?,
            Decision::Offered => write!(f, "offered to {peer}")?,
            Decision::Refused(why) => write!(f, "refused by {peer}: {why}")?,
            Decision::Unanswered => write!(f, "offered to {peer}, which did not answer")?,
            Decision::Migrating => write!(f, "migrating to {peer}, which agreed")?,
            Decision::Moved => write!(f, "moved to {peer}")?,
            Decision::Failed => write!(f, "migration to {peer} failed: it stays here")?,
            Decision::Cancelled => {
                write!(f, "migration to {peer} cancelled on request: it stays here")?
            }
            Decision::TakenIn => write!(f, "taken in from {peer}")?,
            Decision::CalledOff => write!(f, "called off by {peer}: it does not come")?,
        }
        write!(f, " (load {}", percent(self.source_load))?;
        if let (Some(target), Some(gain)) = (self.target_load, self.gain) {
            write!(
                f,
                " against {} there with the VM: gain {}, at least {} wanted",
                percent(target),
                percent(gain),
                percent(self.min_gain)
            )?;
        }
        match self.affinity {
            Some(nearer) if nearer >= WORTH_SAYING => {
                write!(f, "; its traffic comes {} nearer", percent(nearer))?
            }
            Some(farther) if farther <= -WORTH_SAYING => {
                write!(f, "; its traffic goes {} farther", percent(-farther))?
            }
            _ => {}
        }
        write!(f, "; the VM uses {:.2} CPUs)", self.vm_cpu)?;
        if self.times > 1 {
            write!(f, ", {} times", self.times)
        } else {
            Ok(())
        }
    }
}

/// The histories.
#[derive(Debug, Default)]
pub(crate) struct Histories(BTreeMap<VmId, VecDeque<Explanation>>);

impl Histories {
    /// Adds an entry; the same decision about the same peer as last time only counts up. Returns
    /// whether it is new.
    pub(crate) fn add(&mut self, entry: Explanation, keep: usize) -> bool {
        let history = self.0.entry(entry.vm).or_default();
        if let Some(last) = history
            .back_mut()
            .filter(|last| last.decision == entry.decision && last.peer == entry.peer)
        {
            let times = last.times.saturating_add(1);
            *last = Explanation { times, ..entry };
            return false;
        }
        history.push_back(entry);
        while history.len() > keep.max(1) {
            history.pop_front();
        }
        if self.0.len() > MAX_VMS {
            let oldest = self
                .0
                .iter()
                .min_by_key(|(_, h)| h.back().map(|e| e.at))
                .map(|(vm, _)| *vm);
            oldest.and_then(|vm| self.0.remove(&vm));
        }
        true
    }

    pub(crate) fn of(&self, vm: VmId) -> Vec<Explanation> {
        self.0
            .get(&vm)
            .map(|h| h.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// All entries, by VM, the oldest of each first.
    pub(crate) fn all(&self) -> Vec<Explanation> {
        self.0.values().flatten().cloned().collect()
    }
}

/// Ids in their text form, for readers of JSON.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        id: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// As [`text`], for an id that may be missing.
pub(crate) mod optional_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        id: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        id.as_ref().map(T::to_string).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64, vm: u16, decision: Decision) -> Explanation {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&vm.to_be_bytes());
        let peer = Some(MemberId([3; 32]));
        let (target_load, gain) = (Some(0.3), Some(0.7));
        Explanation {
            at: Millis(at),
            vm: VmId(id),
            decision,
            source_load: 1.0,
            peer,
            target_load,
            vm_cpu: 0.25,
            gain,
            affinity: Some(0.5),
            min_gain: 0.15,
            times: 1,
        }
    }

    #[test]
    fn the_same_again_only_counts_up_and_histories_are_bounded() {
        let mut histories = Histories::default();
        assert!(histories.add(entry(1, 1, Decision::Offered), 2));
        assert!(!histories.add(entry(2, 1, Decision::Offered), 2));
        histories.add(entry(3, 1, Decision::Migrating), 2);
        histories.add(entry(4, 1, Decision::Moved), 2);
        let kept = histories.of(entry(0, 1, Decision::Moved).vm);
        assert_eq!(
            kept.iter().map(|e| e.decision).collect::<Vec<_>>(),
            [Decision::Migrating, Decision::Moved]
        );
        for vm in 0..2000 {
            histories.add(entry(u64::from(vm) + 10, vm, Decision::Kept), 2);
        }
        assert!(histories.0.len() <= MAX_VMS);
    }

    #[test]
    fn an_explanation_reads_well_and_survives_json() {
        let explanation = entry(5, 1, Decision::Refused(OfferRefusal::Memory));
        let json = serde_json::to_string(&explanation).unwrap();
        assert!(json.contains(&explanation.vm.to_string()), "{json}");
        assert_eq!(
            serde_json::from_str::<Explanation>(&json).unwrap(),
            explanation
        );
        let sentence = explanation.to_string();
        assert!(
            sentence.contains("its memory would not suffice")
                && sentence
                    .contains("gain 70 %, at least 15 % wanted; its traffic comes 50 % nearer"),
            "{sentence}"
        );
        let away = Explanation {
            affinity: Some(-0.25),
            ..entry(5, 1, Decision::Kept)
        }
        .to_string();
        assert!(away.contains("its traffic goes 25 % farther"), "{away}");
    }
}
