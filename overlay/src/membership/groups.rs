//! Groups of members, for access rules. A member's groups are part of its certificate, so that
//! every receiver judges by an issuer's signature and not by the sender's own word.
//!
//! Certificates and invites signed before there were groups stay valid, byte for byte: in the byte
//! that says whether a member may admit others (0 or 1) a second bit says that groups follow.
//!
//! One name is no group but a mark: `copy-of-` and an id. The certificate of a machine that came
//! out of another member's copied state names that member, and those before it in turn, so that all
//! are revoked together (docs/decisions/0022-cloned-state.md). Members that do not know the mark
//! take it for a group that no rule names.

use super::{Refusal, valid_name};
use crate::id::MemberId;
use data_encoding::BASE32_NOPAD;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeTuple,
};
use std::fmt;

/// How many groups a member may be in: more than a person would give, few enough for a certificate.
const MAX_GROUPS: usize = 16;
/// The prefix of the mark; with the id of a member, 52 letters and digits, it makes a label of 60.
const COPY_OF: &str = "copy-of-";
const ADMIT: u8 = 1;
const HAS_GROUPS: u8 = 2;

/// The groups of a member, sorted, each once. A group's name is a DNS label, as a member's is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Groups(Vec<String>);

impl Groups {
    /// The groups of these names.
    ///
    /// # Errors
    /// [`Refusal::BadGroup`] for a name that is no label, or more than 16 groups.
    pub fn new<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Result<Self, Refusal> {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort();
        names.dedup();
        if names.len() > MAX_GROUPS || !names.iter().all(|name| valid_name(name)) {
            return Err(Refusal::BadGroup);
        }
        Ok(Self(names))
    }

    /// Whether there are no groups.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `name` is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.0
            .binary_search_by(|own| own.as_str().cmp(name))
            .is_ok()
    }

    /// The groups, with the mark of a machine that comes out of `member`'s copied state.
    ///
    /// # Errors
    /// [`Refusal::BadGroup`] if there is no room for it.
    pub fn of_copy(&self, member: MemberId) -> Result<Self, Refusal> {
        let mark = format!(
            "{COPY_OF}{}",
            BASE32_NOPAD.encode(&member.0).to_ascii_lowercase()
        );
        Self::new(self.0.iter().cloned().chain([mark]))
    }

    /// The members whose copied states this member came out of.
    pub fn copied_from(&self) -> impl Iterator<Item = MemberId> {
        let marks = self.iter().filter_map(|name| name.strip_prefix(COPY_OF));
        marks.filter_map(|id| {
            Some(MemberId(
                BASE32_NOPAD
                    .decode(id.to_ascii_uppercase().as_bytes())
                    .ok()?
                    .try_into()
                    .ok()?,
            ))
        })
    }

    /// Their names in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Vec::<String>::deserialize(deserializer)?;
        // One encoding for one set: a signed set encodes again to the same bytes.
        let groups = Self::new(read.iter().cloned()).map_err(D::Error::custom)?;
        if groups.0 == read {
            Ok(groups)
        } else {
            Err(D::Error::custom("groups out of order or repeated"))
        }
    }
}

/// What an issuer grants: the right to admit others, and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub admit: bool,
    pub groups: Groups,
}

