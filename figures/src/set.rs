//! A file of figures: the results on one topic, of one run or several.

use crate::{Error, Figure};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Seek, Write},
    path::Path,
};

/// One run of a measurement: how, when, where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The command line.
    pub command: String,
    /// The day, `2026-11-30`.
    pub date: String,
    /// The commit of the tree.
    pub commit: String,
    /// Processors and kernel.
    pub machine: String,
    /// The other load of the machine.
    pub beside: String,
    /// Whether the figures were copied from a page that is older than these files. Such figures may
    /// lack their rounds until they are measured again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transcribed: bool,
}

/// The figures on one topic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The runs that they come from.
    pub runs: Vec<Run>,
    /// The figures, in the order in which pages show their subjects.
    pub figures: Vec<Figure>,
}

/// All sets, by name.
#[derive(Debug, Default)]
pub struct Sets(BTreeMap<String, Set>);

impl Run {
    fn fault(&self) -> Option<String> {
        let parts: Vec<&str> = self.date.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let digits = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        if lengths != [4, 2, 2] || !parts.iter().all(digits) {
            return Some(format!("'{}' is no date like 2026-11-30", self.date));
        }
        let said = [
            ("command", &self.command),
            ("commit", &self.commit),
            ("machine", &self.machine),
            ("beside", &self.beside),
        ];
        let empty = said.iter().find(|(_, text)| text.trim().is_empty());
        empty.map(|(field, _)| format!("a run does not say its {field}"))
    }
}

impl Set {
    /// Reads a file of figures; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Form`] if it is not a set; [`Error::Set`] if a value does not follow from its
    /// rounds.
    pub fn parse(name: &str, path: &Path, text: &str) -> Result<Self, Error> {
        let set: Self = serde_json::from_str(text).map_err(|source| Error::Form {
            path: path.into(),
            source,
        })?;
        match set.fault() {
            Some(why) => Err(Error::Set {
                set: name.into(),
                why,
            }),
            None => Ok(set),
        }
    }

    /// Adds a run. Its figures replace older ones of the same name and subject in place; new ones
    /// follow. A whole run removes the figures of earlier runs of its command that it does not
    /// have; a part of a run, such as one test of several, leaves them. Figures of other commands
    /// stay.
    pub fn take(&mut self, run: Run, figures: Vec<Figure>, is_whole: bool) {
        let known = self.runs.iter().position(|other| *other == run);
        let number = known.unwrap_or(self.runs.len());
        let again = |set: &Self, figure: &Figure| {
            let of = set.runs.get(figure.run);
            is_whole && of.is_some_and(|older| older.command == run.command)
        };
        let mut new: Vec<Figure> = figures
            .into_iter()
            .map(|figure| Figure {
                run: number,
                ..figure
            })
            .collect();
        let mut kept = Vec::new();
        for old in std::mem::take(&mut self.figures) {
            let same = |figure: &Figure| figure.name == old.name && figure.of == old.of;
            match new.iter().position(same) {
                Some(at) => kept.push(new.remove(at)),
                None if again(self, &old) => {}
                None => kept.push(old),
            }
        }
        kept.extend(new);
        self.figures = kept;
        if known.is_none() {
            self.runs.push(run);
        }
        self.forget_unused_runs();
    }

    fn forget_unused_runs(&mut self) {
        let used: BTreeSet<usize> = self.figures.iter().map(|figure| figure.run).collect();
        let place = |run: usize| used.iter().take_while(|other| **other < run).count();
        for figure in &mut self.figures {
            figure.run = place(figure.run);
        }
        let mut number = 0;
        self.runs.retain(|_| {
            number += 1;
            used.contains(&(number - 1))
        });
    }

