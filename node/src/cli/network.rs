//! The commands that found, join, leave and show a network.

use super::{
    Context,
    args::{Init, Invite, Join, Ping, Up},
    print::{self, ms, or_dash},
    progress::Progress,
    silent,
};
use p2pvm_api::{
    Doing, Failure, InviteAnswer, InviteRequest, Joined, Kind, NetworkFounded, Outcome, Peer,
    PingRequest, PingSummary, Pong, RevokeAnswer, RevokeRequest, RingNeighbour, RingView, Sorted,
    Status, Step,
    client::{Client, Event},
};
use p2pvm_daemon::{layout::Layout, lock, membership, naming, naming::Called, preflight, service};
use p2pvm_overlay::{identity::Identity, membership::Invite as InviteText};
use std::{
    fs,
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a daemon may take to open its socket. Reason: on a disk that takes seconds for a sync
/// it needs 20 s.
const DAEMON_START_LIMIT: Duration = Duration::from_secs(60);
/// How long a service's daemon may be silent before it counts as ended.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// How long a starting daemon may take to end when told to.
const ENDING_LIMIT: Duration = Duration::from_secs(10);
/// How long a member may take to admit or reject this one.
const WELCOME_LIMIT: Duration = Duration::from_secs(4);
/// How long claiming an address may take before the command reports why there is none.
const ADDRESS_LIMIT: Duration = Duration::from_secs(60);

/// This machine's name in the network; makes its identity only if the name derives from it.
fn called(layout: &Layout, given: Option<String>) -> Outcome<Called> {
    naming::choose(given, || {
        layout.create()?;
        Ok(Identity::load_or_create(&layout.identity())
            .doing("making this node's identity")?
            .member_id())
    })
}

pub(crate) fn init(context: &Context, a: Init) -> Outcome<()> {
    membership::check_network(&a.network)?;
    membership::refuse_member(&context.layout)?;
    preflight::for_machine(&context.layout, "founding a network")?;
    preflight::clock()?;
    let called = called(&context.layout, a.name)?;
    let founded = membership::found(
        &context.layout,
        (&a.network, a.subnet.as_deref()),
        (&called.label, &a.groups),
        a.force,
    )?;
    if context.json {
        return print::json(&NetworkFounded {
            member: founded.member,
            name: called.label,
            network: a.network,
            network_id: founded.network.to_string(),
            note: called.note,
            subnet: founded.subnet.to_string(),
        });
    }
    if let Some(note) = &called.note {
        eprintln!("note: {note}");
    }
    println!(
        "network {} ({}), subnet {}",
        a.network, founded.network, founded.subnet
    );
    println!(
        "this machine is its member {} ({})",
        called.label, founded.member
    );
    println!(
        "keep {} safe: it is the network's root key",
        context.layout.root_key().display()
    );
    println!("next: p2pvm up --detach, then p2pvm invite");
    Ok(())
}

pub(crate) async fn up_detached(context: &Context, up: &Up) -> Outcome<()> {
    membership::require_member(&context.layout)?;
    // A daemon that is being killed may answer once and then never again.
    if let Some(mut client) = context.daemon_if_any().await?
        && let Ok(status) = client.get::<Status>("/status").await
    {
        return show_up(context, &status, "already running");
    }
    let look = || preflight::for_daemon(&context.layout, "the daemon", (up.port, up.link_port));
    match look() {
        // Another 'up' may be running, or a daemon be ending.
        _ if lock::holder(&context.layout).is_some() => {
            let starting = || match lock::holder(&context.layout) {
                Some(_) => Ok(()),
                None => Err(Failure::new(
                    Kind::Failed,
                    "the daemon that held the state directory has ended",
                )),
            };
            match until_up(&context.layout, starting).await {
                Ok(status) => return show_up(context, &status, "already starting, and up now"),
                Err(_) if lock::holder(&context.layout).is_none() => look()?,
                Err(failure) => return Err(failure),
            }
        }
        looked => looked?,
    }
    let status = start_daemon(context, up).await?;
    show_up(context, &status, "up")
}

fn show_up(context: &Context, status: &Status, how: &str) -> Outcome<()> {
    if context.json {
        return print::json(status);
    }
    println!(
        "{how}: {} in {}, address {}",
        status.name,
        status.network,
        or_dash(status.address.as_ref())
    );
    if status.connected == 0 && status.known > 0 {
        eprintln!(
            "note: none of the {} known members answers yet; 'p2pvm status' shows when one does",
            status.known
        );
    }
    Ok(())
}

/// Starts the daemon, as a service or in a session of its own, and waits until it has an address.
async fn start_daemon(context: &Context, up: &Up) -> Outcome<Status> {
    let layout = &context.layout;
    if service::manages(layout) && up.port.is_none() && up.link_port.is_none() && up.accel.is_none()
    {
        service::start().await?;
        return tokio::select! {
            up = until_up(layout, || Ok(())) => up,
            _ = tokio::signal::ctrl_c() => {
                Err(Failure::cancelled("stopped waiting: the service goes on starting; 'p2pvm \
                    down' ends it"))
            }
        };
    }
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log())
        .doing(format_args!("cannot open {}", layout.log().display()))?;
    let written = log.metadata().map_or(0, |about| about.len());
    let errors = log.try_clone().doing("cannot share the log file")?;
    let mut command = Command::new(std::env::current_exe().doing("finding this program")?);
    command.arg("--dir").arg(layout.dir()).arg("up");
    for (flag, port) in [("--port", up.port), ("--link-port", up.link_port)] {
        if let Some(port) = port {
            command.arg(flag).arg(port.to_string());
        }
    }
    if let Some(accel) = &up.accel {
        command.args(["--accel", accel]);
    }
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let mut child = command.spawn().doing("starting the daemon")?;
    let alive = || match child.try_wait().doing("watching the daemon")? {
        // The daemon of another 'up' was first.
        Some(_) if lock::holder(layout).is_some() => Ok(()),
        Some(status) => Err(ended(status, &said_since(&layout.log(), written))),
        None => Ok(()),
    };
    let waited = tokio::select! {
        up = until_up(layout, alive) => Some(up),
        _ = tokio::signal::ctrl_c() => None,
    };
    match waited {
        Some(up) => up,
        None => Err(call_off(child).await),
    }
}

