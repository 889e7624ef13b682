//! `p2pvm demo` and `p2pvm bench`: the lab (`p2pvm-lab`) runs them; it gets this executable and the
//! progress bar, and its failures become the command line's.

use super::Progress;
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_lab::{
    bench, demo,
    runner::{RunError, Runner},
};

/// Runs `demo`.
pub fn demo(options: &demo::Options, json: bool) -> Outcome<()> {
    run(json, |runner| demo::run(options, runner))
}

/// Runs `bench`.
pub fn bench(options: &bench::Options, json: bool) -> Outcome<()> {
    run(json, |runner| bench::run(options, runner))
}

fn run(json: bool, what: impl FnOnce(&Runner) -> Result<(), RunError>) -> Outcome<()> {
    let program = std::env::current_exe().doing("finding this program")?;
    let runner = Runner {
        program: &program,
        json,
        show_progress: &|step| Box::new(Progress::new(step)),
    };
    what(&runner).map_err(|error| failure(&error))
}

fn failure(error: &RunError) -> Failure {
    let kind = match error {
        RunError::Refused(_) => Kind::Refused,
        RunError::NotFound(_) => Kind::NotFound,
        RunError::TimedOut(_) => Kind::TimedOut,
        RunError::Failed(_) | RunError::Step { .. } => Kind::Failed,
    };
    Failure::new(kind, p2pvm_host::chain(error))
}
