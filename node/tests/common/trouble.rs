//! What routers and providers do to a path, played on the testbed's real NATs while two members
//! talk, and what became of it.

use super::{lab, network, until_direct};
use p2pvm_lab::{
    figures::{Figure, Recorder},
    lab::Lab,
};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Direct again within this after the cause has ended.
pub const DIRECT_AGAIN: Duration = Duration::from_secs(60);
/// The stream goes on within this after the loss.
pub const CARRIED_AGAIN: Duration = Duration::from_secs(12);

/// Two public members, and two behind NATs that talk directly, `home` and `office`. `home` gives
/// the keys of its site, `more` further sites.
pub fn two_homes(test: &str, home: &str, more: &str, settings: &str) -> Lab {
    let lab = lab(
        test,
        &format!(
            "seed = 11\n[default]\nrtt_ms = 30\nmbit = 500\n[[site]]\nname = 'pub'\n\
             [[site]]\nname = 'open'\n[[site]]\nname = 'home'\n{home}\n\
             [[site]]\nname = 'office'\nnat = 'port-restricted'\n{more}\n"
        ),
    );
    lab.configure("home", settings).unwrap();
    network(&lab, &["pub", "open", "home", "office"]);
    until_direct(&lab, "home", "office", Duration::from_secs(40));
    lab
}

/// Runs a program in a site's router; what it printed.
pub fn router(lab: &Lab, site: &str, argv: &[&str]) -> String {
    let (program, arguments) = argv.split_first().expect("a program");
    let done = lab
        .testbed()
        .inside_router(site, || Command::new(program).args(arguments).output())
        .unwrap()
        .expect("it runs");
    assert!(
        done.status.success(),
        "{argv:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Puts rules of nftables in force in a site's router.
pub fn nft(lab: &Lab, site: &str, rules: &str) {
    let mut full = rules.to_owned();
    full.push('\n');
    router(lab, site, &["nft", &full]);
}

/// Forgets a router's connections.
pub fn forget(lab: &Lab, site: &str) {
    lab.testbed().forget_mappings(site).unwrap();
}

/// Takes a router's rules away and forgets its connections, so that flows are seen untranslated;
/// puts the rules back after a while. Earlier flows are black holes from then on as long as
/// packets keep them alive.
pub fn stale(lab: &Lab, site: &str) {
    let rules = router(lab, site, &["nft", "list", "ruleset"]);
    // Tracked, with no translation: a chain that looks at connections, and one of NAT that does
    // nothing.
    let empty = "flush ruleset; table ip untranslated {
        chain tracked { type filter hook forward priority 0; policy accept; ct state new accept; }
        chain nothing { type nat hook postrouting priority srcnat + 10; policy accept; }
    }";
    nft(lab, site, empty);
    forget(lab, site);
    std::thread::sleep(Duration::from_secs(4));
    nft(lab, site, &rules);
    nft(lab, site, "delete table ip untranslated");
}

/// A silence of a stream that is worth remembering.
const NOTABLE: Duration = Duration::from_millis(500);

/// What a stream has seen.
struct Seen {
    last: Instant,
    /// Silences since they were last asked for, each with its end.
    silences: Vec<(Instant, Instant)>,
}

/// A TCP connection over the overlay that says something every 50 ms and hears it back.
pub struct Stream {
    ends: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<Result<(), String>>,
}

/// Opens one between two hosts.
pub fn stream(lab: &Lab, from: &str, to: &str) -> Stream {
    stream_of(lab, from, to, 64)
}

/// The same with messages of so many bytes.
pub fn stream_of(lab: &Lab, from: &str, to: &str, bytes: usize) -> Stream {
    let address = super::address(lab, to);
    let listener = lab
        .testbed()
        .inside(to, || {
            TcpListener::bind(format!("{address}:0")).expect("the overlay address is there")
        })
        .unwrap();
    let at = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut buf = vec![0; bytes];
        while stream.read_exact(&mut buf).is_ok() && stream.write_all(&buf).is_ok() {}
    });
    let mut stream = lab
        .testbed()
        .inside(from, || {
            TcpStream::connect_timeout(&at, Duration::from_secs(20)).expect("connects")
        })
        .unwrap();
    let (ends, seen) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(Mutex::new(Seen {
            last: Instant::now(),
            silences: Vec::new(),
        })),
    );
    let (told, sees) = (ends.clone(), seen.clone());
    let thread = std::thread::spawn(move || {
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(Duration::from_secs(600)))
            .expect("a socket option");
        let mut buf = vec![7; bytes];
        while !told.load(Ordering::Relaxed) {
            stream
                .write_all(&buf)
                .map_err(|e| format!("writing: {e}"))?;
            stream
                .read_exact(&mut buf)
                .map_err(|e| format!("reading: {e}"))?;
            let (mut seen, now) = (sees.lock().unwrap(), Instant::now());
            if now - seen.last >= NOTABLE {
                let silence = (seen.last, now);
                seen.silences.push(silence);
            }
            seen.last = now;
            drop(seen);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    });
    Stream { ends, seen, thread }
}

