//! This machine's name in the network if the user gives none: a DNS label made from its host name.

use crate::{
    membership::{check_host, is_host},
    shown,
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_overlay::MemberId;

/// The longest label, bytes.
const MAX: usize = 63;
/// Host names that say nothing about the machine.
const NO_NAMES: [&str; 4] = ["localhost", "localdomain", "none", "debian-live"];

/// A name and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// The label.
    pub label: String,
    /// Whether it was derived, so that it may be replaced by another.
    pub derived: bool,
    /// A note for the user, if the name is not simply the host name.
    pub note: Option<String>,
}

impl HostName {
    /// A name given by the user.
    pub fn given(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            derived: false,
            note: None,
        }
    }

    /// Another name, because this one is taken: with the beginning of the machine's id as a suffix.
    pub fn another(&self, me: MemberId) -> Self {
        let label = suffixed(&self.label, me);
        let note = Some(format!(
            "the name {} is taken in the network: this machine is called {label} there (--name \
                chooses another)",
            self.label
        ));
        Self {
            label,
            derived: false,
            note,
        }
    }
}

/// The name for this machine: the given one, or one derived from its host name. `me` is called only
/// if the host name is of no use.
///
/// # Errors
/// The given name is invalid.
pub fn choose(given: Option<String>, me: impl FnOnce() -> Outcome<MemberId>) -> Outcome<HostName> {
    if let Some(label) = given {
        check_host(&label)?;
        return Ok(HostName::given(&label));
    }
    let host = nix::unistd::gethostname()
        .doing("asking for the host name")?
        .to_string_lossy()
        .into_owned();
    derive(&host, me)
}

fn derive(host: &str, me: impl FnOnce() -> Outcome<MemberId>) -> Outcome<HostName> {
    let folded = fold(host);
    let label = if is_host(&folded) && !NO_NAMES.contains(&folded.as_str()) {
        folded
    } else {
        suffixed("host", me()?)
    };
    // That "Lab2.example.org" becomes lab2 needs no note.
    let plain = host
        .split('.')
        .next()
        .unwrap_or_default()
        .eq_ignore_ascii_case(&label);
    let note = (!plain).then(|| {
        format!(
            "this machine is called {label} in the network, as its host name is '{}' (--name \
            chooses another)",
            shown::word(host)
        )
    });
    Ok(HostName {
        label,
        derived: true,
        note,
    })
}

fn suffixed(stem: &str, me: MemberId) -> String {
    let [first, second, ..] = me.0;
    let stem = stem[..stem.len().min(MAX - 5)].trim_end_matches('-');
    format!("{stem}-{first:02x}{second:02x}")
}

/// The first label of a host name, in letters, digits and inner hyphens; empty if it has no letter
/// or digit.
fn fold(host: &str) -> String {
    let first = host
        .split('.')
        .find(|label| !label.trim().is_empty())
        .unwrap_or_default();
    let mut label = String::new();
    for c in first.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => label.push(c),
            _ => match latin(c) {
                Some(plain) => label.push_str(plain),
                None if !label.ends_with('-') => label.push('-'),
                None => {}
            },
        }
    }
    let label = label.trim_matches('-');
    label[..label.len().min(MAX)]
        .trim_end_matches('-')
        .to_owned()
}

