//! `p2pvm vm ...` and `p2pvm explain`: each sends a request to the daemon and prints the answer.

use super::{
    Context,
    print::{self, report},
    progress::Progress,
    snapshot, user,
    vm_args::{Create, Migrate, ProtectArgs, Replicate, Restore, Set, Stop, Vm},
};
use hyper::Method;
use p2pvm_api::{
    BandwidthView, ClusterVms, CreateVm, Doing, Failure, Kind, MigrateVm, MoveCancelled, Outcome,
    ProtectVm, ReachState, ReachView, ReplicateVm, RestartWord, RestoreVm, SetVm, ShutdownAnswer,
    Sorted, TakeOverVm, VmDeleted, VmMoved, VmStateView, VmView, client::Event, vm_path,
};
use p2pvm_vm_manager::BitRate;
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use std::{
    io::{IsTerminal, Write},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The key that leaves the console: Ctrl-].
const ESCAPE: u8 = 0x1d;

pub(crate) async fn run(context: &Context, command: Vm) -> Outcome<()> {
    match command {
        Vm::Create(a) => create(context, a).await,
        Vm::Start(a) => operate(context, &a.name, "start", "starting", &()).await,
        Vm::Stop(a) => stop(context, a).await,
        Vm::List { mine } => list(context, mine).await,
        Vm::Show(a) => show(context, &a.name).await,
        Vm::Console(a) => console(context, &a.name).await,
        Vm::Delete(a) => {
            let path = format!("{}?force={}", vm_path(&a.name, "")?, a.force);
            let gone: VmDeleted = context
                .daemon()
                .await?
                .ask(Method::DELETE, &path, None::<&()>)
                .await?;
            report(context, &gone, || println!("{} is deleted", a.name))
        }
        Vm::Migrate(a) => migrate(context, a).await,
        Vm::Snapshot(a) => snapshot::run(context, a).await,
        Vm::Replicate(a) => replicate(context, a).await,
        Vm::Protect(a) => protect(context, a).await,
        Vm::Takeover(a) => {
            let body = TakeOverVm { on: a.on };
            operate(context, &a.name, "takeover", "taking over", &body).await
        }
        Vm::Restore(a) => restore(context, a).await,
        Vm::Set(a) => set(context, a).await,
    }
}

/// Runs a long operation and shows its progress.
pub(super) async fn follow<T: DeserializeOwned>(
    context: &Context,
    path: &str,
    what: String,
    body: &impl Serialize,
) -> Outcome<T> {
    let mut progress = Progress::new(what);
    let mut client = context.daemon().await?;
    client
        .follow::<IgnoredAny, T>(path, body, |event| {
            if let Event::Step(step) = event {
                progress.step(&step);
            }
        })
        .await
}

async fn operate(
    context: &Context,
    name: &str,
    operation: &str,
    doing: &str,
    body: &impl Serialize,
) -> Outcome<()> {
    let vm: VmView = follow(
        context,
        &vm_path(name, operation)?,
        format!("{doing} {name}"),
        body,
    )
    .await?;
    report(context, &Sorted(&vm), || println!("{name} is {}", vm.state))
}

async fn stop(context: &Context, a: Stop) -> Outcome<()> {
    match (a.name, a.force) {
        (Some(name), true) => operate(context, &name, "stop?force=true", "ending", &()).await,
        (Some(name), false) => operate(context, &name, "stop", "stopping", &()).await,
        (None, _) => for_shutdown(context).await,
    }
}

/// Has no guest run on this host any more.
async fn for_shutdown(context: &Context) -> Outcome<()> {
    let what = "ending the guests".to_owned();
    let done: ShutdownAnswer = follow(context, "/guests/shutdown", what, &()).await?;
    report(context, &Sorted(&done), || {
        for vm in &done.moved {
            println!("{} runs on {}", vm.name, vm.host);
        }
        for name in &done.stopped {
            println!("{name} is stopped until this host starts again");
        }
    })?;
    match done.stayed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} guests still run; {}: {}",
                done.stayed.len(),
                first.name,
                first.why
            ),
        )),
    }
}

