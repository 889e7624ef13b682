//! Which network an appliance belongs to: the places that may have an invite, in order.
//!
//! 1. an invite typed on the console after a rejected one;
//! 2. the kernel's command line, `p2pvm.join=INVITE`;
//! 3. a volume labelled P2PVM, then CIDATA (cloud-init's NoCloud): the file `p2pvm-invite`, or
//!    `user-data` with `p2pvm:` and below it `join: INVITE`;
//! 4. the reserved file in the medium (`p2pvm iso customize`);
//! 5. the SMBIOS serial.
//!
//! The first place with content decides. If its content is not a valid invite, the machine does
//! *not* try the next place or found a network: the invite was meant for one network, and a machine
//! in another one is worse than one that says what is wrong.

use super::reserved;
use p2pvm_daemon::{membership, membership::INVITE_PREFIX};
use p2pvm_dhcp::{NameKind, is_name};
use p2pvm_overlay::{UnixTime, membership::Invite};
use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// How much of a file is read for an invite, bytes.
const MAX_FILE: u64 = 64 << 10;
/// The kernel parameter with an invite.
const JOIN: &str = "p2pvm.join=";
/// The kernel parameter with a member's name.
const NAME: &str = "p2pvm.name=";
/// The file on a volume that has nothing but an invite.
const INVITE_FILE: &str = "p2pvm-invite";

/// The places to read; a missing path is an empty place.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The invite typed on the console.
    pub typed: PathBuf,
    /// The kernel's command line.
    pub cmdline: PathBuf,
    /// Mounted volumes, in order: label and root.
    pub volumes: Vec<(String, PathBuf)>,
    /// The reserved file in the medium.
    pub room: PathBuf,
    /// The SMBIOS serial.
    pub serial: PathBuf,
}

/// A place with content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Typed on the console.
    Typed,
    /// The kernel's command line.
    CommandLine,
    /// A file on a volume: label and file name.
    Volume(String, &'static str),
    /// Written into the ISO by `p2pvm iso customize`.
    Medium,
    /// The SMBIOS serial.
    Serial,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Typed => f.write_str("what was typed on the console"),
            Self::CommandLine => write!(f, "{JOIN} on the kernel command line"),
            Self::Volume(label, file) => write!(f, "{file} on the volume {label}"),
            Self::Medium => {
                f.write_str("the invite that 'p2pvm iso customize' wrote into the medium")
            }
            Self::Serial => f.write_str("the SMBIOS serial"),
        }
    }
}

/// The content of the places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundInvite {
    /// The invite and its place; `None` if all places are empty.
    pub invite: Option<(Source, String)>,
    /// This machine's name, if a place gives one.
    pub name: Option<String>,
}

/// A place with unusable content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSource {
    pub source: Source,
    /// What is wrong with its content.
    pub why: String,
}

impl fmt::Display for BadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.why)
    }
}

/// Reads the places in order.
///
/// # Errors
/// [`BadSource`] for the first place with content, if that is not a valid invite at `now`.
pub fn find(places: &Places, now: UnixTime) -> Result<FoundInvite, BadSource> {
    let cmdline = read(&places.cmdline)
        .map_err(|why| BadSource {
            source: Source::CommandLine,
            why,
        })?
        .unwrap_or_default();
    let mut name = word(&cmdline, NAME);
    let mut offers: Vec<(Source, String)> = Vec::new();
    let typed = read(&places.typed).map_err(|why| BadSource {
        source: Source::Typed,
        why,
    })?;
    offers.extend(typed.map(|text| (Source::Typed, text)));
    offers.extend(word(&cmdline, JOIN).map(|text| (Source::CommandLine, text)));
    for (label, root) in &places.volumes {
        if !offers.is_empty() {
            break;
        }
        let said = volume(label, root)?;
        offers.extend(said.invite);
        name = name.or(said.name);
    }
    if offers.is_empty() {
        offers.extend(medium(&places.room)?);
    }
    if offers.is_empty() {
        let serial = read(&places.serial).ok().flatten().unwrap_or_default();
        // Every machine has some serial; only one that begins like an invite counts.
        if serial
            .trim()
            .to_ascii_lowercase()
            .starts_with(INVITE_PREFIX)
        {
            offers.push((Source::Serial, serial));
        }
    }
    // An invalid name must not keep a machine out of its network.
    let name = name.filter(|name| is_name(NameKind::Host, name));
    let Some((source, text)) = offers.into_iter().next() else {
        return Ok(FoundInvite { invite: None, name });
    };
    let text = text.trim().to_owned();
    match Invite::parse(&text).and_then(|invite| invite.check(now)) {
        Ok(()) => Ok(FoundInvite {
            invite: Some((source, text)),
            name,
        }),
        Err(refusal) => Err(BadSource {
            source,
            why: membership::refused(refusal).message,
        }),
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("it cannot be read: {}", p2pvm_host::chain(&e))),
    }
}