/// The form for people, as in the cache of peers.
#[derive(Serialize, Deserialize)]
struct ReadableGrant {
    admit: bool,
    #[serde(default, skip_serializing_if = "Groups::is_empty")]
    groups: Groups,
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return ReadableGrant {
                admit: self.admit,
                groups: self.groups.clone(),
            }
            .serialize(serializer);
        }
        let grouped = !self.groups.is_empty();
        let mut tuple = serializer.serialize_tuple(1 + usize::from(grouped))?;
        tuple.serialize_element(
            &(if self.admit { ADMIT } else { 0 } | if grouped { HAS_GROUPS } else { 0 }),
        )?;
        if grouped {
            tuple.serialize_element(&self.groups)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Grant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return ReadableGrant::deserialize(deserializer).map(|r| Self {
                admit: r.admit,
                groups: r.groups,
            });
        }
        struct Flags;
        impl<'de> Visitor<'de> for Flags {
            type Value = Grant;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte of rights, and groups")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Grant, A::Error> {
                let missing = || A::Error::custom("cut short");
                let flags: u8 = seq.next_element()?.ok_or_else(missing)?;
                if flags & !(ADMIT | HAS_GROUPS) != 0 {
                    return Err(A::Error::custom("unknown rights"));
                }
                let groups: Groups = if flags & HAS_GROUPS == 0 {
                    Groups::default()
                } else {
                    seq.next_element()?.ok_or_else(missing)?
                };
                if flags & HAS_GROUPS != 0 && groups.is_empty() {
                    return Err(A::Error::custom("groups announced and none given"));
                }
                Ok(Grant {
                    admit: flags & ADMIT != 0,
                    groups,
                })
            }
        }
        deserializer.deserialize_tuple(2, Flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grant_without_groups_is_the_same_byte_as_before() {
        for admit in [false, true] {
            let old = postcard::to_stdvec(&admit).unwrap();
            assert_eq!(
                postcard::to_stdvec(&Grant {
                    admit,
                    groups: Groups::default()
                })
                .unwrap(),
                old
            );
            assert_eq!(
                postcard::from_bytes::<Grant>(&old).unwrap(),
                Grant {
                    admit,
                    groups: Groups::default()
                }
            );
            let json = format!("{{\"admit\":{admit}}}");
            assert_eq!(
                serde_json_like(&Grant {
                    admit,
                    groups: Groups::default()
                }),
                json
            );
        }
    }

    /// What a human-readable format would write; `serde_json` is a dependency of the control plane
    /// only.
    fn serde_json_like(grant: &Grant) -> String {
        toml::to_string(grant)
            .unwrap()
            .lines()
            .map(|line| line.replace(" = ", "\":"))
            .fold(String::from("{\""), |all, line| all + &line)
            + "}"
    }

    #[test]
    fn names_of_groups_are_labels_sorted_and_few() {
        let groups = Groups::new(["servers", "lab", "lab"]).unwrap();
        assert_eq!(groups.iter().collect::<Vec<_>>(), ["lab", "servers"]);
        assert!(groups.contains("lab") && !groups.contains("la"));
        assert_eq!(Groups::new(["Lab"]), Err(Refusal::BadGroup));
        assert_eq!(
            Groups::new((0..17).map(|n| format!("g{n}"))),
            Err(Refusal::BadGroup)
        );
    }

    #[test]
    fn a_copy_of_a_copy_names_both_and_stays_in_its_groups() {
        let (one, two) = (MemberId([1; 32]), MemberId([0xfe; 32]));
        let groups = Groups::new(["lab", "copy-of-nobody"]).unwrap();
        assert_eq!(
            groups.copied_from().count(),
            0,
            "a group that begins like a mark is a group"
        );
        let copy = groups.of_copy(two).unwrap().of_copy(one).unwrap();
        let mut from: Vec<MemberId> = copy.copied_from().collect();
        from.sort_unstable();
        assert_eq!(from, [one, two]);
        assert!(copy.contains("lab"));
        assert_eq!(copy.of_copy(one), Ok(copy), "once is enough");
        assert_eq!(
            Groups::new((0..16).map(|n| format!("g{n}")))
                .unwrap()
                .of_copy(one),
            Err(Refusal::BadGroup)
        );
    }

    #[test]
    fn a_set_has_one_encoding() {
        let unsorted = [
            vec![HAS_GROUPS],
            postcard::to_stdvec(&["b", "a"].to_vec()).unwrap(),
        ]
        .concat();
        assert!(postcard::from_bytes::<Grant>(&unsorted).is_err());
        assert!(
            postcard::from_bytes::<Grant>(&[HAS_GROUPS, 0]).is_err(),
            "announced and none given"
        );
        assert!(
            postcard::from_bytes::<Grant>(&[4]).is_err(),
            "rights that nobody knows"
        );
    }

    proptest! {
        #[test]
        fn a_grant_survives_and_foreign_bytes_never_panic(
            admit: bool, names in proptest::collection::vec("[a-z]{1,8}", 0..6), raw: Vec<u8>
        ) {
            let grant = Grant { admit, groups: Groups::new(names).unwrap() };
            prop_assert_eq!(
                postcard::from_bytes::<Grant>(&postcard::to_stdvec(&grant).unwrap()).unwrap(), grant
            );
            if let Ok((read, rest)) = postcard::take_from_bytes::<Grant>(&raw) {
                prop_assert_eq!(
                    postcard::to_stdvec(&read).unwrap(), raw[..raw.len() - rest.len()].to_vec()
                );
            }
        }
    }
}
