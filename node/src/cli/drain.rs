//! `p2pvm drain`: a line for each VM that has moved or stays, a summary, and an exit code that tells whether any stays.

use super::{
    Context,
    print::{self, report},
    progress::Progress,
    vm::text,
};
use crate::{
    api::client::Event,
    failure::{Failure, Kind, Outcome},
};
use hyper::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

pub(super) async fn run(context: &Context) -> Outcome<ExitCode> {
    let mut client = context.daemon().await?;
    let done = {
        let mut progress = Progress::new("draining");
        let drained = client.follow("/drain", &(), move |event| match event {
            Event::Step(step) => progress.step(&step),
            Event::Item(item) => progress.line(&format!("{} ({} of {})", line(&item["vm"]), item["done"], item["of"])),
        });
        tokio::pin!(drained);
        tokio::select! {
            done = &mut drained => done?,
            _ = tokio::signal::ctrl_c() => {
                let _: Value = context.daemon().await?.ask(Method::DELETE, "/drain", None::<&()>).await?;
                eprintln!("no more moves begin; those that run are waited for (Ctrl-C again leaves them to the daemon)");
                tokio::select! {
                    done = &mut drained => done?,
                    _ = tokio::signal::ctrl_c() => return Err(Failure::cancelled("stopped; the moves that run go on: see 'p2pvm vm list'")),
                }
            }
        }
    };
    let Err(failure) = verdict(&done) else {
        report(context, &done, || summary(&done).iter().for_each(|line| println!("{line}")))?;
        return Ok(ExitCode::SUCCESS);
    };
    if !context.json {
        summary(&done).iter().for_each(|line| println!("{line}"));
        return Err(failure);
    }
    // One document, with what moved and with the error.
    let mut whole = done;
    whole["error"] = json!(failure);
    print::json(&whole)?;
    eprintln!("p2pvm: {failure}");
    Ok(ExitCode::from(failure.kind as u8))
}

/// What became of one VM.
fn line(vm: &Value) -> String {
    match vm["why"].as_str() {
        Some(why) => format!("{} stays: {why}", text(vm, "name")),
        None => format!("{} runs on {}", text(vm, "name"), text(vm, "host")),
    }
}

fn list<'a>(done: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    done[field].as_array().into_iter().flatten()
}

fn summary(done: &Value) -> Vec<String> {
    let mut lines: Vec<String> = list(done, "moved").chain(list(done, "stayed")).map(line).collect();
    let stopped: Vec<&str> = list(done, "stopped").filter_map(Value::as_str).collect();
    if !stopped.is_empty() {
        lines.push(format!("stopped, and therefore still here: {}", stopped.join(", ")));
    }
    let (moved, stayed) = (list(done, "moved").count(), list(done, "stayed").count());
    lines.push(match stayed {
        0 => "no VM runs here any more".to_owned(),
        _ => format!("{moved} moved, {stayed} stayed"),
    });
    lines
}

fn verdict(done: &Value) -> Outcome<()> {
    let stayed: Vec<String> = list(done, "stayed").map(|vm| text(vm, "name")).collect();
    if stayed.is_empty() {
        return Ok(());
    }
    let (count, names) = (stayed.len(), stayed.join(", "));
    let what = if count == 1 { "VM stays" } else { "VMs stay" };
    if done["cancelled"] == true {
        return Err(Failure::cancelled(format!("stopped: {count} {what} here ({names}); 'p2pvm drain' goes on with them")));
    }
    Err(Failure::new(Kind::Failed, format!("{count} {what} here: {names}; 'p2pvm drain' tries again")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_what_moved_what_stayed_and_why_and_its_exit_code_tells() {
        let clean = json!({ "moved": [{ "name": "web", "host": "lab2" }], "stayed": [], "stopped": ["old"], "cancelled": false });
        assert_eq!(summary(&clean), ["web runs on lab2", "stopped, and therefore still here: old", "no VM runs here any more"]);
        assert!(verdict(&clean).is_ok());
        let mut left = clean.clone();
        left["stayed"] = json!([{ "name": "db", "why": "no room" }]);
        assert_eq!(summary(&left)[1..], ["db stays: no room", "stopped, and therefore still here: old", "1 moved, 1 stayed"]);
        let failure = verdict(&left).unwrap_err();
        assert!(failure.kind == Kind::Failed && failure.message.contains("db") && !failure.cancelled, "{failure}");
        left["cancelled"] = json!(true);
        assert!(verdict(&left).unwrap_err().cancelled);
    }
}
