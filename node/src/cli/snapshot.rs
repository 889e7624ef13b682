//! `p2pvm vm snapshot ...`.

use super::{
    Context,
    print::{self, report},
    snapshot_args::{Create, Diff, One, Schedule, Snapshot, Verb, Verify},
    vm,
};
use hyper::Method;
use indicatif::HumanBytes;
use p2pvm_api::{
    DiffView, Failure, HereVerified, KeepView, Kind, Outcome, ScheduleAnswer, ScheduleChange,
    ScheduleView, SnapshotDeleted, SnapshotDetail, SnapshotDiff, SnapshotTaken, SnapshotVerified,
    SnapshotView, SnapshotVm, Sorted, VerifySnapshot, snapshot_path, vm_path,
};
use std::time::Duration;

pub(super) async fn run(context: &Context, a: Snapshot) -> Outcome<()> {
    if a.is_mixed() {
        return Err(Failure::usage(
            "put the VM and the options behind the subcommand: p2pvm vm snapshot create VM \
                --disk-only",
        ));
    }
    let Some(verb) = a.verb else {
        let name = a
            .name
            .ok_or_else(|| Failure::usage("name the VM: p2pvm vm snapshot create VM"))?;
        let (snapshot, disk_only) = (a.snapshot, a.disk_only);
        let create = Create {
            name,
            snapshot,
            disk_only,
        };
        return take(context, create).await;
    };
    match verb {
        Verb::Create(a) => take(context, a).await,
        Verb::List(a) => list(context, &a.name).await,
        Verb::Show(a) => show(context, &a).await,
        Verb::Diff(a) => diff(context, &a).await,
        Verb::Verify(a) => verify(context, &a).await,
        Verb::Delete(a) => delete(context, &a).await,
        Verb::Restore(a) => vm::restore(context, a).await,
        Verb::Schedule(a) => schedule(context, &a).await,
    }
}

async fn take(context: &Context, a: Create) -> Outcome<()> {
    let request = SnapshotVm {
        name: a.snapshot,
        disk_only: a.disk_only,
    };
    let done: SnapshotTaken = vm::follow(
        context,
        &vm_path(&a.name, "snapshot")?,
        format!("snapshot of {}", a.name),
        &request,
    )
    .await?;
    report(context, &done, || {
        println!(
            "{}@{}: {}{}, guest paused {:.0} ms",
            a.name,
            done.name,
            done.state,
            holders(&done).map_or_else(String::new, |holders| format!(" on {holders}")),
            done.pause_ms
        );
    })
}

/// The names of the members that have a copy.
fn holders(done: &SnapshotTaken) -> Option<String> {
    let names = done.holders.as_ref()?;
    (!names.is_empty()).then(|| names.join(", "))
}

async fn list(context: &Context, name: &str) -> Outcome<()> {
    let path = vm_path(name, "snapshots")?;
    let all: Vec<SnapshotView> = context.daemon().await?.get(&path).await?;
    report(context, &Sorted(&all), || {
        if all.is_empty() {
            println!("{name} has no snapshot: 'p2pvm vm snapshot create {name}' takes one");
            return;
        }
        let rows: Vec<_> = all.iter().map(row).collect();
        print::table(["SNAPSHOT", "TAKEN", "OF", "STATE", "HOLDERS"], &rows);
    })
}

fn row(s: &SnapshotView) -> [String; 5] {
    let of = content(s.with_ram).to_owned();
    let holders = s.holders.join(", ");
    [
        s.name.clone(),
        s.taken.clone(),
        of,
        s.state.to_string(),
        holders,
    ]
}

/// What is in a snapshot.
fn content(with_ram: Option<bool>) -> &'static str {
    match with_ram {
        Some(true) => "disk, memory",
        Some(false) => "disk",
        None => "-",
    }
}

async fn show(context: &Context, a: &One) -> Outcome<()> {
    let path = snapshot_path(&a.what.vm, &a.what.snapshot, "")?;
    let detail: SnapshotDetail = context.daemon().await?.get(&path).await?;
    report(context, &Sorted(&detail), || {
        let s = &detail.snapshot;
        let taken_by = match s.automatic {
            true => "its schedule",
            false => "hand",
        };
        let size = HumanBytes(detail.content_bytes).to_string();
        let missing = HumanBytes(detail.missing_bytes).to_string();
        for (label, value) in [
            ("snapshot", format!("{}@{}", a.what.vm, s.name)),
            ("taken", format!("{} by {taken_by}", s.taken)),
            ("of", content(s.with_ram).to_owned()),
            ("state", s.state.to_string()),
            ("holders", s.holders.join(", ")),
            (
                "size",
                format!("{size}, of which {missing} is not on the VM's host"),
            ),
        ] {
            println!("{label:12}{value}");
        }
    })
}

async fn diff(context: &Context, a: &Diff) -> Outcome<()> {
    if a.from.vm != a.to.vm {
        return Err(Failure::usage(
            "both snapshots have to be of one VM: name them such as web@before web@after",
        ));
    }
    let operation = format!("diff/{}", a.to.snapshot);
    // The name is checked as the first is.
    snapshot_path(&a.to.vm, &a.to.snapshot, "")?;
    let path = snapshot_path(&a.from.vm, &a.from.snapshot, &operation)?;
    let diff: SnapshotDiff = context.daemon().await?.get(&path).await?;
    report(context, &diff, || {
        println!("disk    {}", difference(&diff.disk));
        match &diff.ram {
            Some(ram) => println!("memory  {}", difference(ram)),
            None => println!("memory  not in both"),
        }
    })
}

