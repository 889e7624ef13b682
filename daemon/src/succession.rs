//! How a machine with a copied state becomes a member of its own: a new identity, a new
//! certificate, the VMs' copies as branches.
//!
//! [`plan`] stores the plan before the daemon, which was the other's twin, ends. [`complete`]
//! carries it out before the next daemon starts: it joins with new keys and files in a
//! sub-directory, like any new member, and replaces the copied ones with them after the admission.
//! After a crash at any point the plan remains, and the next start continues it.
//!
//! State of the other member alone is removed: its address, its voter's promises, its offers, its
//! record replicas. Images, chunks, settings, revocations and notices stay, because they are the
//! network's. A root key stays, because a copy of it is a valid root key.

use crate::{
    layout::{Layout, read_if_there, write_atomically},
    membership,
    naming::HostName,
    notify::Notifier,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_overlay::identity::Identity;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Duration};

/// How long to wait between two attempts to join. Reason: with the longest attempt it is shorter
/// than the service manager's timeout.
const RETRY: Duration = Duration::from_secs(2);
/// The message to the service manager that this start takes longer and does not hang.
const PATIENCE: &str = "EXTEND_TIMEOUT_USEC=60000000\nWATCHDOG=1\nSTATUS=a copied state: joining \
    as a member of its own";
/// How much of a name is kept: a DNS label less a hyphen and four hexadecimal digits.
const NAME_BYTES: usize = 63 - 5;

/// The agreement with the network from before the daemon ended.
#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
struct Plan {
    invite: String,
    name: String,
}

/// Stores the plan to join with `invite` at the next start, under the name of the copied member,
/// `name`, with a suffix.
pub fn plan(layout: &Layout, invite: &str, name: &str) -> Outcome<()> {
    let own = successor(layout);
    own.create()?;
    let identity =
        Identity::load_or_create(&own.identity()).doing("making an identity of its own")?;
    let [first, second, ..] = identity.member_id().0;
    let name = format!(
        "{}-{first:02x}{second:02x}",
        name[..name.len().min(NAME_BYTES)].trim_end_matches('-')
    );
    let plan = serde_json::to_vec(&Plan {
        invite: invite.to_owned(),
        name,
    })
    .doing("encoding")?;
    write_atomically(&layout.succession(), &plan, 0o600)
}

/// The directory of the planned membership.
fn successor(layout: &Layout) -> Layout {
    Layout::at(layout.successor())
}

/// Carries a plan out, if there is one.
///
/// # Errors
/// [`Kind::Refused`] if the network rejects this machine, which must not go on with another
/// member's identity.
pub async fn complete(layout: &Layout, told: &Notifier) -> Outcome<()> {
    let Some(bytes) = read_if_there(&layout.succession())? else {
        return Ok(());
    };
    let plan: Plan = serde_json::from_slice(&bytes).doing(format_args!(
        "{} is damaged: remove it",
        layout.succession().display()
    ))?;
    let own = successor(layout);
    let mut trouble = p2pvm_host::Repeated::new();
    while !own.is_member() {
        told.say(PATIENCE);
        if let Err(expired) = membership::checked_invite(&plan.invite) {
            // The daemon starts as a twin again, detects that again and gets another invite.
            tracing::warn!(%expired, "the invite for an identity of its own has become invalid");
            return remove(&layout.succession());
        }
        match membership::join(&own, &plan.invite, None, &HostName::given(&plan.name)).await {
            Ok(_) => {}
            Err(failure) if failure.kind == Kind::Refused => {
                return Err(Failure::refused(format!(
                    "the state of this machine is a copy of another member's, and the network \
                        does not take it as a member of its own \
                     ({failure}): 'p2pvm leave --force' here, then join with a new invite"
                )));
            }
            Err(failure) => {
                if let Some(times) = trouble.again(&failure.message) {
                    tracing::warn!(
                        %failure,
                        times,
                        "this machine is not yet a member of its own; trying again"
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    take_over(layout, &own)?;
    tracing::warn!(
        name = plan.name,
        "this machine's state was a copy of another member's: it is a member of its own now"
    );
    Ok(())
}

/// Replaces the copied membership with the new one. Each step can be repeated.
fn take_over(layout: &Layout, own: &Layout) -> Outcome<()> {
    for file in [
        layout.lease(),
        layout.leases(),
        layout.admissions(),
        layout.routes(),
        layout.votes(),
    ] {
        remove(&file)?;
    }
    for dir in [layout.tables(), layout.usage(), layout.events()] {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).doing("removing the copied tables, accounts and events");
            }
            _ => {}
        }
    }
    // The certificate last: until then the plan says which membership is valid.
    for (from, to, mode) in [
        (own.identity(), layout.identity(), 0o600),
        (own.network(), layout.network(), 0o644),
        (own.bootstrap(), layout.bootstrap(), 0o644),
        (own.certificate(), layout.certificate(), 0o644),
    ] {
        let bytes = fs::read(&from).doing(format_args!("reading {}", from.display()))?;
        write_atomically(&to, &bytes, mode)?;
    }
    remove(&layout.succession())?;
    fs::remove_dir_all(own.dir()).doing("removing what is in its place now")
}

fn remove(file: &Path) -> Outcome<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).doing(format_args!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::MemberId;

    fn founded(dir: &Path, host: &str) -> (Layout, MemberId) {
        let layout = Layout::at(dir);
        membership::found(&layout, ("lab", Some("10.99.0.0/16")), (host, &[]), true).unwrap();
        let member = membership::load(&layout).unwrap().identity.member_id();
        (layout, member)
    }

    fn no_one() -> Notifier {
        Notifier::from_env()
    }

    #[tokio::test]
    async fn without_a_plan_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, member) = founded(dir.path(), "attic");
        complete(&layout, &no_one()).await.unwrap();
        assert_eq!(
            membership::load(&layout).unwrap().identity.member_id(),
            member
        );
    }

    #[tokio::test]
    async fn a_useless_invite_changes_nothing_and_a_later_plan_keeps_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, member) = founded(dir.path(), "attic");
        plan(&layout, "p2pvm1nonsense", "attic").unwrap();
        let keys = fs::read(successor(&layout).identity()).unwrap();
        complete(&layout, &no_one()).await.unwrap();
        assert_eq!(
            membership::load(&layout).unwrap().identity.member_id(),
            member
        );
        assert!(!layout.succession().exists());
        plan(&layout, "p2pvm1nonsense", "attic").unwrap();
        assert_eq!(
            fs::read(successor(&layout).identity()).unwrap(),
            keys,
            "a use of an invite that was counted stays counted for it"
        );
    }

    #[tokio::test]
    async fn the_next_start_finishes_a_change_interrupted_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, member) = founded(dir.path(), "attic");
        plan(&layout, "p2pvm1nonsense", "attic").unwrap();
        // As if it had been admitted and killed between the new identity and the new certificate.
        fs::remove_file(successor(&layout).identity()).unwrap();
        let (own, new) = founded(successor(&layout).dir(), "attic-1234");
        write_atomically(&own.bootstrap(), b"", 0o644).unwrap();
        fs::write(layout.votes(), b"promises").unwrap();
        fs::copy(own.identity(), layout.identity()).unwrap();
        complete(&layout, &no_one()).await.unwrap();
        let now = membership::load(&layout).unwrap();
        assert_eq!(
            (now.identity.member_id(), now.certificate.name()),
            (new, "attic-1234")
        );
        assert_ne!(new, member);
        assert!(!layout.votes().exists() && !own.dir().exists() && !layout.succession().exists());
    }
}

#[cfg(test)]
#[path = "succession_golden_tests.rs"]
mod golden_tests;
