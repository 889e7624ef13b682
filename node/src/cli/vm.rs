//! `p2pvm vm ...`, `drain` and `explain`: each a request to the daemon and a few lines of output.

use super::{
    Context,
    print::{self, report},
    progress::Progress,
    vm_args::{Create, Migrate, Restore, Snapshot, Vm},
};
use crate::{
    api::{
        client::Event,
        forward::path_of,
        types::{CreateVm, MigrateVm, Moving, ReachView, RestoreVm, VmView},
    },
    failure::{Doing, Failure, Outcome},
};
use hyper::Method;
use p2pvm_console::{ORPHANED, UNREACHABLE};
use serde::Serialize;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Leaves the console: Ctrl-].
const ESCAPE: u8 = 0x1d;

pub(super) async fn run(context: &Context, command: Vm) -> Outcome<()> {
    match command {
        Vm::Create(a) => create(context, a).await,
        Vm::Start(a) => operate(context, &a.name, "start", "starting", &()).await,
        Vm::Stop(a) if a.force => operate(context, &a.name, "stop?force=true", "ending", &()).await,
        Vm::Stop(a) => operate(context, &a.name, "stop", "stopping", &()).await,
        Vm::List => list(context).await,
        Vm::Show(a) => show(context, &a.name).await,
        Vm::Console(a) => console(context, &a.name).await,
        Vm::Delete(a) => {
            let path = format!("{}?force={}", path_of(&a.name, "")?, a.force);
            let gone: Value = context.daemon().await?.ask(Method::DELETE, &path, None::<&()>).await?;
            report(context, &gone, || println!("{} is deleted", a.name))
        }
        Vm::Migrate(a) => migrate(context, a).await,
        Vm::Snapshot(a) => snapshot(context, a).await,
        Vm::Restore(a) => restore(context, a).await,
    }
}

/// Runs a long operation and shows its progress.
async fn follow(context: &Context, path: &str, what: String, body: &impl Serialize) -> Outcome<Value> {
    let mut progress = Progress::new(what);
    let mut client = context.daemon().await?;
    client
        .follow(path, body, |event| {
            if let Event::Step(step) = event {
                progress.step(&step);
            }
        })
        .await
}

async fn operate(context: &Context, name: &str, operation: &str, doing: &str, body: &impl Serialize) -> Outcome<()> {
    let done = follow(context, &path_of(name, operation)?, format!("{doing} {name}"), body).await?;
    report(context, &done, || println!("{name} is {}", text(&done, "state")))
}

/// A field of an answer as text.
pub(super) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A field of a VM for people: a guest that stands still has the reason with its state.
fn shown(vm: &Value, field: &str) -> String {
    let state = || serde_json::from_value::<VmView>(vm.clone()).ok().map(|vm| vm.state_text());
    if field == "state" { state().unwrap_or_else(|| text(vm, field)) } else { text(vm, field) }
}

async fn create(context: &Context, a: Create) -> Outcome<()> {
    // A file is named relative to where the user stands, not to the daemon; on another member only its whole path says which.
    let image = match std::fs::canonicalize(&a.image) {
        _ if a.on.is_some() => a.image,
        Ok(path) => path.to_str().ok_or_else(|| Failure::usage("the image's path is not UTF-8"))?.to_owned(),
        Err(_) if a.image.contains(['/', '.']) => return Err(Failure::not_found(format!("there is no image file {}", a.image))),
        Err(_) => a.image,
    };
    if a.memory < 32 << 20 {
        return Err(Failure::usage("--memory must be at least 32M"));
    }
    path_of(&a.name, "")?;
    let request =
        CreateVm { name: a.name.clone(), image, cpus: a.cpus, memory_mib: a.memory >> 20, disk_bytes: a.disk, start: a.start, on: a.on };
    let done = follow(context, "/vms", format!("creating {}", a.name), &request).await?;
    report(context, &done, || println!("{} is {}, address {}", a.name, text(&done, "state"), text(&done, "address")))
}