async fn create(context: &Context, a: Create) -> Outcome<()> {
    // A file's name is relative to the user's directory, not to the daemon's. On another member it
    // has to be absolute.
    let image = match std::fs::canonicalize(&a.image) {
        _ if a.on.is_some() => a.image,
        Ok(path) => path
            .to_str()
            .ok_or_else(|| Failure::usage("the image's path is not UTF-8"))?
            .to_owned(),
        Err(_) if a.image.contains(['/', '.']) => {
            return Err(Failure::not_found(format!(
                "there is no image file {}",
                a.image
            )));
        }
        Err(_) => a.image,
    };
    if a.memory < 32 << 20 {
        return Err(Failure::usage("--memory must be at least 32M"));
    }
    vm_path(&a.name, "")?;
    let user = match a.for_user {
        Some(user) => Some(user::known(context, user).await?),
        None => None,
    };
    let request = CreateVm {
        name: a.name.clone(),
        image,
        cpus: a.cpus,
        memory_mib: a.memory >> 20,
        disk_bytes: a.disk,
        start: a.start,
        on: a.on,
        restart: a.restart.map(RestartWord::from),
        user,
    };
    let vm: VmView = follow(context, "/vms", format!("creating {}", a.name), &request).await?;
    report(context, &Sorted(&vm), || {
        println!("{} is {}, address {}", a.name, vm.state, vm.address);
        if let Some(few) = few_voters(&vm.voters) {
            eprintln!("{few}");
        }
    })
}

/// What is said of a new VM with fewer voters than usual.
fn few_voters(voters: &[String]) -> Option<String> {
    let only = match voters {
        [] => return None,
        [one] => format!("only {one} votes"),
        several if several.len() < 3 => format!("only {} vote", several.join(" and ")),
        _ => return None,
    };
    Some(format!(
        "{only} on where it may run, as fewer members than usual answered: with a majority of \
            the voters gone the VM is neither moved nor restored"
    ))
}

async fn set(context: &Context, a: Set) -> Outcome<()> {
    let request = SetVm {
        restart: Some(RestartWord::from(a.restart)),
    };
    let path = vm_path(&a.name, "settings")?;
    let vm: VmView = context.daemon().await?.post(&path, &request).await?;
    report(context, &Sorted(&vm), || {
        let restart = vm.restart.clone().unwrap_or_default();
        println!("{}: its guest is started again: {restart}", a.name);
    })
}

async fn list(context: &Context, mine: bool) -> Outcome<()> {
    let own = match mine {
        true => Some(user::own_key(context)?),
        false => None,
    };
    let ClusterVms { mut vms, silent } = context.daemon().await?.get("/cluster/vms").await?;
    for silent in silent {
        eprintln!("no answer from {silent}: its VMs are shown as other members' records have them");
    }
    vms.retain(|vm| own.is_none() || vm.user == own);
    report(context, &Sorted(&vms), || {
        let rows = vms.iter().map(row);
        let columns = ["NAME", "STATE", "HOST", "ADDRESS", "CPUS", "MIB", "EPOCH"];
        if vms.iter().all(|vm| vm.replication.is_none()) {
            print::table(columns, &rows.collect::<Vec<_>>());
        } else {
            let [name, state, host, address, cpus, mib, epoch] = columns;
            let with =
                rows.zip(&vms)
                    .map(|([name, state, host, address, cpus, mib, epoch], vm)| {
                        let replica = recovery_point(vm);
                        [name, state, host, address, cpus, mib, epoch, replica]
                    });
            print::table(
                [name, state, host, address, cpus, mib, epoch, "REPLICA"],
                &with.collect::<Vec<_>>(),
            );
        }
        let remarks = remarks(&vms);
        if !remarks.is_empty() {
            println!("\n{}", remarks.join("\n"));
        }
    })
}

/// How much a loss of the VM's host would cost, in a few words, and whether the VM is protected.
fn recovery_point(vm: &VmView) -> String {
    let age = match &vm.replication {
        Some(replication) => match replication.rpo_s {
            Some(age) if replication.late => format!("RPO {age} s, late"),
            Some(age) => format!("RPO {age} s"),
            None => "none yet".to_owned(),
        },
        None => "-".to_owned(),
    };
    let is_protected = vm.protection.as_ref().is_some_and(|now| now.protected);
    age + if is_protected { ", protected" } else { "" }
}

/// A VM's row in the list.
fn row(vm: &VmView) -> [String; 7] {
    let (cpus, memory, epoch) = (
        vm.cpus.to_string(),
        vm.memory_mib.to_string(),
        vm.epoch.to_string(),
    );
    [
        vm.name.clone(),
        vm.state_text(),
        vm.host.clone(),
        vm.address.clone(),
        cpus,
        memory,
        epoch,
    ]
}

/// Whether a guest answers its host, in words.
fn network(reach: &ReachView) -> String {
    let why = reach.why.as_deref().unwrap_or_default();
    match (&reach.state, reach.rtt_ms) {
        (ReachState::Answers, Some(rtt)) => format!("answers its host in {}", print::ms(rtt)),
        (ReachState::Never, _) => format!("has not answered its host yet: {why}"),
        (state, _) => format!("{state} for {} s: {why}", reach.seconds),
    }
}

