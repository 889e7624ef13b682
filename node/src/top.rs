//! `p2pvm top`: runs the status screen of `p2pvm-console` on a terminal. Three parts feed one loop:
//! the keyboard (a thread of its own), the daemon (`feed` polls it, so that the screen notices a
//! restarted daemon), and work that takes longer, such as joining (`errand`). Only the loop changes
//! the model and draws it.

mod errand;
pub mod feed;
mod terminal;

use crate::cli::{Context, TopArgs};
use errand::Errand;
use p2pvm_api::{Failure, Outcome};
use p2pvm_console::{Action, Invitation, Key, Model, Options, Theme, plain_text};
use std::{
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use terminal::Screen;
use tokio::sync::mpsc;

/// How often the screen is drawn if nothing happens. Reason: its clock has seconds.
const REDRAW: Duration = Duration::from_secs(1);
/// How often the machine's own screen is redrawn as a whole. Reason: the kernel writes over it, and
/// a terminal may connect to a serial line later.
const REPAINT: Duration = Duration::from_secs(60);
/// The size of `--once` if the environment gives none.
const SMALLEST: (u16, u16) = (80, 24);

/// An event for the loop.
enum News {
    /// A key.
    Key(Key),
    /// The daemon's answers, for the model.
    Seen(Box<feed::DaemonView>),
    /// The members' answers about their VMs.
    Vms(Box<feed::VmAnswers>),
    /// The daemon's last lines.
    Logs(Vec<String>),
    /// An invite, or why there is none.
    Invite(Result<Invitation, String>),
    /// A valid invite for this network; this machine must leave its own first.
    AskLeave(String),
    /// Joining has ended.
    Joined(Result<String, String>),
    /// A message for the user.
    Notice(String),
    /// The keyboard or the terminal is gone.
    Gone,
}

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn theme() -> Theme {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .map(|name| environment(name))
        .find(|value| !value.is_empty());
    Theme::of(
        &environment("TERM"),
        &locale.unwrap_or_default(),
        !environment("NO_COLOR").is_empty(),
    )
}

fn clock() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!("{} UTC", now.get(11..19).unwrap_or_default())
}

/// Runs the screen, or prints it once.
pub async fn run(context: &Context, a: &TopArgs) -> Outcome<()> {
    let options = Options {
        console: a.console,
        shell: a.allow_shell,
    };
    let mut model = Model::new(theme(), options);
    model.warning = volatile(context)
        .then(|| "this node's state is in RAM: it is forgotten at power-off".to_owned());
    if context.json {
        return Err(Failure::usage(
            "'p2pvm top' is a screen for people: programs use 'p2pvm --json status', 'peers', 'vm \
                list'",
        ));
    }
    if a.once {
        return once(context, model).await;
    }
    let mut screen = Screen::open()?;
    let (tell, mut told) = mpsc::channel(64);
    screen.read_keys(tell.clone());
    let feed = tokio::spawn(feed::run(context.layout.clone(), tell.clone(), a.console));
    let errand = Arc::new(Errand {
        layout: context.layout.clone(),
        tell,
    });
    let (mut every, mut repaint) = (
        tokio::time::interval(REDRAW),
        tokio::time::interval(REPAINT),
    );
    loop {
        model.clock = clock();
        screen.show(&mut model)?;
        let news = tokio::select! {
            _ = every.tick() => continue,
            _ = repaint.tick(), if a.console => {
                screen.repaint()?;
                continue;
            }
            Some(news) = told.recv() => news,
        };
        // The key that a user types on a serial line that shows nothing.
        if matches!(news, News::Key(Key::Enter)) {
            screen.repaint()?;
        }
        match take(&mut model, news) {
            Some(Action::Quit) => break,
            Some(Action::Shell) => screen.shell(&mut model)?,
            Some(action) => errand.clone().go(action),
            None => {}
        }
    }
    feed.abort();
    Ok(())
}

/// Puts news into the model; returns what the loop has to do.
fn take(model: &mut Model, news: News) -> Option<Action> {
    match news {
        News::Key(key) => return model.press(key),
        News::Seen(seen) => seen.put_into(model),
        News::Vms(told) => told.put_into(model),
        News::Logs(lines) => model.logs = lines,
        News::Invite(invite) => model.invitation = Some(invite),
        News::AskLeave(network) => model.ask_to_leave(&network),
        News::Joined(outcome) => model.join_ended(outcome),
        News::Notice(text) => model.notice = Some(text),
        News::Gone => return Some(Action::Quit),
    }
    None
}

async fn once(context: &Context, mut model: Model) -> Outcome<()> {
    feed::look_at_all(&context.layout, &mut model).await;
    let size = |name: &str, otherwise: u16| {
        environment(name)
            .parse()
            .ok()
            .filter(|n| (20..=1000).contains(n))
            .unwrap_or(otherwise)
    };
    model.size = (size("COLUMNS", SMALLEST.0), size("LINES", SMALLEST.1));
    model.clock = clock();
    // A reader that closes the pipe early is not an error.
    let _ = std::io::stdout().write_all(plain_text(&model).as_bytes());
    Ok(())
}

/// Whether this node's state is on a file system in RAM.
fn volatile(context: &Context) -> bool {
    let there: Option<PathBuf> = context
        .layout
        .dir()
        .ancestors()
        .find(|dir| dir.exists())
        .map(PathBuf::from);
    there.is_some_and(|dir| crate::doctor::in_ram(&dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_or_answer_changes_the_model_and_names_the_work() {
        let mut model = Model::new(Theme::PLAIN, Options::default());
        assert_eq!(
            take(&mut model, News::Key(Key::Char('l'))),
            Some(Action::Logs)
        );
        assert_eq!(
            take(&mut model, News::Logs(vec!["a line".to_owned()])),
            None
        );
        assert!(plain_text(&model).contains("a line"));
        assert_eq!(take(&mut model, News::Gone), Some(Action::Quit));
        assert_eq!(clock().len(), "12:34:56 UTC".len());
    }
}
