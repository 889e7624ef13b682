//! What happened: the log of events, and how a VM's guest is to be treated when it ends.

use super::{ALL_LOOKING, LOOKING, Method, Operation, Parameter, ROOT, WITH_MEMBERS, items, json};
use crate::{EventView, EventsEnd, EventsPage, EventsWanted, ProofView, SetVm, VmView};

/// A parameter with any text.
const fn text(name: &'static str, meaning: &'static str) -> Parameter {
    Parameter {
        name,
        words: &["*"],
        meaning,
    }
}

const WANTED: &[Parameter] = &[
    text(
        "after",
        "Only events with a larger number; the first page if it is 0.",
    ),
    text("kind", "Only events of this kind."),
    text("limit", "How many events at most: 1000 or fewer."),
    text("member", "Only events about the member of this name or id."),
    text("seconds", "Only events of so many last seconds."),
    text("vm", "Only events about the VM of this name or id."),
];

/// Events, and the policy for guests that end.
pub(super) const EVENTS: &[Operation] = &[
    json::<EventsPage>(
        Method::Get,
        "/events",
        LOOKING,
        "Lists events of this host: a page from a number or time on, or else the newest.",
    )
    .query(WANTED),
    items::<EventView, EventsEnd>(
        Method::Post,
        "/events/follow",
        ROOT,
        "Lists events of this host, then each new one as it comes.",
    )
    .body::<EventsWanted>(),
    json::<ProofView>(
        Method::Get,
        "/vms/{name}/proof",
        ALL_LOOKING,
        "Proves what happened to a VM on its host: the signed chain of its events.",
    ),
    json::<VmView>(
        Method::Post,
        "/vms/{name}/settings",
        WITH_MEMBERS,
        "Changes whether a VM's guest is started again when it ends.",
    )
    .body::<SetVm>(),
];
