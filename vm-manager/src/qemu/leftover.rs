//! Ends guests whose daemon is gone for good.

use super::{PROGRAM, command, machine::KILL_PATIENCE, process::Process};
use crate::{Error, host::Registry, jail::Jail};
use std::path::Path;

/// Ends the guests of all VMs defined in the state directory `dir`, at once, and what the kernel
/// keeps of them. No daemon may run there. Gives their names.
///
/// # Errors
/// The file system's error, or [`Error::TimedOut`] if a guest's process does not end.
pub async fn end_guests(dir: &Path) -> Result<Vec<String>, Error> {
    let dir = dir.join("vms");
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let registry = Registry::open(&dir)?;
    let (entries, broken) = registry.load()?;
    let (mut guests, mut jails) = (Vec::new(), Vec::new());
    for entry in entries {
        let spec = registry.spec(&entry);
        let tag = command::tag(&spec);
        jails.push(Jail::of(&tag, &spec.run_dir));
        guests.extend(
            Process::find(&spec.run_dir, &tag).map(|process| (entry.listed_name(), process)),
        );
    }
    for (path, _) in broken {
        // Which VM it is cannot be read: it is QEMU, and stands in that run directory.
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        guests.extend(Process::find(&path.join("run"), PROGRAM).map(|process| (name, process)));
    }
    guests.iter().for_each(|(_, process)| process.kill());
    for (_, process) in &guests {
        if !process.ended(KILL_PATIENCE).await {
            return Err(Error::TimedOut {
                step: "end the guest's process",
                seconds: KILL_PATIENCE.as_secs(),
            });
        }
    }
    for jail in jails {
        jail.remove().await;
    }
    Ok(guests.into_iter().map(|(name, _)| name).collect())
}
