//! How a machine with a copied state becomes a member of its own: a new identity, a new
//! certificate, the VMs' copies as branches.
//!
//! [`plan`] writes down that it is to happen, before the daemon that was the other's twin ends.
//! [`complete`] does it before the next one starts: it joins with keys and files of their own in a
//! sub-directory, as any newcomer does, and puts them in the place of the copied ones when it is
//! admitted. A crash at any point leaves the plan, and the next start goes on with it.
//!
//! What was the other member's alone goes: its address, its voter's promises, its offers, its part
//! of the records. Images, chunks, settings, revocations and notices stay, they are the network's.
//! A root key stays where there is one: a copy of it is no less one.

use crate::{
    layout::{Layout, read_if_there, write_atomically},
    membership,
    naming::Called,
    notify::Notifier,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_overlay::identity::Identity;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path, time::Duration};

/// Between two attempts to join: with the longest attempt shorter than the service manager's
/// patience.
const RETRY: Duration = Duration::from_secs(2);
/// Tells the service manager that this start takes its time and hangs nowhere.
const PATIENCE: &str = "EXTEND_TIMEOUT_USEC=60000000\nWATCHDOG=1\nSTATUS=a copied state: joining \
    as a member of its own";
/// A DNS label with a hyphen and four digits behind it.
const NAME_BYTES: usize = 63 - 5;

/// What was agreed with the network before the daemon ended.
#[derive(Serialize, Deserialize)]
struct Plan {
    invite: String,
    name: String,
}

/// Notes that this machine joins anew with `invite` when it starts next; it is called after `name`,
/// the member it was a copy of.
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

/// Where the new membership grows.
fn successor(layout: &Layout) -> Layout {
    Layout::at(layout.successor())
}

/// Carries a plan out, if there is one.
///
/// # Errors
/// [`Kind::Refused`] if the network does not take this machine: it must not go on under the
/// identity that is another's.
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
            // It comes up as the twin that it was, notices that again and is given another.
            tracing::warn!(%expired, "the invite for an identity of its own is of no use any more");
            return remove(&layout.succession());
        }
        match membership::join(&own, &plan.invite, None, &Called::given(&plan.name)).await {
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
                    tracing::warn!(%failure, times, "not yet a member of its own; trying again");
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

/// Puts the new membership in the place of the copied one. Each step can be done again.
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
    match fs::remove_dir_all(layout.tables()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).doing("removing the copied tables");
        }
        _ => {}
    }
    // The certificate last: until then the plan says whose it is.
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
    async fn an_invite_that_is_of_no_use_leaves_the_machine_as_it_was_and_a_later_plan_keeps_the_new_keys()
     {
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
    async fn an_interrupted_change_is_finished_by_the_next_start_whatever_was_done_of_it() {
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
