//! What a caller may do with a VM of this host, or may make one here. The host that is asked
//! decides, per request; the caller is known from the connection, never from the request.
//!
//! | Caller | network open | network closed |
//! |---|---|---|
//! | root of this host | everything | everything |
//! | founder's machine, a delegate | everything | everything |
//! | the VM's owner | everything with it | everything with it |
//! | any other member | everything | see |
//!
//! A member that lacks a right may show a token of the VM's owner that gives it
//! (`p2pvm_authority`). A network is closed where its access rules say `default = "deny"`. A VM's
//! owner is the member that it was made for. A VM of a version without owners belongs to the host
//! that has it.

pub(crate) use p2pvm_authority::Right;
use p2pvm_overlay::MemberId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// This host's root: its command line, or its dashboard.
    Root,
    /// Another member, as its connection proves.
    Member(MemberId),
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
pub(crate) struct MissingRight(pub Right);

/// Whether the asker may. `closed`: the network's access rules deny what they do not allow.
pub(crate) fn decide(standing: Standing, right: Right, closed: bool) -> Result<(), MissingRight> {
    match standing {
        Standing::Root | Standing::Issuer | Standing::Owner => Ok(()),
        Standing::Other if !closed || right == Right::See => Ok(()),
        Standing::Other => Err(MissingRight(right)),
    }
}

/// The right as a verb before a VM's name.
pub(crate) fn verb(right: Right) -> &'static str {
    match right {
        Right::Console => "use the console of",
        other => other.word(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rights of a standing.
    fn may(standing: Standing, closed: bool) -> Vec<Right> {
        let allowed = |right: &Right| decide(standing, *right, closed).is_ok();
        Right::ALL.into_iter().filter(allowed).collect()
    }

    #[test]
    fn the_table_holds_row_by_row() {
        for standing in [Standing::Root, Standing::Issuer, Standing::Owner] {
            for closed in [false, true] {
                assert_eq!(
                    may(standing, closed),
                    Right::ALL,
                    "{standing:?}, closed: {closed}"
                );
            }
        }
        assert_eq!(may(Standing::Other, false), Right::ALL);
        assert_eq!(may(Standing::Other, true), [Right::See]);
    }

    #[test]
    fn a_refusal_names_the_right_that_is_missing() {
        let missing = decide(Standing::Other, Right::Delete, true).unwrap_err();
        assert_eq!(missing, MissingRight(Right::Delete));
    }
}
