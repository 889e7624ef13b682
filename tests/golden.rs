//! Golden bytes: what members send each other, as `tests/golden/*.txt` of each crate keep it.
//!
//! Members of different versions read each other only while no encoding changes. A round trip
//! survives a changed order of fields or variants; these bytes do not. A file has one line a
//! sample, `NAME: HEX` (in files of [`check_texts`] `NAME: TEXT`); `#` begins a comment.
//!
//! Each crate includes this file for its tests: `#[path = "../../tests/golden.rs"] mod golden;`. A
//! crate for it would be one more build of each. With `P2PVM_WRITE_GOLDEN=1` a test adds the lines
//! that are missing, and fails, so that they are read and committed. Nothing changes a line.

// Not every crate has messages of every kind.
#![allow(dead_code, unused_macros, unused_imports)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
};

const WRITE: &str = "P2PVM_WRITE_GOLDEN";
const CHANGED: &str = "members of the previous version could not read this; add a new version or \
    variant instead of changing this one";
const HEAD: &str =
    "# What members send each other (tests/golden.rs). Lines are added, never changed.\n";

/// Samples of an enum, at least one for each variant: each pattern is followed by its samples in
/// braces. A new variant does not compile without a pattern, nor a pattern without a sample.
macro_rules! variants {
    ($($pattern:pat => { $($name:literal: $sample:expr),+ $(,)? })+) => {{
        let mut named = Vec::new();
        let known = |sample: &_| match sample { $($pattern => (),)+ };
        $($(
            let sample = $sample;
            known(&sample);
            assert!(matches!(&sample, $pattern), "{} is another variant's sample", $name);
            named.push(($name, sample));
        )+)+
        named
    }};
}
pub(crate) use variants;

/// The lines of one file, and the samples compared with them.
pub(crate) struct Golden {
    path: PathBuf,
    is_text: bool,
    lines: BTreeMap<String, Vec<u8>>,
    compared: BTreeSet<String>,
    missing: String,
    faults: Vec<String>,
}

/// Compares the samples that `samples` names with `tests/golden/FILE.txt` of this crate.
pub(crate) fn check(file: &str, samples: impl FnOnce(&mut Golden)) {
    run(file, false, samples);
}

/// As [`check`], for messages that are text of one line, such as JSON.
pub(crate) fn check_texts(file: &str, samples: impl FnOnce(&mut Golden)) {
    run(file, true, samples);
}

fn run(file: &str, is_text: bool, samples: impl FnOnce(&mut Golden)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{file}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut golden = Golden::read(path, is_text, &text);
    samples(&mut golden);
    golden.finish(&text, std::env::var(WRITE).is_ok_and(|value| value == "1"));
}

impl Golden {
    fn read(path: PathBuf, is_text: bool, text: &str) -> Self {
        let mut lines = BTreeMap::new();
        for line in text
            .lines()
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            let (name, value) = line.split_once(": ").expect("a line is NAME: VALUE");
            let value = if is_text {
                value.into()
            } else {
                from_hex(value)
            };
            let before = lines.insert(name.to_owned(), value);
            assert!(before.is_none(), "{}: two lines '{name}'", path.display());
        }
        Self {
            path,
            is_text,
            lines,
            compared: BTreeSet::new(),
            missing: String::new(),
            faults: Vec::new(),
        }
    }

    /// A message: the sample encodes to the golden bytes, and they decode to the sample. Both are
    /// compared by `Debug` and by their bytes, so that a message needs no `PartialEq`.
    pub(crate) fn message<T: Debug>(
        &mut self,
        name: &str,
        sample: &T,
        encode: impl Fn(&T) -> Vec<u8>,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) {
        self.bytes(name, &encode(sample));
        let Some(golden) = self.lines.get(name).cloned() else {
            return;
        };
        match decode(&golden) {
            Some(read) if format!("{read:?}") == format!("{sample:?}") => {
                if encode(&read) != golden {
                    self.fault(name, "what is read encodes to other bytes");
                }
            }
            Some(read) => self.fault(name, &format!("{CHANGED}\n  read as {read:?}")),
            None => self.fault(name, &format!("{CHANGED}\n  it is not read at all")),
        }
    }

    /// Every message of a list, as [`variants`] makes them.
    pub(crate) fn messages<T: Debug>(
        &mut self,
        samples: Vec<(&str, T)>,
        encode: impl Fn(&T) -> Vec<u8>,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) {
        for (name, sample) in &samples {
            self.message(name, sample, &encode, &decode);
        }
    }

    /// Bytes that are only made: what is signed or hashed, or sealed with fixed keys.
    pub(crate) fn bytes(&mut self, name: &str, now: &[u8]) {
        self.note(name);
        match self.lines.get(name) {
            Some(golden) if golden == now => {}
            Some(golden) => {
                let (golden, now) = (self.shown(golden), self.shown(now));
                self.fault(
                    name,
                    &format!("{CHANGED}\n  golden {golden}\n  now    {now}"),
                );
            }
            None => self.missing += &format!("{name}: {}\n", self.shown(now)),
        }
    }

    /// A form that previous versions send and this one only reads: its line stays, and decodes to
    /// the sample.
    pub(crate) fn previous<T: Debug>(
        &mut self,
        name: &str,
        sample: &T,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) {
        self.note(name);
        let read = self.lines.get(name).map(|golden| decode(golden));
        if format!("{read:?}") != format!("{:?}", Some(Some(sample))) {
            self.fault(name, &format!("a previous form is read as {read:?}"));
        }
    }

    fn note(&mut self, name: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        assert!(
            !name.is_empty() && name.chars().all(fits),
            "'{name}' is no name of a line"
        );
        assert!(
            self.compared.insert(name.to_owned()),
            "two samples '{name}'"
        );
    }

    fn shown(&self, bytes: &[u8]) -> String {
        if self.is_text {
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            assert!(!text.contains('\n'), "a text of more than one line: {text}");
            text
        } else {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        }
    }

    fn fault(&mut self, name: &str, what: &str) {
        self.faults.push(format!("{name}: {what}"));
    }

    fn finish(mut self, text: &str, writes: bool) {
        for name in self
            .lines
            .keys()
            .filter(|name| !self.compared.contains(*name))
        {
            self.faults.push(format!(
                "{name}: no sample; members of the previous version may still send it"
            ));
        }
        if !self.missing.is_empty() && writes {
            let head = match text {
                "" => HEAD,
                _ if text.ends_with('\n') => "",
                _ => "\n",
            };
            let directory = self.path.parent().expect("a file is in a directory");
            fs::create_dir_all(directory).expect("a directory of the tree");
            fs::write(&self.path, format!("{text}{head}{}", self.missing))
                .expect("a file of the tree");
            self.faults
                .push("lines were added: read them, commit them, run the test again".into());
        } else if !self.missing.is_empty() {
            let count = self.missing.lines().count();
            self.faults.push(format!(
                "{count} samples have no line yet; {WRITE}=1 adds them:\n{}",
                self.missing
            ));
        }
        assert!(
            self.faults.is_empty(),
            "{}\n{}",
            self.path.display(),
            self.faults.join("\n")
        );
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len())
        .step_by(2)
        .map(|at| byte(at).expect("two digits a byte"))
        .collect()
}
