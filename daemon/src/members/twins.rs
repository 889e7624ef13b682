//! Detects a second machine that runs with a copy of this node's state, and gives the identity up
//! to it if `protocol` decides so.
//!
//! Every member keeps a board for other members ([`Ask::Met`]). This node leaves its statement with
//! the connected member nearest to its own place on the ring; the answer holds the statements that
//! its twins left there.
//!
//! The instance that gives way first stops its guests: they are copies of VMs that also run at the
//! twin that keeps the identity. Their disks stay as branches. Then it asks a member with the right
//! to admit for an invite for its successor ([`Ask::Successor`]) and restarts, which
//! [`crate::succession`] completes. docs/decisions/0022-cloned-state.md has the reasons for this
//! protocol and its limits.

mod protocol;

use crate::{layout::Layout, lifecycle::Lifecycle, parts::Parts, succession};
use async_trait::async_trait;
use p2pvm_api::EventKind;
use p2pvm_authority::Subject;
use p2pvm_dht::RecordError;
use p2pvm_host::lock;
use p2pvm_overlay::{
    FabricError, MemberId, RingAddr, Serve, UnixTime,
    control::ControlEvent,
    identity::KeyPair,
    membership::{Invite, InviteTerms},
};
use p2pvm_vm_manager::host::{Host, VmState};
use protocol::{Board, InstanceId, Rank, Statement, TELL_EVERY, Verdict, Watch};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

const SERVICE: &str = "twin";
/// How long to wait for the board's answer. Reason: it takes one round trip.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often this instance sends its statement while it is unknown whether another one lives.
const TELL_SOON: Duration = Duration::from_secs(5);
/// How many rounds this takes at most. Reason: another instance sends its own statement every
/// [`TELL_EVERY`], so after these it has answered or does not live.
const SOON_ROUNDS: u32 = 12;
/// How long to wait for further connections after one. Reason: members that connect in one burst
/// cause one statement.
const GATHER: Duration = Duration::from_millis(300);
/// How many successors one member gets a day. Reason: a template that is started more often needs
/// an invite for each machine.
const SUCCESSORS_A_DAY: u8 = 4;
const DAY: Duration = Duration::from_secs(86_400);
/// How long a successor's invite is valid. Reason: a successor joins at once, or asks again.
const INVITE_SECONDS: u64 = 3600;
/// How long to wait for an invite, and between two attempts. Reason: the issuer makes a DHT lookup.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Store this statement for the sender's twins, and return theirs.
    Met(Statement),
    /// Issue an invite for the member that the sender becomes.
    Successor,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
enum Reply {
    /// The statements that the sender's twins left.
    Others(Vec<Statement>),
    /// The text of an invite.
    Invite(String),
    /// The reason why there is no invite.
    No(String),
}

/// Detects twins of this node and gives way to them.
pub(crate) struct Twins {
    parts: Arc<Parts>,
    host: Arc<Host>,
    lifecycle: Arc<Lifecycle>,
    layout: Layout,
}

/// Serves other members and looks for twins, as long as the daemon runs.
pub(crate) async fn run(twins: Arc<Twins>) {
    let board = Arc::new(Mutex::new(Board::default()));
    twins.parts.fabric().serve(
        SERVICE,
        Arc::new(Desk {
            twins: Arc::downgrade(&twins),
            board,
            began: Instant::now(),
        }),
    );
    let mut events = twins.parts.control.events();
    let rank = Rank {
        guests: twins.runs_guests(),
        started: UnixTime::now(),
    };
    let mut watch = Watch::new(twins.parts.me(), InstanceId::random(), rank);
    let (mut soon, mut heard_of) = (0u32, 0);
    loop {
        let wait = if soon > 0 { TELL_SOON } else { TELL_EVERY };
        let _ = tokio::time::timeout(wait, met_somebody(&mut events)).await;
        soon = soon.saturating_sub(1);
        watch.set_guests(twins.runs_guests());
        for other in twins.tell(&watch).await {
            let instance = other.instance();
            let verdict = watch.handle(other);
            if verdict.is_some() {
                let text = "Another machine runs with a copy of this node's state.";
                let events = &twins.parts.events;
                events.record(EventKind::TwinFound, Subject::Host, &[], text);
            }
            match verdict {
                Some(Verdict::Keep(_)) => tracing::warn!(
                    %instance,
                    "another machine runs with a copy of this node's state: it has to take an \
                        identity of its own, this one goes on"
                ),
                Some(Verdict::GiveWay(_)) => return twins.give_way(instance).await,
                None => {
                    tracing::debug!(%instance, "this node has started more than once, or lives \
                        twice")
                }
            }
        }
        if watch.heard_of() > heard_of {
            (soon, heard_of) = (SOON_ROUNDS, watch.heard_of());
        }
    }
}

