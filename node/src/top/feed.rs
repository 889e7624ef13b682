//! Asks the daemon what it sees and puts it into the screen's model. The control API says more than a screen shows; here is the
//! one place where its types become the screen's.

use super::News;
use crate::{
    api::{
        client::Client,
        types::{ClusterVms, Decided, InviteAnswer, InviteRequest, Peer, Status, VmView},
    },
    cli::netcheck,
    daemon::lock,
    failure::Outcome,
    layout::Layout,
};
use p2pvm_console::{Decision, Doing, Invitation, Member, Model, Node, Reach, Vm};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How often the daemon is asked.
const EVERY: Duration = Duration::from_secs(1);
/// A daemon that is there and does not answer within this is named as such.
const PATIENCE: Duration = Duration::from_secs(5);
/// The VMs of all members are a question over the ring: asked less often, and waited for only so long.
const VMS_EVERY: Duration = Duration::from_secs(2);
/// The terms of the invite that the screen makes: machines, and for how long.
const INVITE_USES: u32 = 5;
const INVITE_VALID: Duration = Duration::from_secs(24 * 3600);

/// What was seen at one look.
pub struct Seen {
    reach: Reach,
    online: bool,
    members: Vec<Member>,
    /// None: not asked this time.
    vms: Option<ClusterVms>,
    decisions: Vec<Decided>,
    invitation: Option<Result<Invitation, String>>,
}

impl Seen {
    fn without(reach: Reach) -> Self {
        Self { reach, online: !netcheck::local_addresses().is_empty(), members: vec![], vms: None, decisions: vec![], invitation: None }
    }

    /// Puts it into the model.
    pub fn put_into(self, model: &mut Model) {
        model.set_reach(self.reach);
        model.online = self.online;
        if model.node().is_none() {
            return;
        }
        model.members = self.members;
        if let Some(found) = self.vms {
            // Names for the ids of decisions: of VMs that moved away the newest list has them too.
            let names: HashMap<&str, &str> = found.vms.iter().map(|vm| (vm.id.as_str(), vm.name.as_str())).collect();
            model.decisions = self.decisions.iter().map(|d| decision(d, &names)).collect();
            model.silent = found.silent;
            model.vms = found.vms.iter().map(vm).collect();
        }
        if let Some(invitation) = self.invitation {
            model.invitation = Some(invitation);
        }
    }
}

/// Looks until nobody listens any more. On the machine's own console a network of one shows its invite unasked.
pub(super) async fn run(layout: Layout, tell: mpsc::Sender<News>, console: bool) {
    let (mut asked_vms, mut invited) = (None::<Instant>, None::<Instant>);
    loop {
        let vms = asked_vms.is_none_or(|at| at.elapsed() >= VMS_EVERY);
        let mut seen = look(&layout, vms).await;
        if vms {
            asked_vms = Some(Instant::now());
        }
        let alone = matches!(&seen.reach, Reach::Up(node) if !node.joined_another && node.address.is_some()) && seen.members.is_empty();
        if console && alone && invited.is_none_or(|at| at.elapsed() >= INVITE_VALID / 2) {
            let invite = invite(&layout).await;
            invited = invite.is_ok().then(Instant::now);
            seen.invitation = Some(invite);
        }
        if !matches!(seen.reach, Reach::Up(_)) {
            invited = None;
        }
        if tell.send(News::Seen(Box::new(seen))).await.is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// One look; `vms` says whether the network's VMs are asked for.
pub async fn look(layout: &Layout, vms: bool) -> Seen {
    if !layout.is_member() {
        return Seen::without(Reach::NoMembership);
    }
    match tokio::time::timeout(PATIENCE, ask(layout, vms)).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(_)) if lock::holder(layout).is_some() => Seen::without(Reach::Starting),
        Ok(Err(failure)) => Seen::without(Reach::Away(failure.message)),
        Err(_) => Seen::without(Reach::Away(format!("the daemon has not answered for {} s", PATIENCE.as_secs()))),
    }
}

async fn ask(layout: &Layout, vms: bool) -> Outcome<Seen> {
    let mut client = Client::connect(&layout.socket()).await?;
    let status: Status = client.get("/status").await?;
    let peers: Vec<Peer> = client.get("/peers").await?;
    // The VMs may be late, or the ring not there yet: the rest is shown all the same.
    let (vms, decisions) = if vms {
        (client.get::<ClusterVms>("/cluster/vms").await.ok(), client.get("/decisions").await.unwrap_or_default())
    } else {
        (None, Vec::new())
    };
    let members = peers.into_iter().map(member).collect();
    Ok(Seen { members, vms, decisions, ..Seen::without(Reach::Up(Box::new(node(status)))) })
}

/// Another member, as the screen has it.
pub fn member(p: Peer) -> Member {
    Member { name: p.name, address: p.address, connected: p.connected, path: p.path, rtt_ms: p.rtt_ms }
}

/// This node, as the screen has it.
pub fn node(s: Status) -> Node {
    Node {
        name: s.name,
        network: s.network,
        address: s.address,
        address_v6: s.address_v6,
        seen_as: s.reflexive,
        nat: s.nat,
        cpu: s.cpu,
        resident_bytes: s.resident_bytes,
        up_seconds: s.up_seconds,
        on_ring: s.ring.joined,
        was_on_ring: s.ring.was_joined,
        joined_another: s.joined_another,
        version: s.version,
    }
}

/// A VM, as the screen has it.
pub fn vm(v: &VmView) -> Vm {
    let moving = v.moving.as_ref().map(|m| Doing {
        what: format!("moving to {}: {}", m.to, m.step.phase),
        share: (m.step.total_bytes > 0).then(|| m.step.done_bytes as f64 / m.step.total_bytes as f64),
    });
    Vm {
        name: v.name.clone(),
        state: v.state.clone(),
        host: v.host.clone(),
        address: v.address.clone(),
        cpu: v.cpu,
        cpus: v.cpus,
        doing: moving.or_else(|| v.activity.clone().map(|what| Doing { what, share: None })),
        note: v.note.clone(),
    }
}

fn decision(d: &Decided, names: &HashMap<&str, &str>) -> Decision {
    let short: String = d.vm.chars().take(8).collect();
    Decision {
        at: d.explained.at.get(11..19).unwrap_or(&d.explained.at).to_owned(),
        vm: names.get(d.vm.as_str()).map_or(short, |name| (*name).to_owned()),
        text: d.explained.text.clone(),
    }
}

/// An invite for the screen: short, so that its QR code is small.
pub async fn invite(layout: &Layout) -> Result<Invitation, String> {
    let request =
        InviteRequest { uses: INVITE_USES, expires_seconds: INVITE_VALID.as_secs(), delegate: false, groups: Vec::new(), short: true };
    let asked = async { Client::connect(&layout.socket()).await?.post::<InviteAnswer>("/invite", &request).await };
    let answer = asked.await.map_err(|failure| failure.message)?;
    let terms = format!("for {INVITE_USES} machines, valid {}", humantime::format_duration(INVITE_VALID));
    Ok(Invitation { text: answer.invite, terms })
}
