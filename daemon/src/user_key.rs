//! The key of the person at this machine: a file apart from the machine's keys, so that the person
//! can use it at any member. If there is one, the command line signs its requests with it;
//! otherwise a request is the member's alone.

use crate::{layout::Layout, membership};
use p2pvm_api::{Doing, Failure, Outcome, client::Signer};
use p2pvm_authority::{Asked, Proof};
use p2pvm_overlay::{MemberId, UnixTime, identity::KeyPair};
use std::{
    env, fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The variable that names the file with the user's key.
pub const KEY_VARIABLE: &str = "P2PVM_USER_KEY";

/// Where the user's key is: where the variable says; for root in the state directory; for others in
/// their own configuration.
pub fn file(layout: &Layout) -> PathBuf {
    if let Some(named) = env::var_os(KEY_VARIABLE).filter(|named| !named.is_empty()) {
        return named.into();
    }
    let home = env::var_os("HOME").filter(|_| !nix::unistd::geteuid().is_root());
    let own = |home: std::ffi::OsString| PathBuf::from(home).join(".config/p2pvm/user.key");
    home.map_or_else(|| layout.user_key(), own)
}

/// The text form of a user's public key.
pub fn text(key: &KeyPair) -> String {
    MemberId(key.public()).to_string()
}

/// Makes a key in a file that does not exist yet.
pub fn create(path: &Path) -> Outcome<KeyPair> {
    let key = KeyPair::generate();
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .doing(format_args!("making {}", dir.display()))?;
    }
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(Failure::refused(format!(
            "{} has a user's key already: another user's goes into another file, which {} names",
            path.display(),
            KEY_VARIABLE
        ))),
        made => {
            let mut file = made.doing(format_args!("writing {}", path.display()))?;
            file.write_all(&key.seed()[..])
                .and_then(|()| file.sync_all())
                .doing(format_args!("writing {}", path.display()))?;
            Ok(key)
        }
    }
}

/// The key in a file; `None` if there is no file.
pub fn load(path: &Path) -> Outcome<Option<KeyPair>> {
    let Some(bytes) = crate::layout::read_if_there(path)? else {
        return Ok(None);
    };
    let seed: [u8; 32] = bytes.try_into().map_err(|_| {
        Failure::refused(format!(
            "{} is damaged: a user's key has 32 bytes",
            path.display()
        ))
    })?;
    Ok(Some(KeyPair::from_seed(&seed)))
}

/// What signs this user's requests from this member; `None` without a user's key.
pub fn signer(layout: &Layout) -> Outcome<Option<Signer>> {
    let key = load(&file(layout))?;
    signer_with(key, layout, nix::unistd::geteuid().is_root())
}

fn signer_with(key: Option<KeyPair>, layout: &Layout, is_root: bool) -> Outcome<Option<Signer>> {
    let Some(key) = key else {
        return Ok(None);
    };
    let member = match membership::load(layout) {
        // A user of the group, who cannot read the machine's keys, only looks: no proof is needed.
        Err(_) if !is_root => return Ok(None),
        loaded => loaded?.identity.member_id().0,
    };
    Ok(Some(Box::new(move |method: &str, path: &str| {
        let asked = Asked {
            member,
            method,
            path,
        };
        Proof::sign(&key, &asked, UnixTime::wall().0).to_string()
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_users_key_is_made_once_and_only_the_user_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2pvm/user.key");
        assert!(load(&path).unwrap().is_none());
        let key = create(&path).unwrap();
        assert_eq!(load(&path).unwrap().unwrap().public(), key.public());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = create(&path).err().expect("it exists").message;
        assert!(again.contains(KEY_VARIABLE), "{again}");
        fs::write(&path, b"short").unwrap();
        assert!(load(&path).err().unwrap().message.contains("32 bytes"));
    }

    #[test]
    fn a_user_who_cannot_read_the_machines_keys_asks_without_a_proof() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let sign = |is_root| signer_with(Some(KeyPair::generate()), &layout, is_root);
        assert!(sign(false).is_ok_and(|signer| signer.is_none()));
        assert!(
            sign(true).is_err(),
            "root's would be refused without a reason"
        );
    }
}
