//! Polls the daemon and puts its answers into the screen's model. The control API says more than
//! a screen shows; this is the only place that converts its types into the screen's.

use super::News;
use p2pvm_api::{
    ClusterVms, Decided, InviteAnswer, InviteRequest, Outcome, Peer, Status, VmView,
    client::Client, udp_port,
};
use p2pvm_console::{Activity, DaemonState, Decision, Invitation, Member, Model, Node, Vm};
use p2pvm_daemon::{layout::Layout, lock, sight::local_addresses};
use p2pvm_host::Level;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// How often the daemon is polled.
const EVERY: Duration = Duration::from_secs(1);
/// How long the daemon may be silent before the screen says so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often all members' VMs are asked for. Reason: that is a broadcast over the ring.
const VMS_EVERY: Duration = Duration::from_secs(2);
/// How long the VMs' answer may take. Reason: the daemon waits for a member that just died, on the
/// ring (4 s) and then directly (3 s).
const VMS_PATIENCE: Duration = Duration::from_secs(10);
/// The terms of the screen's invite: number of machines and duration.
const INVITE_USES: u32 = 5;
const INVITE_VALID: Duration = Duration::from_secs(24 * 3600);

/// The daemon's own knowledge: this node and its members.
pub struct DaemonView {
    reach: DaemonState,
    online: bool,
    members: Vec<Member>,
    invitation: Option<Result<Invitation, String>>,
}

impl DaemonView {
    fn without(reach: DaemonState) -> Self {
        Self {
            reach,
            online: !local_addresses().is_empty(),
            members: vec![],
            invitation: None,
        }
    }

    /// Puts it into the model.
    pub fn put_into(self, model: &mut Model) {
        model.set_reach(self.reach);
        model.online = self.online;
        if model.node().is_none() {
            return;
        }
        model.members = self.members;
        if let Some(invitation) = self.invitation {
            model.invitation = Some(invitation);
        }
    }
}

/// The members' answers about their VMs.
pub struct VmAnswers {
    vms: ClusterVms,
    decisions: Vec<Decided>,
}

impl VmAnswers {
    /// Puts it into the model, if the daemon still answers.
    pub fn put_into(self, model: &mut Model) {
        if model.node().is_none() {
            return;
        }
        // The newest list also has names for the ids of VMs that moved away.
        let names: HashMap<&str, &str> = self
            .vms
            .vms
            .iter()
            .map(|vm| (vm.id.as_str(), vm.name.as_str()))
            .collect();
        model.decisions = self.decisions.iter().map(|d| decision(d, &names)).collect();
        model.vms = self.vms.vms.iter().map(vm).collect();
        model.silent = self.vms.silent;
    }
}

/// Polls until nobody listens any more. On the machine's own console a network with one member
/// shows its invite at once. The VMs are polled concurrently, so that the rest of the screen stays
/// live while the daemon waits for a member that died.
pub(super) async fn run(layout: Layout, tell: mpsc::Sender<News>, console: bool) {
    let (up, is_up) = watch::channel(false);
    tokio::select! {
        () = run_node(&layout, &tell, &up, console) => {}
        () = run_vms(&layout, &tell, is_up) => {}
    }
}

async fn run_node(
    layout: &Layout,
    tell: &mpsc::Sender<News>,
    up: &watch::Sender<bool>,
    console: bool,
) {
    let mut invited = None::<Instant>;
    loop {
        let mut seen = look(layout).await;
        let alone = matches!(
            &seen.reach, DaemonState::Up(node) if !node.joined_another && node.address.is_some()
        ) && seen.members.is_empty();
        if console && alone && invited.is_none_or(|at| at.elapsed() >= INVITE_VALID / 2) {
            let invite = invite(layout).await;
            invited = invite.is_ok().then(Instant::now);
            seen.invitation = Some(invite);
        }
        let answers = matches!(seen.reach, DaemonState::Up(_));
        if !answers {
            invited = None;
        }
        if tell.send(News::Seen(Box::new(seen))).await.is_err() {
            return;
        }
        up.send_replace(answers);
        tokio::time::sleep(EVERY).await;
    }
}

async fn run_vms(layout: &Layout, tell: &mpsc::Sender<News>, mut up: watch::Receiver<bool>) {
    while up.wait_for(|up| *up).await.is_ok() && !tell.is_closed() {
        if let Some(told) = look_for_vms(layout, VMS_PATIENCE).await
            && tell.send(News::Vms(Box::new(told))).await.is_err()
        {
            return;
        }
        tokio::time::sleep(VMS_EVERY).await;
    }
}

/// Polls everything once.
pub async fn look_at_all(layout: &Layout, model: &mut Model) {
    look_within(layout, VMS_PATIENCE, model).await;
}

async fn look_within(layout: &Layout, for_vms: Duration, model: &mut Model) {
    let (seen, told) = tokio::join!(look(layout), look_for_vms(layout, for_vms));
    seen.put_into(model);
    if let Some(told) = told {
        told.put_into(model);
    }
}