async fn list(context: &Context) -> Outcome<()> {
    let mut answer: Value = context.daemon().await?.get("/cluster/vms").await?;
    for silent in answer["silent"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("no answer from {silent}: its VMs are shown as other members' records have them");
    }
    let vms = answer["vms"].take();
    report(context, &vms, || {
        let rows: Vec<_> = vms
            .as_array()
            .into_iter()
            .flatten()
            .map(|vm| ["name", "state", "host", "address", "cpus", "memory_mib", "epoch"].map(|field| shown(vm, field)))
            .collect();
        print::table(["NAME", "STATE", "HOST", "ADDRESS", "CPUS", "MIB", "EPOCH"], &rows);
        let remarks = remarks(vms.as_array().into_iter().flatten());
        if !remarks.is_empty() {
            println!("\n{}", remarks.join("\n"));
        }
    })
}

/// How a guest is reached, in words.
fn network(reach: &ReachView) -> String {
    let why = reach.why.as_deref().unwrap_or_default();
    match (reach.state.as_str(), reach.rtt_ms) {
        ("answers", Some(rtt)) => format!("answers its host in {}", print::ms(rtt)),
        ("never", _) => format!("has not answered its host yet: {why}"),
        (state, _) => format!("{state} for {} s: {why}", reach.seconds),
    }
}

/// What is to be said below the list: a line for each dead host, and one for each VM in a state nobody asked for.
fn remarks<'a>(vms: impl Iterator<Item = &'a Value>) -> Vec<String> {
    let (mut hosts, mut others) = (Vec::<String>::new(), Vec::new());
    for vm in vms.filter(|vm| vm["note"].is_string()) {
        let (name, note) = (text(vm, "name"), text(vm, "note"));
        if vm["state"] != UNREACHABLE && vm["state"] != ORPHANED {
            others.push(format!("{name}: {note}"));
        } else if !hosts.iter().any(|said| said.starts_with(&note)) {
            hosts.push(format!("{note}: 'p2pvm vm show {name}' says what can be done"));
        }
    }
    hosts.append(&mut others);
    hosts
}

async fn show(context: &Context, name: &str) -> Outcome<()> {
    let vm: Value = context.daemon().await?.get(&path_of(name, "")?).await?;
    report(context, &vm, || {
        for field in ["name", "id", "state", "host", "address", "address_v6", "mac", "cpus", "memory_mib", "image", "epoch", "voters"] {
            let value = match &vm[field] {
                Value::Array(items) => items.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", "),
                _ => shown(&vm, field),
            };
            println!("{:12}{value}", field.replace('_', " "));
        }
        if let Ok(reach) = serde_json::from_value::<ReachView>(vm["reach"].clone()) {
            println!("{:12}{}", "network", network(&reach));
        }
        for field in ["note", "advice"].into_iter().filter(|field| vm[*field].is_string()) {
            println!("{field:12}{}", text(&vm, field));
        }
        if let Some(moving) = serde_json::from_value::<Option<Moving>>(vm["moving"].clone()).ok().flatten() {
            println!("{:12}to {}: {}", "moving", moving.to, moving.step.phase);
        }
        let snapshots: Vec<_> =
            vm["snapshots"].as_array().into_iter().flatten().map(|s| ["name", "taken", "state"].map(|field| text(s, field))).collect();
        if !snapshots.is_empty() {
            println!();
            print::table(["SNAPSHOT", "TAKEN", "STATE"], &snapshots);
        }
    })
}