/// A Latin letter without its marks.
fn latin(c: char) -> Option<&'static str> {
    Some(match c {
        'à'..='å' | 'ā' | 'ă' | 'ą' | 'ǎ' => "a",
        'æ' => "ae",
        'ç' | 'ć' | 'ĉ' | 'ċ' | 'č' => "c",
        'ð' | 'ď' | 'đ' => "d",
        'è'..='ë' | 'ē' | 'ĕ' | 'ė' | 'ę' | 'ě' => "e",
        'ĝ' | 'ğ' | 'ġ' | 'ģ' => "g",
        'ĥ' | 'ħ' => "h",
        'ì'..='ï' | 'ĩ' | 'ī' | 'ĭ' | 'į' | 'ı' => "i",
        'ĵ' => "j",
        'ķ' => "k",
        'ĺ' | 'ļ' | 'ľ' | 'ŀ' | 'ł' => "l",
        'ñ' | 'ń' | 'ņ' | 'ň' => "n",
        'ò'..='ö' | 'ø' | 'ō' | 'ŏ' | 'ő' => "o",
        'œ' => "oe",
        'ŕ' | 'ŗ' | 'ř' => "r",
        'ś' | 'ŝ' | 'ş' | 'š' | 'ș' => "s",
        'ß' => "ss",
        'ţ' | 'ť' | 'ŧ' | 'ț' => "t",
        'þ' => "th",
        'ù'..='ü' | 'ũ' | 'ū' | 'ŭ' | 'ů' | 'ű' | 'ų' => "u",
        'ŵ' => "w",
        'ý' | 'ÿ' | 'ŷ' => "y",
        'ź' | 'ż' | 'ž' => "z",
        // Combining marks of a decomposed letter, as a Mac writes them, belong to the previous
        // letter.
        '\u{300}'..='\u{36f}' => "",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(host: &str) -> HostName {
        derive(host, || Ok(MemberId([0xa7; 32]))).unwrap()
    }

    #[test]
    fn every_host_name_gives_a_usable_label_and_says_which() {
        let long = "l".repeat(64);
        let cases = [
            ("我的电脑", "host-a7a7"),
            ("🎉", "host-a7a7"),
            ("", "host-a7a7"),
            ("localhost", "host-a7a7"),
            ("localhost.localdomain", "host-a7a7"),
            ("vm", "host-a7a7"),
            ("---", "host-a7a7"),
            ("...", "host-a7a7"),
            ("(none)", "host-a7a7"),
            ("ÄÖÜ", "aou"),
            ("a\u{308}bc", "abc"),
            ("Straße 5", "strasse-5"),
            ("-x-", "x"),
            ("my_pc", "my-pc"),
            (".hidden", "hidden"),
            (long.as_str(), &long[..63]),
        ];
        for (host, label) in cases {
            let called = derived(host);
            assert!(
                called.label == label && called.derived,
                "'{host}' became {called:?}"
            );
            check_host(&called.label).unwrap();
            let note = called.note.unwrap_or_default();
            assert!(
                note.contains(label) && note.contains("--name") && note.contains(host),
                "{note}"
            );
            assert_eq!(note.lines().count(), 1);
        }
        for (host, label, shown) in [
            ("a\nb", "a-b", "a\\nb"),
            ("\x1b[31mred", "31mred", "u{1b}"),
            ("\u{202e}x", "x", "u{202e}"),
        ] {
            let called = derived(host);
            let note = called.note.unwrap();
            assert!(
                called.label == label && note.contains(shown) && note.lines().count() == 1,
                "{note:?}"
            );
        }
        for (host, label) in [
            ("lab2", "lab2"),
            ("A.b.c", "a"),
            ("Lab2.example.org", "lab2"),
        ] {
            assert_eq!(
                derived(host),
                HostName {
                    label: label.into(),
                    derived: true,
                    note: None
                }
            );
        }
    }

    #[test]
    fn a_taken_name_gets_the_beginning_of_the_id_and_still_fits() {
        let me = MemberId([0xa7; 32]);
        assert_eq!(derived("aou").another(me).label, "aou-a7a7");
        let long = derived(&"l".repeat(70)).another(me);
        check_host(&long.label).unwrap();
        assert!(long.label.ends_with("-a7a7") && long.label.len() == 63 && long.note.is_some());
    }

    #[test]
    fn a_name_that_was_given_is_taken_as_it_is_or_refused() {
        let never = || -> Outcome<MemberId> { panic!("no identity is needed") };
        assert_eq!(
            choose(Some("lab2".into()), never).unwrap(),
            HostName::given("lab2")
        );
        assert!(choose(Some("Lab 2".into()), never).is_err());
    }
}
