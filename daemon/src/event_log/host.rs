//! Records what the host of the VMs reports.

use crate::parts::Parts;
use p2pvm_api::EventKind;
use p2pvm_authority::Subject;
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::host::{HostEvent, MigrationOutcome, Noted, RunningSide};
use std::sync::Arc;
use tokio::sync::broadcast::{Receiver, error::RecvError};

/// Records until the host is gone.
pub(crate) async fn follow(parts: Arc<Parts>, mut events: Receiver<HostEvent>) {
    loop {
        match events.recv().await {
            Ok(HostEvent::Noted(noted)) => self::noted(&parts, noted),
            Ok(HostEvent::Migrated(outcome)) => migrated(&parts, &outcome),
            Ok(HostEvent::Fenced {
                vm,
                branch,
                holder,
                epoch,
            }) => {
                let to = parts.name_of(holder);
                let text = format!(
                    "{branch} is a copy that lost its VM: {to} has it since epoch {}.",
                    epoch.0
                );
                let fields = [("holder", to), ("epoch", epoch.0.to_string())];
                let subject = Subject::Vm(vm, branch);
                parts
                    .events
                    .record(EventKind::VmFenced, subject, &fields, text);
            }
            Ok(HostEvent::Frozen { vm, name }) => {
                let text = format!("The guest of {name} is frozen: no majority renewed its lease.");
                let subject = Subject::Vm(vm, name);
                parts.events.record(EventKind::VmFrozen, subject, &[], text);
            }
            Ok(HostEvent::Thawed { vm, name }) => {
                let text = format!("The guest of {name} goes on: its lease is renewed.");
                let subject = Subject::Vm(vm, name);
                parts.events.record(EventKind::VmThawed, subject, &[], text);
            }
            Ok(event @ HostEvent::TakenOver { .. }) => taken_over(&parts, event),
            // What matters of these is noted where it happens.
            Ok(
                HostEvent::State { .. }
                | HostEvent::NotTakenOver { .. }
                | HostEvent::Migrating { .. }
                | HostEvent::RecoveryPoint { .. },
            ) => {}
            Err(RecvError::Lagged(missed)) => {
                let fields = [("count", missed.to_string())];
                let text = format!("{missed} events of VMs were lost: too many came at once.");
                let (kind, subject) = (EventKind::EventsLost, Subject::Host);
                parts.events.record(kind, subject, &fields, text);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn taken_over(parts: &Parts, event: HostEvent) {
    let HostEvent::TakenOver {
        vm,
        name,
        from,
        epoch,
        lost,
    } = event
    else {
        return;
    };
    let from = parts.name_of(from);
    let text = format!("{name} was started here since its host {from} was lost: {lost}.");
    let fields = [("from", from), ("epoch", epoch.0.to_string())];
    let subject = Subject::Vm(vm, name);
    parts
        .events
        .record(EventKind::VmTakenOver, subject, &fields, text);
}

fn noted(parts: &Parts, noted: Noted) {
    let named = |(key, value): &(String, String)| {
        let member = value.parse::<MemberId>();
        let value = member.map_or_else(|_| value.clone(), |member| parts.name_of(member));
        (key.clone(), value)
    };
    let fields: Vec<(String, String)> = noted.fields.iter().map(named).collect();
    let fields: Vec<(&str, String)> = fields
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    let subject = Subject::Vm(noted.vm, noted.name);
    parts
        .events
        .record(noted.kind, subject, &fields, noted.sentence);
}

fn migrated(parts: &Parts, outcome: &MigrationOutcome) {
    let (from, to) = (parts.name_of(outcome.from), parts.name_of(outcome.to));
    let name = &outcome.name;
    let (kind, text) = match (outcome.runs_on, &outcome.failure) {
        (RunningSide::Target, None) => (
            EventKind::VmMoved,
            format!("{name} moved from {from} to {to}."),
        ),
        (_, why) => {
            let why = why.as_deref().unwrap_or("its end is not known yet");
            let text = format!("{name} did not move from {from} to {to}: {why}.");
            (EventKind::VmMoveFailed, text)
        }
    };
    let fields = [
        ("from", from),
        ("to", to),
        ("epoch", outcome.epoch.0.to_string()),
        ("total_ms", outcome.total_ms.to_string()),
    ];
    let subject = Subject::Vm(outcome.vm, name.clone());
    parts.events.record(kind, subject, &fields, text);
}
