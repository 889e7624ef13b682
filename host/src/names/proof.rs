//! Whether names resolve on this machine, by asking as its programs ask, and what to say if they do
//! not.
//!
//! The network's own names are asked for at every look: that costs a question to a server on this
//! machine. Questions about other names go to other people's servers: one about the DNS root after
//! a change of servers, some a minute while there is no answer, and otherwise only after a
//! program's own question has failed. An answered question of a program proves more than ours.

use super::{
    glibc, loopback,
    scene::{self, ANSWER, Resolved, Scene},
    settings::{Forwarder, NameSettings, Settings},
    text::{self, NameServer},
    wire::{self, Kind},
};
use crate::Finding;
use crate::lock;
use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// How long before other people's servers are asked again.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// How long before they are asked again while names do not resolve.
/// Reason: nothing reports when they answer again.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// How long before they are asked again after the servers have changed.
const ASK_SOON: Duration = Duration::from_secs(5);

/// Our lines could not be put into the list of name servers.
pub(super) struct WriteFailure {
    pub path: PathBuf,
    pub error: io::Error,
    pub immutable: bool,
    pub server: Ipv4Addr,
}

/// What is to be proved.
pub(super) struct Question<'a> {
    pub settings: &'a Settings,
    pub wanted: &'a NameSettings,
    pub scene: &'a Scene,
    /// The list of name servers as it is.
    pub text: &'a [u8],
    /// Why systemd-resolved could not be configured.
    pub untold: Option<io::Error>,
    pub unwritten: Option<WriteFailure>,
    /// Whether another program keeps rewriting the list.
    pub rewritten: bool,
}

/// The list of name servers cannot be read.
pub(super) fn unreadable(path: &str, error: &io::Error) -> Finding {
    Finding::failed(
        format!(
            "this machine's programs do not find the network's names: {path} cannot be read: \
                {error}"
        ),
        format!("make {path} a file with 'nameserver' lines"),
    )
}

/// What keeps programs from the network's names.
pub(super) fn own_names(question: &Question<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let Question {
        scene, settings, ..
    } = question;
    let places = &settings.places;
    let asks_resolved = scene.ways.resolve && scene.reads_nsswitch();
    if asks_resolved && scene.resolved == Resolved::Hangs {
        found.push(Finding::failed(
            "names resolve slowly or not at all: systemd-resolved takes questions and does not \
                answer",
            "systemctl restart systemd-resolved",
        ));
    } else if asks_resolved && scene.resolved == Resolved::Alive {
        found.extend(by_resolved(question));
    }
    if scene.ways.dns || scene.musl {
        found.extend(by_list(question));
    }
    found.extend(glibc::trouble(scene, &places.nsswitch));
    if question.rewritten {
        found.push(Finding::warning(
            format!(
                "{} is rewritten by another program again and \
                again, {}",
                places.resolv_conf.display(),
                "several times a minute"
            ),
            "find out which ('fatrace' or 'auditctl -w' show it); until p2pvm has put its line \
                back, names of the network fail",
        ));
    }
    found
}

/// What is wrong with the way through systemd-resolved.
fn by_resolved(question: &Question<'_>) -> Option<Finding> {
    let (name, address) = &question.wanted.probe;
    let why = match scene::by_resolved(&question.settings.places.resolved, name) {
        Ok(found) if found.contains(address) => return None,
        Ok(_) => "it has another address for it".to_owned(),
        Err(error) => error.to_string(),
    };
    let (cause, advice) = match &question.untold {
        Some(error) if error.kind() == io::ErrorKind::NotFound => (
            "resolvectl, which configures it, is not installed".to_owned(),
            "install resolvectl, which belongs to systemd-resolved".to_owned(),
        ),
        Some(error) => (
            format!("it could not be configured: {}", crate::chain(&error)),
            "'resolvectl status' shows whether it can be reached".to_owned(),
        ),
        None => (
            format!("it is configured, and answers: {why}"),
            format!(
                "'resolvectl status {}' shows its configuration",
                question.settings.device
            ),
        ),
    };
    Some(Finding::failed(
        format!("systemd-resolved does not find {name}: {cause}"),
        advice,
    ))
}

