//! What a host's owner offers to the VMs of other members, and whether one more of them may come.
//!
//! [`decide`] is the one rule: it judges creates, starts, restores, arriving moves and autonomic
//! offers. It takes facts and does no IO; the host counts what is used, and the daemon says whether
//! the offer is open now.

use p2pvm_overlay::MemberId;
use std::{fmt, sync::Arc};

/// A part of a host, or all that is used of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// VMs, running or not.
    pub vms: u64,
    /// Virtual processors of running VMs.
    pub cpus: u64,
    /// Memory of running VMs, MiB.
    pub memory_mib: u64,
    /// Disks, as large as they may grow.
    pub disk_bytes: u64,
}

impl Share {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vms: self.vms.saturating_add(other.vms),
            cpus: self.cpus.saturating_add(other.cpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }
}

/// The most that VMs of other members may have together; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// VMs, running or not.
    pub vms: Option<u64>,
    /// Virtual processors of running VMs.
    pub cpus: Option<u64>,
    /// Memory of running VMs, MiB.
    pub memory_mib: Option<u64>,
    /// Disks, as large as they may grow.
    pub disk_bytes: Option<u64>,
}

/// Why a host takes no VM of another member now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its owner has switched the offer off.
    Off,
    /// The time is outside of these hours.
    Hours(String),
    /// Its owner uses the machine; the sign of that.
    Busy(String),
}

/// A dimension of [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The number of VMs.
    Vms,
    /// Virtual processors.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
}

/// Why a VM of another member may not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No VM of another member may come now.
    Closed(Closed),
    /// The offer is not for that member.
    NotFor(MemberId),
    /// It does not fit.
    Full {
        /// What there is too little of.
        limit: Limit,
        /// All that is offered of it.
        offered: u64,
        /// What is used of that.
        used: u64,
        /// What the VM needs.
        asked: u64,
    },
}

/// The members that a host knows, for its owner's offer.
pub trait Known: Send + Sync {
    /// Whether the offer is for that member.
    fn may_run(&self, member: MemberId) -> bool;

    /// A member's name, or its short id.
    fn name_of(&self, member: MemberId) -> String;
}

/// An offer for every member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everybody;

impl Known for Everybody {
    fn may_run(&self, _: MemberId) -> bool {
        true
    }

    fn name_of(&self, member: MemberId) -> String {
        member.short()
    }
}

/// What a host's owner offers now.
#[derive(Clone)]
pub struct Terms {
    /// The most that other members' VMs may have.
    pub limits: Limits,
    /// Why none may come now, if that is so.
    pub closed: Option<Closed>,
    /// The members that it is for.
    pub known: Arc<dyn Known>,
    /// How much each VM of another member may send, and how much receive, bits a second; `None`
    /// for no limit.
    pub bits_per_second: Option<u64>,
    /// The most memory that all guests may have, those of the host's own root too, MiB; `None` for
    /// all but a reserve.
    pub all_memory_mib: Option<u64>,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("limits", &self.limits)
            .field("closed", &self.closed)
            .field("bits_per_second", &self.bits_per_second)
            .field("all_memory_mib", &self.all_memory_mib)
            .finish_non_exhaustive()
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            closed: None,
            known: Arc::new(Everybody),
            bits_per_second: None,
            all_memory_mib: None,
        }
    }
}

/// The members that answer for a VM of another member: the one that it was made for, as its source
/// says, and the one that brings it, as its connection proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Others {
    /// The VM's owner.
    pub owner: MemberId,
    /// The member that brings it, or asks for it.
    pub by: MemberId,
}

/// Whether a VM may have a part of this host, of which VMs of other members use `used` already.
/// `whose` is `None` for a VM of the host's own.
///
/// # Errors
/// The first reason against it; those that nobody can change at once come first.
pub fn decide(
    terms: &Terms,
    whose: Option<Others>,
    asked: Share,
    used: Share,
) -> Result<(), Refusal> {
    let Some(Others { owner, by }) = whose else {
        return Ok(());
    };
    if let Some(closed) = &terms.closed {
        return Err(Refusal::Closed(closed.clone()));
    }
    // The owner is what the source says: without the second check a member that may not run VMs
    // here would name one that may.
    if let Some(member) = [owner, by].into_iter().find(|m| !terms.known.may_run(*m)) {
        return Err(Refusal::NotFor(member));
    }
    let Limits {
        vms,
        cpus,
        memory_mib,
        disk_bytes,
    } = terms.limits;
    let dimensions = [
        (Limit::Vms, vms, used.vms, asked.vms),
        (Limit::Cpus, cpus, used.cpus, asked.cpus),
        (Limit::Memory, memory_mib, used.memory_mib, asked.memory_mib),
        (Limit::Disk, disk_bytes, used.disk_bytes, asked.disk_bytes),
    ];
    for (limit, offered, used, asked) in dimensions {
        let Some(offered) = offered else { continue };
        if asked > 0 && used.saturating_add(asked) > offered {
            return Err(Refusal::Full {
                limit,
                offered,
                used,
                asked,
            });
        }
    }
    Ok(())
}

