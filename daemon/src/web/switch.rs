//! Whether the dashboard is on, and its tokens, one for each role: small files in the state
//! directory that only root can read.

use crate::layout::{Layout, read_if_there, write_atomically};
use p2pvm_api::{Failure, Kind, Outcome, Role};
use p2pvm_host::lock;
use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};
use tokio::sync::watch;

/// How many random bytes a token has: far too many to guess at any rate.
const TOKEN_BYTES: usize = 20;

/// The switch and the tokens.
pub struct Switch {
    operator: Token,
    reader: Token,
    switch_file: PathBuf,
    on: watch::Sender<bool>,
}

/// A token and its file.
struct Token {
    file: PathBuf,
    text: Mutex<String>,
}

impl Token {
    /// Reads a token, or makes it if it is missing.
    fn open(file: PathBuf) -> Outcome<Self> {
        // A text that is too short for a token is not used as a secret.
        let kept = text_of(&file)?.filter(|text| text.len() == encoded(&[0; TOKEN_BYTES]).len());
        let token = Self {
            file,
            text: Mutex::new(kept.unwrap_or_default()),
        };
        if token.text().is_empty() {
            token.renew()?;
        }
        Ok(token)
    }

    fn text(&self) -> String {
        lock(&self.text).clone()
    }

    /// Whether `shown` is the token, in constant time (BLAKE3 compares hashes in constant time).
    fn is(&self, shown: &str) -> bool {
        blake3::hash(shown.as_bytes()) == blake3::hash(self.text().as_bytes())
    }

    fn renew(&self) -> Outcome<()> {
        let fresh = encoded(&rand::random());
        write_atomically(&self.file, format!("{fresh}\n").as_bytes(), 0o600)?;
        *lock(&self.text) = fresh;
        Ok(())
    }
}

/// A small file's text, if the file is there.
fn text_of(file: &Path) -> Outcome<Option<String>> {
    let bytes = read_if_there(file)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

impl Switch {
    /// Reads the switch and the tokens; `on` is the state if nobody has switched yet. Makes missing
    /// tokens.
    pub fn open(layout: &Layout, on: bool) -> Outcome<Self> {
        let switch_file = layout.dashboard_switch();
        let on = match text_of(&switch_file)?.as_deref() {
            None => on,
            Some("on") => true,
            Some("off") => false,
            Some(_) => {
                let wrong = format!(
                    "{} says neither on nor off: remove it",
                    switch_file.display()
                );
                return Err(Failure::new(Kind::Failed, wrong));
            }
        };
        Ok(Self {
            operator: Token::open(layout.dashboard_token())?,
            reader: Token::open(layout.dashboard_reader_token())?,
            switch_file,
            on: watch::Sender::new(on),
        })
    }

    /// The token of operators.
    pub fn token(&self) -> String {
        self.operator.text()
    }

    /// The token of readers.
    pub fn reader_token(&self) -> String {
        self.reader.text()
    }

    /// The role that a token gives, if it is one of this node's.
    pub fn role_of(&self, shown: &str) -> Option<Role> {
        // Both are compared, so that the time does not tell which one was nearly right.
        let (operator, reader) = (self.operator.is(shown), self.reader.is(shown));
        match (operator, reader) {
            (true, _) => Some(Role::Operator),
            (false, true) => Some(Role::Reader),
            (false, false) => None,
        }
    }

    /// Makes a new token for a role; the previous one becomes invalid.
    pub fn renew(&self, role: &Role) -> Outcome<()> {
        match role {
            Role::Operator => self.operator.renew()?,
            Role::Reader => self.reader.renew()?,
            Role::Other(word) => {
                return Err(Failure::usage(format!(
                    "there is no role '{word}': the roles are operator and reader"
                )));
            }
        }
        // Listeners follow the switch and close connections that used the previous token.
        self.on.send_modify(|_| {});
        Ok(())
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        *self.on.borrow()
    }

    /// Switches it, now and for the next start.
    pub fn set(&self, on: bool) -> Outcome<()> {
        write_atomically(
            &self.switch_file,
            if on { b"on\n" } else { b"off\n" },
            0o600,
        )?;
        self.on.send_replace(on);
        Ok(())
    }

    /// Follows the switch; a new token counts as a change too.
    pub fn follow(&self) -> watch::Receiver<bool> {
        self.on.subscribe()
    }
}

/// The text of a token: letters and digits that need no escaping in a URL or a subprotocol's name.
fn encoded(bytes: &[u8; TOKEN_BYTES]) -> String {
    data_encoding::BASE32_NOPAD
        .encode(bytes)
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_token_is_roots_alone_and_a_new_one_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let switch = Switch::open(&layout, false).unwrap();
        let token = switch.token();
        for file in [layout.dashboard_token(), layout.dashboard_reader_token()] {
            let mode = std::fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(token.len() == 32 && switch.role_of(&token) == Some(Role::Operator));
        for wrong in ["", &token[1..], &token.to_uppercase()] {
            assert_eq!(switch.role_of(wrong), None, "{wrong}");
        }
        assert_eq!(
            Switch::open(&layout, false).unwrap().token(),
            token,
            "the next start has the same"
        );
        switch.renew(&Role::Operator).unwrap();
        assert_eq!(switch.role_of(&token), None);
        assert_eq!(switch.role_of(&switch.token()), Some(Role::Operator));
        std::fs::write(layout.dashboard_token(), "").unwrap();
        assert_eq!(
            Switch::open(&layout, false).unwrap().token().len(),
            32,
            "an empty file is no token"
        );
    }

    #[test]
    fn each_role_has_a_token_and_a_new_one_leaves_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::open(&Layout::at(dir.path()), false).unwrap();
        let (operator, reader) = (switch.token(), switch.reader_token());
        assert_ne!(operator, reader);
        assert_eq!(switch.role_of(&reader), Some(Role::Reader));
        let told = switch.follow();
        switch.renew(&Role::Reader).unwrap();
        assert!(told.has_changed().unwrap());
        assert_eq!(switch.role_of(&reader), None);
        assert_eq!(switch.role_of(&operator), Some(Role::Operator));
        assert!(switch.renew(&Role::Other("owner".into())).is_err());
    }

    #[test]
    fn the_last_word_counts_more_than_the_settings_and_off_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let switch = Switch::open(&layout, false).unwrap();
        assert!(!switch.is_on());
        assert!(Switch::open(&layout, true).unwrap().is_on());
        switch.set(true).unwrap();
        assert!(switch.is_on() && Switch::open(&layout, false).unwrap().is_on());
        switch.set(false).unwrap();
        assert!(!Switch::open(&layout, true).unwrap().is_on());
        std::fs::write(layout.dashboard_switch(), "perhaps").unwrap();
        assert!(Switch::open(&layout, false).is_err_and(|e| e.message.contains("remove it")));
    }
}
