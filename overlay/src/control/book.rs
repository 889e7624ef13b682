//! The address book: the newest contact of every member heard of, kept in a file so that a node finds
//! back into its network when the member it first joined through is gone.

use super::wire::{Contact, MAX_CONTACTS};
use crate::{
    id::MemberId,
    membership::{Trust, write_atomically},
};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Bounds what gossip can make us keep: about 3 MB.
const MAX_BOOK: usize = 4096;

/// One entry of the file. What a person wants to read is in plain text beside the signed contact.
#[derive(Serialize, Deserialize)]
struct Kept {
    member: String,
    name: String,
    addresses: Vec<String>,
    contact: String,
}

/// See the module.
pub struct Book {
    contacts: BTreeMap<MemberId, Contact>,
    file: PathBuf,
    dirty: bool,
}

impl Book {
    /// Reads the file. It is a cache: what is missing, damaged or no longer trusted is left out.
    pub fn load(file: &Path, trust: &Trust) -> Self {
        let kept: Vec<Kept> = fs::read(file).ok().and_then(|raw| serde_json::from_slice(&raw).ok()).unwrap_or_default();
        let mut book = Self { contacts: BTreeMap::new(), file: file.to_owned(), dirty: false };
        for entry in kept {
            let raw = BASE32_NOPAD.decode(entry.contact.as_bytes()).unwrap_or_default();
            if let Ok(contact) = super::wire::decode(&raw) {
                book.insert(contact, trust);
            }
        }
        book.dirty = false;
        book
    }

    /// Writes the file if anything changed.
    ///
    /// # Errors
    /// What the file system says; the next call tries again.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let kept: Vec<Kept> = self
            .contacts
            .values()
            .map(|c| Kept {
                member: c.member().to_string(),
                name: c.certificate.name().to_owned(),
                addresses: c.addresses.clone(),
                contact: BASE32_NOPAD.encode(&postcard::to_stdvec(c).unwrap_or_default()),
            })
            .collect();
        write_atomically(&self.file, &serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?)?;
        self.dirty = false;
        Ok(())
    }

    /// Takes a contact if it is valid and newer than what is known.
    pub fn insert(&mut self, contact: Contact, trust: &Trust) -> bool {
        let member = contact.member();
        let known = self.contacts.get(&member);
        if known.is_some_and(|k| k.seq >= contact.seq) || (known.is_none() && self.contacts.len() >= MAX_BOOK) {
            return false;
        }
        if contact.verify(trust).is_err() {
            return false;
        }
        self.contacts.insert(member, contact);
        self.dirty = true;
        true
    }

    /// Forgets whom the network no longer trusts.
    pub fn retain_trusted(&mut self, trust: &Trust) {
        let before = self.contacts.len();
        self.contacts.retain(|_, c| trust.verify(&c.certificate).is_ok());
        self.dirty |= self.contacts.len() != before;
    }

    /// A member's contact.
    pub fn get(&self, member: MemberId) -> Option<&Contact> {
        self.contacts.get(&member)
    }

    /// All contacts.
    pub fn iter(&self) -> impl Iterator<Item = &Contact> {
        self.contacts.values()
    }

    /// How many members are known.
    pub fn len(&self) -> usize {
        self.contacts.len()
    }

    /// Contacts to tell a member that knows others: all, or the newest of a large network.
    pub fn to_tell(&self) -> Vec<Contact> {
        let mut contacts: Vec<_> = self.contacts.values().collect();
        if contacts.len() > MAX_CONTACTS {
            contacts.sort_by_key(|c| std::cmp::Reverse(c.seq));
            contacts.truncate(MAX_CONTACTS);
        }
        contacts.into_iter().cloned().collect()
    }

    /// A hash of who is known how recently.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 digest of the known contacts");
        for (member, contact) in &self.contacts {
            hasher.update(&member.0);
            hasher.update(&contact.seq.to_be_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}
