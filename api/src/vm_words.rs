//! The words that describe a VM: its state, the operation on it, whether its guest answers.

use crate::words::words;

words! {
    /// A VM's state, as the network shows it.
    VmStateView:
    /// Its guest executes on its host.
    Running = "running",
    /// Its guest is held on its host.
    Paused = "paused",
    /// It has no guest.
    Stopped = "stopped",
    /// It is being moved away; its guest still executes there.
    Leaving = "leaving",
    /// It is being moved to this host, which waits for its guest.
    Arriving = "arriving",
    /// It is held until the voters say whether it may run on this host.
    Doubtful = "doubtful",
    /// A copy that lost its VM, which went on elsewhere.
    Branch = "branch",
    /// A copy of a stopped VM that runs elsewhere now: nothing ran twice.
    Leftover = "leftover",
    /// Another member has it.
    Remote = "remote",
    /// Its host does not answer, dead or cut off.
    Unreachable = "unreachable",
    /// Its host left the network or was expelled: no host will answer for it.
    Orphaned = "orphaned",
}

impl VmStateView {
    /// Whether a person should look at a VM in this state, with or without a note of what happened.
    pub fn is_troubled(&self, noted: bool) -> bool {
        match self {
            Self::Leftover | Self::Orphaned => false,
            Self::Running | Self::Stopped | Self::Leaving | Self::Arriving => noted,
            _ => true,
        }
    }
}

words! {
    /// The operation on a VM.
    ActivityView:
    /// It is moved to another member.
    Migrating = "migrating",
    /// It is moved to this host.
    Arriving = "arriving",
    /// Its voters are asked whether it is still this host's.
    Checking = "asking its voters",
    /// Its voters have to say where it may run.
    Settling = "waiting for its voters",
    /// It waits for the operation before.
    Waiting = "waiting",
    /// It is created.
    Creating = "being made",
    /// It is started.
    Starting = "starting",
    /// It is started because its host was.
    Restarting = "starting after a restart of the host",
    /// It is stopped.
    Stopping = "stopping",
    /// Its guest ended by itself.
    Ended = "stopped by its guest",
    /// Its paused guest goes on.
    Resuming = "going on",
    /// It is deleted.
    Deleting = "deleting",
    /// What a creation or deletion left is removed.
    Removing = "removing what is left",
    /// A snapshot of it is taken.
    Snapshot = "snapshot",
    /// A snapshot of it is deleted.
    DeletingSnapshot = "deleting a snapshot",
    /// It is restored from a snapshot.
    Restoring = "restoring",
    /// The copy on this host is replaced by a restore there.
    Replaced = "giving way to a restore",
    /// The copy on this host is left to a restore on another member.
    GivingWay = "giving way to a restore elsewhere",
    /// Its guest stands still for good: another machine has its host's identity.
    GivingUp = "giving it up",
    /// Its move is ended on request.
    EndingMove = "the move's end",
}

words! {
    /// Whether a guest that ended is started again on its host.
    RestartWord:
    /// Also one that powered itself off.
    Always = "always",
    /// One that crashed.
    OnFailure = "on-failure",
    /// None.
    Never = "never",
}

words! {
    /// Whether a guest answers its own host, through the guest's interface.
    ReachState:
    /// It answers.
    Answers = "answers",
    /// Its host drops packets for it.
    Blocked = "blocked",
    /// It has answered before and does not now.
    Silent = "silent",
    /// It has not answered yet.
    Never = "never",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_is_being_moved_is_no_trouble() {
        use VmStateView::*;
        for state in [Running, Stopped, Leaving, Arriving] {
            assert!(!state.is_troubled(false) && state.is_troubled(true));
        }
        for state in [Paused, Doubtful, Branch, Other("dancing".into())] {
            assert!(state.is_troubled(false));
        }
        assert!(
            !Leftover.is_troubled(true),
            "it says where the VM is, and nothing ran twice"
        );
        assert!(
            !Orphaned.is_troubled(true),
            "a person has sent its host away"
        );
    }
}
