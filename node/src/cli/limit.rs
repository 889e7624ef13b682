//! The commands' time limits. A thread of its own watches the clock, so the limit holds whatever
//! the command waits for: a daemon, a disk or a person at the terminal.
//!
//! Most commands have a total limit. Commands whose work has no natural length (a move, a snapshot,
//! an image copy) end after a long time without progress. Screens, consoles and commands that serve
//! until they are stopped have no limit.

use super::{
    args::{Cli, Command, Ping},
    offer_args::Offer,
    silent,
    vm_args::Vm,
};
use p2pvm_api::Failure;
use p2pvm_daemon::{layout::Layout, lock};
use p2pvm_host::lock;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long a query of this node's daemon may take; for some it asks other members.
const SHORT: Duration = Duration::from_secs(30);
/// How long a command may take that waits for other machines more than once, such as `join`.
const LONG: Duration = Duration::from_secs(150);
/// How long work may show no progress. Reason: the daemon waits less for a snapshot's copies.
const SILENCE: Duration = Duration::from_secs(420);
/// How long a ping may take to find the member and get its first answer, and each further answer.
const PING_FIRST: Duration = Duration::from_secs(17);
const PING_EACH: Duration = Duration::from_secs(5);
/// How long a daemon may not have answered before a timeout names it as silent.
const SILENT: Duration = Duration::from_secs(1);
/// How often the thread looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Since when the daemon has owed an answer.
static UNHEARD: Mutex<Option<Instant>> = Mutex::new(None);
/// When the work last showed progress.
static HEARD: Mutex<Option<Instant>> = Mutex::new(None);

/// How long a command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    None,
    /// A total limit.
    Total(Duration),
    /// A limit of the time without progress.
    Silence(Duration),
}

/// Notes progress.
pub fn progressed() {
    *lock(&HEARD) = Some(Instant::now());
}

/// Notes whether the daemon owes an answer.
pub fn unheard(is_so: bool) {
    *lock(&UNHEARD) = is_so.then(Instant::now);
}

/// The limit of a command: the one given, or that of its kind.
pub fn of(cli: &Cli) -> Limit {
    cli.timeout
        .map_or_else(|| of_kind(&cli.command), Limit::Total)
}

fn of_kind(command: &Command) -> Limit {
    match command {
        Command::Up(up) if !up.detach => Limit::None,
        Command::Join(join) if join.foreground => Limit::None,
        Command::Top(top) if !top.once => Limit::None,
        Command::Dashboard(dashboard) if dashboard.listen.is_some() => Limit::None,
        Command::Testbed(_) | Command::Simulate(_) | Command::Demo(_) | Command::Bench(_) => {
            Limit::None
        }
        // A guardian lives as long as its daemon, or as its guests.
        Command::Guardian(_) | Command::GuestGuardian => Limit::None,
        // These read disks, or wait for a person.
        Command::Iso(_) | Command::Image(_) | Command::Install(_) | Command::Appliance(_) => {
            Limit::None
        }
        Command::Vm(Vm::Console(_)) => Limit::None,
        Command::Events(events) if events.follow => Limit::None,
        Command::Vm(Vm::List { .. } | Vm::Show(_) | Vm::Set(_)) => Limit::Total(SHORT),
        Command::Vm(Vm::Delete(_)) => Limit::Total(LONG),
        Command::Vm(_) | Command::Drain | Command::Offer(Offer::Off(_)) => Limit::Silence(SILENCE),
        Command::Down(down) if down.force => Limit::Total(LONG),
        Command::Leave(_)
        | Command::Up(_)
        | Command::Join(_)
        | Command::Doctor(_)
        | Command::Store(_)
        | Command::Bugreport(_) => Limit::Total(LONG),
        Command::Ping(ping) => Limit::Total(of_ping(ping)),
        _ => Limit::Total(SHORT),
    }
}

fn of_ping(ping: &Ping) -> Duration {
    PING_FIRST.saturating_add((ping.interval.max(PING_EACH)).saturating_mul(ping.count))
}