/// MiB as a person writes them.
pub fn mib_text(mib: u64) -> String {
    if mib < 1024 {
        return format!("{mib} MiB");
    }
    let tenths = (u128::from(mib) * 10 + 512) / 1024;
    match tenths % 10 {
        0 => format!("{} GiB", tenths / 10),
        tenth => format!("{}.{tenth} GiB", tenths / 10),
    }
}

impl Limit {
    /// An amount of it in words.
    pub fn amount(self, of: u64) -> String {
        match self {
            Self::Vms if of == 1 => "1 place".to_owned(),
            Self::Vms => format!("{of} places"),
            Self::Cpus if of == 1 => "1 processor".to_owned(),
            Self::Cpus => format!("{of} processors"),
            Self::Memory => format!("{} of memory", mib_text(of)),
            Self::Disk => format!("{} of disk", mib_text(of.div_ceil(1 << 20))),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("its offer is off"),
            Self::Hours(hours) => write!(f, "it runs them in the hours {hours} only"),
            Self::Busy(how) => write!(f, "it runs them while it is idle only, and {how}"),
        }
    }
}

impl Refusal {
    /// The refusal as the member that asked reads it, with what it can do.
    pub fn sentence(&self, host: &str, known: &dyn Known) -> String {
        match self {
            Self::Closed(closed) => format!(
                "host {host} takes no VMs of other members now: {closed}; choose another host, or \
                    ask its root, who can change that ('p2pvm offer' there)"
            ),
            Self::NotFor(member) => format!(
                "host {host} runs no VMs of {}: [offer] run there names other members; choose \
                    another host, or ask its root ('p2pvm offer set --run')",
                known.name_of(*member)
            ),
            Self::Full {
                limit,
                offered,
                used,
                asked,
            } => format!(
                "host {host} offers {} to other members' VMs, of which {} are used and {} asked \
                    for: choose another host, stop or move a VM there, or ask its root ('p2pvm \
                    offer set')",
                limit.amount(*offered),
                limit.bare(*used),
                limit.bare(*asked)
            ),
        }
    }
}

