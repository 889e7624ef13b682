//! `p2pvm-figures`: fills the blocks of the pages from `docs/figures/` (`make figures`).
//!
//! With `--check` it writes nothing and fails where a page would change. `record SET COMMAND` is
//! for measurements that are shell scripts: it reads figures from standard input, one a line (name,
//! subject, description, unit and rounds, separated by tabs), and writes them into the directory
//! that `P2PVM_FIGURES` names.

use p2pvm_figures::{Amount, Error, Figure, Recorder, Sets, page};
use std::{
    error::Error as _,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [] => run(false),
        [only] if only == "--check" => run(true),
        [record, set, command] if record == "record" => recorded(set, command),
        _ => {
            eprintln!("usage: p2pvm-figures [--check | record SET COMMAND]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err((place, error)) => {
            let cause = error.source().map(|cause| format!(": {cause}"));
            eprintln!("{}: {error}{}", place.display(), cause.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// Records the figures of standard input.
fn recorded(set: &str, command: &str) -> Result<bool, (PathBuf, Error)> {
    let input = PathBuf::from("standard input");
    let failed = |source| {
        let path = input.clone();
        (input.clone(), Error::File { path, source })
    };
    let text = io::read_to_string(io::stdin()).map_err(failed)?;
    let figures: Option<Vec<Figure>> = text.lines().map(figure).collect();
    let Some(figures) = figures else {
        eprintln!("a line is: name, subject, description, unit, rounds, separated by tabs");
        return Ok(false);
    };
    let recorder = Recorder::from_environment();
    let written = recorder.record(set, command, &figures);
    written.map(|()| true).map_err(|error| (input, error))
}

/// The figure of one line.
fn figure(line: &str) -> Option<Figure> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, of, what, unit, rounds @ ..] = &fields[..] else {
        return None;
    };
    let amount = |text: &&str| match text.parse::<f64>() {
        Ok(number) => Amount::from(number),
        Err(_) => Amount::from(*text),
    };
    Some(Figure::new(name, what, unit, rounds.iter().map(amount)).of(*of))
}

/// Fills the pages, or with `check` only compares them. Returns false if a compared page differs.
fn run(check: bool) -> Result<bool, (PathBuf, Error)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let figures = root.join("docs/figures");
    let sets = Sets::read(&figures).map_err(|error| (figures, error))?;
    let mut same = true;
    for path in page::all(&root).map_err(|error| (root.clone(), error))? {
        let failed = |source| {
            let path = path.clone();
            (path.clone(), Error::File { path, source })
        };
        let old = fs::read_to_string(&path).map_err(failed)?;
        let new = page::render(&old, &sets).map_err(|error| (path.clone(), error))?;
        if old != new {
            let name = path.strip_prefix(&root).unwrap_or(&path).display();
            if check {
                println!("{name} differs from its figures: make figures");
                same = false;
            } else {
                fs::write(&path, new).map_err(failed)?;
                println!("{name} filled");
            }
        }
    }
    Ok(same)
}
