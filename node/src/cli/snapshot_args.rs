//! The grammar of `p2pvm vm snapshot`.

use super::vm_args::Restore;
use clap::{Args, Subcommand};
use p2pvm_api::KeepView;
use std::time::Duration;

/// The examples of `p2pvm vm snapshot`.
pub const EXAMPLE: &str = "Without a subcommand it takes a snapshot, as 'create' does.

Examples:
  p2pvm vm snapshot web --name before-upgrade
  p2pvm vm snapshot list web
  p2pvm vm snapshot verify web@before-upgrade --repair
  p2pvm vm snapshot schedule web --every 6h --keep 8h,7d,4w
  p2pvm vm snapshot restore web@before-upgrade --on lab2";

/// Arguments of `vm snapshot`.
#[derive(Args)]
// Not `args_conflicts_with_subcommands`: with it `--json list web` is a VM "list".
#[command(subcommand_negates_reqs = true)]
pub struct Snapshot {
    /// What to do; without it a snapshot is taken
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The VM
    #[arg(required = true)]
    pub name: Option<String>,
    /// The snapshot's name; by default the time
    #[arg(long = "name", value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
    /// Leave the memory out: a restored guest boots, as after a power cut
    #[arg(long)]
    pub disk_only: bool,
}

impl Snapshot {
    /// Whether arguments of a snapshot that is taken stand before a subcommand.
    pub fn is_mixed(&self) -> bool {
        let has_own = self.name.is_some() || self.snapshot.is_some() || self.disk_only;
        self.verb.is_some() && has_own
    }
}

/// `p2pvm vm snapshot ...`
#[derive(Subcommand)]
pub enum Verb {
    /// Take a snapshot of memory and disk while the VM runs, and copy it to two other members
    #[command(after_help = "Example:\n  p2pvm vm snapshot create web --name before-upgrade")]
    Create(Create),
    /// List a VM's snapshots: when they were taken, how well they are kept, by whom
    #[command(after_help = "Example:\n  p2pvm vm snapshot list web")]
    List(OfVm),
    /// Show a snapshot and its size
    #[command(after_help = "Example:\n  p2pvm vm snapshot show web@before-upgrade")]
    Show(One),
    /// Say how much one snapshot of a VM differs from an earlier one
    #[command(after_help = "Example:\n  p2pvm vm snapshot diff web@before-upgrade web@after")]
    Diff(Diff),
    /// Read every chunk of a snapshot, and ask the members that keep it whether they have all
    #[command(
        after_help = "It ends with code 1 if a copy lacks chunks.\n\nExample:\n  p2pvm vm snapshot \
            verify web@before-upgrade --repair"
    )]
    Verify(Verify),
    /// Delete a snapshot, here and at the members that keep it
    #[command(after_help = "Example:\n  p2pvm vm snapshot delete web@before-upgrade")]
    Delete(One),
    /// Restore a VM from a snapshot, as 'vm restore' does
    #[command(after_help = "Example:\n  p2pvm vm snapshot restore web@before-upgrade --on lab2")]
    Restore(Restore),
    /// Take snapshots of a VM by themselves, and delete those that are no longer kept
    #[command(
        after_help = "Kept is the newest snapshot of each of the last hours (8h), days (7d) and \
            weeks (4w) that have one, UTC, and the newest ones of all (3). Snapshots made by hand \
            and the newest durable one are never deleted. Without options the schedule is \
            shown.\n\nExamples:\n  p2pvm vm snapshot schedule web --every 6h --keep 8h,7d,4w\n  \
            p2pvm vm snapshot schedule web --off"
    )]
    Schedule(Schedule),
}

/// A VM by name.
#[derive(Args)]
pub struct OfVm {
    /// The VM
    pub name: String,
}

/// Arguments of `vm snapshot create`.
#[derive(Args)]
pub struct Create {
    /// The VM
    pub name: String,
    /// The snapshot's name; by default the time
    #[arg(long = "name", value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
    /// Leave the memory out: a restored guest boots, as after a power cut
    #[arg(long)]
    pub disk_only: bool,
}

/// A VM and one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSnapshot {
    /// The VM.
    pub vm: String,
    /// The snapshot.
    pub snapshot: String,
}

/// Arguments of `vm snapshot show` and `vm snapshot delete`.
#[derive(Args)]
pub struct One {
    /// The VM and the snapshot
    #[arg(value_name = "VM@SNAPSHOT", value_parser = parse_snapshot)]
    pub what: VmSnapshot,
}

/// Arguments of `vm snapshot diff`.
#[derive(Args)]
pub struct Diff {
    /// The VM and the earlier snapshot
    #[arg(value_name = "VM@SNAPSHOT", value_parser = parse_snapshot)]
    pub from: VmSnapshot,
    /// The later snapshot of the same VM
    #[arg(value_name = "VM@SNAPSHOT", value_parser = parse_snapshot)]
    pub to: VmSnapshot,
}

