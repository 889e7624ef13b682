//! Runs a page: its machines are raised, its commands typed on them, and what comes is compared
//! with what the page shows, or written into it (`P2PVM_DOCS=write`).

use super::{
    compare::{Bindings, abbreviated, invites},
    page::{Block, Page, Part, Step},
};
use crate::common;
use p2pvm_lab::{Sites, lab::Lab};
use std::{
    fs,
    io::{Read, Write},
    ops::Range,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Settings of the pages' machines: those of the test's own making, so that three of them fit on
/// one computer that is busy.
const SETTINGS: &str = "cpus = 1\nautonomic = false\nheal.protect = false\n";
/// Where the packaged daemon keeps its state, and its settings.
const STATE: &str = "/var/lib/p2pvm";
const PACKAGED_SETTINGS: &str = "/etc/p2pvm/node.toml";
/// What a page waits for, or a question is repeated until it shows what the page does.
const LIMIT: Duration = Duration::from_secs(90);
const AGAIN: Duration = Duration::from_millis(700);
/// What a page is to show of members and paths is asked for when things are likely to have settled.
const SETTLED: Duration = Duration::from_secs(6);
/// Commands that only ask: they may be asked again until things have settled.
const ASKING: [&str; 18] = [
    "p2pvm status",
    "p2pvm peers",
    "p2pvm top --once",
    "p2pvm netcheck",
    "p2pvm ping",
    "p2pvm trace",
    "p2pvm vm list",
    "p2pvm vm show",
    "p2pvm metrics",
    "p2pvm acl show",
    "p2pvm acl check",
    "p2pvm route list",
    "p2pvm doctor",
    "p2pvm traffic",
    "p2pvm usage",
    "p2pvm explain",
    "ping",
    "curl",
];
/// What the guest of the test image says when it waits for a command.
const GUEST_PROMPT: &str = "guest# ";

/// A page's machines in the state that its blocks have brought them to.
struct Session<'a> {
    page: &'a Page,
    lab: Lab,
    hosts: Vec<String>,
    bindings: Bindings,
    background: Option<(Child, PathBuf, usize)>,
    write: bool,
    changes: Vec<(Range<usize>, Vec<String>)>,
}

/// Runs a page's blocks in order. Gives the page as it should be when it is to be written.
pub fn run(page: &Page) -> Option<String> {
    let write = std::env::var("P2PVM_DOCS").is_ok_and(|what| what == "write");
    let sites = Sites::parse(
        page.sites
            .as_deref()
            .expect("a page with commands has machines"),
    )
    .expect("the page's machines");
    // A testbed's name has 24 letters at most.
    let stem = Path::new(&page.name)
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let name = format!("docs-{stem:.5}-{}", std::process::id());
    let lab = Lab::up(&sites, &name, Path::new(env!("CARGO_BIN_EXE_p2pvm")))
        .expect("building the testbed");
    let hosts: Vec<String> = lab
        .testbed()
        .plan()
        .hosts
        .iter()
        .map(|h| h.name.clone())
        .collect();
    let mut session = Session {
        page,
        lab,
        hosts,
        bindings: Bindings::default(),
        background: None,
        write,
        changes: Vec::new(),
    };
    for host in session.hosts.clone() {
        session.lab.configure(&host, SETTINGS).unwrap();
        fs::create_dir_all(session.home(&host)).unwrap();
        symlink(common::image(), session.home(&host).join("guest.qcow2")).unwrap();
    }
    for part in &page.parts {
        match part {
            Part::Happens(remark) => session.happens(remark),
            Part::Block(block) if block.kind == "console" && block.not_run().is_none() => {
                session.block(block)
            }
            Part::Block(block) if block.info.contains("file=") => session.file(block),
            Part::Block(_) => {}
        }
    }
    session.lab.down().unwrap();
    write.then(|| page.with(session.changes))
}