    fn fault(&self) -> Option<String> {
        if let Some(why) = self.runs.iter().find_map(Run::fault) {
            return Some(why);
        }
        let mut seen = BTreeSet::new();
        for figure in &self.figures {
            let of = if figure.of.is_empty() {
                String::new()
            } else {
                format!(" of {}", figure.of)
            };
            let Some(run) = self.runs.get(figure.run) else {
                return Some(format!("{}{of}: there is no such run", figure.name));
            };
            if !seen.insert((&figure.name, &figure.of)) {
                return Some(format!("{}{of} is there twice", figure.name));
            }
            if let Some(why) = figure.fault(run.transcribed) {
                return Some(format!("{}{of}: {why}", figure.name));
            }
        }
        let used = |run: usize| self.figures.iter().any(|figure| figure.run == run);
        let unused = (0..self.runs.len()).find(|run| !used(*run));
        unused.map(|run| format!("no figure is of run {run}"))
    }

    /// The figures of that name.
    pub fn called(&self, name: &str) -> impl Iterator<Item = &Figure> {
        self.figures
            .iter()
            .filter(move |figure| figure.name == name)
    }

    /// The text of its file: a line for each run and each figure, so that a diff shows which has
    /// changed.
    ///
    /// # Errors
    /// None in practice: JSON has a form for all that a set holds.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        let lines = |all: Vec<String>| all.join(",\n    ");
        let runs = self.runs.iter().map(serde_json::to_string);
        let figures = self.figures.iter().map(serde_json::to_string);
        Ok(format!(
            "{{\n  \"runs\": [\n    {}\n  ],\n  \"figures\": [\n    {}\n  ]\n}}\n",
            lines(runs.collect::<Result<_, _>>()?),
            lines(figures.collect::<Result<_, _>>()?)
        ))
    }

    /// Adds a run to the set of this name in a directory. The file is locked, so that concurrent
    /// tests wait for each other.
    ///
    /// # Errors
    /// If the file cannot be read or written, or the set is invalid before or after.
    pub fn take_into(
        dir: &Path,
        name: &str,
        run: Run,
        figures: Vec<Figure>,
        is_whole: bool,
    ) -> Result<Self, Error> {
        let path = dir.join(format!("{name}.json"));
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let wrong = |why| Error::Set {
            set: name.into(),
            why,
        };
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut set = if text.is_empty() {
            Self::default()
        } else {
            Self::parse(name, &path, &text)?
        };
        set.take(run, figures, is_whole);
        if let Some(why) = set.fault() {
            return Err(wrong(why));
        }
        let text = set.text().map_err(|source| Error::Form {
            path: path.clone(),
            source,
        })?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(failed)?;
        Ok(set)
    }
}

