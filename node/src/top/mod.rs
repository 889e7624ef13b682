//! `p2pvm top`: runs the status screen of `p2pvm-console` on a terminal. Three parts feed one loop:
//! the keyboard (a thread of its own), the daemon (`feed`, asked again and again, so that a daemon
//! that comes back is noticed by itself), and what takes longer, such as joining (`errand`). The
//! loop alone changes the model and draws it.

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

/// How often the screen is drawn anew where nothing happens: the clock on it has seconds.
const REDRAW: Duration = Duration::from_secs(1);
/// How often the machine's own screen is painted as a whole: over what the kernel wrote, and for
/// who connects to a serial line later.
const REPAINT: Duration = Duration::from_secs(60);
/// The size of `--once` where the environment names none.
const SMALLEST: (u16, u16) = (80, 24);

/// What reaches the loop.
enum News {
    /// A key.
    Key(Key),
    /// What the daemon says, to be put into the model.
    Seen(Box<feed::Seen>),
    /// What the members said of their VMs.
    Told(Box<feed::Told>),
    /// The daemon's last lines.
    Logs(Vec<String>),
    /// An invite, or why there is none.
    Invite(Result<Invitation, String>),
    /// A checked invite is for this network; the own must be left first.
    AskLeave(String),
    /// The joining ended.
    Joined(Result<String, String>),
    /// Something went wrong that is to be said.
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
            "'p2pvm top' is a screen for people: for programs 'p2pvm --json status', 'peers', 'vm \
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
        // What one types at a serial line that shows nothing.
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

/// Puts news into the model; gives what is to be done.
fn take(model: &mut Model, news: News) -> Option<Action> {
    match news {
        News::Key(key) => return model.press(key),
        News::Seen(seen) => seen.put_into(model),
        News::Told(told) => told.put_into(model),
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
    // A reader that has seen enough and left is no failure.
    let _ = std::io::stdout().write_all(plain_text(&model).as_bytes());
    Ok(())
}

/// Whether this node's state lies on a file system in RAM.
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
    fn a_key_and_an_answer_change_the_model_and_name_what_is_to_be_done() {
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
