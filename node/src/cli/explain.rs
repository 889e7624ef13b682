//! `p2pvm explain`: what happened to a VM and why it is where it is, and the proof of it, which any
//! machine checks without a network.

use super::{
    Context,
    events_args::ExplainArgs,
    print::{self, report},
};
use p2pvm_api::{Doing, Explained, Failure, Outcome, ProofView, Sorted, VmView, vm_path};
use p2pvm_authority::{Event, EventProof, ProvedChain};
use p2pvm_daemon::{layout::Layout, membership, shown};
use serde_json::json;
use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

pub(crate) async fn run(context: &Context, a: ExplainArgs) -> Outcome<()> {
    match (&a.name, &a.proof, &a.verify) {
        (_, _, Some(file)) => verify(context, file),
        (Some(name), Some(file), None) => prove(context, name, file).await,
        (Some(name), None, None) => explain(context, name).await,
        (None, _, None) => Err(Failure::usage("name the VM, or a file with --verify")),
    }
}

async fn explain(context: &Context, name: &str) -> Outcome<()> {
    let mut client = context.daemon().await?;
    let explained: Vec<Explained> = client.get(&vm_path(name, "explain")?).await?;
    if context.json {
        return print::json(&Sorted(&explained));
    }
    let row = |e: &Explained| {
        [
            e.at.clone(),
            e.host.clone(),
            shown::text(&e.text).to_string(),
        ]
    };
    let rows: Vec<_> = explained.iter().map(row).collect();
    if rows.is_empty() {
        println!("its host remembers no event of {name} and no decision about it");
    } else {
        print::table(["WHEN", "HOST", "WHAT"], &rows);
    }
    // A VM whose host is gone still has its history here.
    if let Ok(vm) = client.get::<VmView>(&vm_path(name, "")?).await {
        let note = vm
            .note
            .as_deref()
            .map_or_else(String::new, |why| format!(": {why}"));
        let now = format!(
            "{name} is {} on {}, epoch {}{note}",
            vm.state, vm.host, vm.epoch
        );
        println!("\n{}", shown::text(&now));
    }
    Ok(())
}

async fn prove(context: &Context, name: &str, file: &Path) -> Outcome<()> {
    let path = vm_path(name, "proof")?;
    let view: ProofView = context.daemon().await?.get(&path).await?;
    let bytes = data_encoding::BASE64
        .decode(view.proof.as_bytes())
        .doing("reading the daemon's proof")?;
    let chains = checked(&bytes)?;
    fs::write(file, &bytes).doing(format_args!("writing {}", file.display()))?;
    let count: usize = chains.iter().map(|chain| chain.events.len()).sum();
    let hosts: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).collect();
    let answer = json!({ "events": count, "file": file, "hosts": hosts });
    report(context, &answer, || {
        println!(
            "{}: {count} events of {name}, signed by {}; check them with 'p2pvm explain --verify'",
            file.display(),
            hosts.join(", ")
        );
    })
}

/// What a proof's bytes prove.
fn checked(bytes: &[u8]) -> Outcome<Vec<ProvedChain>> {
    let proof = EventProof::from_bytes(bytes).and_then(|proof| proof.check());
    proof.map_err(|why| Failure::refused(p2pvm_host::chain(&why).to_string()))
}

fn verify(context: &Context, file: &Path) -> Outcome<()> {
    let bytes = fs::read(file).doing(format_args!("reading {}", file.display()))?;
    let chains = checked(&bytes)?;
    let own = own_network(&context.layout);
    let is_ours = |chain: &ProvedChain| own.as_deref() == Some(&*chain.network.to_string());
    if own.is_some() && !chains.iter().all(is_ours) {
        return Err(Failure::refused(
            "the proof is of another network than this machine's: nobody here vouches for its \
                hosts",
        ));
    }
    let event = |event: &Event| {
        json!({
            "at": at(event), "kind": event.kind, "seq": event.seq, "text": event.sentence,
        })
    };
    let chain = |chain: &ProvedChain| {
        let events: Vec<_> = chain.events.iter().map(event).collect();
        json!({
            "before": chain.before, "events": events, "host": chain.name,
            "host_id": chain.host.to_string(), "network": chain.network.to_string(),
        })
    };
    let answer: Vec<_> = chains.iter().map(chain).collect();
    report(context, &answer, || {
        for chain in &chains {
            say(chain, own.is_some());
        }
    })
}

/// Prints what one chain proves.
fn say(chain: &ProvedChain, is_ours: bool) {
    println!("signed by {} ({}):", chain.name, chain.host);
    if chain.before > 0 {
        println!("{} earlier events were deleted with age", chain.before);
    }
    let row = |event: &Event| {
        [
            at(event),
            event.kind.clone(),
            shown::text(&event.sentence).to_string(),
        ]
    };
    let rows: Vec<_> = chain.events.iter().map(row).collect();
    print::table(["WHEN", "KIND", "WHAT"], &rows);
    match is_ours {
        true => println!("the chain is whole, and the host was a member of this network"),
        false => println!(
            "the chain is whole; the network {} vouches for the host: compare this id with the one \
                that you know",
            chain.network
        ),
    }
}

fn at(event: &Event) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(event.at_ms));
    at.map_or_else(String::new, |at| {
        humantime::format_rfc3339_millis(at).to_string()
    })
}

/// The id of this machine's network, if it is in one.
fn own_network(layout: &Layout) -> Option<String> {
    let known = membership::load(layout).ok()?;
    Some(known.network.id.to_string())
}
