//! A text as QR codes (ISO/IEC 18004) made of half-block characters, two modules above each other
//! in one cell, which come out about square on any terminal.
//!
//! A text that is too long for the screen becomes several codes, to be scanned one after the other:
//! an invite may hold white space anywhere, so that the parts can simply be put together. Letters
//! are written as capitals: the code's alphanumeric mode packs those into 5.5 bits each.

use qrcode::{Color, EcLevel, QrCode};

/// The quiet zone that the standard asks for, modules.
const QUIET: usize = 4;
/// The quiet zone on a small screen, modules: current readers accept it.
const QUIET_SMALL: usize = 2;
/// How many codes a text becomes at most.
/// Reason: each is scanned by hand.
const MAX_PARTS: usize = 6;

/// One code, ready to be drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its lines: light modules are full blocks and dark ones blanks, as on a dark terminal.
    pub lines: Vec<String>,
    /// The part of the text that it holds.
    pub text: String,
}

/// The text as codes of at most `columns` x `rows` cells, as few as possible; none if the screen is
/// too small for it.
pub fn codes(text: &str, columns: usize, rows: usize) -> Option<Vec<Code>> {
    let text = text.to_ascii_uppercase();
    if text.is_empty() || !text.is_ascii() {
        return None;
    }
    (1..=MAX_PARTS).find_map(|parts| {
        let each = text.len().div_ceil(parts);
        let pieces = text
            .as_bytes()
            .chunks(each)
            .map(|piece| String::from_utf8_lossy(piece).into_owned());
        let codes: Vec<Code> = pieces
            .map_while(|piece| code(&piece, columns, rows))
            .collect();
        let held: usize = codes.iter().map(|code| code.text.len()).sum();
        (held == text.len()).then_some(codes)
    })
}

fn code(text: &str, columns: usize, rows: usize) -> Option<Code> {
    let made = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let width = made.width();
    let quiet = [QUIET, QUIET_SMALL].into_iter().find(|quiet| {
        let side = width + 2 * quiet;
        side <= columns && side.div_ceil(2) <= rows
    })?;
    let side = width + 2 * quiet;
    let colours = made.to_colors();
    let light = |x: usize, y: usize| {
        let inside = (quiet..quiet + width).contains(&x) && (quiet..quiet + width).contains(&y);
        !inside || colours[(y - quiet) * width + x - quiet] == Color::Light
    };
    let cell = |x: usize, y: usize| match (light(x, y), light(x, y + 1)) {
        (true, true) => '█',
        (true, false) => '▀',
        (false, true) => '▄',
        (false, false) => ' ',
    };
    let lines = (0..side)
        .step_by(2)
        .map(|y| (0..side).map(|x| cell(x, y)).collect())
        .collect();
    Some(Code {
        lines,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A typical invite of one address, letters and digits.
    fn invite() -> String {
        let letters = b"abcdefghijklmnopqrstuvwxyz234567";
        "p2pvm1"
            .chars()
            .chain((0..620usize).map(|i| char::from(letters[i * 7 % 32])))
            .collect()
    }

    #[test]
    fn an_invite_fits_80x24_in_parts_that_together_are_the_invite() {
        let codes = codes(&invite(), 80, 23).unwrap();
        assert!((2..=4).contains(&codes.len()), "{}", codes.len());
        for code in &codes {
            assert!(code.lines.len() <= 23 && code.lines.iter().all(|l| l.chars().count() <= 80));
        }
        let all: String = codes.iter().map(|code| code.text.as_str()).collect();
        assert_eq!(all.to_ascii_lowercase(), invite());
    }

    #[test]
    fn a_large_screen_shows_one_code_with_the_whole_quiet_zone() {
        let codes = codes(&invite(), 128, 47).unwrap();
        assert_eq!(codes.len(), 1);
        assert!(
            codes[0].lines[..2]
                .iter()
                .all(|line| line.chars().all(|c| c == '█'))
        );
    }

    #[test]
    fn a_screen_that_is_too_small_gets_none() {
        assert_eq!(codes(&invite(), 20, 10), None);
        assert_eq!(codes("", 80, 24), None);
    }

    /// Reads the modules back from the characters and compares them with the encoder's.
    #[test]
    fn the_characters_are_the_codes_modules() {
        let made = QrCode::with_error_correction_level("P2PVM1ABC", EcLevel::L).unwrap();
        let drawn = &codes("p2pvm1abc", 80, 24).unwrap()[0];
        for (n, colour) in made.to_colors().iter().enumerate() {
            let (x, y) = (n % made.width() + QUIET, n / made.width() + QUIET);
            let cell = drawn.lines[y / 2].chars().nth(x).unwrap();
            let light = matches!((cell, y % 2), ('█', _) | ('▀', 0) | ('▄', 1));
            assert_eq!(light, *colour == Color::Light, "module {x},{y}");
        }
    }
}