/// Polls this node and its members once.
async fn look(layout: &Layout) -> DaemonView {
    if !layout.is_member() {
        return DaemonView::without(DaemonState::NoMembership);
    }
    // The daemon may run and not accept connections yet. Its later answer counts, also if that is
    // an error.
    let mut client = match Client::connect(&layout.socket()).await {
        Ok(client) => client,
        Err(_) if lock::holder(layout).is_some() => {
            return DaemonView::without(DaemonState::Starting);
        }
        Err(failure) => return DaemonView::without(DaemonState::Away(failure.message)),
    };
    let ask = async {
        let status: Status = client.get("/status").await?;
        let peers: Vec<Peer> = client.get("/peers").await?;
        let members = peers.into_iter().map(member).collect();
        Outcome::Ok(DaemonView {
            members,
            ..DaemonView::without(DaemonState::Up(Box::new(node(status))))
        })
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(failure)) => DaemonView::without(DaemonState::Away(failure.message)),
        Err(_) => DaemonView::without(DaemonState::Away(away(layout))),
    }
}

/// The message about a daemon that does not answer.
fn away(layout: &Layout) -> String {
    let silence = lock::silence(layout).map(|(found, advice)| format!("{found}: {advice}"));
    silence.unwrap_or_else(|| format!("the daemon has not answered for {} s", PATIENCE.as_secs()))
}

/// Polls the network's VMs and the decisions about them once; `None` if nobody answers, such as
/// before the ring is joined.
async fn look_for_vms(layout: &Layout, limit: Duration) -> Option<VmAnswers> {
    let ask = async {
        let mut client = Client::connect(&layout.socket()).await.ok()?;
        let vms = client.get::<ClusterVms>("/cluster/vms").await.ok()?;
        Some(VmAnswers {
            vms,
            decisions: client.get("/decisions").await.unwrap_or_default(),
        })
    };
    tokio::time::timeout(limit, ask).await.ok()?
}

/// Another member as the screen's type.
fn member(p: Peer) -> Member {
    Member {
        name: p.name,
        address: p.address,
        connected: p.connected,
        linked: p.linked,
        path: p.path,
        rtt_ms: p.rtt_ms,
    }
}

/// This node as the screen's type.
fn node(s: Status) -> Node {
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
        control_port: s.listen.iter().find_map(|address| udp_port(address)),
        wanting: s.address_wanting,
        failing: s
            .findings
            .iter()
            .filter(|f| f.level == Level::Failed)
            .map(|f| f.found.clone())
            .collect(),
        warnings: s
            .findings
            .iter()
            .filter(|f| f.level == Level::Warning)
            .count(),
        version: s.version,
    }
}

/// A VM as the screen's type.
fn vm(v: &VmView) -> Vm {
    let moving = v.moving.as_ref().map(|m| Activity {
        what: format!("moving to {}: {}", m.to, m.step.phase),
        share: (m.step.total_bytes > 0)
            .then(|| m.step.done_bytes as f64 / m.step.total_bytes as f64),
    });
    Vm {
        name: v.name.clone(),
        state: v.state.clone(),
        host: v.host.clone(),
        address: v.address.clone(),
        cpu: v.cpu,
        cpus: v.cpus,
        doing: moving.or_else(|| {
            v.activity.as_ref().map(|activity| Activity {
                what: activity.to_string(),
                share: None,
            })
        }),
        note: v.note.clone(),
    }
}

fn decision(d: &Decided, names: &HashMap<&str, &str>) -> Decision {
    Decision {
        at: d
            .explained
            .at
            .get(11..19)
            .unwrap_or(&d.explained.at)
            .to_owned(),
        vm: names
            .get(d.vm.as_str())
            .map_or_else(|| d.vm.short(8), |name| (*name).to_owned()),
        text: d.explained.text.clone(),
    }
}

/// An invite for the screen: short, so that its QR code is small.
pub async fn invite(layout: &Layout) -> Result<Invitation, String> {
    let request = InviteRequest {
        uses: INVITE_USES,
        expires_seconds: INVITE_VALID.as_secs(),
        delegate: false,
        groups: Vec::new(),
        short: true,
    };
    let asked = async {
        Client::connect(&layout.socket())
            .await?
            .post::<InviteAnswer>("/invite", &request)
            .await
    };
    let answer = asked.await.map_err(|failure| failure.message)?;
    let terms = format!(
        "for {INVITE_USES} machines, valid {}",
        humantime::format_duration(INVITE_VALID)
    );
    Ok(Invitation {
        text: answer.invite,
        terms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use p2pvm_api::Health;
    use p2pvm_console::{Options, Theme};

    #[tokio::test]
    async fn a_daemon_waiting_for_others_vms_is_shown_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        p2pvm_daemon::membership::found(
            &layout,
            ("lab", Some("10.99.0.0/16")),
            ("attic", &[]),
            true,
        )
        .unwrap();
        let peers = vec![Peer {
            name: "cellar".into(),
            connected: true,
            ..Peer::default()
        }];
        let status = Status {
            name: "attic".into(),
            address: Some("10.99.0.1".into()),
            ..Status::default()
        };
        let daemon = Router::new()
            .route("/status", get(move || async move { Json(status) }))
            .route("/peers", get(move || async move { Json(peers) }))
            .route("/cluster/vms", get(std::future::pending::<()>));
        let listener = tokio::net::UnixListener::bind(layout.socket()).unwrap();
        let served = tokio::spawn(axum::serve(listener, daemon).into_future());
        let mut model = Model::new(Theme::PLAIN, Options::default());
        look_within(&layout, Duration::from_millis(200), &mut model).await;
        assert_eq!(
            model.node().map(|node| node.name.as_str()),
            Some("attic"),
            "{:?}",
            model.reach
        );
        assert_eq!(model.members.len(), 1);
        assert!(
            !matches!(model.health().0, Health::Starting | Health::Down),
            "{:?}",
            model.health()
        );
        served.abort();
    }
}
