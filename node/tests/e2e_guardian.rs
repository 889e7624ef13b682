//! The guest guardian keeps its word with real processes: the program's own guardian, a process
//! that is never idle in a guest's place, and a daemon's side that may go away.

#[path = "guarded/victim.rs"]
mod victim;

use p2pvm_overlay::{Epoch, VmId};
use p2pvm_vm_manager::guardian::{
    Cause, Guardian, GuardianError, HostGuardian, Renewal, Ward, boot_time,
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use victim::Victim;

const VM: VmId = VmId([7; 32]);
/// How long between the deadline that a guardian is given and the end of the lease that it is for.
const GUARD: Duration = Duration::from_millis(1900);
/// How long a victim writes nothing before it counts as frozen.
const STILL: Duration = Duration::from_millis(300);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Not a promise: what [`Victim::start`] starts.
#[test]
fn victim_process() {
    victim::be_one_if_asked();
}

fn start_victim() -> Victim {
    Victim::start(&["victim_process", "--exact", "--nocapture"])
}

/// Whether this process may do what a daemon does; says so if not.
fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("NOT RUN: the guest guardian needs root");
    }
    is_root
}

fn guardian(dir: &Path) -> HostGuardian {
    let program = env!("CARGO_BIN_EXE_p2pvm").into();
    let dir_word = dir.as_os_str().to_owned();
    let words = vec![program, "--dir".into(), dir_word, "guest-guardian".into()];
    HostGuardian::new(dir, words)
}

fn guardian_pid(dir: &Path) -> i32 {
    let text = fs::read_to_string(dir.join("guardian/pid")).unwrap();
    text.trim().parse().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "no {what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the victim runs.
async fn runs(victim: &Victim) {
    let now = boot_time();
    until("instruction of the guest", || victim.last() > now).await;
}

/// A victim that runs, armed until so long from now.
async fn armed(guardian: &HostGuardian, time: Duration) -> (Victim, Duration) {
    let victim = start_victim();
    runs(&victim).await;
    let deadline = boot_time() + time;
    let process = victim.process();
    guardian
        .arm(VM, Epoch(1), deadline, &process)
        .await
        .unwrap();
    (victim, deadline)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_freezes_at_its_renewed_deadline_and_only_a_thaw_helps() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guardian = guardian(dir.path());
    let mut frozen = guardian.frozen();
    let (victim, first) = armed(&guardian, Duration::from_secs(3)).await;
    let deadline = first + Duration::from_secs(2);
    let renewed = guardian.renew(VM, Epoch(1), deadline).await.unwrap();
    assert_eq!(renewed, Renewal::Armed);
    let event = tokio::time::timeout(PATIENCE, frozen.recv()).await;
    let event = event.unwrap().unwrap();
    assert!(event.vm == VM && event.cause == Cause::Deadline);
    // The kernel freezes each thread a moment after it was told to.
    until("freeze", || victim.is_still_for(STILL)).await;
    let last = victim.last();
    assert!(
        last > first && last < deadline + GUARD,
        "{last:?} {deadline:?}"
    );

    let later = boot_time() + Duration::from_secs(20);
    let late = guardian.renew(VM, Epoch(1), later).await.unwrap();
    assert_eq!(late, Renewal::Frozen);
    assert!(victim.is_still_for(STILL), "a renewal never thaws");
    guardian.thaw(VM, Epoch(1), later).await.unwrap();
    runs(&victim).await;
    assert_eq!(guardian.ward(VM).await.unwrap(), Ward::Armed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_stands_when_the_daemon_ends() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let first = guardian(dir.path());
    let (victim, deadline) = armed(&first, Duration::from_secs(2)).await;
    drop(first);
    until("freeze", || victim.is_still_for(STILL)).await;
    assert!(victim.last() < deadline + GUARD);

    let next = guardian(dir.path());
    assert_eq!(next.ward(VM).await.unwrap(), Ward::Frozen);
    let later = boot_time() + Duration::from_secs(20);
    let armed = next.arm(VM, Epoch(2), later, &victim.process()).await;
    assert!(matches!(armed, Err(GuardianError::Frozen)), "{armed:?}");
    next.thaw(VM, Epoch(2), later).await.unwrap();
    runs(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_guardian_stops_its_guests_and_the_next_thaws_them() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guardian = guardian(dir.path());
    let mut frozen = guardian.frozen();
    let (victim, _) = armed(&guardian, Duration::from_secs(25)).await;
    let first = guardian_pid(dir.path());
    let first = nix::unistd::Pid::from_raw(first);
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).unwrap();
    let event = tokio::time::timeout(PATIENCE, frozen.recv()).await;
    assert_eq!(event.unwrap().unwrap().cause, Cause::Stopped);
    until("stop", || victim.is_still_for(STILL)).await;

    let later = boot_time() + Duration::from_secs(25);
    let renewed = guardian.renew(VM, Epoch(1), later).await.unwrap();
    assert_eq!(renewed, Renewal::Frozen);
    assert!(victim.is_still_for(STILL));
    guardian.thaw(VM, Epoch(1), later).await.unwrap();
    runs(&victim).await;
    assert_ne!(guardian_pid(dir.path()), first.as_raw());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guardian_with_nothing_to_guard_ends_with_its_daemon() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let guardian = guardian(dir.path());
    let (victim, _) = armed(&guardian, Duration::from_secs(25)).await;
    let pid = guardian_pid(dir.path());
    guardian.drop_vm(VM).await.unwrap();
    drop(guardian);
    let gone = || {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.is_empty()
    };
    until("end of the guardian", gone).await;
    runs(&victim).await;
}
