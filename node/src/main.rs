//! The program: one binary that is the daemon and the command line that talks to it.

#![deny(missing_docs)]

mod appliance;
mod bugreport;
mod cli;
mod doctor;
mod sigpipe;
mod top;

use clap::Parser;
use std::process::ExitCode;

/// Sets the umask so that only the owner can write files of this process. Reason: some containers
/// and init systems start programs without a umask.
fn keep_others_from_writing() {
    use nix::sys::stat::{Mode, umask};
    let others = Mode::S_IWGRP | Mode::S_IWOTH;
    let given = umask(others);
    umask(given | others);
}

fn main() -> ExitCode {
    keep_others_from_writing();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return cli::misused(&error, std::env::args_os().any(|word| word == "--json"));
        }
    };
    if !cli.is_daemon() {
        sigpipe::restore_default();
    }
    cli::run(cli)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{Mode, umask};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn without_a_umask_nobody_else_may_write_and_a_strict_one_stays() {
        for (given, left) in [(0, 0o022), (0o077, 0o077)] {
            umask(Mode::from_bits_truncate(given));
            keep_others_from_writing();
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("file");
            std::fs::write(&file, "").unwrap();
            assert_eq!(
                std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
                0o666 & !left
            );
        }
    }
}