/// Waits until a member has connected, and a moment longer for others.
async fn met_somebody(events: &mut Receiver<ControlEvent>) {
    loop {
        match events.recv().await {
            Ok(ControlEvent::Connected(_)) | Err(RecvError::Lagged(_)) => {
                return tokio::time::sleep(GATHER).await;
            }
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Twins {
    pub(crate) fn new(
        parts: Arc<Parts>,
        host: Arc<Host>,
        lifecycle: Arc<Lifecycle>,
        layout: Layout,
    ) -> Arc<Self> {
        Arc::new(Self {
            parts,
            host,
            lifecycle,
            layout,
        })
    }

    fn runs_guests(&self) -> bool {
        self.host
            .list()
            .iter()
            .any(|vm| matches!(vm.state, VmState::Running | VmState::Leaving))
    }

    /// Leaves this instance's statement on the board that its twins use too, and returns theirs.
    /// Asks one board, one question at a time.
    async fn tell(&self, watch: &Watch) -> Vec<Statement> {
        let place = self.parts.me().ring_addr();
        let Some(nearest) = self
            .parts
            .fabric()
            .nearby(place, 2)
            .into_iter()
            .find(|m| *m != self.parts.me())
        else {
            return Vec::new();
        };
        match self
            .ask_twin_desk(
                nearest,
                &Ask::Met(watch.statement(self.parts.identity.keys())),
                TELL_TIMEOUT,
            )
            .await
        {
            Ok(Reply::Others(others)) => others,
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::debug!(
                    error = %p2pvm_host::chain(&error),
                    "a member did not say which instances it knows"
                );
                Vec::new()
            }
        }
    }

    async fn ask_twin_desk(
        &self,
        member: MemberId,
        ask: &Ask,
        limit: Duration,
    ) -> Result<Reply, FabricError> {
        let refused = |e: postcard::Error| FabricError::Refused(member, e.to_string());
        let body = postcard::to_allocvec(ask).map_err(refused)?;
        let answer = self
            .parts
            .fabric()
            .call(member, SERVICE, body, limit)
            .await?;
        postcard::from_bytes(&answer).map_err(refused)
    }

    /// Gives the identity up to another machine and becomes a member of its own.
    async fn give_way(self: Arc<Self>, to: InstanceId) {
        tracing::error!(
            instance = %to,
            "another machine runs with a copy of this node's state and keeps its identity: the \
                VMs here are stopped, as they are copies, \
             and this machine becomes a member of its own"
        );
        self.host.give_up_all().await;
        let mut trouble = p2pvm_host::Repeated::new();
        let invite = loop {
            match self.ask_for_successor().await {
                Ok(invite) => break invite,
                Err(why) => {
                    if let Some(times) = trouble.again(&why) {
                        tracing::warn!(
                            why,
                            times,
                            "this machine has no invite for an identity of its own yet"
                        );
                    }
                }
            }
            tokio::time::sleep(ASK_TIMEOUT).await;
        };
        match succession::plan(&self.layout, &invite, self.parts.certificate.name()) {
            Ok(()) => self.lifecycle.start_again(),
            Err(failure) => {
                tracing::error!(%failure, "this machine cannot take an identity of its own; its \
                    VMs stay stopped")
            }
        }
    }

    /// Asks the members with the right to admit, this node last. Reason: if this node has the
    /// network's key, its twin has it too.
    async fn ask_for_successor(&self) -> Result<String, String> {
        let control = &self.parts.control;
        let may_admit = |m: &MemberId| control.certificate(*m).is_some_and(|c| c.rights().admit);
        let issuers = control
            .peers()
            .into_iter()
            .map(|peer| peer.member)
            .filter(may_admit);
        let mut why = "no member that may admit is known".to_owned();
        for issuer in issuers.chain(control.issuer().is_some().then(|| self.parts.me())) {
            why = match self
                .ask_twin_desk(issuer, &Ask::Successor, ASK_TIMEOUT)
                .await
            {
                Ok(Reply::Invite(invite)) => return Ok(invite),
                Ok(Reply::No(why)) => why,
                Ok(Reply::Others(_)) => "an answer to another question".to_owned(),
                Err(error) => error.to_string(),
            };
        }
        Err(why)
    }

    /// Issues an invite for the member that a copy of `member` becomes: one use, the same groups,
    /// no right to admit. The new certificate names the original member, so that revoking that one
    /// revokes the copy.
    async fn invite_successor(&self, member: MemberId) -> Result<String, String> {
        let issuer = self
            .parts
            .control
            .issuer()
            .ok_or("this member may not admit anyone")?;
        let certificate = self
            .parts
            .control
            .certificate(member)
            .ok_or("a member without a certificate")?;
        let no_room = "this member is in too many groups for a note of whose copy it is: invite \
            the machine as a new one";
        let groups = certificate
            .groups()
            .of_copy(member)
            .map_err(|_| no_room.to_owned())?;
        self.take_turn(member).await?;
        let known = self
            .parts
            .control
            .peers()
            .into_iter()
            .filter(|peer| peer.connected)
            .flat_map(|peer| peer.addresses);
        let addresses: Vec<String> = if member == self.parts.me() {
            known.collect()
        } else {
            self.parts.control.contact_addrs()
        };
        let expires = UnixTime::now().plus(INVITE_SECONDS);
        let terms = InviteTerms {
            uses: 1,
            expires,
            delegate: false,
            groups,
        };
        let invite = Invite::issue(&issuer, &self.parts.network, &addresses, terms)
            .map_err(|e| e.to_string())?;
        tracing::warn!(
            member = %self.parts.name_of(member), id = %member, invite = %invite.id(),
            "a copy of this member's state is invited as a member of its own"
        );
        Ok(invite.to_text())
    }

    /// Counts the successors of a member, across all issuers: each is a record that only one issuer
    /// can create.
    async fn take_turn(&self, member: MemberId) -> Result<(), String> {
        for turn in 0..SUCCESSORS_A_DAY {
            let key = RingAddr::of(
                "p2pvm 2026 successor of a member",
                &[&member.0[..], &[turn]].concat(),
            );
            // Each record has a key of its own, so that nobody, this host included, can free a
            // taken turn.
            match self
                .parts
                .records()
                .create(&KeyPair::generate(), key, Vec::new(), DAY)
                .await
            {
                Ok(_) => return Ok(()),
                Err(RecordError::Exists(_)) => {}
                Err(e) => return Err(p2pvm_host::chain(&e)),
            }
        }
        Err(format!(
            "{SUCCESSORS_A_DAY} copies of this member have become members within a day: invite \
                further machines one by one"
        ))
    }
}

/// Answers other members: the board, and invites for successors.
struct Desk {
    twins: Weak<Twins>,
    board: Arc<Mutex<Board>>,
    began: Instant,
}

#[async_trait]
impl Serve for Desk {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let answer = match postcard::from_bytes(&body).map_err(|e| e.to_string())? {
            Ask::Met(statement) => {
                let mut board = lock(&self.board);
                Reply::Others(board.exchange(self.began.elapsed(), from, statement))
            }
            Ask::Successor => {
                let twins = self.twins.upgrade().ok_or("the node is shutting down")?;
                twins
                    .invite_successor(from)
                    .await
                    .map_or_else(Reply::No, Reply::Invite)
            }
        };
        postcard::to_allocvec(&answer).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
#[path = "twins_golden_tests.rs"]
mod golden_tests;