impl Stream {
    /// The silences since the last call; the one that lasts is one of them.
    fn silences(&self) -> Vec<(Instant, Instant)> {
        let (mut seen, now) = (self.seen.lock().unwrap(), Instant::now());
        let mut silences = std::mem::take(&mut seen.silences);
        if now - seen.last >= NOTABLE {
            silences.push((seen.last, now));
        }
        silences
    }

    /// The longest silence since the last call, shorter ones than half a second aside.
    pub fn silence(&self) -> Duration {
        longest(&self.silences(), None)
    }

    /// Ends it.
    pub fn end(self) -> Result<(), String> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// The longest of some silences, or of what is left of them after a moment.
fn longest(silences: &[(Instant, Instant)], after: Option<Instant>) -> Duration {
    let left = |(began, ended): &(Instant, Instant)| {
        ended.saturating_duration_since(after.map_or(*began, |after| after.max(*began)))
    };
    silences.iter().map(left).max().unwrap_or_default()
}

/// What became of one case.
#[derive(Debug)]
pub struct Outcome {
    /// Which one.
    pub case: String,
    /// From the end of the cause to the direct path; none: not within [`DIRECT_AGAIN`] and some.
    pub direct: Option<Duration>,
    /// The longest silence of the stream, if one ran; where the cause left no way at all, what of
    /// it came after its end.
    pub silence: Option<Duration>,
    /// The paths that pings took, with the seconds since the cause began.
    pub paths: Vec<(u64, String)>,
    /// What `netcheck` said of the NAT and of the path in the middle.
    pub netcheck: String,
}

impl Outcome {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        let late = self.direct.is_none_or(|took| took > DIRECT_AGAIN);
        let silent = self.silence.is_some_and(|silence| silence > CARRIED_AGAIN);
        (late || silent).then(|| format!("{self:?}"))
    }
}

/// The path of one ping, without its address.
fn path(lab: &Lab, from: &str, to: &str) -> String {
    match lab.ping(from, to, 1, "100ms") {
        Ok(pinged) => pinged
            .path
            .split_whitespace()
            .next()
            .unwrap_or("lost")
            .to_owned(),
        Err(_) => "lost".to_owned(),
    }
}

/// What `netcheck` says of this node's NAT and of its path to `to`.
pub fn netcheck(lab: &Lab, from: &str, to: &str) -> String {
    let page = lab.netcheck(from).unwrap_or_default();
    let member = page.members.iter().find(|member| member.name == to);
    let path = member.and_then(|member| member.path.as_deref());
    format!("NAT {:?}, path {path:?}", page.nat)
}

