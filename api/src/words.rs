//! Enums whose values are words in JSON: a word of a later version stays readable as its text, and
//! is passed on unchanged.

/// Makes the enum, and both ways between its variants and their words, from one table.
macro_rules! words {
    (
        $(#[doc = $about:literal])*
        $name:ident: $($(#[doc = $doc:literal])* $variant:ident = $word:literal,)*
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $doc])* $variant,)*
            /// A word of a later version.
            Other(String),
        }

        impl $name {
            /// Its word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl Default for $name {
            /// No word: nothing was told.
            fn default() -> Self {
                Self::Other(String::new())
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $($word => Self::$variant,)*
                    _ => Self::Other(word),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(reader).map(Self::from)
            }
        }

        #[cfg(test)]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let known = [$(($word, concat!($($doc),*).trim()),)*];
                $crate::document::words(concat!($($about),*).trim(), &known)
            }
        }

        impl $name {
            /// The variants with their words.
            pub const KNOWN: &[(Self, &str)] = &[$((Self::$variant, $word),)*];
        }
    };
}

pub(crate) use words;

#[cfg(test)]
mod tests {
    use crate::{ActivityView, DecisionWord, Health, ReachState, RefusalWord, Role, VmStateView};

    /// Checks that every variant is its word, and that another word passes through.
    macro_rules! assert_words {
        ($($name:ident),*) => {$(
            for (variant, word) in $name::KNOWN {
                crate::assert_text(variant, &format!("{word:?}"));
            }
            crate::assert_text(&$name::Other("dancing".into()), "\"dancing\"");
        )*};
    }

    #[test]
    fn a_known_word_is_a_variant_and_a_later_versions_passes_through() {
        assert_words!(
            ActivityView,
            Health,
            ReachState,
            RefusalWord,
            Role,
            VmStateView
        );
        crate::assert_text(&DecisionWord::Moved, "\"moved\"");
        crate::assert_text(
            &DecisionWord::Refused(RefusalWord::LittleGain),
            r#"{"refused":"LittleGain"}"#,
        );
    }
}