/// What is wrong with a server's answer about our own name, in words; `None` if it is right.
fn wrong(server: &NameServer, name: &str, address: Ipv4Addr) -> Option<String> {
    let Some(at) = server.address() else {
        return Some("its interface is not there".into());
    };
    match wire::ask(at, name, Kind::A, ANSWER) {
        Ok(answer) if answer.addresses.contains(&address) => None,
        Ok(answer) => Some(match answer.code {
            0 => "it has another address for it".into(),
            2 => "it failed to look the name up".into(),
            3 => "it says that there is no such name".into(),
            5 => "it refuses the question".into(),
            code => format!("it answers with code {code}"),
        }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            Some("nobody listens there".into())
        }
        Err(e) if e.kind() == io::ErrorKind::TimedOut => Some("it does not answer".into()),
        Err(e) => Some(e.to_string()),
    }
}

/// What is wrong with the way through the list of name servers.
fn by_list(question: &Question<'_>) -> Vec<Finding> {
    let Question {
        wanted,
        scene,
        text,
        ..
    } = question;
    let (name, address) = &wanted.probe;
    let servers = scene::asked(text);
    let all = text::rotates(text) || (scene.musl && !scene.copied);
    let asked = if all { &servers[..] } else { &servers[..1] };
    let Some((server, why)) = asked
        .iter()
        .find_map(|server| Some((server, wrong(server, name, *address)?)))
    else {
        return Vec::new();
    };
    if wanted.server.is_none() && !wanted.trouble.is_empty() {
        // The reason why there is no server of ours is enough.
        return wanted.trouble.clone();
    }
    let is_ours = wanted
        .server
        .is_some_and(|ours| server.ip == std::net::IpAddr::V4(ours));
    if let Some((fault, advice)) = is_ours.then(loopback::fault).flatten() {
        return vec![Finding::failed(
            format!("this machine's programs do not find {name}: {fault}"),
            advice,
        )];
    }
    let (cause, advice) = if is_ours {
        (
            format!("p2pvm's own resolver at {}: {why}", server.ip),
            "see 'p2pvm peers': names are kept by the members".into(),
        )
    } else {
        why_not_ours(question, server, &why)
    };
    if scene.glibc_asks_list() {
        return vec![Finding::failed(
            format!("this machine's programs do not find {name}: {cause}"),
            advice,
        )];
    }
    // glibc's programs have another way, with findings of its own.
    let whose = "programs that read the list of name servers themselves (of the C library musl, \
        static ones)";
    let found = format!("{whose} do not find {name}: {cause}");
    vec![if scene.musl {
        Finding::failed(found, advice)
    } else {
        Finding::warning(found, advice)
    }]
}

/// Why the list of name servers leads to another server than ours, and what to do about it.
fn why_not_ours(question: &Question<'_>, server: &NameServer, why: &str) -> (String, String) {
    let path = question.settings.places.resolv_conf.display();
    if let Some(failure) = &question.unwritten {
        return failure.words();
    }
    let is_stub = scene::is_stub(std::slice::from_ref(server));
    if is_stub && question.scene.resolved != Resolved::Alive {
        return (
            format!("{path} leads to systemd-resolved, which does not run"),
            "systemctl start systemd-resolved".into(),
        );
    }
    (
        format!("{path} leads to {}, and {why}", server.ip),
        format!("see who writes {path}; p2pvm puts its name server first as soon as it can"),
    )
}

impl WriteFailure {
    /// The cause and the advice.
    fn words(&self) -> (String, String) {
        let Self { error, server, .. } = self;
        let path = self.path.display();
        let by_hand = format!("make 'nameserver {server}' the first name server in it by hand");
        if self.immutable {
            (
                format!("{path} is immutable, so that p2pvm cannot add its name server"),
                format!("chattr -i {path}; or {by_hand}"),
            )
        } else {
            (
                format!(
                    "p2pvm cannot add its name server to {path}: {}",
                    crate::chain(&error)
                ),
                format!("make it writable, or {by_hand}"),
            )
        }
    }
}

/// Whether other names resolve. A thread of its own asks, so that nothing waits for it.
pub(super) struct OutsideCheck {
    bell: Arc<UnixStream>,
    /// The servers of the last question, and when it was asked.
    asked: Option<(Option<SocketAddr>, Vec<SocketAddr>, Instant)>,
    said: Arc<Mutex<OutsideResult>>,
}

/// What is wrong with other names, and when that was found.
#[derive(Default)]
struct OutsideResult {
    found: Vec<Finding>,
    at: Option<Instant>,
}

impl OutsideCheck {
    pub fn new(bell: UnixStream) -> Self {
        Self {
            bell: Arc::new(bell),
            asked: None,
            said: Arc::default(),
        }
    }