/// The value of the last word of a kernel command line that begins with `key`: of repeated words
/// the kernel itself takes the last.
pub fn word(cmdline: &str, key: &str) -> Option<String> {
    cmdline
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| word.trim_matches('"').strip_prefix(key))
        .map(str::to_owned)
}

fn volume(label: &str, root: &Path) -> Result<FoundInvite, BadSource> {
    let file = |name: &'static str| {
        read(&root.join(name)).map_err(|why| BadSource {
            source: Source::Volume(label.to_owned(), name),
            why,
        })
    };
    let (user, meta) = (
        file("user-data")?.unwrap_or_default(),
        file("meta-data")?.unwrap_or_default(),
    );
    let name = key(&user, "p2pvm", "name").or_else(|| key(&meta, "", "local-hostname"));
    let invite = match (file(INVITE_FILE)?, key(&user, "p2pvm", "join")) {
        (Some(text), _) => Some((Source::Volume(label.to_owned(), INVITE_FILE), text)),
        (None, Some(text)) => Some((Source::Volume(label.to_owned(), "user-data"), text)),
        (None, None) => None,
    };
    Ok(FoundInvite { invite, name })
}

/// The value of `name: value`, at the top level or in the block below `section:`. This is the part
/// of YAML that cloud-init files for p2pvm need; anchors, flow style and values over several lines
/// are not read.
fn key(text: &str, section: &str, name: &str) -> Option<String> {
    let mut within = section.is_empty();
    for line in text.lines() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let Some((key, value)) = content.split_once(':') else {
            continue;
        };
        let inner = line.starts_with([' ', '\t']);
        if !inner && !section.is_empty() {
            within = key.trim() == section;
        } else if within && inner != section.is_empty() && key.trim() == name {
            let value = value
                .split(" #")
                .next()
                .unwrap_or_default()
                .trim()
                .trim_matches(['"', '\'']);
            return (!value.is_empty()).then(|| value.to_owned());
        }
    }
    None
}

