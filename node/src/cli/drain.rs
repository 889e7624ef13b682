//! `p2pvm drain`: a line for each VM that has moved or stays, a summary, and an exit code that
//! tells whether any stays.

use super::{
    Context,
    print::{self, report},
    progress::Progress,
};
use hyper::Method;
use p2pvm_api::{
    DrainAnswer, DrainItem, DrainStopping, Failure, Kind, Outcome, Sorted, Undrained, VmDrained,
    VmMoved, VmStayed, client::Event,
};
use std::process::ExitCode;

pub(crate) async fn run(context: &Context) -> Outcome<ExitCode> {
    let mut client = context.daemon().await?;
    let done = {
        let mut progress = Progress::new("draining");
        let drained = client.follow::<DrainItem, DrainAnswer>("/drain", &(), move |event| {
            show(&mut progress, event)
        });
        tokio::pin!(drained);
        tokio::select! {
            done = &mut drained => done?,
            _ = tokio::signal::ctrl_c() => {
                let _: DrainStopping = context.daemon().await?.ask(
                    Method::DELETE, "/drain", None::<&()>
                ).await?;
                eprintln!("no more moves begin; waiting for the running ones (Ctrl-C again leaves \
                    them to the daemon)");
                tokio::select! {
                    done = &mut drained => done?,
                    _ = tokio::signal::ctrl_c() => return Err(Failure::cancelled("stopped; \
                        running moves go on: see 'p2pvm vm list'")),
                }
            }
        }
    };
    let Err(failure) = verdict(&done) else {
        report(context, &done, || {
            summary(&done).iter().for_each(|line| println!("{line}"))
        })?;
        return Ok(ExitCode::SUCCESS);
    };
    if !context.json {
        summary(&done).iter().for_each(|line| println!("{line}"));
        return Err(failure);
    }
    // One document, with what moved and with the error.
    eprintln!("p2pvm: {failure}");
    let code = ExitCode::from(failure.kind as u8);
    print::json(&Sorted(Undrained {
        answer: done,
        error: failure,
    }))?;
    Ok(code)
}

pub(super) fn moved(vm: &VmMoved) -> String {
    format!("{} runs on {}", vm.name, vm.host)
}

fn stayed(vm: &VmStayed) -> String {
    format!("{} stays: {}", vm.name, vm.why)
}

/// Shows what a drain tells on its way, also that of `p2pvm offer off`.
pub(super) fn show(progress: &mut Progress, event: Event<DrainItem>) {
    match event {
        Event::Step(step) => progress.step(&step),
        Event::Item(item) => progress.line(&format!(
            "{} ({} of {})",
            line(&item.vm),
            item.done,
            item.of
        )),
    }
}

/// The outcome for one VM.
fn line(vm: &VmDrained) -> String {
    match vm {
        VmDrained::Moved(vm) => moved(vm),
        VmDrained::Stayed(vm) => stayed(vm),
    }
}

fn summary(done: &DrainAnswer) -> Vec<String> {
    let mut lines: Vec<String> = done
        .moved
        .iter()
        .map(moved)
        .chain(done.stayed.iter().map(stayed))
        .collect();
    if !done.stopped.is_empty() {
        lines.push(format!(
            "not moved, because they are stopped: {}",
            done.stopped.join(", ")
        ));
    }
    lines.push(match done.stayed.len() {
        0 => "no VM runs here any more".to_owned(),
        stayed => format!("{} moved, {stayed} stayed", done.moved.len()),
    });
    lines
}

fn verdict(done: &DrainAnswer) -> Outcome<()> {
    if done.stayed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = done.stayed.iter().map(|vm| vm.name.as_str()).collect();
    let (count, names) = (names.len(), names.join(", "));
    let what = if count == 1 { "VM stays" } else { "VMs stay" };
    if done.cancelled {
        return Err(Failure::cancelled(format!(
            "stopped: {count} {what} here ({names}); 'p2pvm drain' goes on with them"
        )));
    }
    Err(Failure::new(
        Kind::Failed,
        format!("{count} {what} here: {names}; 'p2pvm drain' tries again"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_tells_what_moved_and_stayed_also_by_exit_code() {
        let web = VmMoved {
            name: "web".into(),
            host: "lab2".into(),
            ..VmMoved::default()
        };
        let clean = DrainAnswer {
            moved: vec![web],
            stopped: vec!["old".into()],
            ..DrainAnswer::default()
        };
        assert_eq!(
            summary(&clean),
            [
                "web runs on lab2",
                "not moved, because they are stopped: old",
                "no VM runs here any more"
            ]
        );
        assert!(verdict(&clean).is_ok());
        let mut left = DrainAnswer {
            stayed: vec![VmStayed {
                name: "db".into(),
                why: "no room".into(),
            }],
            ..clean
        };
        assert_eq!(
            summary(&left)[1..],
            [
                "db stays: no room",
                "not moved, because they are stopped: old",
                "1 moved, 1 stayed"
            ]
        );
        let failure = verdict(&left).unwrap_err();
        assert!(
            failure.kind == Kind::Failed && failure.message.contains("db") && !failure.cancelled,
            "{failure}"
        );
        left.cancelled = true;
        assert!(verdict(&left).unwrap_err().cancelled);
    }

    #[test]
    fn what_moved_and_the_error_are_one_document() {
        let answer = DrainAnswer {
            stayed: vec![VmStayed {
                name: "db".into(),
                why: "no room".into(),
            }],
            ..DrainAnswer::default()
        };
        let whole = Sorted(Undrained {
            answer,
            error: Failure::cancelled("stopped"),
        });
        let text = concat!(
            r#"{"cancelled":false,"error":{"cancelled":true,"kind":"failed","message":"stopped"},"#,
            r#""moved":[],"stayed":[{"name":"db","why":"no room"}],"stopped":[]}"#
        );
        assert_eq!(serde_json::to_string(&whole).unwrap(), text);
    }
}