/// The lines below the list: one for each dead host, and one for each VM in a state that no command
/// asked for.
fn remarks(vms: &[VmView]) -> Vec<String> {
    let (mut hosts, mut others) = (Vec::<String>::new(), Vec::new());
    for (vm, note) in vms.iter().filter_map(|vm| Some((vm, vm.note.as_deref()?))) {
        let name = &vm.name;
        if !matches!(vm.state, VmStateView::Unreachable | VmStateView::Orphaned) {
            others.push(format!("{name}: {note}"));
        } else if !hosts.iter().any(|said| said.starts_with(note)) {
            hosts.push(format!(
                "{note}: 'p2pvm vm show {name}' says what can be done"
            ));
        }
    }
    hosts.append(&mut others);
    hosts
}

async fn show(context: &Context, name: &str) -> Outcome<()> {
    let vm: VmView = context.daemon().await?.get(&vm_path(name, "")?).await?;
    report(context, &Sorted(&vm), || {
        for (label, value) in lines(&vm) {
            println!("{label:12}{value}");
        }
        let snapshots: Vec<_> = vm
            .snapshots
            .iter()
            .map(|s| [s.name.clone(), s.taken.clone(), s.state.to_string()])
            .collect();
        if !snapshots.is_empty() {
            println!();
            print::table(["SNAPSHOT", "TAKEN", "STATE"], &snapshots);
        }
    })
}

/// A VM in full, each line with its label.
fn lines(vm: &VmView) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("name", vm.name.clone()),
        ("id", vm.id.to_string()),
        ("state", vm.state_text()),
        ("host", vm.host.clone()),
        ("address", vm.address.clone()),
        ("address v6", vm.address_v6.clone()),
        ("mac", vm.mac.clone()),
        ("cpus", vm.cpus.to_string()),
        ("memory mib", vm.memory_mib.to_string()),
        ("image", vm.image.clone()),
        ("epoch", vm.epoch.to_string()),
        ("voters", vm.voters.join(", ")),
    ];
    lines.extend(vm.reach.as_ref().map(|reach| ("network", network(reach))));
    lines.extend(
        vm.protection
            .as_ref()
            .map(|p| ("protection", p.text.clone())),
    );
    lines.extend(vm.replication.as_ref().map(|r| {
        let copies = format!("{} of {} copies, every {} s", r.copies, r.wanted, r.every_s);
        ("replica", format!("{}; {copies}", r.text))
    }));
    lines.extend(vm.user.clone().map(|user| ("user", user)));
    lines.extend(vm.bandwidth.map(|bound| ("bandwidth", bandwidth(bound))));
    let schedule = vm.schedule.as_ref();
    lines.extend(schedule.map(|schedule| ("snapshots", snapshot::schedule_text(schedule))));
    lines.extend(vm.note.clone().map(|note| ("note", note)));
    lines.extend(vm.advice.clone().map(|advice| ("advice", advice)));
    lines.extend(
        vm.moving
            .as_ref()
            .map(|moving| ("moving", format!("to {}: {}", moving.to, moving.step.phase))),
    );
    lines
}

/// The bound of a guest's bandwidth.
fn bandwidth(bound: BandwidthView) -> String {
    let rate = BitRate(bound.bits_per_second);
    format!(
        "at most {rate} each way, {} KiB dropped",
        bound.dropped_bytes >> 10
    )
}

async fn migrate(context: &Context, a: Migrate) -> Outcome<()> {
    let request = MigrateVm {
        to: a.to,
        post_copy: a.post_copy,
    };
    let path = vm_path(&a.name, "migrate")?;
    if a.cancel {
        let done: MoveCancelled = context
            .daemon()
            .await?
            .ask(Method::DELETE, &path, None::<&()>)
            .await?;
        return report(context, &done, || {
            println!(
                "the move of {} was cancelled: it stays on {}",
                a.name, done.host
            )
        });
    }
    let followed = follow::<VmMoved>(context, &path, format!("migrating {}", a.name), &request);
    let done = tokio::select! {
        done = followed => done?,
        _ = tokio::signal::ctrl_c() => {
            let _: MoveCancelled = context.daemon().await?.ask(
                Method::DELETE, &path, None::<&()>
            ).await?;
            return Err(Failure::cancelled(format!("cancelled: {} stays where it was (see 'p2pvm \
                vm show {0}')", a.name)));
        }
    };
    report(context, &done, || {
        println!(
            "{} runs on {} (total {} ms, downtime {} ms, {} of RAM)",
            a.name,
            done.host,
            done.total_ms,
            done.downtime_ms,
            indicatif::HumanBytes(done.ram_bytes),
        );
        if let Some(trace) = &done.trace {
            println!("trace {trace}");
        }
    })
}