async fn migrate(context: &Context, a: Migrate) -> Outcome<()> {
    let request = MigrateVm { to: a.to, post_copy: a.post_copy };
    let path = path_of(&a.name, "migrate")?;
    if a.cancel {
        let done: Value = context.daemon().await?.ask(Method::DELETE, &path, None::<&()>).await?;
        return report(context, &done, || println!("the move of {} is ended: it stays on {}", a.name, text(&done, "host")));
    }
    let followed = follow(context, &path, format!("migrating {}", a.name), &request);
    let done = tokio::select! {
        done = followed => done?,
        _ = tokio::signal::ctrl_c() => {
            let _: Value = context.daemon().await?.ask(Method::DELETE, &path, None::<&()>).await?;
            return Err(Failure::cancelled(format!("cancelled: {} stays where it was (see 'p2pvm vm show {0}')", a.name)));
        }
    };
    report(context, &done, || {
        println!(
            "{} runs on {} (total {} ms, downtime {} ms, {} of RAM)",
            a.name,
            text(&done, "host"),
            text(&done, "total_ms"),
            text(&done, "downtime_ms"),
            indicatif::HumanBytes(done["ram_bytes"].as_u64().unwrap_or(0)),
        );
        if let Some(trace) = done["trace"].as_str() {
            println!("trace {trace}");
        }
    })
}

async fn snapshot(context: &Context, a: Snapshot) -> Outcome<()> {
    let request = serde_json::json!({ "name": a.snapshot });
    let done = follow(context, &path_of(&a.name, "snapshot")?, format!("snapshot of {}", a.name), &request).await?;
    report(context, &done, || {
        println!(
            "{}@{}: {}{}, guest paused {:.0} ms",
            a.name,
            text(&done, "name"),
            text(&done, "state"),
            holders(&done).map_or_else(String::new, |holders| format!(" on {holders}")),
            done["pause_ms"].as_f64().unwrap_or_default()
        );
    })
}

/// The members that have a copy, in words.
fn holders(done: &Value) -> Option<String> {
    let names: Vec<_> = done["holders"].as_array()?.iter().filter_map(Value::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

async fn restore(context: &Context, a: Restore) -> Outcome<()> {
    let (name, snapshot) = match a.what.split_once('@') {
        Some((name, snapshot)) => (name.to_owned(), Some(snapshot.to_owned())),
        None => (a.what.clone(), None),
    };
    let request = RestoreVm { snapshot, force: a.force, on: a.on };
    let done = follow(context, &path_of(&name, "restore")?, format!("restoring {}", a.what), &request).await?;
    report(context, &done, || {
        println!(
            "{name} is {} on {}, address {}, epoch {}",
            text(&done, "state"),
            text(&done, "host"),
            text(&done, "address"),
            text(&done, "epoch")
        )
    })
}

pub(super) async fn explain(context: &Context, name: &str) -> Outcome<()> {
    let explained: Value = context.daemon().await?.get(&path_of(name, "explain")?).await?;
    report(context, &explained, || {
        let rows: Vec<_> = explained.as_array().into_iter().flatten().map(|e| [text(e, "at"), text(e, "host"), text(e, "text")]).collect();
        if rows.is_empty() {
            println!("no decision about {name} is remembered on its host");
        } else {
            print::table(["WHEN", "HOST", "WHY"], &rows);
        }
    })
}

/// Puts the terminal into raw mode for as long as it lives.
struct RawTerminal(Option<nix::sys::termios::Termios>);

impl RawTerminal {
    fn enter() -> Self {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let saved = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            cfmakeraw(&mut raw);
            // A terminal that refuses raw mode still shows the console; keys then come by the line.
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &raw);
        }
        Self(saved)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            // Nothing more can be done for a terminal that is gone.
            let _ = nix::sys::termios::tcsetattr(std::io::stdin(), nix::sys::termios::SetArg::TCSANOW, saved);
        }
    }
}

async fn console(context: &Context, name: &str) -> Outcome<()> {
    let stream = context.daemon().await?.upgrade(&path_of(name, "console")?).await?;
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
            let n = from_guest.read(&mut buffer).await.doing("reading the console")?;
            if n == 0 {
                return Ok(());
            }
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&buffer[..n]).and_then(|()| stdout.flush()).doing("writing to the terminal")?;
        }
    };
    tokio::select! {
        ended = keys => ended,
        ended = screen => ended,
    }
}
