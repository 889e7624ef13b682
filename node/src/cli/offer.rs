//! `p2pvm offer`: what this host offers to other members' VMs. `off` prints a line for each VM that
//! has moved or was stopped; its exit code tells whether any runs on.

use super::{
    Context, drain,
    offer_args::{Offer, OfferSet},
    print::{self, report},
    progress::Progress,
};
use hyper::Method;
use p2pvm_api::{
    DrainItem, DrainStopping, Failure, Kind, OfferChange, OfferEnded, OfferOff, OfferShare,
    OfferView, Outcome, client::Event,
};
use p2pvm_vm_manager::BitRate;
use std::process::ExitCode;

pub(crate) async fn run(context: &Context, offer: Offer) -> Outcome<ExitCode> {
    match offer {
        Offer::Show => {
            let view: OfferView = context.daemon().await?.get("/offer").await?;
            shown(context, &view)?;
        }
        Offer::Set(a) => change(context, &change_of(*a)).await?,
        Offer::On => {
            let on = OfferChange {
                off: Some(false),
                ..OfferChange::default()
            };
            change(context, &on).await?;
        }
        Offer::Off(a) => return off(context, OfferOff { keep: a.keep }).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(context: &Context, change: &OfferChange) -> Outcome<()> {
    let view: OfferView = context.daemon().await?.post("/offer", change).await?;
    shown(context, &view)
}

fn change_of(a: OfferSet) -> OfferChange {
    let always = |hours: Vec<String>| match hours.as_slice() {
        [only] if only == "always" => Vec::new(),
        _ => hours,
    };
    OfferChange {
        all_cpus: a.all_cpus,
        all_memory_mib: a.all_memory,
        bits_per_second: a.bandwidth.map(|rate| rate.0),
        cpus: a.cpus,
        disk_gib: a.disk,
        hours: a.hours.map(always),
        idle_after_s: a.idle_after.map(|after| after.as_secs()),
        idle_only: a.idle_only,
        memory_mib: a.memory,
        off: None,
        reset: a.reset,
        run: a.run,
        vms: a.vms,
    }
}

fn shown(context: &Context, view: &OfferView) -> Outcome<()> {
    report(context, view, || {
        for (name, value) in rows(view) {
            println!("{name:11} {value}");
        }
        if view.tenants.is_empty() {
            return;
        }
        println!();
        let rows: Vec<[String; 5]> = view
            .tenants
            .iter()
            .map(|tenant| {
                let OfferShare {
                    cpus,
                    disk_mib,
                    memory_mib,
                    vms,
                } = tenant.share;
                let figures = [vms, cpus, memory_mib, disk_mib].map(|figure| figure.to_string());
                let [vms, cpus, memory, disk] = figures;
                [tenant.member.clone(), vms, cpus, memory, disk]
            })
            .collect();
        print::table(["MEMBER", "VMS", "CPUS", "MIB", "DISK MIB"], &rows);
    })
}

/// An offer in lines.
fn rows(view: &OfferView) -> Vec<(&'static str, String)> {
    let number = |used: u64, limit: Option<u64>| match limit {
        Some(limit) => format!("{used} of {limit} used"),
        None => format!("no limit, {used} used"),
    };
    let size = |used: u64, limit: Option<u64>| match limit {
        Some(limit) => format!("{} of {} used", mib(used), mib(limit)),
        None => format!("no limit, {} used", mib(used)),
    };
    let (used, limits) = (view.used, view.limits);
    let state = match &view.closed {
        None => "open".to_owned(),
        Some(_) if view.off => "off".to_owned(),
        Some(why) => format!("closed now: {why}"),
    };
    let all_cpus = match view.all_cpus {
        Some(cpus) => format!("{cpus} processors"),
        None => "all processors".to_owned(),
    };
    let list = |words: &[String], none: &str| match words {
        [] => none.to_owned(),
        words => words.join(", "),
    };
    let mut rows = vec![
        ("offer", state),
        ("for", list(&view.run, "no member")),
        ("vms", number(used.vms, limits.vms)),
        ("cpus", number(used.cpus, limits.cpus)),
        ("memory", size(used.memory_mib, limits.memory_mib)),
        ("disk", size(used.disk_mib, limits.disk_mib)),
        (
            "bandwidth",
            match view.bits_per_second {
                Some(bits) => format!("{} each VM", BitRate(bits)),
                None => "no limit".to_owned(),
            },
        ),
        ("hours", list(&view.hours, "always")),
        (
            "idle only",
            match view.idle_only {
                true => format!("yes, {} s after the last input", view.idle_after_s),
                false => "no".to_owned(),
            },
        ),
        (
            "all guests",
            format!("{all_cpus}, {} of memory", mib(view.all_memory_mib)),
        ),
        ("images", view.images.join(", ")),
    ];
    if view.evacuating {
        rows.push((
            "moving",
            "other members' VMs are being moved away".to_owned(),
        ));
    }
    rows
}

/// MiB as a person writes them.
fn mib(mib: u64) -> String {
    match mib % 1024 {
        0 if mib > 0 => format!("{} GiB", mib / 1024),
        _ => format!("{mib} MiB"),
    }
}

async fn off(context: &Context, wanted: OfferOff) -> Outcome<ExitCode> {
    let mut client = context.daemon().await?;
    let done = {
        let mut progress = Progress::new("offer off");
        let follow = move |event: Event<DrainItem>| drain::show(&mut progress, event);
        let ending = client.follow::<DrainItem, OfferEnded>("/offer/off", &wanted, follow);
        tokio::pin!(ending);
        tokio::select! {
            done = &mut ending => done?,
            _ = tokio::signal::ctrl_c() => {
                let _: DrainStopping = context.daemon().await?.ask(
                    Method::DELETE, "/drain", None::<&()>
                ).await?;
                eprintln!("no more moves begin; waiting for the running ones");
                (&mut ending).await?
            }
        }
    };
    report(context, &done, || {
        summary(&done).iter().for_each(|line| println!("{line}"))
    })?;
    if done.kept.is_empty() || wanted.keep {
        return Ok(ExitCode::SUCCESS);
    }
    let count = done.kept.len();
    let failure = Failure::new(
        Kind::Failed,
        format!(
            "nothing more is accepted, but {count} of other members' VMs run on here: 'p2pvm \
                offer off' tries again"
        ),
    );
    eprintln!("p2pvm: {failure}");
    Ok(ExitCode::from(failure.kind as u8))
}

fn summary(done: &OfferEnded) -> Vec<String> {
    let mut lines: Vec<String> = done.moved.iter().map(drain::moved).collect();
    let stopped = done.stopped.iter();
    lines.extend(stopped.map(|vm| format!("{} was stopped: {}", vm.name, vm.why)));
    let kept = done.kept.iter();
    lines.extend(kept.map(|vm| format!("{} runs on here: {}", vm.name, vm.why)));
    if !done.stopped.is_empty() {
        lines.push(
            "a stopped VM has lost what was only in its memory: VMs cannot hibernate yet"
                .to_owned(),
        );
    }
    lines.push("nothing is offered any more; 'p2pvm offer on' offers again".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::{OfferLimits, VmMoved, VmStayed};

    #[test]
    fn an_offer_says_what_is_used_and_why_it_is_closed() {
        let view = OfferView {
            all_memory_mib: 15_872,
            bits_per_second: Some(100_000_000),
            closed: Some("it runs them in the hours 18:00-08:00 only".into()),
            hours: vec!["18:00-08:00".into()],
            limits: OfferLimits {
                memory_mib: Some(2048),
                vms: Some(2),
                ..OfferLimits::default()
            },
            run: vec!["friends".into(), "member:lab2".into()],
            used: OfferShare {
                memory_mib: 1536,
                vms: 1,
                cpus: 2,
                disk_mib: 48,
            },
            ..OfferView::default()
        };
        let lines: Vec<String> = rows(&view)
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        for line in [
            "offer: closed now: it runs them in the hours 18:00-08:00 only",
            "for: friends, member:lab2",
            "vms: 1 of 2 used",
            "cpus: no limit, 2 used",
            "memory: 1536 MiB of 2 GiB used",
            "disk: no limit, 48 MiB used",
            "bandwidth: 100 Mbit each VM",
            "all guests: all processors, 15872 MiB of memory",
        ] {
            assert!(lines.iter().any(|said| said == line), "{line}: {lines:?}");
        }
    }

    #[test]
    fn an_offers_end_names_each_vm_and_what_a_stop_costs() {
        let stayed = |name: &str| VmStayed {
            name: name.into(),
            why: "no room".into(),
        };
        let done = OfferEnded {
            cancelled: false,
            kept: vec![stayed("mail")],
            moved: vec![VmMoved {
                name: "web".into(),
                host: "lab2".into(),
                ..VmMoved::default()
            }],
            stopped: vec![stayed("db")],
        };
        assert_eq!(
            summary(&done),
            [
                "web runs on lab2",
                "db was stopped: no room",
                "mail runs on here: no room",
                "a stopped VM has lost what was only in its memory: VMs cannot hibernate yet",
                "nothing is offered any more; 'p2pvm offer on' offers again",
            ]
        );
        let none = summary(&OfferEnded::default());
        assert_eq!(none.len(), 1, "{none:?}");
    }
}
