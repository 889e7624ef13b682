//! The terminal: raw keys, drawing, and restoring it, also after a panic.
//!
//! A serial line does not know its size (the kernel says 0x0): it is treated as 80x24. Its other
//! end may be unconnected, so this module never queries the terminal. ratatui's own `clear` and
//! `resize` do: they wait for an answer with the cursor's place.

use super::News;
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_console::{Key, Model, draw};
use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{
            self, DisableBracketedPaste, EnableBracketedPaste, Event, KeyCode, KeyEvent,
            KeyEventKind, KeyModifiers,
        },
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
            enable_raw_mode, size,
        },
    },
    layout::Rect,
};
use std::{
    io::{IsTerminal, Stdout, stdout},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;

/// How soon the keyboard thread notices that a shell needs the keys.
const KEY_POLL: Duration = Duration::from_millis(100);

/// The screen in use.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    area: Rect,
    /// A shell has the keyboard.
    paused: Arc<AtomicBool>,
}

fn area() -> Rect {
    match size() {
        Ok((width, height)) if width > 0 && height > 0 => Rect::new(0, 0, width, height),
        _ => Rect::new(0, 0, 80, 24),
    }
}

fn enter() -> Outcome<()> {
    enable_raw_mode().doing("taking the terminal")?;
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste).doing("taking the terminal")
}

/// Restores the terminal; for a terminal that is gone nothing can be done.
fn leave() {
    let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// Clears the terminal; the next drawing redraws all of it.
fn open(area: Rect) -> Outcome<Terminal<CrosstermBackend<Stdout>>> {
    execute!(stdout(), Clear(ClearType::All)).doing("drawing on the terminal")?;
    Terminal::with_options(
        CrosstermBackend::new(stdout()),
        TerminalOptions {
            viewport: Viewport::Fixed(area),
        },
    )
    .doing("drawing on the terminal")
}

impl Screen {
    /// Takes over the terminal.
    pub fn open() -> Outcome<Self> {
        if !std::io::stdin().is_terminal() || !stdout().is_terminal() {
            return Err(Failure::usage(
                "'p2pvm top' needs a terminal; --once prints one screen as text, 'p2pvm status \
                    --json' is for programs",
            ));
        }
        enter()?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            before(panic);
        }));
        let area = area();
        Ok(Self {
            terminal: open(area)?,
            area,
            paused: Arc::default(),
        })
    }

    /// Draws at the terminal's present size.
    pub fn show(&mut self, model: &mut Model) -> Outcome<()> {
        let now = area();
        if now != self.area {
            self.area = now;
            self.repaint()?;
        }
        model.size = (now.width, now.height);
        self.terminal
            .draw(|frame| draw(model, frame.buffer_mut()))
            .doing("drawing on the terminal")?;
        Ok(())
    }

    /// Lets the next [`show`](Self::show) redraw the whole screen.
    pub fn repaint(&mut self) -> Outcome<()> {
        self.terminal = open(self.area)?;
        Ok(())
    }

    /// Reads keys in a thread of its own until the loop is gone.
    pub fn read_keys(&self, tell: mpsc::Sender<News>) {
        let paused = self.paused.clone();
        std::thread::spawn(move || {
            loop {
                if paused.load(Ordering::Acquire) {
                    std::thread::sleep(KEY_POLL);
                    continue;
                }
                let news = match event::poll(KEY_POLL).and_then(|there| {
                    if there {
                        event::read().map(Some)
                    } else {
                        Ok(None)
                    }
                }) {
                    Ok(Some(event)) => key(event).map(News::Key),
                    Ok(None) => None,
                    Err(_) => Some(News::Gone),
                };
                let last = matches!(news, Some(News::Gone));
                if tell.is_closed()
                    || news.is_some_and(|news| tell.blocking_send(news).is_err())
                    || last
                {
                    return;
                }
            }
        });
    }

    /// Lends the terminal to a shell.
    pub fn shell(&mut self, model: &mut Model) -> Outcome<()> {
        self.paused.store(true, Ordering::Release);
        // The keyboard thread's running wait ends first.
        std::thread::sleep(2 * KEY_POLL);
        leave();
        let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
        println!("'exit' leads back to the status screen.");
        if let Err(error) = std::process::Command::new(&shell).status() {
            model.notice = Some(format!("{shell}: {}", p2pvm_host::chain(&error)));
        }
        enter()?;
        self.area = area();
        self.terminal = open(self.area)?;
        self.paused.store(false, Ordering::Release);
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn key(event: Event) -> Option<Key> {
    match event {
        Event::Paste(text) => Some(Key::Paste(text)),
        Event::Key(KeyEvent {
            code,
            modifiers,
            kind,
            ..
        }) if kind != KeyEventKind::Release => Some(match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
            KeyCode::Char('u') if modifiers.contains(KeyModifiers::CONTROL) => Key::Clear,
            KeyCode::Char(_) if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {
                return None;
            }
            KeyCode::Char(c) => Key::Char(c),
            KeyCode::Enter => Key::Enter,
            KeyCode::Esc => Key::Esc,
            KeyCode::Backspace | KeyCode::Delete => Key::Backspace,
            KeyCode::Up => Key::Up,
            KeyCode::Down => Key::Down,
            KeyCode::Left => Key::Left,
            KeyCode::Right => Key::Right,
            KeyCode::PageUp => Key::PageUp,
            KeyCode::PageDown => Key::PageDown,
            _ => return None,
        }),
        _ => None,
    }
}
