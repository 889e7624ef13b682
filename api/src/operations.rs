//! Every operation of the control API as one table: its request, its answer, and its allowed
//! callers.
//!
//! `api/openapi.json` is written from this table and the types that it names (`make api`). The
//! routes themselves are in the daemon's `http.rs` files. A path is the daemon's own, which serves
//! it below `/v1` too; the dashboard serves the operations of its page below `/v1` and `/api`.

use crate::*;
use events::EVENTS;
use healing::HEALING;
use owners::{OFFER, TOKENS, USAGE};
use snapshots::{SNAPSHOTS, STORE};

mod events;
mod healing;
mod owners;
mod snapshots;

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its method.
    pub method: Method,
    /// Its path; a name in braces stands for one segment, such as a VM's name.
    pub path: &'static str,
    /// Its query parameters.
    pub query: &'static [Parameter],
    /// The JSON that the request carries.
    pub body: Option<Type>,
    /// The answer to a successful request. Any other gets a [`Failure`].
    pub answer: Answer,
    /// The allowed callers.
    pub askers: &'static [Asker],
    /// What it does, in a sentence.
    pub summary: &'static str,
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads, unless it opens a console.
    Get,
    /// Starts or changes something.
    Post,
    /// Ends something.
    Delete,
}

impl Method {
    /// Its name in HTTP.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// A parameter of a request's query; all of them are optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its allowed words; none if it is true or false, with false as the default; `*` alone for any
    /// text.
    pub words: &'static [&'static str],
    /// Its meaning.
    pub meaning: &'static str,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// One JSON value.
    Json(Type),
    /// [`Line`]s, newline-delimited JSON: progress, perhaps several results, then the end.
    Lines {
        /// Each line.
        line: Type,
        /// The result at the end.
        done: Type,
    },
    /// Figures in Prometheus' text format, or the same as one JSON value if the query says so.
    Figures(Type),
    /// The connection becomes the console's: bytes both ways after an upgrade to `console`, or for
    /// the page a WebSocket with binary messages. A text message there is a [`NoConsole`].
    Console,
}

/// A caller of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// This machine's root, over the daemon's unix socket.
    Root,
    /// Another member, over a stream of the overlay.
    Member,
    /// The dashboard's page, or a program with one of its tokens.
    Page,
    /// A user of this machine in the group `p2pvm`, over the daemon's unix socket.
    Group,
}

impl Asker {
    /// The caller in a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Member => "member",
            Self::Page => "page",
            Self::Group => "group",
        }
    }

    /// The prefix of an operation's path for this caller.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Root | Self::Member | Self::Group => "",
            Self::Page => "/v1",
        }
    }
}

/// A type of this crate as the table names it.
#[derive(Clone, Copy)]
pub struct Type {
    name: fn() -> &'static str,
    #[cfg(test)]
    pub(crate) schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// A type that the table can name.
trait Described {
    const TYPE: Type;
}

#[cfg(not(test))]
impl<T> Described for T {
    const TYPE: Type = Type {
        name: std::any::type_name::<T>,
    };
}

#[cfg(test)]
impl<T: schemars::JsonSchema> Described for T {
    const TYPE: Type = Type {
        name: std::any::type_name::<T>,
        schema: schemars::SchemaGenerator::subschema_for::<T>,
    };
}

impl std::fmt::Debug for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str((self.name)())
    }
}

impl Operation {
    const fn new(
        method: Method,
        path: &'static str,
        askers: &'static [Asker],
        answer: Answer,
        summary: &'static str,
    ) -> Self {
        Self {
            method,
            path,
            query: &[],
            body: None,
            answer,
            askers,
            summary,
        }
    }

    const fn body<T: Described>(mut self) -> Self {
        self.body = Some(T::TYPE);
        self
    }

    const fn query(mut self, query: &'static [Parameter]) -> Self {
        self.query = query;
        self
    }
}

/// Answered by one value.
const fn json<T: Described>(
    method: Method,
    path: &'static str,
    askers: &'static [Asker],
    summary: &'static str,
) -> Operation {
    Operation::new(method, path, askers, Answer::Json(T::TYPE), summary)
}

/// Answered by progress and a result.
const fn lines<Done: Described>(
    method: Method,
    path: &'static str,
    askers: &'static [Asker],
    summary: &'static str,
) -> Operation
where
    Line<Done>: Described,
{
    let answer = Answer::Lines {
        line: <Line<Done>>::TYPE,
        done: Done::TYPE,
    };
    Operation::new(method, path, askers, answer, summary)
}