    /// What is known to be wrong with other names. Asks again if that is due. `first` is the server
    /// that programs ask, `servers` are those that ours asks.
    pub fn look(
        &mut self,
        first: Option<SocketAddr>,
        servers: &[SocketAddr],
        ours: &dyn Forwarder,
    ) -> Vec<Finding> {
        let said = self.still_said(ours.answered());
        let now = Instant::now();
        let due = match &self.asked {
            None => true,
            Some((_, _, at)) if now.duration_since(*at) < ASK_SOON => false,
            Some((known, of, _)) if (*known, of.as_slice()) != (first, servers) => true,
            Some((_, _, at)) if said.is_empty() => {
                ours.is_stuck() && now.duration_since(*at) >= ASK_EVERY
            }
            Some((_, _, at)) => now.duration_since(*at) >= ASK_AGAIN,
        };
        if let Some(first) = first.filter(|_| due) {
            self.asked = Some((Some(first), servers.to_vec(), now));
            self.ask(first, servers.to_vec());
        }
        said
    }

    /// What was found, unless a program's question has been answered since.
    fn still_said(&self, answered: Option<Instant>) -> Vec<Finding> {
        let mut said = lock(&self.said);
        if answered > said.at {
            said.found.clear();
        }
        said.found.clone()
    }

    fn ask(&self, first: SocketAddr, servers: Vec<SocketAddr>) {
        let (result, bell) = (self.said.clone(), self.bell.clone());
        let asking = std::thread::Builder::new()
            .name("names-outside".into())
            .spawn(move || {
                let found: Vec<Finding> = other_names(first, &servers).into_iter().collect();
                let mut result = lock(&result);
                result.at = Some(Instant::now());
                if result.found != found {
                    result.found = found;
                    let _ = (&*bell).write_all(&[0]);
                }
            });
        if let Err(error) = asking {
            tracing::debug!(
                error = %crate::chain(&error),
                "cannot check whether other names resolve"
            );
        }
    }
}

/// Whether a server answers the question, in any way but that it cannot.
fn serves(server: SocketAddr) -> bool {
    wire::ask(server, "", Kind::Ns, ANSWER * 2).is_ok_and(|answer| !matches!(answer.code, 2 | 5))
}

fn other_names(first: SocketAddr, servers: &[SocketAddr]) -> Option<Finding> {
    if serves(first) {
        return None;
    }
    let list: Vec<String> = servers
        .iter()
        .map(|server| server.ip().to_string())
        .collect();
    let none_named = servers
        .iter()
        .all(|server| server.ip() == Ipv4Addr::LOCALHOST)
        && !servers.iter().any(|server| serves(*server));
    Some(if servers.is_empty() || none_named {
        Finding::warning(
            "names outside the network do not resolve: this machine has no name server for them \
                that answers",
            "name one in /etc/resolv.conf, or by what manages this machine's network",
        )
    } else {
        Finding::warning(
            format!(
                "names outside the network do not resolve: of this machine's name servers ({}) \
                    none answers",
                list.join(", ")
            ),
            "see whether this machine reaches them, or name others by what manages its network",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::settings::Neighbour;
    use std::{io::Read, net::UdpSocket};

    /// A resolver of ours that was last asked with success at a time.
    struct Answered(Option<Instant>);

    impl Forwarder for Answered {
        fn lead(&self, _: Vec<SocketAddr>, _: Vec<Neighbour>) {}

        fn is_stuck(&self) -> bool {
            false
        }

        fn answered(&self) -> Option<Instant> {
            self.0
        }
    }

    #[test]
    fn a_program_s_answered_question_settles_that_names_do_not_resolve() {
        let (bell, mut rung) = UnixStream::pair().unwrap();
        // Nobody listens there any more.
        let gone = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut outside = OutsideCheck::new(bell);
        let before = Answered(Some(Instant::now()));
        assert_eq!(outside.look(Some(gone), &[gone], &before), []);
        rung.read_exact(&mut [0]).unwrap();
        assert_eq!(
            outside.look(Some(gone), &[gone], &before).len(),
            1,
            "an earlier answer proves nothing"
        );
        assert_eq!(outside.look(Some(gone), &[gone], &Answered(None)).len(), 1);
        assert_eq!(
            outside.look(Some(gone), &[gone], &Answered(Some(Instant::now()))),
            []
        );
        assert_eq!(
            outside.look(Some(gone), &[gone], &before),
            [],
            "and it does not come back by itself"
        );
    }
}
