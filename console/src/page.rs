//! The screen as lines: text is written from the top, wrapped or cut to the width.

use crate::Theme;
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

/// A part of the screen that is filled line by line.
pub(crate) struct Page<'a> {
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) y: u16,
    pub(crate) bottom: u16,
    pub(crate) area: Rect,
}

impl Page<'_> {
    pub(crate) fn left(&self) -> usize {
        usize::from(self.bottom.saturating_sub(self.y))
    }

    pub(crate) fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// Writes one line, unless the page is full.
    pub(crate) fn line(&mut self, line: &Line<'_>) {
        if self.y < self.bottom {
            self.buffer
                .set_line(self.area.x, self.y, line, self.area.width);
            self.y += 1;
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.line(&Line::raw(text));
    }

    pub(crate) fn gap(&mut self) {
        self.y = (self.y + 1).min(self.bottom);
    }

    /// Writes text wrapped between words, or anywhere in a word that is too long.
    pub(crate) fn wrapped(&mut self, text: &str, style: Style) {
        for line in wrap(text, self.width().saturating_sub(2)) {
            self.line(&Line::styled(format!(" {line}"), style));
        }
    }

    /// `- Title ------`
    pub(crate) fn rule(&mut self, theme: Theme, title: &str) {
        let rule = theme.rule();
        let rest = self.width().saturating_sub(title.chars().count() + 4);
        let line = vec![
            Span::styled(format!("{rule} "), theme.head()),
            Span::styled(title.to_owned(), theme.title()),
            Span::styled(
                format!(" {}", rule.to_string().repeat(rest + 1)),
                theme.head(),
            ),
        ];
        self.line(&Line::from(line));
    }
}

/// Breaks a text into lines of at most `width` characters.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            // There is always a last line.
            let Some(line) = lines.last_mut() else { break };
            let used = line.chars().count() + usize::from(!line.is_empty());
            if used + word.len() <= width {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(word.drain(..));
            } else if line.is_empty() {
                line.extend(word.drain(..width.max(1).min(word.len())));
                lines.push(String::new());
            } else {
                lines.push(String::new());
            }
        }
    }
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// A cell of exactly `width` characters and a blank; a longer text is cut visibly.
pub(crate) fn cell(text: &str, width: usize) -> String {
    let long = text.chars().count() > width;
    let shown: String = if long {
        text.chars()
            .take(width.saturating_sub(1))
            .chain(['~'])
            .collect()
    } else {
        text.to_owned()
    };
    format!("{shown:width$} ")
}
