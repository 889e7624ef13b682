//! A serial port with a terminal at its end: what came out of it, as lines and as the 80x24 that a
//! person sees, and keys into it.
//!
//! The terminal knows what the appliance sends (ECMA-48: cursor position, erasing; colours and
//! modes are passed over) and no more.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const ROWS: usize = 24;
const COLUMNS: usize = 80;
/// QEMU makes the port's socket within this, or it did not start.
const SOCKET_LIMIT: Duration = Duration::from_secs(60);

/// A port that is being read.
pub struct Serial {
    keys: UnixStream,
    seen: Arc<Mutex<Terminal>>,
}

impl Serial {
    /// Connects to QEMU's socket; the machine waits for it before its first instruction.
    pub fn connect(socket: &Path) -> Self {
        let began = Instant::now();
        let keys = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) => assert!(began.elapsed() < SOCKET_LIMIT, "{}: {e}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let seen = Arc::new(Mutex::new(Terminal::default()));
        let (mut port, terminal) = (keys.try_clone().unwrap(), seen.clone());
        // It ends with the machine.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = port.read(&mut bytes) {
                terminal.lock().unwrap().take(&bytes[..read]);
            }
        });
        Self { keys, seen }
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// All that was said line by line, and below it the screen.
    pub fn all(&self) -> String {
        let seen = self.seen.lock().unwrap();
        format!("{}\n--- the screen:\n{}", seen.lines, seen.screen())
    }

    /// The line on the screen that `is_it`, else the first that ever was.
    pub fn find(&self, is_it: impl Fn(&str) -> bool) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        let screen = seen.screen();
        screen
            .lines()
            .chain(seen.lines.lines())
            .find(|line| is_it(line))
            .map(str::to_owned)
    }

    /// The screen's rows.
    pub fn screen(&self) -> String {
        self.seen.lock().unwrap().screen()
    }
}

struct Terminal {
    /// Everything but control sequences, in the order that it came.
    lines: String,
    cells: Vec<[char; COLUMNS]>,
    row: usize,
    column: usize,
    /// A control sequence that has begun, or a character of several bytes.
    begun: Vec<u8>,
}

impl Default for Terminal {
    fn default() -> Self {
        Self {
            lines: String::new(),
            cells: vec![[' '; COLUMNS]; ROWS],
            row: 0,
            column: 0,
            begun: Vec::new(),
        }
    }
}

impl Terminal {
    fn screen(&self) -> String {
        self.cells
            .iter()
            .map(|row| row.iter().collect::<String>().trim_end().to_owned() + "\n")
            .collect()
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match (self.begun.first(), byte) {
                (_, 0x1b) => self.begun = vec![byte],
                (Some(0x1b), _) => {
                    self.begun.push(byte);
                    self.sequence(byte);
                }
                (None, b'\n') => {
                    self.lines.push('\n');
                    self.down();
                }
                (None, b'\r') => self.column = 0,
                (None, 8) => self.column = self.column.saturating_sub(1),
                (None, 0..0x20 | 0x7f) => {}
                _ => {
                    self.begun.push(byte);
                    match std::str::from_utf8(&self.begun).map(|text| text.chars().next()) {
                        Ok(Some(c)) => self.print(c),
                        Err(e) if e.error_len().is_none() => continue,
                        _ => {}
                    }
                    self.begun.clear();
                }
            }
        }
    }

    fn down(&mut self) {
        self.row += 1;
        if self.row == ROWS {
            self.row -= 1;
            self.cells.rotate_left(1);
            self.cells[self.row] = [' '; COLUMNS];
        }
    }

    fn print(&mut self, c: char) {
        self.lines.push(c);
        if self.column == COLUMNS {
            self.column = 0;
            self.down();
        }
        self.cells[self.row][self.column] = c;
        self.column += 1;
    }

    /// One more byte of an escape sequence; acts when it was the last.
    fn sequence(&mut self, last: u8) {
        let is_csi = self.begun.get(1) == Some(&b'[');
        // `ESC [ ... letter`; `ESC ( B`; `ESC letter`.
        let ended = if is_csi {
            self.begun.len() > 2 && (0x40..0x7f).contains(&last)
        } else {
            !(0x20..0x30).contains(&last)
        };
        if !ended {
            return;
        }
        let begun = std::mem::take(&mut self.begun);
        if !is_csi {
            return;
        }
        let text = String::from_utf8_lossy(&begun[2..begun.len() - 1]).into_owned();
        let numbers: Vec<usize> = text.split(';').map(|n| n.parse().unwrap_or(0)).collect();
        let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
        match last {
            b'H' | b'f' => {
                self.row = number(0).clamp(1, ROWS) - 1;
                self.column = number(1).clamp(1, COLUMNS) - 1;
            }
            b'J' if number(0) == 2 => self.cells.fill([' '; COLUMNS]),
            b'J' if number(0) == 0 => {
                self.rest_of_row();
                self.cells[self.row + 1..].fill([' '; COLUMNS]);
            }
            b'K' if number(0) == 0 => self.rest_of_row(),
            _ => {}
        }
    }

    fn rest_of_row(&mut self) {
        let from = self.column.min(COLUMNS);
        self.cells[self.row][from..].fill(' ');
    }
}

#[test]
fn a_terminal_shows_what_was_written_where_it_was_written() {
    let mut terminal = Terminal::default();
    let sent = "plain \x1b[1mbold\x1b[m\r\n\
        \x1b[?25l\x1b[3;5Hhere \u{2588}\x1b[2;1Hover\x1b[1;7H\x1b[K\x1b(B";
    // Byte by byte: a sequence may come in pieces.
    sent.bytes().for_each(|byte| terminal.take(&[byte]));
    let screen = terminal.screen();
    assert_eq!(
        screen.lines().take(4).collect::<Vec<_>>(),
        ["plain", "over", "    here \u{2588}", ""]
    );
    assert!(terminal.lines.starts_with("plain bold\n"));
    terminal.take(b"\x1b[2J\x1b[24;80Hxy\r\nz");
    assert_eq!(
        terminal.screen().lines().skip(21).collect::<Vec<_>>(),
        [&*format!("{:>80}", "x"), "y", "z"]
    );
}
