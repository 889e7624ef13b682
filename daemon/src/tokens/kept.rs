//! Tokens, one file each: those that were given to this member, or those that it gave.

use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_authority::Token;
use p2pvm_host::lock;
use p2pvm_overlay::durable::write_atomically;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

/// How many tokens are kept.
const MAX_TOKENS: usize = 1024;

/// The file names' suffix.
const SUFFIX: &str = ".token";

/// Tokens by their id.
pub(super) struct KeptTokens {
    dir: PathBuf,
    tokens: Mutex<BTreeMap<String, Token>>,
}

/// What a token is called here.
pub(super) fn id_of(token: &Token) -> String {
    data_encoding::HEXLOWER.encode(&token.serial()[..6])
}

impl KeptTokens {
    /// Reads those in `dir`, which need not exist. A file that cannot be read is left alone.
    pub fn open(dir: PathBuf) -> Self {
        let mut tokens = BTreeMap::new();
        match fs::read_dir(&dir) {
            Ok(entries) => {
                for path in entries.flatten().map(|entry| entry.path()) {
                    match read(&path) {
                        Ok(Some(token)) => {
                            tokens.insert(id_of(&token), token);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            tracing::warn!(
                                file = %path.display(),
                                error = %p2pvm_host::chain(&error),
                                "cannot read a token"
                            );
                        }
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                dir = %dir.display(),
                error = %p2pvm_host::chain(&error),
                "cannot list the tokens"
            ),
        }
        Self {
            dir,
            tokens: tokens.into(),
        }
    }

    fn tokens(&self) -> MutexGuard<'_, BTreeMap<String, Token>> {
        lock(&self.tokens)
    }

    pub fn all(&self) -> Vec<Token> {
        self.tokens().values().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Option<Token> {
        self.tokens().get(id).cloned()
    }

    /// Forgets the tokens that ended before a time.
    pub fn drop_ended_before(&self, time: u64) {
        let all = self.all();
        for token in all.iter().filter(|token| token.until() < time) {
            if let Err(error) = self.remove(&id_of(token)) {
                tracing::warn!(%error, "cannot forget a token that has expired");
            }
        }
    }

    /// Keeps a token; one that is kept already stays.
    pub fn add(&self, token: &Token) -> Outcome<()> {
        let mut tokens = self.tokens();
        let id = id_of(token);
        if !tokens.contains_key(&id) && tokens.len() >= MAX_TOKENS {
            return Err(Failure::refused(format!(
                "{MAX_TOKENS} tokens are kept here already: remove those that expired with 'p2pvm \
                 token remove ID'; those that this member gave go a week after they expired"
            )));
        }
        let text = format!("{token}\n");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .and_then(|()| write_atomically(&self.file(&id), text.as_bytes(), 0o600))
            .doing("keeping the token")?;
        tokens.insert(id, token.clone());
        Ok(())
    }

    /// Forgets a token; false if there is none of this id.
    pub fn remove(&self, id: &str) -> Outcome<bool> {
        let mut tokens = self.tokens();
        if !tokens.contains_key(id) {
            return Ok(false);
        }
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing("removing the token")?;
            }
            _ => {}
        }
        tokens.remove(id);
        Ok(true)
    }

    /// `id` is one of [`id_of`]: hexadecimal digits.
    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}{SUFFIX}"))
    }
}

fn read(path: &Path) -> io::Result<Option<Token>> {
    if !path.to_string_lossy().ends_with(SUFFIX) {
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    text.parse().map(Some).map_err(io::Error::other)
}