impl Session<'_> {
    fn home(&self, host: &str) -> PathBuf {
        self.lab.dir(host).unwrap().join("home")
    }

    /// Fails with where and why.
    fn fail(&self, block: &Block, why: &str) -> ! {
        let logs: Vec<String> = self
            .hosts
            .iter()
            .map(|h| format!("--- {h}'s log\n{}", self.lab.log_tail(h, 15)))
            .collect();
        panic!(
            "{}:{}: {why}\n{}",
            self.page.name,
            block.place.start,
            logs.join("\n")
        )
    }

    /// Something happens to a machine.
    fn happens(&mut self, remark: &str) {
        let words: Vec<&str> = remark.split(' ').collect();
        match words.as_slice() {
            ["kill", host] => drop(self.lab.testbed().kill(host).unwrap()),
            ["settings", host, text @ ..] => self
                .lab
                .configure(host, &format!("{SETTINGS}{}\n", text.join(" ")))
                .unwrap(),
            ["carry", host, file, to] => {
                fs::copy(self.home(host).join(file), self.home(to).join(file)).unwrap();
            }
            ["forward", host] => common::forward_ports(&self.lab, host),
            ["pause", seconds] => std::thread::sleep(Duration::from_secs(seconds.parse().unwrap())),
            _ => panic!("{}: nobody knows how '{remark}' happens", self.page.name),
        }
    }

    /// A file that the page shows is written where it says.
    fn file(&self, block: &Block) {
        let place = block
            .info
            .strip_prefix("file=")
            .unwrap_or_else(|| self.fail(block, "only file=HOST:NAME is known"));
        let (host, name) = place
            .split_once(':')
            .unwrap_or_else(|| self.fail(block, "file=HOST:NAME"));
        fs::write(self.home(host).join(name), block.lines.join("\n") + "\n").unwrap();
    }

    /// The command as this run types it.
    fn command(&self, host: &str, text: &str) -> Command {
        let dir = self.lab.dir(host).unwrap();
        let text = self.bindings.whole(&self.bindings.apply(text));
        println!("{host}# {}", abbreviated(&text));
        let text = text
            .replace(PACKAGED_SETTINGS, &dir.join("node.toml").to_string_lossy())
            .replace(STATE, &dir.to_string_lossy());
        let program = Path::new(env!("CARGO_BIN_EXE_p2pvm")).parent().unwrap();
        let path = format!(
            "{}:{}",
            program.display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("exec 2>&1; {text}")])
            .env("PATH", path)
            .env("COLUMNS", "80")
            .env("LINES", "24")
            .env("LANG", "C.UTF-8");
        command
            .current_dir(self.home(host))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    /// What came, as a page shows it: without the progress that a terminal wipes out, and with the
    /// package's paths.
    fn shown(&self, host: &str, output: &str) -> Vec<String> {
        let progress =
            regex::Regex::new(
                r"^(starting|joining|draining|offer off|(creating|migrating|starting|stopping|snapshot of|restoring) \S+): "
            ).unwrap();
        let dir = self.lab.dir(host).unwrap().to_string_lossy().into_owned();
        let lines = output
            .lines()
            .map(|line| abbreviated(line.trim_end_matches('\r')))
            .filter(|line| !progress.is_match(line));
        lines
            .map(|line| line.replace(&dir, STATE).trim_end().to_owned())
            .collect()
    }

    /// Types a command and gives whether it succeeded and what came.
    fn typed(&mut self, host: &str, text: &str) -> (bool, Vec<String>) {
        let mut command = self.command(host, text);
        let child = self.lab.testbed().spawn(host, &mut command).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        invites(&said)
            .iter()
            .for_each(|invite| self.bindings.note_invite(invite));
        (output.status.success(), self.shown(host, &said))
    }

    fn block(&mut self, block: &Block) {
        let steps = block.steps(&self.hosts);
        let last = steps.len().saturating_sub(1);
        let mut new = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            let came = if step.command == "^C" {
                self.end_background(block)
            } else if block.remark("background").is_some() {
                self.begin_background(block, step)
            } else if step.command.starts_with("p2pvm vm console") {
                self.console(block, step)
            } else {
                self.step(block, step, n == last)
            };
            if step.command != "^C" {
                let typed = self.bindings.apply(&step.command);
                new.extend(format!("{}# {typed}", step.host).lines().map(str::to_owned));
            }
            new.extend(came);
        }
        if self.write {
            self.changes.push((block.place.clone(), new));
        }
    }

    /// Takes what came for good, or says why not.
    fn accept(&mut self, block: &Block, shown: &[String], came: &[String]) -> Result<(), String> {
        if let Some(wanted) = block
            .remark("contains")
            .filter(|wanted| !came.iter().any(|line| line.contains(*wanted)))
        {
            return Err(format!("'{wanted}' is not in\n  {}", came.join("\n  ")));
        }
        if self.write {
            self.bindings.learn(shown, came);
            return Ok(());
        }
        self.bindings
            .same(shown, came, block.remark("numbers").is_some())
    }

    /// Types a command until it shows what is wanted, if it may be typed twice.
    fn step(&mut self, block: &Block, step: &Step, last: bool) -> Vec<String> {
        let asks = ASKING.iter().any(|asking| step.command.starts_with(asking));
        let until = block.remark("until").filter(|_| last);
        if asks && self.write {
            std::thread::sleep(SETTLED);
        }
        let began = Instant::now();
        loop {
            let (succeeded, all) = self.typed(&step.host, &step.command);
            let should_fail = block.remark("fails").is_some() && last;
            let came = cut(block, all.clone());
            let verdict = if succeeded == should_fail {
                Err(format!(
                    "{}# {} {}:\n  {}",
                    step.host,
                    step.command,
                    if succeeded { "succeeded" } else { "failed" },
                    all.join("\n  ")
                ))
            } else if until.is_some_and(|text| !all.iter().any(|line| line.contains(text))) {
                Err(format!(
                    "{}# {} does not show '{}':\n  {}",
                    step.host,
                    step.command,
                    until.unwrap_or_default(),
                    all.join("\n  ")
                ))
            } else {
                self.accept(block, &step.shown, &came)
                    .map_err(|why| format!("{}# {}\n{why}", step.host, step.command))
            };
            match verdict {
                Ok(()) => return came,
                Err(_) if (asks || until.is_some()) && began.elapsed() < LIMIT => {
                    std::thread::sleep(AGAIN)
                }
                Err(why) => self.fail(block, &why),
            }
        }
    }

    /// Starts a command that goes on; shows its first lines.
    fn begin_background(&mut self, block: &Block, step: &Step) -> Vec<String> {
        let file = self.lab.dir(&step.host).unwrap().join("background");
        let mut command = self.command(&step.host, &format!("exec {}", step.command));
        command.stdout(fs::File::create(&file).unwrap());
        let child = self.lab.testbed().spawn(&step.host, &mut command).unwrap();
        let lines: usize = block
            .remark("head")
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        let began = Instant::now();
        let came = loop {
            let all = self.shown(&step.host, &fs::read_to_string(&file).unwrap());
            if all.len() >= lines || began.elapsed() > LIMIT {
                break all[..lines.min(all.len())].to_vec();
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        self.background = Some((child, file, lines));
        if let Err(why) = self.accept(block, &step.shown, &came) {
            self.fail(block, &why);
        }
        came
    }

    /// Ends it with Ctrl-C and shows its last lines.
    fn end_background(&mut self, block: &Block) -> Vec<String> {
        let Some((mut child, file, _)) = self.background.take() else {
            self.fail(block, "nothing runs that could be ended")
        };
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        child.wait().unwrap();
        let all: Vec<String> = fs::read_to_string(file)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let came: Vec<String> = std::iter::once("^C".to_owned())
            .chain(cut(block, all).into_iter().filter(|line| line != "..."))
            .collect();
        if let Err(why) = self.accept(block, &block.lines, &came) {
            self.fail(block, &why);
        }
        came
    }

    /// A guest's console: what stands behind its prompt in the page is typed there.
    fn console(&mut self, block: &Block, step: &Step) -> Vec<String> {
        let mut command = self.command(&step.host, &format!("exec {}", step.command));
        let mut child = self
            .lab
            .testbed()
            .spawn(&step.host, command.stdin(Stdio::piped()))
            .unwrap();
        let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                if send
                    .send(String::from_utf8_lossy(&buffer[..n]).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        let escapes = regex::Regex::new("\x1b\\[[0-9;?]*[A-Za-z]").unwrap();
        let hear = |until: &str, keys: &mut dyn Write, again: &[u8]| {
            let (mut said, began, mut asked) = (String::new(), Instant::now(), Instant::now());
            while !said.ends_with(until) && began.elapsed() < LIMIT {
                match heard.recv_timeout(Duration::from_millis(200)) {
                    // Busybox asks the terminal where its cursor is, behind each prompt.
                    Ok(more) => said = escapes.replace_all(&(said + &more), "").into_owned(),
                    Err(_) if !again.is_empty() && asked.elapsed() > Duration::from_secs(2) => {
                        asked = Instant::now();
                        keys.write_all(again).unwrap();
                    }
                    Err(_) => {}
                }
            }
            said
        };
        let greeting = hear(GUEST_PROMPT, &mut keys, b"\n");
        let mut came: Vec<String> = greeting
            .lines()
            .next()
            .map(str::to_owned)
            .into_iter()
            .collect();
        // What the keys of waiting still bring.
        std::thread::sleep(Duration::from_secs(2));
        while heard.try_recv().is_ok() {}
        keys.write_all(b"\n").unwrap();
        hear(GUEST_PROMPT, &mut keys, b"");
        for typed in step
            .shown
            .iter()
            .filter_map(|line| line.strip_prefix(GUEST_PROMPT))
            .filter(|typed| *typed != "^]")
        {
            keys.write_all(format!("{typed}\n").as_bytes()).unwrap();
            let said = hear(GUEST_PROMPT, &mut keys, b"");
            let said = said
                .strip_suffix(GUEST_PROMPT)
                .unwrap_or(&said)
                .replace('\r', "");
            came.extend(format!("{GUEST_PROMPT}{said}").lines().map(str::to_owned));
        }
        keys.write_all(&[0x1d]).unwrap();
        child.wait().unwrap();
        came.push(format!("{GUEST_PROMPT}^]"));
        if let Err(why) = self.accept(block, &step.shown, &came) {
            self.fail(block, &why);
        }
        came
    }
}

/// The lines that a page has room for: `head N` and `tail N`, with dots where something is left
/// out.
fn cut(block: &Block, all: Vec<String>) -> Vec<String> {
    let number = |name: &str| block.remark(name).and_then(|n| n.parse::<usize>().ok());
    let (head, tail) = match (number("head"), number("tail")) {
        (None, None) => return all,
        (head, tail) => (head.unwrap_or(0), tail.unwrap_or(0)),
    };
    if all.len() <= head + tail {
        return all;
    }
    let dots = std::iter::once("...".to_owned());
    all[..head]
        .iter()
        .cloned()
        .chain(dots)
        .chain(all[all.len() - tail..].iter().cloned())
        .collect()
}
