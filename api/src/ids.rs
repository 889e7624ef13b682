//! Ids as text. The type says what an id names, so that a member's is not taken for a VM's.
//!
//! An id is kept as it was read, also one that this version cannot parse: a row of a list must stay
//! readable although another version writes its ids in another way. Its text is checked where it is
//! parsed into the id itself, a type of `p2pvm-overlay`.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Deref};

macro_rules! ids {
    ($($(#[doc = $about:literal])* $name:ident;)*) => {$(
        $(#[doc = $about])*
        #[derive(
            Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Its first `letters`, enough for a person to tell it from others.
            pub fn short(&self, letters: usize) -> String {
                self.0.chars().take(letters).collect()
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        /// As any text.
        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                String::json_schema(generator)
            }
        }
    )*};
}

ids! {
    /// A member's id.
    MemberIdText;
    /// A VM's id.
    VmIdText;
    /// A network's id.
    NetworkIdText;
    /// An invite's id.
    InviteIdText;
    /// A checkpoint's id.
    CheckpointIdText;
    /// A migration's id.
    MigrationIdText;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_text_also_one_of_another_version() {
        let long = "mfzwizltoqmfzwizltoqmfzwizltoqmfzwizltoqmfzwizltoqaa";
        for text in [long, "", "a7", "member:7/ä"] {
            crate::assert_text(&MemberIdText::from(text), &format!("{text:?}"));
            crate::assert_text(&VmIdText::from(text.to_owned()), &format!("{text:?}"));
            crate::assert_text(&NetworkIdText::from(text), &format!("{text:?}"));
        }
        assert_eq!(MemberIdText::from(long).short(10), "mfzwizltoq");
        assert_eq!(VmIdText::from("ä7").short(10), "ä7");
    }
}