fn difference(diff: &DiffView) -> String {
    format!(
        "{} of {} changed in {} blocks, {} new to store",
        HumanBytes(diff.changed_bytes),
        HumanBytes(diff.bytes),
        diff.changed_blocks,
        HumanBytes(diff.new_bytes)
    )
}

async fn verify(context: &Context, a: &Verify) -> Outcome<()> {
    let (name, snapshot) = (&a.what.vm, &a.what.snapshot);
    let done: SnapshotVerified = vm::follow(
        context,
        &snapshot_path(name, snapshot, "verify")?,
        format!("verifying {name}@{snapshot}"),
        &VerifySnapshot { repair: a.repair },
    )
    .await?;
    report(context, &done, || {
        if let Some(here) = &done.here {
            println!("{}: {}", here.host, of_host(here));
        }
        for copy in &done.copies {
            let said = match copy.lacking {
                None => "does not answer".to_owned(),
                Some(0) => "has all of it".to_owned(),
                Some(n) if a.repair => format!("lacked {n} chunks, and is given them again"),
                Some(n) => format!("lacks {n} chunks"),
            };
            println!("{}: {said}", copy.host);
        }
    })?;
    let is_bad = |here: &HereVerified| here.damaged + here.missing > 0 && !here.repaired;
    let lacks = done.copies.iter().any(|c| c.lacking.is_some_and(|n| n > 0));
    if done.here.as_ref().is_some_and(is_bad) || (lacks && !a.repair) {
        return Err(Failure::new(
            Kind::Failed,
            format!(
                "not every copy is whole: 'p2pvm vm snapshot verify {name}@{snapshot} --repair' \
                    fetches what is missing from the others"
            ),
        ));
    }
    Ok(())
}

fn of_host(here: &HereVerified) -> String {
    let size = HumanBytes(here.bytes);
    if here.damaged + here.missing == 0 {
        return format!("all {} chunks are whole, {size}", here.whole);
    }
    let found = format!(
        "{} chunks damaged and {} missing, {} whole",
        here.damaged, here.missing, here.whole
    );
    match (&here.unrepaired, here.repaired) {
        (_, true) => format!("{found}: repaired from other members"),
        (Some(why), _) => format!("{found}: cannot be repaired: {why}"),
        (None, false) => found,
    }
}

async fn delete(context: &Context, a: &One) -> Outcome<()> {
    let path = snapshot_path(&a.what.vm, &a.what.snapshot, "")?;
    let mut daemon = context.daemon().await?;
    let gone: SnapshotDeleted = daemon.ask(Method::DELETE, &path, None::<&()>).await?;
    report(context, &gone, || {
        println!("{}@{} is deleted", gone.vm, gone.deleted)
    })
}

async fn schedule(context: &Context, a: &Schedule) -> Outcome<()> {
    let path = vm_path(&a.name, "schedule")?;
    let mut daemon = context.daemon().await?;
    let wanted = match (a.every, a.keep) {
        _ if a.off => Some(None),
        (Some(every), Some(keep)) => Some(Some(ScheduleView {
            disk_only: a.disk_only,
            every_seconds: every.as_secs(),
            keep,
        })),
        _ => None,
    };
    let answer: ScheduleAnswer = match wanted {
        Some(schedule) => daemon.post(&path, &ScheduleChange { schedule }).await?,
        None => daemon.get(&path).await?,
    };
    report(context, &answer, || match &answer.schedule {
        Some(schedule) => println!("{}: {}", a.name, schedule_text(schedule)),
        None => println!("no snapshots of {} are taken by themselves", a.name),
    })
}

/// A schedule in words.
pub(super) fn schedule_text(schedule: &ScheduleView) -> String {
    let every = humantime::format_duration(Duration::from_secs(schedule.every_seconds));
    let of = match schedule.disk_only {
        true => "of the disk ",
        false => "",
    };
    format!("{of}every {every}, kept: {}", kept(&schedule.keep))
}

/// A rule of retention as it is written.
fn kept(keep: &KeepView) -> String {
    let parts = [
        (keep.last, ""),
        (keep.hours, "h"),
        (keep.days, "d"),
        (keep.weeks, "w"),
    ];
    let set = parts.iter().filter(|(number, _)| *number > 0);
    let words: Vec<String> = set
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_shown_as_it_is_set() {
        let schedule = ScheduleView {
            disk_only: true,
            every_seconds: 6 * 3600,
            keep: KeepView {
                days: 7,
                hours: 8,
                last: 0,
                weeks: 4,
            },
        };
        assert_eq!(
            schedule_text(&schedule),
            "of the disk every 6h, kept: 8h,7d,4w"
        );
    }

    #[test]
    fn a_damaged_copy_is_told_with_what_became_of_it() {
        let here = HereVerified {
            damaged: 1,
            whole: 6,
            ..HereVerified::default()
        };
        assert!(of_host(&here).starts_with("1 chunks damaged and 0 missing"));
        let repaired = HereVerified {
            repaired: true,
            ..here.clone()
        };
        assert!(of_host(&repaired).ends_with("repaired from other members"));
        let alone = HereVerified {
            unrepaired: Some("no member has it".into()),
            ..here
        };
        assert!(of_host(&alone).ends_with("cannot be repaired: no member has it"));
    }
}