impl Limit {
    /// An amount without the word for what it is of.
    pub fn bare(self, of: u64) -> String {
        match self {
            Self::Vms | Self::Cpus => of.to_string(),
            Self::Memory => mib_text(of),
            Self::Disk => mib_text(of.div_ceil(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An offer for one member.
    struct Only(MemberId);

    impl Known for Only {
        fn may_run(&self, member: MemberId) -> bool {
            member == self.0
        }

        fn name_of(&self, member: MemberId) -> String {
            member.short()
        }
    }

    const A: MemberId = MemberId([1; 32]);
    const B: MemberId = MemberId([2; 32]);

    fn of(owner: MemberId, by: MemberId) -> Option<Others> {
        Some(Others { owner, by })
    }

    fn share(vms: u64, cpus: u64, memory_mib: u64, disk_bytes: u64) -> Share {
        Share {
            vms,
            cpus,
            memory_mib,
            disk_bytes,
        }
    }

    fn two_of_each() -> Terms {
        Terms {
            limits: Limits {
                vms: Some(2),
                cpus: Some(2),
                memory_mib: Some(2048),
                disk_bytes: Some(2 << 30),
            },
            ..Terms::default()
        }
    }

    #[test]
    fn each_limit_holds_by_itself_and_up_to_its_last_unit() {
        let terms = two_of_each();
        let used = share(1, 1, 1024, 1 << 30);
        let table = [
            (share(1, 1, 1024, 1 << 30), None),
            (share(2, 1, 1024, 1 << 30), Some(Limit::Vms)),
            (share(1, 2, 1024, 1 << 30), Some(Limit::Cpus)),
            (share(1, 1, 1025, 1 << 30), Some(Limit::Memory)),
            (share(1, 1, 1024, (1 << 30) + 1), Some(Limit::Disk)),
            (share(1, u64::MAX, u64::MAX, u64::MAX), Some(Limit::Cpus)),
            (share(0, 0, 0, 0), None),
        ];
        for (asked, full) in table {
            let said = decide(&terms, of(A, A), asked, used);
            let found = match said {
                Ok(()) => None,
                Err(Refusal::Full { limit, .. }) => Some(limit),
                Err(other) => panic!("{asked:?}: {other:?}"),
            };
            assert_eq!(found, full, "{asked:?}");
            assert_eq!(decide(&terms, None, asked, used), Ok(()), "its own");
        }
    }

    #[test]
    fn an_exceeded_limit_hinders_only_what_asks_for_more() {
        let terms = two_of_each();
        let used = share(3, 0, 0, 0);
        assert_eq!(
            decide(&terms, of(A, A), share(0, 1, 512, 0), used),
            Ok(()),
            "a VM that is here already starts"
        );
        assert!(decide(&terms, of(A, A), share(1, 0, 0, 0), used).is_err());
    }

    #[test]
    fn a_closed_offer_takes_nothing_but_the_hosts_own() {
        let reasons = [
            Closed::Off,
            Closed::Hours("18:00-08:00".into()),
            Closed::Busy("it runs on battery".into()),
        ];
        for closed in reasons {
            let terms = Terms {
                closed: Some(closed.clone()),
                ..Terms::default()
            };
            let (nothing, some) = (Share::default(), share(1, 1, 64, 0));
            assert_eq!(
                decide(&terms, of(A, B), some, nothing),
                Err(Refusal::Closed(closed))
            );
            assert_eq!(decide(&terms, None, some, nothing), Ok(()));
        }
    }

    #[test]
    fn both_the_owner_and_the_bringer_must_be_named() {
        let terms = Terms {
            known: Arc::new(Only(A)),
            ..Terms::default()
        };
        let (nothing, some) = (Share::default(), share(1, 1, 64, 0));
        for (owner, by, not_for) in [
            (A, A, None),
            (A, B, Some(B)),
            (B, A, Some(B)),
            (B, B, Some(B)),
        ] {
            let said = decide(&terms, of(owner, by), some, nothing).err();
            assert_eq!(said, not_for.map(Refusal::NotFor));
        }
    }

    #[test]
    fn a_refusal_names_the_limit_its_figures_and_who_can_change_it() {
        let full = Refusal::Full {
            limit: Limit::Memory,
            offered: 2048,
            used: 1536,
            asked: 1024,
        };
        let said = full.sentence("lab3", &Everybody);
        assert!(
            said.starts_with(
                "host lab3 offers 2 GiB of memory to other members' VMs, of which 1.5 GiB are \
                    used and 1 GiB asked for:"
            ) && said.contains("'p2pvm offer set'"),
            "{said}"
        );
        let said = Refusal::Closed(Closed::Off).sentence("lab3", &Everybody);
        assert!(said.contains("its offer is off"), "{said}");
        let said = Refusal::NotFor(A).sentence("lab3", &Everybody);
        assert!(said.contains(&A.short()), "{said}");
        for (mib, text) in [(0, "0 MiB"), (1023, "1023 MiB"), (1100, "1.1 GiB")] {
            assert_eq!(mib_text(mib), text);
        }
    }

    proptest! {
        /// What is admitted one after the other never exceeds a limit.
        #[test]
        fn admitted_vms_stay_within_the_limits(
            asked in proptest::collection::vec((0u64..4, 0u64..4096, 0u64..1 << 32), 1..40)
        ) {
            let terms = two_of_each();
            let mut used = Share::default();
            for (cpus, memory_mib, disk_bytes) in asked {
                let one = share(1, cpus, memory_mib, disk_bytes);
                if decide(&terms, of(A, A), one, used).is_ok() {
                    used = used.plus(one);
                }
                prop_assert!(used.vms <= 2 && used.cpus <= 2);
                prop_assert!(used.memory_mib <= 2048 && used.disk_bytes <= 2 << 30);
            }
        }
    }
}