/// Answered by several results and one at the end.
const fn items<Item: Described, Done: Described>(
    method: Method,
    path: &'static str,
    askers: &'static [Asker],
    summary: &'static str,
) -> Operation
where
    Line<Done, Item>: Described,
{
    let answer = Answer::Lines {
        line: <Line<Done, Item>>::TYPE,
        done: Done::TYPE,
    };
    Operation::new(method, path, askers, answer, summary)
}

const ROOT: &[Asker] = &[Asker::Root];
const LOOKING: &[Asker] = &[Asker::Root, Asker::Page, Asker::Group];
const PAGE: &[Asker] = &[Asker::Page];
const WITH_PAGE: &[Asker] = &[Asker::Root, Asker::Page];
const WITH_MEMBERS: &[Asker] = &[Asker::Root, Asker::Member];
const ALL: &[Asker] = &[Asker::Root, Asker::Member, Asker::Page];
const ALL_LOOKING: &[Asker] = &[Asker::Root, Asker::Member, Asker::Page, Asker::Group];

const FORCE: &[Parameter] = &[Parameter {
    name: "force",
    words: &[],
    meaning: "Whether it is done although it destroys something.",
}];

const FIGURES: &[Parameter] = &[
    Parameter {
        name: "scope",
        words: &["node", "cluster"],
        meaning: "This node, or all members; this node if it is left out.",
    },
    Parameter {
        name: "json",
        words: &[],
        meaning: "Whether the answer is JSON.",
    },
];

const TRAFFIC: &[Parameter] = &[Parameter {
    name: "all",
    words: &[],
    meaning: "Whether pairs without packets in the last seconds are listed too.",
}];

/// All operations, by resource.
pub const OPERATIONS: &[&[Operation]] = &[
    NODE, MEMBERS, CLUSTER, MACHINE, ACCESS, TOKENS, USAGE, ROUTES, PLACEMENT, OFFER, VMS, HEALING,
    EVENTS, DASHBOARD, SNAPSHOTS, STORE,
];

/// The node itself.
const NODE: &[Operation] = &[
    json::<Status>(
        Method::Get,
        "/status",
        LOOKING,
        "Describes this node: address, ring, health, load.",
    ),
    Operation::new(
        Method::Get,
        "/metrics",
        LOOKING,
        Answer::Figures(Metrics::TYPE),
        "Lists the figures of this node or of all members.",
    )
    .query(FIGURES),
    json::<()>(
        Method::Post,
        "/leave",
        ROOT,
        "Leaves the network and ends the daemon.",
    )
    .body::<Force>(),
    json::<()>(Method::Post, "/shutdown", ROOT, "Ends the daemon."),
];

/// Members.
const MEMBERS: &[Operation] = &[
    json::<Vec<Peer>>(
        Method::Get,
        "/peers",
        LOOKING,
        "Lists the other members that this node knows.",
    ),
    json::<Vec<Traffic>>(
        Method::Get,
        "/traffic",
        LOOKING,
        "Lists the pairs of addresses that exchange packets through this node.",
    )
    .query(TRAFFIC),
    json::<NetCheckView>(
        Method::Get,
        "/netcheck",
        ROOT,
        "Examines how other members reach this machine.",
    ),
    items::<Pong, PingSummary>(
        Method::Post,
        "/ping",
        ROOT,
        "Probes a member, or the host of a VM.",
    )
    .body::<PingRequest>(),
    json::<Traced>(
        Method::Get,
        "/trace/{member}",
        ROOT,
        "Lists the members on the way to a member over the ring.",
    ),
    json::<InviteAnswer>(Method::Post, "/invite", ROOT, "Makes an invite.").body::<InviteRequest>(),
    json::<RevokeAnswer>(
        Method::Post,
        "/revoke",
        ROOT,
        "Revokes an invite, or expels a member.",
    )
    .body::<RevokeRequest>(),
];

/// All members at once.
const CLUSTER: &[Operation] = &[
    json::<Cluster>(
        Method::Get,
        "/cluster",
        LOOKING,
        "Asks all members how they are.",
    ),
    json::<ClusterVms>(
        Method::Get,
        "/cluster/vms",
        LOOKING,
        "Asks all members which VMs they have.",
    ),
];

/// The machine below the node.
const MACHINE: &[Operation] = &[
    json::<Vec<FindingView>>(
        Method::Get,
        "/findings",
        LOOKING,
        "Lists what was found wrong with this machine.",
    ),
    json::<Vec<FindingView>>(
        Method::Post,
        "/findings",
        ROOT,
        "Examines this machine again and lists what is wrong with it.",
    ),
    json::<Vec<FindingView>>(
        Method::Post,
        "/mend",
        ROOT,
        "Repairs what is the daemon's own and lists what that settled.",
    ),
];