/// Arguments of `vm snapshot verify`.
#[derive(Args)]
pub struct Verify {
    /// The VM and the snapshot
    #[arg(value_name = "VM@SNAPSHOT", value_parser = parse_snapshot)]
    pub what: VmSnapshot,
    /// Fetch what is missing or damaged from other members, and give members what they lack
    #[arg(long)]
    pub repair: bool,
}

/// Arguments of `vm snapshot schedule`.
#[derive(Args)]
pub struct Schedule {
    /// The VM
    pub name: String,
    /// How long between two snapshots, such as 6h; one minute to one year
    #[arg(long, value_name = "DURATION", requires = "keep",
          value_parser = humantime::parse_duration)]
    pub every: Option<Duration>,
    /// Which stay, such as 8h,7d,4w
    #[arg(long, value_name = "RULE", requires = "every", value_parser = parse_keep)]
    pub keep: Option<KeepView>,
    /// Leave the memory out: a restored guest boots, as after a power cut
    #[arg(long, requires = "every")]
    pub disk_only: bool,
    /// End the schedule; its snapshots stay
    #[arg(long, conflicts_with_all = ["every", "keep", "disk_only"])]
    pub off: bool,
}

fn parse_snapshot(text: &str) -> Result<VmSnapshot, String> {
    match text.split_once('@') {
        Some((vm, snapshot)) if !vm.is_empty() && !snapshot.is_empty() => Ok(VmSnapshot {
            vm: vm.to_owned(),
            snapshot: snapshot.to_owned(),
        }),
        _ => Err("name the VM and its snapshot, such as web@before-upgrade".to_owned()),
    }
}

/// Reads "8h,7d,4w".
fn parse_keep(text: &str) -> Result<KeepView, String> {
    let mut keep = KeepView::default();
    for part in text.split(',').map(str::trim) {
        let bad = || {
            format!(
                "'{part}' is no part of a rule: write such as 8h,7d,4w, or 3 for the newest three"
            )
        };
        let digits = part.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u8 = digits.parse().map_err(|_| bad())?;
        let place = match &part[digits.len()..] {
            "" => &mut keep.last,
            "h" => &mut keep.hours,
            "d" => &mut keep.days,
            "w" => &mut keep.weeks,
            _ => return Err(bad()),
        };
        *place = number;
    }
    Ok(keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction, Command, FromArgMatches};

    fn read(words: &str) -> Result<Snapshot, clap::Error> {
        let json = Arg::new("json").long("json").global(true);
        let command = Command::new("snapshot").arg(json.action(ArgAction::SetTrue));
        let command = Snapshot::augment_args(command);
        let matches = command.try_get_matches_from(words.split(' '))?;
        Snapshot::from_arg_matches(&matches)
    }

    #[test]
    fn a_subcommand_is_found_behind_a_global_flag() {
        for words in ["snapshot list web", "snapshot --json list web"] {
            let snapshot = read(words).unwrap_or_else(|e| panic!("{words}: {e}"));
            assert!(!snapshot.is_mixed(), "{words}");
            let Some(Verb::List(of)) = snapshot.verb else {
                panic!("{words} lists nothing")
            };
            assert_eq!(of.name, "web", "{words}");
        }
        for words in ["snapshot web", "snapshot --json web --name list"] {
            let snapshot = read(words).unwrap_or_else(|e| panic!("{words}: {e}"));
            assert!(snapshot.verb.is_none(), "{words}");
            assert_eq!(snapshot.name.as_deref(), Some("web"), "{words}");
        }
        assert!(read("snapshot --disk-only list web").unwrap().is_mixed());
        assert!(read("snapshot --json").is_err(), "no VM is named");
    }

    #[test]
    fn a_rule_of_retention_is_read_part_by_part() {
        let keep = |last, hours, days, weeks| KeepView {
            days,
            hours,
            last,
            weeks,
        };
        assert_eq!(parse_keep("8h,7d,4w"), Ok(keep(0, 8, 7, 4)));
        assert_eq!(parse_keep("3, 2w"), Ok(keep(3, 0, 0, 2)));
        for bad in ["", "8", "8h,", "h", "8m", "300d", "-1d", "8hh", "é"] {
            let read = parse_keep(bad);
            assert_eq!(read.is_ok(), bad == "8", "{bad}: {read:?}");
        }
    }

    #[test]
    fn a_snapshot_is_named_with_its_vm() {
        let read = parse_snapshot("web@before").unwrap();
        assert_eq!(
            (read.vm.as_str(), read.snapshot.as_str()),
            ("web", "before")
        );
        for bad in ["web", "web@", "@before"] {
            assert!(parse_snapshot(bad).is_err(), "{bad}");
        }
    }
}
