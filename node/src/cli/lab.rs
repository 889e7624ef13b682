//! `p2pvm demo` and `p2pvm bench`: the lab (`p2pvm-lab`) runs them; it gets this executable and the
//! progress bar.

use super::Progress;
use p2pvm_api::{Doing, Outcome};
use p2pvm_lab::{bench, demo, runner::Runner};

/// Runs `demo`.
pub fn demo(options: &demo::Options, json: bool) -> Outcome<()> {
    run(json, |runner| demo::run(options, runner))
}

/// Runs `bench`.
pub fn bench(options: &bench::Options, json: bool) -> Outcome<()> {
    run(json, |runner| bench::run(options, runner))
}

fn run(json: bool, what: impl FnOnce(&Runner) -> Outcome<()>) -> Outcome<()> {
    let program = std::env::current_exe().doing("finding this program")?;
    what(&Runner {
        program: &program,
        json,
        show_progress: &|step| Box::new(Progress::new(step)),
    })
}