/// The network's policy.
const ACCESS: &[Operation] = &[
    json::<AclShow>(Method::Get, "/acl", LOOKING, "Shows the policy in force."),
    json::<AclAnswer>(
        Method::Post,
        "/acl",
        ROOT,
        "Signs a new policy and sends it to the members.",
    )
    .body::<AclSet>(),
    json::<AclVerdict>(
        Method::Post,
        "/acl/check",
        ROOT,
        "Decides whether the policy allows a conversation.",
    )
    .body::<AclCheck>(),
];

/// Subnets beyond hosts.
const ROUTES: &[Operation] = &[
    json::<Vec<RouteView>>(
        Method::Get,
        "/routes",
        LOOKING,
        "Lists the subnets that members offer.",
    ),
    json::<RouteOffered>(
        Method::Post,
        "/routes/offer",
        ROOT,
        "Offers a subnet to the other members.",
    )
    .body::<RouteSubnet>(),
    json::<RouteWithdrawn>(
        Method::Post,
        "/routes/withdraw",
        ROOT,
        "Withdraws the offer of a subnet.",
    )
    .body::<RouteSubnet>(),
    json::<RoutesAccepted>(
        Method::Post,
        "/routes/accept",
        ROOT,
        "Uses subnets that other members offer, or stops using them.",
    )
    .body::<AcceptRoutes>(),
];

/// Where VMs run.
const PLACEMENT: &[Operation] = &[
    json::<Vec<Decided>>(
        Method::Get,
        "/decisions",
        LOOKING,
        "Lists this node's latest decisions about VMs.",
    ),
    items::<DrainItem, DrainAnswer>(
        Method::Post,
        "/drain",
        ROOT,
        "Moves all VMs of this host to other members.",
    ),
    json::<DrainStopping>(
        Method::Delete,
        "/drain",
        ROOT,
        "Stops a drain after the move that is under way.",
    ),
    items::<DrainItem, ShutdownAnswer>(
        Method::Post,
        "/guests/shutdown",
        ROOT,
        "Powers the guests of this host down, or moves them away first, until it starts again.",
    ),
];

/// Virtual machines.
const VMS: &[Operation] = &[
    json::<Vec<VmView>>(
        Method::Get,
        "/vms",
        ALL_LOOKING,
        "Lists the VMs of this host.",
    ),
    lines::<VmView>(
        Method::Post,
        "/vms",
        WITH_MEMBERS,
        "Creates a VM here or on the member that the request names.",
    )
    .body::<CreateVm>(),
    json::<VmView>(Method::Get, "/vms/{name}", ALL_LOOKING, "Shows a VM."),
    json::<VmDeleted>(
        Method::Delete,
        "/vms/{name}",
        WITH_MEMBERS,
        "Deletes a VM with its snapshots.",
    )
    .query(FORCE),
    lines::<VmView>(Method::Post, "/vms/{name}/start", ALL, "Starts a VM."),
    lines::<VmView>(
        Method::Post,
        "/vms/{name}/stop",
        ALL,
        "Stops a VM; with force, without asking its guest.",
    )
    .query(FORCE),
    Operation::new(
        Method::Get,
        "/vms/{name}/console",
        ALL,
        Answer::Console,
        "Opens a VM's console.",
    ),
    lines::<VmMoved>(
        Method::Post,
        "/vms/{name}/migrate",
        ALL,
        "Moves a VM to another member.",
    )
    .body::<MigrateVm>(),
    json::<MoveCancelled>(
        Method::Delete,
        "/vms/{name}/migrate",
        ALL,
        "Gives up the move of a VM.",
    ),
    json::<VmView>(
        Method::Post,
        "/vms/{name}/replication",
        WITH_MEMBERS,
        "Sets how often a running VM's disk is replicated to other members.",
    )
    .body::<ReplicateVm>(),
    json::<Vec<Explained>>(
        Method::Get,
        "/vms/{name}/explain",
        ALL_LOOKING,
        "Lists what was decided about a VM, and why.",
    ),
];

/// The dashboard.
const DASHBOARD: &[Operation] = &[
    json::<DashboardView>(
        Method::Get,
        "/dashboard",
        ROOT,
        "Shows whether the dashboard is on, its link and its token.",
    ),
    json::<DashboardView>(
        Method::Post,
        "/dashboard",
        ROOT,
        "Switches the dashboard on or off, or makes a new token.",
    )
    .body::<DashboardChange>(),
    json::<View>(
        Method::Get,
        "/view",
        PAGE,
        "Describes everything that the page shows.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_operation_is_in_the_table_twice() {
        let all = OPERATIONS.iter().copied().flatten();
        let mut seen = BTreeSet::new();
        for operation in all {
            let key = (operation.method.word(), operation.path);
            assert!(seen.insert(key), "{key:?}");
            assert!(!operation.askers.is_empty(), "{key:?}");
        }
    }
}
