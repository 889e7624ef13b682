//! The screen's content: the state of node and network, and the dialog that is open.

use crate::Theme;
use p2pvm_api::{Health, Vitals, VmStateView, lost};

/// The state of the daemon.
#[derive(Clone, Debug, PartialEq)]
pub enum DaemonState {
    /// The machine belongs to no network.
    NoMembership,
    /// No daemon answers; the text says why, if that is known.
    Away(String),
    /// A daemon holds the lock and does not answer yet.
    Starting,
    /// It answers.
    Up(Box<Node>),
}

/// This node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Its address, once claimed.
    pub address: Option<String>,
    /// Its IPv6 address.
    pub address_v6: String,
    /// Its address as others see it.
    pub seen_as: Option<String>,
    /// The NAT or firewall in front of it.
    pub nat: String,
    /// Load of the host's processors, 0 to 1.
    pub cpu: f64,
    /// Resident memory of the daemon, bytes.
    pub resident_bytes: u64,
    /// Seconds since the daemon started.
    pub up_seconds: u64,
    /// Whether it has its place on the ring.
    pub on_ring: bool,
    /// Whether it has had its place since the daemon started.
    pub was_on_ring: bool,
    /// Whether it came into the network by an invite, so that others must be there.
    pub joined_another: bool,
    /// The port by which members connect to it, UDP and TCP.
    pub control_port: Option<u16>,
    /// Why no address is claimed yet, if known.
    pub wanting: Option<String>,
    /// The faults of this machine, each a sentence with its cause.
    pub failing: Vec<String>,
    /// How many things work less well than they could.
    pub warnings: usize,
    /// The program's version.
    pub version: String,
}

/// Another member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its address, if known.
    pub address: Option<String>,
    /// Whether a control connection is up.
    pub connected: bool,
    /// Whether packets reach it both ways.
    pub linked: bool,
    /// The packet path in words, if there is a link.
    pub path: Option<String>,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: VmStateView,
    /// The member that has it.
    pub host: String,
    /// Its address.
    pub address: String,
    /// How many processors it keeps busy, if its host reports it.
    pub cpu: Option<f64>,
    /// Virtual processors.
    pub cpus: u32,
    /// A long operation on it.
    pub doing: Option<Activity>,
    /// Why it is in a state that was not requested.
    pub note: Option<String>,
}

impl Vm {
    pub(crate) fn is_troubled(&self) -> bool {
        self.state.is_troubled(self.note.is_some())
    }
}

/// A long operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// The operation, in a few words.
    pub what: String,
    /// How far, 0 to 1, if that is known.
    pub share: Option<f64>,
}

/// A decision that the node made by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// When, in short.
    pub at: String,
    /// The VM.
    pub vm: String,
    /// What and why.
    pub text: String,
}

/// An invite to be shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Invitation {
    /// Its text.
    pub text: String,
    /// For how long and how many machines, in words.
    pub terms: String,
}

/// The actions that are offered on this terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether this is the machine's own console, which does not end and may reboot the machine or
    /// power it off.
    pub console: bool,
    /// Whether a shell may be opened.
    pub shell: bool,
}

/// The stage of joining a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum JoinPhase {
    /// The invite is being typed.
    #[default]
    Typing,
    /// It is being checked, or used.
    Working,
    /// It is valid, but the machine would have to leave its own network first.
    AskLeave,
}

/// How the machine is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// With a restart.
    Reboot,
    /// For good.
    Off,
}

/// The screen that is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Screen {
    /// The overview.
    #[default]
    Main,
    /// The daemon's last lines, seen from `back` lines above the end.
    Logs {
        /// Lines scrolled back.
        back: usize,
    },
    /// The invite; page 0 is its text, others are QR codes.
    Invite {
        /// The page.
        page: usize,
    },
    /// The user enters an invite.
    Join {
        /// The text typed so far.
        input: String,
        /// The result of the last try.
        answer: Option<String>,
        /// The stage.
        phase: JoinPhase,
    },
    /// The user is asked whether to stop the machine.
    Confirm {
        /// How.
        power: Power,
        /// Whether it was confirmed once.
        again: bool,
    },
    /// The keys.
    Help,
}