impl Sets {
    /// Reads every set of a directory.
    ///
    /// # Errors
    /// The error of the first file that is not a set.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: dir.into(),
            source,
        };
        let mut sets = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_stem().map(|n| n.to_string_lossy().into_owned());
            let is_set = path.extension().is_some_and(|end| end == "json");
            if let (Some(name), true) = (name, is_set) {
                let text = fs::read_to_string(&path).map_err(|source| Error::File {
                    path: path.clone(),
                    source,
                })?;
                let set = Set::parse(&name, &path, &text)?;
                sets.insert(name, set);
            }
        }
        Ok(Self(sets))
    }

    /// The set of that name.
    pub fn get(&self, name: &str) -> Option<&Set> {
        self.0.get(name)
    }

    /// Names and sets.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Set)> {
        self.0.iter()
    }

    #[cfg(test)]
    pub(crate) fn of(sets: impl IntoIterator<Item = (&'static str, Set)>) -> Self {
        let named = |(name, set): (&str, Set)| (name.to_owned(), set);
        Self(sets.into_iter().map(named).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Amount;

    pub(crate) fn run(command: &str) -> Run {
        Run {
            command: command.into(),
            date: "2026-11-30".into(),
            commit: "0123456".into(),
            machine: "2 processors".into(),
            beside: "nothing".into(),
            transcribed: false,
        }
    }

    fn rate(of: &str, rounds: &[f64]) -> Figure {
        Figure::new("rate", "a rate", "Gbit/s", rounds.iter().copied()).of(of)
    }

    fn of(set: &Set) -> Vec<(String, usize)> {
        set.figures
            .iter()
            .map(|figure| (figure.of.clone(), figure.run))
            .collect()
    }

    #[test]
    fn a_run_replaces_its_own_figures_in_place_and_no_others() {
        let mut set = Set::default();
        set.take(
            run("bench --only a,b"),
            vec![rate("a", &[1.0]), rate("b", &[2.0])],
            true,
        );
        set.take(run("bench --only c"), vec![rate("c", &[3.0])], true);
        set.take(
            run("bench --only a"),
            vec![rate("a", &[9.0]), rate("d", &[4.0])],
            true,
        );
        let expected = [("a", 2), ("b", 0), ("c", 1), ("d", 2)];
        assert_eq!(of(&set), expected.map(|(of, run)| (of.to_owned(), run)));
        assert_eq!(set.figures[0].value, Amount::Number(9.0));
        assert_eq!(set.fault(), None);
    }

    #[test]
    fn figures_that_a_command_no_longer_gives_are_removed_with_their_run() {
        let mut set = Set::default();
        let both = || vec![rate("a", &[1.0]), rate("b", &[2.0])];
        set.take(run("bench"), both(), true);
        set.take(run("other"), vec![rate("c", &[3.0])], true);
        let later = |commit: &str| Run {
            commit: commit.into(),
            ..run("bench")
        };
        let mut part = set.clone();
        part.take(later("1234567"), vec![rate("a", &[5.0])], false);
        assert_eq!(of(&part).len(), 3, "a part takes nothing away");
        part.take(later("1234567"), vec![rate("b", &[6.0])], false);
        assert_eq!(part.runs.len(), 2, "parts of one run");
        set.take(later("1234567"), vec![rate("a", &[5.0])], true);
        assert_eq!(of(&set), [("a".to_owned(), 1), ("c".to_owned(), 0)]);
        assert_eq!(set.runs.len(), 2);
        assert_eq!(set.fault(), None);
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let figures = vec![
            rate("a", &[1.25, 2.0]).aim("≥ 1"),
            Figure::new("path", "path", "", ["D", "R"]),
            Figure::new("start", "start", "s", [Some(0.5), None]),
        ];
        let set = Set::take_into(dir.path(), "x", run("bench"), figures, true).unwrap();
        let read = Sets::read(dir.path()).unwrap();
        assert_eq!(read.get("x"), Some(&set));
        let more = vec![rate("b", &[1.0])];
        let again = Set::take_into(dir.path(), "x", run("more"), more, true).unwrap();
        assert_eq!(again.figures.len(), 4);
    }

    #[test]
    fn a_file_with_unknown_fields_bad_dates_or_doubles_is_refused() {
        let mut set = Set::default();
        set.take(run("bench"), vec![rate("a", &[1.0])], true);
        let parse = |text: &str| Set::parse("x", Path::new("x.json"), text);
        let text = set.text().unwrap();
        assert!(parse(&text).is_ok());
        assert!(parse(&text.replace("\"unit\"", "\"units\"")).is_err());
        assert!(parse(&text.replace("2026-11-30", "yesterday")).is_err());
        assert!(parse(&text.replace("\"run\":0", "\"run\":1")).is_err());
        assert!(parse(&text.replace("\"rounds\":[1.0]", "\"rounds\":[]")).is_err());
        assert!(parse(&text.replace("\"value\":1.0", "\"value\":2.0")).is_err());
        set.figures.push(set.figures[0].clone());
        assert!(parse(&set.text().unwrap()).is_err());
    }

    #[test]
    fn concurrent_measurements_keep_each_others_figures() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let dir = dir.path();
                scope.spawn(move || {
                    let name = format!("m{n}");
                    let figures = vec![rate(&name, &[1.0])];
                    Set::take_into(dir, "x", run("bench"), figures, false).unwrap()
                });
            }
        });
        let sets = Sets::read(dir.path()).unwrap();
        assert_eq!(sets.get("x").map(|set| set.figures.len()), Some(8));
    }
}
