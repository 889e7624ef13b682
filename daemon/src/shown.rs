//! Escapes foreign texts for display: a host name, an argument or another member's text may contain
//! characters that a terminal obeys or that break a line. They are shown by their number; letters
//! of all languages stay as they are.

use std::borrow::Cow;

/// Whether a character has no shape of its own and changes how others are shown: a control, or a
/// mark that changes the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A text as one line, for the middle of a sentence.
pub fn word(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

/// A text that may have several lines.
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hidden(c) && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if hidden(c) {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_by_its_number_and_languages_stay() {
        for plain in ["lab2", "我的电脑", "🎉", "ÄÖÜ", "שלום", "100%s", "a\u{308}"] {
            assert_eq!(word(plain), plain);
        }
        assert_eq!(word("a\nb"), "a\\nb");
        assert_eq!(word("\x1b[31mred"), "\\u{1b}[31mred");
        assert_eq!(word("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(
            text("one\ttwo\n\x1b[2Jthree\r"),
            "one\ttwo\n\\u{1b}[2Jthree\\r"
        );
    }
}