/// Plays a case: `cause` begins it, `lasts` later `end` ends it; then the pair's direct path is
/// waited for.
pub fn play(
    lab: &mut Lab,
    case: &str,
    pair: (&str, &str),
    what: (impl FnOnce(&mut Lab), Duration, impl FnOnce(&mut Lab)),
    stream: Option<&Stream>,
) -> Outcome {
    play_case(lab, case, pair, what, (stream, false))
}

/// The same where nothing can get through until the end of the cause.
pub fn play_total(
    lab: &mut Lab,
    case: &str,
    pair: (&str, &str),
    what: (impl FnOnce(&mut Lab), Duration, impl FnOnce(&mut Lab)),
    stream: &Stream,
) -> Outcome {
    play_case(lab, case, pair, what, (Some(stream), true))
}

fn play_case(
    lab: &mut Lab,
    case: &str,
    (from, to): (&str, &str),
    (cause, lasts, end): (impl FnOnce(&mut Lab), Duration, impl FnOnce(&mut Lab)),
    (stream, total): (Option<&Stream>, bool),
) -> Outcome {
    if let Some(stream) = stream {
        stream.silence();
    }
    let began = Instant::now();
    cause(lab);
    let mut paths: Vec<(u64, String)> = Vec::new();
    let mut note = |path: String| {
        if paths.last().is_none_or(|(_, last)| *last != path) {
            paths.push((began.elapsed().as_secs(), path));
        }
    };
    let mut said = String::new();
    let caused = Instant::now();
    if total {
        // A host that sleeps answers nobody.
        std::thread::sleep(lasts);
    }
    while caused.elapsed() < lasts {
        note(path(lab, from, to));
        if said.is_empty() && caused.elapsed() > lasts / 2 {
            said = netcheck(lab, from, to);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    end(lab);
    let ended = Instant::now();
    let (mut since, mut direct) = (None, None);
    while ended.elapsed() < DIRECT_AGAIN + Duration::from_secs(15) {
        let now = path(lab, from, to);
        since = if now == "direct" {
            since.or(Some(ended.elapsed()))
        } else {
            None
        };
        note(now);
        // One that stays so: what was direct before its death was noticed does not count.
        if since.is_some_and(|since| ended.elapsed() - since > Duration::from_secs(8)) {
            direct = since;
            break;
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    let silence = stream.map(|stream| longest(&stream.silences(), total.then_some(ended)));
    let outcome = Outcome {
        case: case.to_owned(),
        direct,
        silence,
        paths,
        netcheck: said,
    };
    println!("{outcome:?}");
    keep(&outcome);
    outcome
}

/// Writes the outcome for docs/nat.md, where that is asked for, in place of one of the same case.
pub fn keep(outcome: &Outcome) {
    let seconds = |took: Duration| Some(took.as_secs_f64());
    let figure = |name: &str, what: &str, took: Option<f64>| {
        let figure = Figure::new(name, what, "s", [took]).digits(1);
        figure.of(outcome.case.as_str())
    };
    let direct = outcome.direct.and_then(seconds);
    let mut figures =
        vec![figure("direct", "end of the cause to a direct path", direct).aim("≤ 60 s")];
    figures.extend(outcome.silence.map(|silence| {
        figure(
            "silence",
            "longest silence of a TCP stream",
            seconds(silence),
        )
        .aim("≤ 12 s")
    }));
    Recorder::from_environment()
        .record_part("paths", "make test-slow FIGURES=docs/figures", &figures)
        .expect("the figures are written");
}

/// Ends the lab, and fails with all faults and the logs if any outcome has one.
pub fn judge(lab: Lab, outcomes: &[Outcome]) {
    let faults: Vec<String> = outcomes.iter().filter_map(Outcome::fault).collect();
    let logs = format!(
        "{}\n-- office\n{}",
        lab.log_tail("home", 80),
        lab.log_tail("office", 60)
    );
    lab.down().unwrap();
    assert!(faults.is_empty(), "{}\n{logs}", faults.join("\n"));
}

/// Changes nothing.
pub fn nothing(_: &mut Lab) {}
