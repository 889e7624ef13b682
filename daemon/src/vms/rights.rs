//! Who may do what with a VM of this host, or make one here. The host that is asked decides, per
//! request; who asks is known from the connection, never from what the request says.
//!
//! | Who asks | network open | network closed |
//! |---|---|---|
//! | root of this host | everything | everything |
//! | founder's machine, a delegate | everything | everything |
//! | the VM's owner | everything with it | everything with it |
//! | any other member | everything | see |
//!
//! A network is closed where its access rules say `default = "deny"`. A VM's owner is the member
//! that it was made for. A VM of a version without owners belongs to the host that has it.

use p2pvm_overlay::MemberId;
use std::fmt;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// This host's root: its command line, or its dashboard.
    Root,
    /// Another member, as its connection proves.
    Member(MemberId),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// To see a VM's state, and why it was moved.
    See,
    /// To make a VM on this host.
    Create,
    Start,
    Stop,
    /// To move it from this host, or to cancel that.
    Move,
    Snapshot,
    /// To bring it back on this host.
    Restore,
    Console,
    Delete,
}

/// What the asker is to the VM and to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// This host's root.
    Root,
    /// The founder's machine, or a delegate.
    Issuer,
    /// The VM's owner.
    Owner,
    /// Any other member.
    Other,
}

/// The right is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing(pub Right);

/// Whether the asker may. `closed`: the network's access rules deny what they do not allow.
pub(crate) fn decide(standing: Standing, right: Right, closed: bool) -> Result<(), Missing> {
    match standing {
        Standing::Root | Standing::Issuer | Standing::Owner => Ok(()),
        Standing::Other if !closed || right == Right::See => Ok(()),
        Standing::Other => Err(Missing(right)),
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::See => "see",
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Move => "move",
            Self::Snapshot => "snapshot",
            Self::Restore => "restore",
            Self::Console => "use the console of",
            Self::Delete => "delete",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Right; 9] = [
        Right::See,
        Right::Create,
        Right::Start,
        Right::Stop,
        Right::Move,
        Right::Snapshot,
        Right::Restore,
        Right::Console,
        Right::Delete,
    ];

    /// The rights of a standing.
    fn may(standing: Standing, closed: bool) -> Vec<Right> {
        let allowed = |right: &Right| decide(standing, *right, closed).is_ok();
        ALL.into_iter().filter(allowed).collect()
    }

    #[test]
    fn the_table_holds_row_by_row() {
        for standing in [Standing::Root, Standing::Issuer, Standing::Owner] {
            for closed in [false, true] {
                assert_eq!(may(standing, closed), ALL, "{standing:?}, closed: {closed}");
            }
        }
        assert_eq!(may(Standing::Other, false), ALL);
        assert_eq!(may(Standing::Other, true), [Right::See]);
    }

    #[test]
    fn a_refusal_names_the_right_that_is_missing() {
        let missing = decide(Standing::Other, Right::Delete, true).unwrap_err();
        assert_eq!(missing, Missing(Right::Delete));
    }
}