/// Everything that is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The daemon and this node.
    pub reach: DaemonState,
    /// Whether the machine has an address on a network.
    pub online: bool,
    /// The other members.
    pub members: Vec<Member>,
    /// The network's VMs.
    pub vms: Vec<Vm>,
    /// Members that did not answer.
    pub silent: Vec<String>,
    /// The last decisions, the newest first.
    pub decisions: Vec<Decision>,
    /// The invite, once there is one.
    pub invitation: Option<Result<Invitation, String>>,
    /// The daemon's last lines.
    pub logs: Vec<String>,
    /// A message that is shown once.
    pub notice: Option<String>,
    /// The time of day.
    pub clock: String,
    /// A warning that this node's state is lost at power-off, if it is.
    pub warning: Option<String>,
    /// The screen that is shown.
    pub screen: Screen,
    /// The first member shown.
    pub scroll: usize,
    /// The actions that may be taken here.
    pub options: Options,
    /// The terminal's abilities.
    pub theme: Theme,
    /// The terminal's size, columns and rows.
    pub size: (u16, u16),
}

impl Model {
    /// A model without any answer of the daemon yet.
    pub fn new(theme: Theme, options: Options) -> Self {
        Self {
            reach: DaemonState::Starting,
            online: true,
            members: Vec::new(),
            vms: Vec::new(),
            silent: Vec::new(),
            decisions: Vec::new(),
            invitation: None,
            logs: Vec::new(),
            notice: None,
            clock: String::new(),
            warning: None,
            screen: Screen::Main,
            scroll: 0,
            options,
            theme,
            size: (80, 24),
        }
    }

    /// This node, if its daemon answers.
    pub fn node(&self) -> Option<&Node> {
        match &self.reach {
            DaemonState::Up(node) => Some(node),
            _ => None,
        }
    }

    /// Sets the daemon's state. If no daemon answers, its earlier answers are cleared.
    pub fn set_reach(&mut self, reach: DaemonState) {
        if !matches!(reach, DaemonState::Up(_)) {
            self.members.clear();
            self.vms.clear();
            self.silent.clear();
            self.decisions.clear();
            self.invitation = None;
        }
        self.reach = reach;
    }

    /// Whether this node is the only member of a network that it founded, and has no VMs that
    /// leaving would lose.
    pub fn is_alone(&self) -> bool {
        self.node().is_some_and(|node| !node.joined_another)
            && self.members.is_empty()
            && self.vms.is_empty()
    }

    /// Asks the user whether to leave the machine's own network for the one of a valid invite.
    pub fn ask_to_leave(&mut self, network: &str) {
        let own = self
            .node()
            .map_or_else(String::new, |node| node.network.clone());
        if let Screen::Join { answer, phase, .. } = &mut self.screen {
            *answer = Some(format!(
                "This machine is alone in its own network '{own}'. Leave it and join '{network}'? \
                    (y/n)"
            ));
            *phase = JoinPhase::AskLeave;
        }
    }

    /// Shows the result of joining; `Ok` closes the dialog.
    pub fn join_ended(&mut self, outcome: Result<String, String>) {
        match (outcome, &mut self.screen) {
            (Ok(said), _) => {
                self.screen = Screen::Main;
                self.notice = Some(said);
            }
            (Err(reason), Screen::Join { answer, phase, .. }) => {
                *answer = Some(reason);
                *phase = JoinPhase::Typing;
            }
            (Err(reason), _) => self.notice = Some(reason),
        }
    }
}

impl Model {
    /// The health and the reason, with the key that helps if there is one.
    pub fn health(&self) -> (Health, String) {
        let node = match &self.reach {
            DaemonState::NoMembership => {
                return (
                    Health::Outside,
                    "this machine belongs to no network: j takes an invite".to_owned(),
                );
            }
            DaemonState::Away(why) => return (Health::Down, why.clone()),
            DaemonState::Starting => {
                return (Health::Starting, "the daemon is starting".to_owned());
            }
            DaemonState::Up(node) => node,
        };
        let vitals = Vitals {
            online: self.online,
            joined_another: node.joined_another,
            has_address: node.address.is_some(),
            on_ring: node.on_ring,
            was_on_ring: node.was_on_ring,
            up_seconds: node.up_seconds,
            known: self.members.len(),
            connected: self.members.iter().filter(|m| m.connected).count(),
            linked: self.members.iter().filter(|m| m.linked).count(),
            control_port: node.control_port,
            wanting: node.wanting.as_deref(),
            failing: node.failing.iter().map(String::as_str).collect(),
            warnings: node.warnings,
            lost: lost(
                self.vms
                    .iter()
                    .filter(|vm| vm.state == VmStateView::Unreachable)
                    .map(|vm| (vm.name.as_str(), vm.note.as_deref())),
            ),
            troubled: self
                .vms
                .iter()
                .filter(|vm| vm.state != VmStateView::Unreachable && vm.is_troubled())
                .map(|vm| vm.name.as_str())
                .collect(),
            silent: &self.silent,
        };
        match vitals.health() {
            (Health::Alone, why) => (Health::Alone, format!("{why}: i makes an invite")),
            other => other,
        }
    }
}