/// Ends the daemon after Ctrl-C, so that the command leaves nothing behind.
async fn call_off(mut daemon: Child) -> Failure {
    let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let told = Instant::now();
    while told.elapsed() < ENDING_LIMIT {
        if !matches!(daemon.try_wait(), Ok(None)) {
            return Failure::cancelled(
                "stopped: the daemon was ended before it was up; 'p2pvm up --detach' starts it \
                    again",
            );
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Failure::cancelled(
        "stopped, but the daemon, which was told to end, still runs: 'p2pvm down --force' ends it",
    )
}

/// The failure of a daemon that ended at once: its own message and exit code.
fn ended(status: ExitStatus, said: &str) -> Failure {
    let kind = status
        .code()
        .and_then(Kind::of_exit_code)
        .unwrap_or(Kind::Failed);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Failure::new(
        kind,
        match last.and_then(|line| line.strip_prefix("p2pvm: ")) {
            Some(sentence) => format!("the daemon did not start: {sentence}"),
            None if status.success() => {
                "the daemon was stopped while it started, by 'p2pvm down' or by a signal".to_owned()
            }
            None => format!(
                "the daemon ended at once ({status}): {}",
                last.unwrap_or("its log is empty")
            ),
        },
    )
}

/// The lines added to a log after its first `written` bytes.
fn said_since(log: &Path, written: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(
        bytes
            .get(usize::try_from(written).unwrap_or(usize::MAX)..)
            .unwrap_or_default(),
    )
    .into_owned()
}

/// Waits until the daemon has an address; `alive` says whether the daemon still runs.
async fn until_up(layout: &Layout, mut alive: impl FnMut() -> Outcome<()>) -> Outcome<Status> {
    let mut progress = Progress::new("starting");
    let (began, mut seen) = (Instant::now(), None::<Instant>);
    loop {
        alive()?;
        let ask = async {
            Client::connect(&layout.socket())
                .await
                .ok()?
                .get::<Status>("/status")
                .await
                .ok()
        };
        let status = tokio::time::timeout(silent::PATIENCE, ask)
            .await
            .ok()
            .flatten();
        if status.is_some() {
            seen = Some(Instant::now());
        }
        match status {
            Some(status) if status.address.is_some() && is_welcome(&status, began.elapsed()) => {
                return Ok(status);
            }
            Some(status) if status.address.is_some() => {
                progress.step(&Step {
                    phase: "waiting for a member".to_owned(),
                    ..Step::default()
                });
            }
            Some(status) if began.elapsed() > ADDRESS_LIMIT => return Err(no_address(&status)),
            // Only its silence shows that a service has ended.
            None if seen.is_some_and(|at| at.elapsed() > DYING_LIMIT) => {
                let ended = || {
                    Failure::new(
                        Kind::Failed,
                        format!("the daemon has ended: see {}", layout.log().display()),
                    )
                };
                return Err(service::ended(layout).await.unwrap_or_else(ended));
            }
            None if began.elapsed() > DAEMON_START_LIMIT => {
                return Err(Failure::timed_out(format!(
                    "the daemon does not answer: see {}",
                    layout.log().display()
                )));
            }
            Some(_) => progress.step(&Step {
                phase: "waiting for an address".to_owned(),
                ..Step::default()
            }),
            None => progress.step(&Step {
                phase: "waiting for the daemon".to_owned(),
                ..Step::default()
            }),
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Whether a member has admitted this one, or no other member answers. Reason: a member that was
/// revoked while it was down learns so only from another member.
fn is_welcome(status: &Status, waited: Duration) -> bool {
    status.connected > 0 || status.known == 0 || waited >= WELCOME_LIMIT
}

/// The failure of a daemon without an address, with the reason that it gives.
fn no_address(status: &Status) -> Failure {
    let why = status
        .address_wanting
        .as_deref()
        .unwrap_or("the members that it asked have not agreed yet");
    Failure::timed_out(format!(
        "the daemon runs but has no address after {} s: {why}. It keeps trying; see 'p2pvm \
            status' and 'p2pvm doctor'",
        ADDRESS_LIMIT.as_secs()
    ))
}

pub(crate) async fn invite(context: &Context, a: Invite) -> Outcome<()> {
    let request = InviteRequest {
        uses: a.uses,
        expires_seconds: a.expires.as_secs(),
        delegate: a.delegate,
        groups: a.groups,
        short: a.qr,
    };
    let answer: InviteAnswer = context.daemon().await?.post("/invite", &request).await?;
    if context.json {
        return print::json(&answer);
    }
    println!("{}", answer.invite);
    if a.qr {
        print::codes(&answer.invite)?;
    }
    if let Some(note) = &answer.note {
        eprintln!("note: {note}");
    }
    eprintln!(
        "valid {} for {} machine(s); cancel it with: p2pvm revoke {}",
        humantime::format_duration(a.expires),
        a.uses,
        answer.id
    );
    Ok(())
}

/// The longest input read as an invite, bytes. Reason: a device such as /dev/zero never ends.
const MAX_INVITE: u64 = 1 << 20;

/// An invite given as itself, as a file, or as `-` for standard input.
pub(crate) fn read_invite(text: &str) -> Outcome<String> {
    if text == "-" {
        let mut read = String::new();
        std::io::stdin()
            .take(MAX_INVITE)
            .read_to_string(&mut read)
            .doing("reading the invite from standard input")?;
        return Ok(unquoted(&read));
    }
    // QR codes contain the invite in capitals.
    let bare = unquoted(text);
    if bare
        .to_ascii_lowercase()
        .starts_with(membership::INVITE_PREFIX)
    {
        return Ok(bare);
    }
    let read = fs::File::open(text).and_then(|file| std::io::read_to_string(file.take(MAX_INVITE)));
    match read {
        Ok(read) => Ok(unquoted(&read)),
        Err(e) => Err(Failure::usage(format!(
            "'{}' is neither an invite ({}...) nor a file that can be read: {e}",
            shortened(text),
            membership::INVITE_PREFIX
        ))),
    }
}

/// The invite without the marks that mail programs, chats and pages put around it.
fn unquoted(text: &str) -> String {
    let marks = [
        '>', '"', '\'', '`', '\u{ab}', '\u{bb}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}',
        '\u{201e}',
    ];
    text.replace(marks, "").trim().to_owned()
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.to_owned()
    } else {
        format!("{}...", text.chars().take(40).collect::<String>())
    }
}

pub(crate) async fn join(context: &Context, a: Join) -> Outcome<()> {
    let (text, address) = match (
        a.bootstrap.starts_with('/') && !fs::exists(&a.bootstrap).unwrap_or(false),
        &a.invite,
    ) {
        (true, Some(invite)) => (read_invite(invite)?, Some(a.bootstrap.clone())),
        (true, None) => {
            return Err(Failure::usage(
                "a multiaddr needs --invite: p2pvm join /ip4/... --invite FILE",
            ));
        }
        (false, Some(_)) => {
            return Err(Failure::usage(format!(
                "--invite goes with a multiaddr; '{}' is not one",
                shortened(&a.bootstrap)
            )));
        }
        (false, None) => (read_invite(&a.bootstrap)?, None),
    };
    let invite = InviteText::parse(&text).map_err(membership::refused)?;
    let ports = (a.up.port, a.up.link_port);
    if !membership::already(&context.layout, &invite, a.name.as_deref())? {
        preflight::for_daemon(&context.layout, "joining", ports)?;
        preflight::subnet(
            invite.network().subnet,
            "this machine would lose the hosts that it reaches there. Change that network here, \
                or found the p2pvm network again with a free --subnet; the invite is not used up",
        )?;
    } else if context.daemon_if_any().await?.is_none() {
        preflight::for_daemon(&context.layout, "joining", ports)?;
    }
    let called = called(&context.layout, a.name)?;
    let up = Up {
        detach: true,
        port: a.up.port,
        link_port: a.up.link_port,
        accel: None,
    };
    let began = Instant::now();
    let welcome = {
        let mut progress = Progress::new("joining");
        progress.step(&Step {
            phase: "asking to be admitted".to_owned(),
            ..Step::default()
        });
        membership::join(&context.layout, &text, address, &called).await?
    };
    for note in welcome.notes.iter().filter(|_| !context.json) {
        eprintln!("note: {note}");
    }
    let admitted = began.elapsed();
    if a.foreground {
        let error = Command::new(std::env::current_exe().doing("finding this program")?)
            .arg("--dir")
            .arg(context.layout.dir())
            .arg("up")
            .exec();
        return Err(Failure::new(
            Kind::Failed,
            format!("cannot become the daemon: {error}"),
        ));
    }
    let status: Status = match context.daemon_if_any().await? {
        Some(mut client) => client.get("/status").await?,
        None => start_daemon(context, &up).await?,
    };
    if context.json {
        let (admitted_ms, joined_ms) = (
            admitted.as_millis() as u64,
            began.elapsed().as_millis() as u64,
        );
        return print::json(&Sorted(Joined {
            status,
            admitted_ms,
            joined_ms,
            notes: welcome.notes,
        }));
    }
    println!(
        "{} is a member of {}, address {} ({} ms)",
        status.name,
        status.network,
        or_dash(status.address.as_ref()),
        began.elapsed().as_millis()
    );
    Ok(())
}

pub(crate) async fn revoke(context: &Context, what: &str) -> Outcome<()> {
    let answer: RevokeAnswer = context
        .daemon()
        .await?
        .post(
            "/revoke",
            &RevokeRequest {
                what: what.to_owned(),
            },
        )
        .await?;
    if context.json {
        return print::json(&answer);
    }
    println!(
        "{what} is revoked; {} connected members were told",
        answer.told
    );
    if let Some(note) = &answer.note {
        eprintln!("note: {note}");
    }
    if !answer.with.is_empty() {
        println!(
            "also revoked: {} (admitted by it, or joined with a copy of its state)",
            answer.with.join(", ")
        );
    }
    Ok(())
}

pub(crate) async fn status(context: &Context) -> Outcome<()> {
    membership::require_member(&context.layout)?;
    let s: Status = context.daemon().await?.get("/status").await?;
    if context.json {
        return print::json(&s);
    }
    let address = match &s.address_wanting {
        Some(why) => format!("none yet: {why}"),
        None => "none yet".to_owned(),
    };
    for (label, value) in [
        ("health", s.health.to_string()),
        ("member", format!("{} ({})", s.name, s.member)),
        ("network", format!("{} ({})", s.network, s.network_id)),
        (
            "address",
            format!(
                "{} in {}",
                s.address.as_deref().unwrap_or(&address),
                s.subnet
            ),
        ),
        ("ipv6", s.address_v6),
        (
            "seen as",
            format!(
                "{}, NAT: {}",
                s.reflexive.as_deref().unwrap_or("not known yet"),
                s.nat
            ),
        ),
        ("members", format!("{} connected", s.connected)),
        ("ring", ring_line(&s.ring)),
        ("vms", format!("{} running here", s.running_vms)),
        ("cpu", format!("{:.0} %", s.cpu * 100.0)),
        ("listens on", s.listen.join("\n            ")),
        (
            "daemon",
            format!(
                "{}, up {}, {}",
                s.version,
                humantime::format_duration(Duration::from_secs(s.up_seconds)),
                indicatif::HumanBytes(s.resident_bytes)
            ),
        ),
    ] {
        println!("{label:12}{value}");
    }
    for finding in &s.findings {
        let (area, level) = (&finding.area, finding.level.word());
        println!("{:12}{area}: {}", level, finding.found);
        if !finding.advice.is_empty() {
            println!("{:12}{}", "", finding.advice);
        }
    }
    Ok(())
}

fn ring_line(ring: &RingView) -> String {
    if !ring.joined {
        return format!("not joined; place {}", ring.position);
    }
    format!(
        "place {}, about {:.0} members; neighbours: {} near, {} far, {} shortcuts; {} packets \
            forwarded for others",
        ring.position, ring.size_estimate, ring.near, ring.far, ring.shortcuts, ring.carried
    )
}

/// "12.3 ms (10 %)": the round trip that a coordinate predicts, and its possible error.
fn distance(ring: &RingNeighbour) -> Option<String> {
    Some(format!(
        "{} ({:.0} %)",
        ms(ring.distance_ms?),
        ring.error? * 100.0
    ))
}

pub(crate) async fn peers(context: &Context) -> Outcome<()> {
    let peers: Vec<Peer> = context.daemon().await?.get("/peers").await?;
    if context.json {
        return print::json(&peers);
    }
    let rows: Vec<_> = peers
        .iter()
        .map(|p| {
            [
                p.name.clone(),
                or_dash(p.address.as_ref()),
                if p.connected { "yes" } else { "no" }.to_owned(),
                or_dash(p.path.as_ref()),
                p.rtt_ms.map_or("-".to_owned(), ms),
                or_dash(p.ring.as_ref().map(|r| r.role.as_str())),
                or_dash(p.ring.as_ref().and_then(distance)),
                indicatif::HumanBytes(p.sent_bytes).to_string(),
                indicatif::HumanBytes(p.received_bytes).to_string(),
                p.member.chars().take(10).collect(),
            ]
        })
        .collect();
    print::table(
        [
            "NAME",
            "ADDRESS",
            "CONNECTED",
            "PATH",
            "RTT",
            "RING",
            "DISTANCE",
            "SENT",
            "RECEIVED",
            "ID",
        ],
        &rows,
    );
    Ok(())
}

pub(crate) async fn ping(context: &Context, a: Ping) -> Outcome<()> {
    let request = PingRequest {
        count: a.count,
        interval_ms: a.interval.as_millis() as u64,
        member: a.member,
    };
    let member = &request.member;
    let show = |event: Event<Pong>| {
        let Event::Item(pong) = event else { return };
        match pong.rtt_ms {
            _ if context.json => print::json_line(&Sorted(&pong)),
            Some(rtt) => println!("{member}: seq {} {} {}", pong.seq, pong.path, ms(rtt)),
            None => println!("{member}: seq {} lost", pong.seq),
        }
    };
    let done = context
        .daemon()
        .await?
        .follow::<Pong, PingSummary>("/ping", &request, show)
        .await?;
    if context.json {
        print::json_line(&done);
    }
    if done.received == 0 {
        return Err(Failure::timed_out(format!(
            "no answer from {member}: see 'p2pvm peers'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_invite_is_taken_out_of_the_marks_of_mails_and_chats() {
        for text in [
            "p2pvm1abcd",
            "\"p2pvm1abcd\"",
            "\u{201c}p2pvm1abcd\u{201d}\n",
            "> p2pvm1ab\n> cd",
            "`p2pvm1abcd`",
        ] {
            let read: String = read_invite(text).unwrap().split_whitespace().collect();
            assert_eq!(read, "p2pvm1abcd", "{text}");
        }
        assert!(
            read_invite("'nofile'")
                .unwrap_err()
                .message
                .contains("neither an invite")
        );
    }

    #[test]
    fn a_daemon_that_ends_at_once_is_heard_with_its_code_and_its_sentence() {
        let said = "2026-01-01T00:00:00Z  INFO starting\np2pvm: starting the packet plane: cannot \
            bind UDP port 4002: Address in use\n";
        let failure = ended(ExitStatus::from_raw(5 << 8), said);
        assert_eq!(failure.kind, Kind::Refused);
        assert!(
            failure
                .message
                .ends_with("cannot bind UDP port 4002: Address in use"),
            "{failure}"
        );
        let stopped = ended(
            ExitStatus::from_raw(0),
            "2026-01-01T00:00:00Z  INFO p2pvm: connected\n",
        );
        assert!(
            stopped.message.contains("was stopped while it started")
                && !stopped.message.contains("INFO"),
            "{stopped}"
        );
        let killed = ended(ExitStatus::from_raw(9), "");
        assert!(
            killed.kind == Kind::Failed && killed.message.contains("signal: 9"),
            "{killed}"
        );
    }

    #[test]
    fn nobody_is_called_up_before_a_member_let_it_in_while_one_may_be_there() {
        let status = |known, connected| Status {
            known,
            connected,
            ..Status::default()
        };
        assert!(!is_welcome(&status(2, 0), Duration::ZERO));
        assert!(
            is_welcome(&status(2, 1), Duration::ZERO) && is_welcome(&status(0, 0), Duration::ZERO)
        );
        assert!(
            is_welcome(&status(2, 0), WELCOME_LIMIT),
            "all others may be off"
        );
    }

    #[test]
    fn a_missing_address_is_explained_by_the_daemons_own_reason() {
        let wanting = Status {
            address_wanting: Some("cannot put fd00::1 on p2pvm0: Permission denied".into()),
            ..Status::default()
        };
        let failure = no_address(&wanting);
        assert!(
            failure.message.contains("Permission denied")
                && !failure.message.contains("no other member"),
            "{failure}"
        );
    }
}