/// Ends the process when its time limit is reached.
pub fn watch(limit: Limit, json: bool, layout: Layout) {
    if limit == Limit::None {
        return;
    }
    progressed();
    let began = Instant::now();
    // The thread ends with the process.
    let watching = std::thread::Builder::new()
        .name("time-limit".to_owned())
        .spawn(move || {
            loop {
                let left = if let Limit::Total(limit) = limit {
                    limit.saturating_sub(began.elapsed())
                } else {
                    LOOK_EVERY
                };
                std::thread::sleep(LOOK_EVERY.min(left));
                if let Some(failure) = over(limit, began.elapsed(), silent_for()) {
                    let failure = because(failure, &layout);
                    super::say(&failure, json);
                    std::process::exit(failure.kind as i32);
                }
            }
        });
    if let Err(error) = watching {
        tracing::debug!(error = %p2pvm_host::chain(&error), "this command has no time limit");
    }
}

/// The failure with its cause, if the daemon is stopped or has not answered.
fn because(failure: Failure, layout: &Layout) -> Failure {
    let unheard = *lock(&UNHEARD);
    let is_silent = unheard.is_some_and(|since| since.elapsed() >= SILENT);
    if is_silent && lock::holder(layout).is_some() || lock::is_held_still(layout) {
        silent::failure(layout)
    } else {
        failure
    }
}

fn silent_for() -> Duration {
    lock(&HEARD).map_or(Duration::ZERO, |at| at.elapsed())
}

fn over(limit: Limit, total: Duration, silent: Duration) -> Option<Failure> {
    let (is_over, sentence) = match limit {
        Limit::None => return None,
        Limit::Total(limit) => (
            total >= limit,
            format!("not done within {}", p2pvm_daemon::clock::span(limit)),
        ),
        Limit::Silence(limit) => (
            silent >= limit,
            format!("no progress for {}", p2pvm_daemon::clock::span(limit)),
        ),
    };
    is_over.then(|| {
        Failure::timed_out(format!(
            "{sentence}: timed out. The daemon may still complete the request: see 'p2pvm \
                status', or set a longer --timeout"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use p2pvm_api::Kind;

    fn limit(words: &str) -> Limit {
        of(&Cli::try_parse_from(words.split(' ')).unwrap())
    }

    #[test]
    fn each_answering_command_has_a_limit_and_a_given_one_wins() {
        assert_eq!(
            limit("p2pvm ping -c 1 lab3"),
            Limit::Total(PING_FIRST + PING_EACH)
        );
        assert_eq!(
            limit("p2pvm ping -c 1 lab3 --timeout 3s"),
            Limit::Total(Duration::from_secs(3))
        );
        assert_eq!(
            limit("p2pvm --timeout 9 status"),
            Limit::Total(Duration::from_secs(9))
        );
        for bounded in [
            "status",
            "peers --all",
            "netcheck",
            "join x",
            "up --detach",
            "down",
            "vm list",
            "doctor",
            "route list",
            "top --once",
        ] {
            assert!(
                matches!(limit(&format!("p2pvm {bounded}")), Limit::Total(_)),
                "{bounded}"
            );
        }
        for long in [
            "vm create web --image x",
            "vm migrate web",
            "vm snapshot web",
            "drain",
            "offer off",
        ] {
            assert!(
                matches!(limit(&format!("p2pvm {long}")), Limit::Silence(_)),
                "{long}"
            );
        }
        for open in [
            "up",
            "top",
            "vm console web",
            "guardian --of 7",
            "guest-guardian",
        ] {
            assert_eq!(limit(&format!("p2pvm {open}")), Limit::None, "{open}");
        }
    }

    #[test]
    fn a_command_that_is_over_says_so_with_exit_code_4() {
        let seconds = Duration::from_secs;
        assert!(over(Limit::Total(seconds(9)), seconds(8), seconds(8)).is_none());
        let failure = over(Limit::Total(seconds(9)), seconds(9), seconds(0)).unwrap();
        assert!(
            failure.kind == Kind::TimedOut && failure.message.starts_with("not done within 9 s"),
            "{failure}"
        );
        assert!(
            over(Limit::Silence(seconds(9)), seconds(900), seconds(3)).is_none(),
            "work that goes on may take long"
        );
        assert!(over(Limit::Silence(seconds(9)), seconds(900), seconds(9)).is_some());
    }
}
