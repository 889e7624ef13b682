//! What a terminal can show. A serial line with a vt220 has neither colours nor line characters;
//! the Linux console has both, sixteen colours and UTF-8 by default (since 2.6.24).

use ratatui::style::{Color, Modifier, Style};

/// The style of one terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Whether the terminal has colours.
    pub colour: bool,
    /// Whether it shows characters beyond ASCII: lines and half blocks.
    pub unicode: bool,
}

impl Theme {
    /// Letters only.
    pub const PLAIN: Self = Self {
        colour: false,
        unicode: false,
    };

    /// The style of a terminal by its name (`TERM`), the locale's name (`LC_ALL`, `LC_CTYPE` or
    /// `LANG`), and whether the user wants no colours (<https://no-color.org>).
    pub fn of(term: &str, locale: &str, no_colour: bool) -> Self {
        let term = term.to_ascii_lowercase();
        let mono = term.is_empty()
            || term == "dumb"
            || term.starts_with("vt")
            || term.ends_with("-m")
            || term.ends_with("-mono");
        let locale = locale.to_ascii_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self {
            colour: !mono && !no_colour,
            unicode: utf8 || term == "linux",
        }
    }

    fn coloured(self, colour: Color, otherwise: Style) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            otherwise
        }
    }

    pub(crate) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) fn head(self) -> Style {
        self.coloured(Color::Cyan, Style::new())
    }

    pub(crate) fn good(self) -> Style {
        self.coloured(Color::Green, Style::new())
    }

    pub(crate) fn notable(self) -> Style {
        self.coloured(Color::Yellow, Style::new().add_modifier(Modifier::BOLD))
    }

    pub(crate) fn bad(self) -> Style {
        self.coloured(Color::Red, Style::new())
            .add_modifier(if self.colour {
                Modifier::BOLD
            } else {
                Modifier::REVERSED
            })
    }

    pub(crate) fn bar(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Dark on light on a terminal with colours; otherwise its own light on dark.
    pub(crate) fn paper(self) -> Style {
        if self.colour {
            Style::new().fg(Color::White).bg(Color::Black)
        } else {
            Style::new()
        }
    }

    pub(crate) fn rule(self) -> char {
        if self.unicode { '─' } else { '-' }
    }

    /// A bar of `width` cells, filled to `share` (0 to 1).
    pub(crate) fn gauge(self, share: f64, width: usize) -> String {
        let filled = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
        let (full, empty) = if self.unicode {
            ("█", "░")
        } else {
            ("#", ".")
        };
        full.repeat(filled) + &empty.repeat(width - filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_only_what_it_can_show() {
        assert_eq!(
            Theme::of("linux", "C", false),
            Theme {
                colour: true,
                unicode: true
            }
        );
        assert_eq!(Theme::of("vt220", "", false), Theme::PLAIN);
        assert_eq!(
            Theme::of("vt220", "en_GB.UTF-8", false),
            Theme {
                colour: false,
                unicode: true
            }
        );
        assert_eq!(
            Theme::of("xterm-256color", "C.UTF-8", true),
            Theme {
                colour: false,
                unicode: true
            }
        );
        assert_eq!(Theme::of("", "", false), Theme::PLAIN);
        assert_eq!(Theme::PLAIN.gauge(0.5, 4), "##..");
        assert_eq!(Theme::PLAIN.gauge(f64::NAN, 2), "..");
    }
}