async fn protect(context: &Context, a: ProtectArgs) -> Outcome<()> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    let request = ProtectVm {
        protect: Some(!a.off),
        replace: a.replace,
        on_partition: a.on_partition,
        lost_after_s: seconds(a.lost_after),
        replicate_every_s: seconds(a.replicate_every),
    };
    let path = vm_path(&a.name, "protection")?;
    let mut client = context.daemon().await?;
    let vm: VmView = client.ask(Method::POST, &path, Some(&request)).await?;
    report(context, &Sorted(&vm), || match &vm.protection {
        Some(now) => println!("{}: {}", a.name, now.text),
        None if a.off => println!("{}: not protected when it runs", a.name),
        None => println!(
            "{}: protected as soon as it runs, if the network can",
            a.name
        ),
    })
}

async fn replicate(context: &Context, a: Replicate) -> Outcome<()> {
    if a.every.subsec_nanos() != 0 {
        return Err(Failure::usage("--every must be whole seconds"));
    }
    let request = ReplicateVm {
        every_s: (!a.off).then_some(a.every.as_secs()),
        copies: a.copies,
    };
    let path = vm_path(&a.name, "replication")?;
    let mut client = context.daemon().await?;
    let vm: VmView = client.ask(Method::POST, &path, Some(&request)).await?;
    report(context, &Sorted(&vm), || match &vm.replication {
        Some(now) => println!("{}: every {} s; {}", a.name, now.every_s, now.text),
        None => println!(
            "{} is no longer replicated, and its last replica is released",
            a.name
        ),
    })
}

pub(super) async fn restore(context: &Context, a: Restore) -> Outcome<()> {
    let (name, snapshot) = match a.what.split_once('@') {
        Some((name, snapshot)) => (name.to_owned(), Some(snapshot.to_owned())),
        None => (a.what.clone(), None),
    };
    let request = RestoreVm {
        snapshot,
        force: a.force,
        on: a.on,
    };
    let vm: VmView = follow(
        context,
        &vm_path(&name, "restore")?,
        format!("restoring {}", a.what),
        &request,
    )
    .await?;
    report(context, &Sorted(&vm), || {
        let from = vm.restored_from.as_ref();
        let from = from.map_or_else(String::new, |from| format!(", as of {name}@{from}"));
        println!(
            "{name} is {} on {}, address {}, epoch {}{from}",
            vm.state, vm.host, vm.address, vm.epoch
        )
    })
}

/// Keeps the terminal in raw mode until it is dropped.
struct RawTerminal(Option<nix::sys::termios::Termios>);

impl RawTerminal {
    fn enter() -> Self {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let saved = stdin
            .is_terminal()
            .then(|| tcgetattr(&stdin).ok())
            .flatten();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            cfmakeraw(&mut raw);
            // A terminal without raw mode still shows the console; it then sends whole lines.
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &raw);
        }
        Self(saved)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            // Nothing more can be done for a terminal that is gone.
            let _ = nix::sys::termios::tcsetattr(
                std::io::stdin(),
                nix::sys::termios::SetArg::TCSANOW,
                saved,
            );
        }
    }
}

async fn console(context: &Context, name: &str) -> Outcome<()> {
    let stream = context
        .daemon()
        .await?
        .upgrade(&vm_path(name, "console")?)
        .await?;
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    eprintln!("console of {name}; leave with Ctrl-]");
    let _raw = RawTerminal::enter();
    let keys = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0u8; 256];
        loop {
            let n = stdin.read(&mut buffer).await.unwrap_or(0);
            if n == 0 {
                // Standard input ended (a script): go on showing what the guest prints.
                std::future::pending::<()>().await;
            }
            let typed = &buffer[..n];
            let end = typed.iter().position(|b| *b == ESCAPE).unwrap_or(n);
            if to_guest.write_all(&typed[..end]).await.is_err() || end < n {
                return Ok(());
            }
        }
    };
    let screen = async {
        let mut buffer = [0u8; 4096];
        loop {
            let n = from_guest
                .read(&mut buffer)
                .await
                .doing("reading the console")?;
            if n == 0 {
                return Ok(());
            }
            let mut stdout = std::io::stdout().lock();
            stdout
                .write_all(&buffer[..n])
                .and_then(|()| stdout.flush())
                .doing("writing to the terminal")?;
        }
    };
    tokio::select! {
        ended = keys => ended,
        ended = screen => ended,
    }
}
