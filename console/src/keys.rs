//! What a key does on each screen.

use crate::model::{JoinPhase, Model, Power, Screen};

/// How many characters of an invite are taken before the rest is dropped.
/// Reason: no invite is longer.
const MAX_INPUT_CHARS: usize = 8192;
/// How many lines a page key scrolls.
const PAGE_LINES: usize = 10;

/// A key that some screen uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Pasted text.
    Paste(String),
    /// Return.
    Enter,
    /// Escape.
    Esc,
    /// Backspace.
    Backspace,
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// Arrow left.
    Left,
    /// Arrow right.
    Right,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Control and U: empties a line.
    Clear,
    /// Control and C.
    Interrupt,
}

/// An action that the caller carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the screen.
    Quit,
    /// Read the last lines of the daemon's log.
    Logs,
    /// Ask the daemon for an invite.
    Invite,
    /// Check an invite and join with it.
    Join {
        /// The invite.
        invite: String,
        /// Whether the user agreed to leave the machine's own network for it.
        leave: bool,
    },
    /// Open a shell.
    Shell,
    /// Stop the machine.
    Power(Power),
}

impl Model {
    /// Handles a key: changes the model, or returns what the caller has to do.
    pub fn press(&mut self, key: Key) -> Option<Action> {
        if key == Key::Interrupt && !self.options.console {
            return Some(Action::Quit);
        }
        self.notice = None;
        match self.screen.clone() {
            Screen::Main | Screen::Help => self.press_main(&key),
            Screen::Logs { back } => {
                let back = match key {
                    Key::Up => back + 1,
                    Key::Down => back.saturating_sub(1),
                    Key::PageUp => back + PAGE_LINES,
                    Key::PageDown => back.saturating_sub(PAGE_LINES),
                    Key::Char('l') => return Some(Action::Logs),
                    _ => return self.close(),
                };
                self.screen = Screen::Logs {
                    back: back.min(self.logs.len().saturating_sub(1)),
                };
                None
            }
            Screen::Invite { page } => {
                self.screen = match key {
                    Key::Right | Key::Down | Key::PageDown | Key::Char(' ' | 'n') | Key::Enter => {
                        Screen::Invite { page: page + 1 }
                    }
                    Key::Left | Key::Up | Key::PageUp | Key::Char('p') => Screen::Invite {
                        page: page.saturating_sub(1),
                    },
                    _ => Screen::Main,
                };
                None
            }
            Screen::Join { input, phase, .. } => self.press_join(key, input, &phase),
            Screen::Confirm {
                power,
                again: false,
            } => {
                self.screen = if key == Key::Char('y') {
                    Screen::Confirm { power, again: true }
                } else {
                    Screen::Main
                };
                None
            }
            Screen::Confirm { power, again: true } => {
                self.screen = Screen::Main;
                // Another key than the first time, so that a key that is held down does not stop a
                // machine.
                (key == Key::Char('Y')).then_some(Action::Power(power))
            }
        }
    }

    fn close(&mut self) -> Option<Action> {
        self.screen = Screen::Main;
        None
    }

    fn press_main(&mut self, key: &Key) -> Option<Action> {
        let was_help = self.screen == Screen::Help;
        self.screen = Screen::Main;
        match key {
            Key::Char('q') if !self.options.console => Some(Action::Quit),
            Key::Char('l') => {
                self.screen = Screen::Logs { back: 0 };
                Some(Action::Logs)
            }
            Key::Char('i') => {
                self.screen = Screen::Invite { page: 0 };
                // A console renews the invite that it shows; on other terminals it may have
                // expired.
                if self.options.console && self.is_alone() && matches!(self.invitation, Some(Ok(_)))
                {
                    return None;
                }
                self.invitation = None;
                Some(Action::Invite)
            }
            Key::Char('j') => {
                self.screen = Screen::Join {
                    input: String::new(),
                    answer: None,
                    phase: JoinPhase::Typing,
                };
                None
            }
            Key::Char('s') if self.options.shell => Some(Action::Shell),
            Key::Char('r') if self.options.console => self.confirm(Power::Reboot),
            Key::Char('p') if self.options.console => self.confirm(Power::Off),
            Key::Char('?' | 'h') if !was_help => {
                self.screen = Screen::Help;
                None
            }
            Key::Up => {
                self.scroll = self.scroll.saturating_sub(1);
                None
            }
            Key::Down => {
                self.scroll = (self.scroll + 1).min(self.members.len().saturating_sub(1));
                None
            }
            _ => None,
        }
    }

    fn confirm(&mut self, power: Power) -> Option<Action> {
        self.screen = Screen::Confirm {
            power,
            again: false,
        };
        None
    }

    fn press_join(&mut self, key: Key, mut input: String, phase: &JoinPhase) -> Option<Action> {
        let working = |input: &str| Screen::Join {
            input: input.to_owned(),
            answer: Some("asking the network ...".to_owned()),
            phase: JoinPhase::Working,
        };
        let typing = |input: String| Screen::Join {
            input,
            answer: None,
            phase: JoinPhase::Typing,
        };
        match (phase, key) {
            (_, Key::Esc | Key::Interrupt) => self.screen = Screen::Main,
            (JoinPhase::Working, _) => {}
            (JoinPhase::AskLeave, Key::Char('y')) => {
                self.screen = working(&input);
                return Some(Action::Join {
                    invite: input,
                    leave: true,
                });
            }
            (JoinPhase::AskLeave, _) => self.screen = typing(input),
            (JoinPhase::Typing, Key::Enter) if !input.is_empty() => {
                self.screen = working(&input);
                return Some(Action::Join {
                    invite: input,
                    leave: false,
                });
            }
            (JoinPhase::Typing, key) => {
                match key {
                    Key::Char(c) => input.push(c),
                    Key::Paste(text) => input.push_str(&text),
                    Key::Clear => input.clear(),
                    Key::Backspace => drop(input.pop()),
                    _ => {}
                }
                // An invite is letters and digits; mail and scanners add line ends.
                let input = input
                    .chars()
                    .filter(|c| c.is_ascii_alphanumeric())
                    .take(MAX_INPUT_CHARS)
                    .collect();
                self.screen = typing(input);
            }
        }
        None
    }
}