fn medium(path: &Path) -> Result<Option<(Source, String)>, BadSource> {
    let bad = |why: String| BadSource {
        source: Source::Medium,
        why,
    };
    let mut bytes = Vec::new();
    match fs::File::open(path)
        .and_then(|file| file.take(reserved::BYTES as u64).read_to_end(&mut bytes))
    {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(bad(format!("it cannot be read: {}", p2pvm_host::chain(&e)))),
        Ok(_) => {}
    }
    let text = reserved::read(&bytes).map_err(|problem| bad(problem.to_string()))?;
    Ok(text.map(|text| (Source::Medium, text)))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use p2pvm_overlay::{
        identity::KeyPair,
        membership::{Groups, InviteTerms, Ipv4Subnet, Issuer, NetworkConfig},
    };

    /// An invite of a network of its own; `uses` distinguishes several.
    pub fn invite(uses: u32) -> String {
        let (root, now) = (KeyPair::generate(), UnixTime::now());
        let subnet = Ipv4Subnet::new([10, 83, 0, 0].into(), 16).unwrap();
        let network = NetworkConfig::found(&root, "lab", subnet, now).unwrap();
        let terms = InviteTerms {
            uses,
            expires: now.plus(3600),
            delegate: false,
            groups: Groups::default(),
        };
        Invite::issue(&Issuer::root(&root), &network, &[], terms)
            .unwrap()
            .to_text()
    }

    struct Machine {
        dir: tempfile::TempDir,
        places: Places,
    }

    impl Machine {
        /// A machine with an invite in every place; the invites are in the places' order.
        fn with_all() -> (Self, Vec<String>) {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let volumes = vec![
                ("P2PVM".to_owned(), at("P2PVM")),
                ("CIDATA".to_owned(), at("CIDATA")),
            ];
            let places = Places {
                typed: at("typed"),
                cmdline: at("cmdline"),
                volumes,
                room: at("room"),
                serial: at("serial"),
            };
            let invites: Vec<String> = (1..=7).map(invite).collect();
            fs::create_dir(at("P2PVM")).unwrap();
            fs::create_dir(at("CIDATA")).unwrap();
            fs::write(at("typed"), format!("{}\n", invites[0])).unwrap();
            fs::write(
                at("cmdline"),
                format!(
                    "quiet p2pvm.join=old p2pvm.join={} console=ttyS0\n",
                    invites[1]
                ),
            )
            .unwrap();
            fs::write(at("P2PVM/p2pvm-invite"), format!("{}\r\n", invites[2])).unwrap();
            fs::write(
                at("P2PVM/user-data"),
                format!("#cloud-config\np2pvm:\n  join: {}\n", invites[3]),
            )
            .unwrap();
            fs::write(
                at("CIDATA/user-data"),
                format!(
                    "#cloud-config\np2pvm:\n    # ours\n    join: \"{}\" # lab\n",
                    invites[4]
                ),
            )
            .unwrap();
            fs::write(at("room"), reserved::filled(&invites[5]).unwrap()).unwrap();
            fs::write(at("serial"), format!("{}\n", invites[6])).unwrap();
            (Self { dir, places }, invites)
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.dir.path().join(name)).unwrap();
        }

        fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
            fs::write(self.dir.path().join(name), bytes).unwrap();
        }

        fn find(&self) -> Result<FoundInvite, BadSource> {
            find(&self.places, UnixTime::now())
        }
    }

    const ORDER: [(&str, Source); 6] = [
        ("typed", Source::Typed),
        ("cmdline", Source::CommandLine),
        (
            "P2PVM/p2pvm-invite",
            Source::Volume(String::new(), INVITE_FILE),
        ),
        (
            "P2PVM/user-data",
            Source::Volume(String::new(), "user-data"),
        ),
        (
            "CIDATA/user-data",
            Source::Volume(String::new(), "user-data"),
        ),
        ("room", Source::Medium),
    ];

    fn labelled(file: &str, source: Source) -> Source {
        match source {
            Source::Volume(_, name) => {
                Source::Volume(file.split('/').next().unwrap().to_owned(), name)
            }
            other => other,
        }
    }

    #[test]
    fn the_first_place_that_holds_something_decides() {
        let (machine, invites) = Machine::with_all();
        for ((file, source), invite) in ORDER.into_iter().zip(&invites) {
            assert_eq!(
                machine.find().unwrap().invite,
                Some((labelled(file, source), invite.clone()))
            );
            machine.remove(file);
        }
        assert_eq!(
            machine.find().unwrap().invite,
            Some((Source::Serial, invites[6].clone()))
        );
        machine.write("serial", "VMware-56 4d 1c\n");
        assert_eq!(
            machine.find(),
            Ok(FoundInvite::default()),
            "an ordinary serial is no invite"
        );
        machine.remove("serial");
        assert_eq!(machine.find(), Ok(FoundInvite::default()));
    }

    #[test]
    fn a_bad_place_is_named_with_reason_and_stops_the_search() {
        let (machine, _) = Machine::with_all();
        for (file, source) in ORDER {
            let bad: &[u8] = match file {
                "cmdline" => b"p2pvm.join=p2pvm1nonsense",
                "P2PVM/user-data" | "CIDATA/user-data" => b"p2pvm:\n  join: p2pvm1nonsense\n",
                _ => b"p2pvm1nonsense",
            };
            machine.write(file, bad);
            let found = machine.find().unwrap_err();
            assert_eq!(found.source, labelled(file, source));
            assert!(
                found.why.contains("no invite") || found.why.contains("no reserved file"),
                "{found}"
            );
            machine.remove(file);
        }
        machine.write("serial", "P2PVM1NONSENSE");
        assert_eq!(machine.find().unwrap_err().source, Source::Serial);
    }

    #[test]
    fn empty_damaged_expired_and_foreign_files_are_refused_with_what_is_wrong() {
        let (machine, invites) = Machine::with_all();
        let later = UnixTime::now().plus(7200);
        assert!(
            find(&machine.places, later)
                .unwrap_err()
                .why
                .contains("expired")
        );
        machine.write("typed", "");
        assert!(machine.find().unwrap_err().why.contains("no invite"));
        machine.write("typed", [0xff, 0xfe, 0]);
        assert!(machine.find().unwrap_err().why.contains("cannot be read"));
        for file in [
            "typed",
            "cmdline",
            "P2PVM/p2pvm-invite",
            "P2PVM/user-data",
            "CIDATA/user-data",
        ] {
            machine.remove(file);
        }
        let mut room = reserved::filled(&invites[5]).unwrap();
        room[200] ^= 1;
        machine.write("room", room);
        assert!(machine.find().unwrap_err().why.contains("damaged"));
    }

    #[test]
    fn names_come_from_command_line_user_data_meta_data_without_blocking() {
        let (machine, _) = Machine::with_all();
        for file in ["typed", "cmdline", "P2PVM/p2pvm-invite"] {
            machine.remove(file);
        }
        machine.write("P2PVM/meta-data", "instance-id: 1\nlocal-hostname: attic\n");
        assert_eq!(machine.find().unwrap().name.as_deref(), Some("attic"));
        machine.write(
            "P2PVM/user-data",
            "other:\n  name: wrong\np2pvm:\n  name: cellar\n",
        );
        assert_eq!(machine.find().unwrap().name.as_deref(), Some("cellar"));
        machine.write("cmdline", "p2pvm.name=roof");
        assert_eq!(machine.find().unwrap().name.as_deref(), Some("roof"));
        machine.write("cmdline", "p2pvm.name=Not_A_Name");
        assert_eq!(machine.find().unwrap().name, None);
    }
}
