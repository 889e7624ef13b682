//! Tables and values on standard output.

use super::Context;
use p2pvm_api::{Doing, Failure, Outcome};
use serde::Serialize;

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Outcome<()> {
    println!(
        "{}",
        serde_json::to_string_pretty(value).doing("encoding the result")?
    );
    Ok(())
}

/// Prints one of several values as one line of JSON.
pub fn json_line(value: &impl Serialize) {
    println!(
        "{}",
        serde_json::to_string(value).expect("what came as JSON can be written as JSON")
    );
}

/// Prints an answer: with `--json` as JSON, otherwise in words.
pub fn report(context: &Context, answer: &impl Serialize, in_words: impl FnOnce()) -> Outcome<()> {
    if context.json {
        return json(answer);
    }
    in_words();
    Ok(())
}

/// Prints rows in aligned columns below their titles.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) {
    let mut widths = titles.map(|t| t.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(titles);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}

/// Milliseconds with a sensible number of digits.
pub fn ms(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2} ms")
    } else {
        format!("{value:.1} ms")
    }
}

/// "-" for a missing value.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Shows a text as QR codes: one if the terminal has room for it, or if the output is no terminal.
pub fn codes(text: &str) -> Outcome<()> {
    use std::io::IsTerminal;
    let whole = (usize::from(u16::MAX), usize::from(u16::MAX));
    let (columns, rows) = match ratatui::crossterm::terminal::size() {
        // Two lines stay free for the prompt and the part's number.
        Ok((columns, rows)) if std::io::stdout().is_terminal() && rows > 2 => {
            (usize::from(columns), usize::from(rows) - 2)
        }
        _ => whole,
    };
    let codes = p2pvm_console::qr::codes(text, columns, rows).ok_or_else(|| {
        Failure::refused(format!(
            "the terminal ({columns}x{rows}) is too small for a QR code: enlarge it"
        ))
    })?;
    for (n, code) in codes.iter().enumerate() {
        if codes.len() > 1 {
            println!(
                "part {} of {}: join the texts of all parts in order",
                n + 1,
                codes.len()
            );
        }
        println!("{}", code.lines.join("\n"));
    }
    Ok(())
}
