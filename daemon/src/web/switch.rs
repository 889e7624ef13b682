//! Whether the dashboard is on, and its token: two small files in the state directory that only
//! root can read.

use crate::layout::{Layout, read_if_there, write_atomically};
use p2pvm_api::{Failure, Kind, Outcome};
use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

/// How many random bytes a token has: far too many to guess at any rate.
const TOKEN_BYTES: usize = 20;

/// The switch and the token.
pub struct Switch {
    token_file: PathBuf,
    switch_file: PathBuf,
    token: Mutex<String>,
    on: watch::Sender<bool>,
}

impl Switch {
    /// Reads the switch and the token; `on` is the state if nobody has switched yet. Makes a
    /// missing token.
    pub fn open(layout: &Layout, on: bool) -> Outcome<Self> {
        let (token_file, switch_file) = (layout.dashboard_token(), layout.dashboard_switch());
        let text = |file: &PathBuf| {
            Ok::<_, Failure>(
                read_if_there(file)?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()),
            )
        };
        let on = match text(&switch_file)?.as_deref() {
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
        // A text that is too short for a token is not used as a secret.
        let kept =
            text(&token_file)?.filter(|token| token.len() == encoded(&[0; TOKEN_BYTES]).len());
        let switch = Self {
            token_file,
            switch_file,
            token: Mutex::new(kept.unwrap_or_default()),
            on: watch::Sender::new(on),
        };
        if switch.token().is_empty() {
            switch.renew()?;
        }
        Ok(switch)
    }

    /// The token.
    pub fn token(&self) -> String {
        self.token
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether `shown` is the token, in constant time (BLAKE3 compares hashes in constant time).
    pub fn accepts(&self, shown: &str) -> bool {
        blake3::hash(shown.as_bytes()) == blake3::hash(self.token().as_bytes())
    }

    /// Makes a new token; the previous one becomes invalid.
    pub fn renew(&self) -> Outcome<()> {
        let fresh = encoded(&rand::random());
        write_atomically(&self.token_file, format!("{fresh}\n").as_bytes(), 0o600)?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
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
    fn the_token_is_kept_for_root_alone_and_a_new_one_ends_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let switch = Switch::open(&layout, false).unwrap();
        let token = switch.token();
        assert_eq!(
            std::fs::metadata(layout.dashboard_token())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        assert!(token.len() == 32 && switch.accepts(&token));
        assert!(
            !switch.accepts("")
                && !switch.accepts(&token[1..])
                && !switch.accepts(&token.to_uppercase())
        );
        assert_eq!(
            Switch::open(&layout, false).unwrap().token(),
            token,
            "the next start has the same"
        );
        switch.renew().unwrap();
        assert!(!switch.accepts(&token) && switch.accepts(&switch.token()));
        std::fs::write(layout.dashboard_token(), "").unwrap();
        assert_eq!(
            Switch::open(&layout, false).unwrap().token().len(),
            32,
            "an empty file is no token"
        );
    }

    #[test]
    fn it_is_off_until_it_is_switched_on_and_what_was_said_last_counts_more_than_the_settings() {
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
