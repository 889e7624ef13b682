//! The users that this member knows, which are names for the public keys of persons; and the proofs
//! that users show with requests, each of which is accepted once.

use p2pvm_api::{Doing, Failure, Outcome, UserView};
use p2pvm_authority::{Asked, Principal, Proof, ProofError, SeenProofs};
use p2pvm_host::lock;
use p2pvm_overlay::{MemberId, UnixTime, durable::write_atomically, membership::valid_name};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

/// How many users are known.
const MAX_USERS: usize = 1024;
/// The prefix of a user where a member could be named as well.
const PREFIX: &str = "user:";

/// Users by their names here, with their keys.
pub(crate) struct Users {
    file: PathBuf,
    names: Mutex<BTreeMap<String, MemberId>>,
    uids_file: PathBuf,
    /// The users of this machine's accounts, by the accounts' numbers.
    uids: Mutex<BTreeMap<u32, MemberId>>,
    seen: Mutex<SeenProofs>,
}

impl Users {
    /// Reads the files, which need not exist: JSON, a name or an account's number with its key.
    pub fn open(file: PathBuf, uids_file: PathBuf) -> Self {
        let unread = |error: io::Error| {
            tracing::warn!(error = %p2pvm_host::chain(&error), "cannot read the users");
        };
        let names = keys(&file).map_err(unread);
        let uids = keys(&uids_file).map_err(unread).unwrap_or_default();
        let number = |(uid, key): (String, MemberId)| Some((uid.parse().ok()?, key));
        let uids: BTreeMap<u32, MemberId> = uids.into_iter().filter_map(number).collect();
        Self {
            file,
            names: names.unwrap_or_default().into(),
            uids_file,
            uids: uids.into(),
            seen: Mutex::default(),
        }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, MemberId>> {
        lock(&self.names)
    }

    /// Gives a key a name here; a name has one key.
    pub fn add(&self, name: &str, key: &str, uid: Option<u32>) -> Outcome<UserView> {
        if !valid_name(name) {
            return Err(Failure::usage(format!(
                "'{name}' cannot be a name: use 1 to 63 lower-case letters, digits and hyphens"
            )));
        }
        let key: MemberId = plain(key).parse().map_err(|_| {
            Failure::usage(format!(
                "'{key}' is not a user's key: it is what 'p2pvm user create' prints there"
            ))
        })?;
        let mut names = self.names();
        if names.get(name).is_some_and(|known| *known != key) {
            return Err(Failure::refused(format!(
                "another user is called '{name}' here: choose another name"
            )));
        }
        if !names.contains_key(name) && names.len() >= MAX_USERS {
            return Err(Failure::refused(format!(
                "{MAX_USERS} users are known here already"
            )));
        }
        let mut next = names.clone();
        next.insert(name.to_owned(), key);
        let texts: BTreeMap<&String, String> = next
            .iter()
            .map(|(name, key)| (name, key.to_string()))
            .collect();
        let text = serde_json::to_vec_pretty(&texts).doing("encoding the users' names")?;
        write_atomically(&self.file, &text, 0o600).doing("keeping the users' names")?;
        *names = next;
        drop(names);
        if let Some(uid) = uid {
            self.add_uid(uid, key)?;
        }
        Ok(self.view(name, key))
    }

    /// Takes an account of this machine for a user's; an account has one user.
    fn add_uid(&self, uid: u32, key: MemberId) -> Outcome<()> {
        if uid == 0 {
            return Err(Failure::usage(
                "root may manage every VM: it needs no account here",
            ));
        }
        let mut uids = lock(&self.uids);
        if !uids.contains_key(&uid) && uids.len() >= MAX_USERS {
            return Err(Failure::refused(format!(
                "{MAX_USERS} accounts are known here already"
            )));
        }
        let mut next = uids.clone();
        // A user has one account: an earlier one of it ends.
        next.retain(|_, known| *known != key);
        next.insert(uid, key);
        let texts: BTreeMap<u32, String> = next
            .iter()
            .map(|(uid, key)| (*uid, key.to_string()))
            .collect();
        let text = serde_json::to_vec_pretty(&texts).doing("encoding the users' accounts")?;
        write_atomically(&self.uids_file, &text, 0o600).doing("keeping the users' accounts")?;
        *uids = next;
        Ok(())
    }

    /// The key of the user whose account of this machine has that number.
    pub fn of_uid(&self, uid: u32) -> Option<Principal> {
        lock(&self.uids).get(&uid).map(|key| key.0)
    }

    fn view(&self, name: &str, key: MemberId) -> UserView {
        let uids = lock(&self.uids);
        let uid = uids.iter().find(|(_, known)| **known == key);
        UserView {
            key: key.to_string(),
            name: name.to_owned(),
            uid: uid.map(|(uid, _)| *uid),
        }
    }

    pub fn list(&self) -> Vec<UserView> {
        self.names()
            .iter()
            .map(|(name, key)| self.view(name, *key))
            .collect()
    }

    /// The key that a text means: `user:` and a name here or a key; `None` for another text.
    pub fn audience(&self, text: &str) -> Option<Outcome<Principal>> {
        let user = text.strip_prefix(PREFIX)?;
        let known = self.names().get(user).copied();
        let key = known.or_else(|| user.parse().ok());
        Some(key.map(|key| key.0).ok_or_else(|| {
            Failure::not_found(format!(
                "no user '{user}' is known here: see 'p2pvm user list', or give the user's key"
            ))
        }))
    }

    /// What a user's key is called here, if it is known.
    pub fn name_of(&self, key: Principal) -> Option<String> {
        let names = self.names();
        let found = names.iter().find(|(_, known)| known.0 == key);
        found.map(|(name, _)| format!("{PREFIX}{name}"))
    }

    /// The user that proves a request of a member, once.
    pub fn prove(&self, proof: &str, asked: &Asked<'_>) -> Result<Principal, ProofError> {
        let proof: Proof = proof.parse()?;
        let mut seen = lock(&self.seen);
        seen.accept(&proof, asked, UnixTime::now().0)
    }
}

fn plain(key: &str) -> &str {
    let key = key.trim();
    key.strip_prefix(PREFIX).unwrap_or(key)
}

/// The keys in a file, which need not exist, by their names.
fn keys(file: &Path) -> io::Result<BTreeMap<String, MemberId>> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        read => read?,
    };
    let names: BTreeMap<String, String> = serde_json::from_slice(&text)?;
    let key = |(name, key): (String, String)| Some((name, key.parse().ok()?));
    Ok(names.into_iter().filter_map(key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_once_and_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = || Users::open(at("users.json"), at("user-accounts.json"));
        let (users, anna) = (open(), MemberId([3; 32]).to_string());
        users.add("anna", &format!("user:{anna}"), None).unwrap();
        users.add("anna", &anna, Some(1000)).unwrap();
        assert!(users.add("anna", &anna, Some(0)).is_err());
        let refused = users.add("anna", &MemberId([4; 32]).to_string(), None);
        assert!(refused.unwrap_err().message.contains("another user"));
        assert!(users.add("Anna B", &anna, None).is_err() && users.add("b", "key", None).is_err());
        let users = open();
        let listed = &users.list()[0];
        assert_eq!(
            (listed.key.as_str(), listed.uid),
            (anna.as_str(), Some(1000))
        );
        assert_eq!((users.of_uid(1000), users.of_uid(0)), (Some([3; 32]), None));
        let key = |text: &str| users.audience(text).map(|found| found.ok());
        assert_eq!(key("user:anna"), Some(Some([3; 32])));
        assert_eq!(key(&format!("user:{anna}")), Some(Some([3; 32])));
        assert_eq!((key("user:bert"), key("anna")), (Some(None), None));
        assert_eq!(users.name_of([3; 32]).as_deref(), Some("user:anna"));
        assert_eq!(users.name_of([4; 32]), None);
    }
}
