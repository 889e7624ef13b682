//! The command line: parses the arguments, asks the daemon, prints the answer. It also runs the
//! commands that need no daemon (`init`, `join`, `testbed`, `demo`, `bench`). Results go to
//! standard output, everything else to standard error.

mod appliance;
mod appliance_args;
mod args;
mod dashboard;
mod drain;
mod lab;
pub mod limit;
pub mod netcheck;
mod network;
mod policy;
pub mod print;
mod progress;
mod ring;
mod silent;
mod stop;
mod traffic;
mod vm;
mod vm_args;

pub use args::{Cli, Command, Top as TopArgs};
pub use progress::Progress;

use p2pvm_api::{Failure, Kind, Outcome, client::Client};
use p2pvm_daemon::{Overrides, layout::Layout, shown};
use std::process::ExitCode;

/// Runs one command and returns its exit code.
pub fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    limit::watch(limit::of(&cli), json, Layout::at(&cli.dir));
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            say(&failure, json);
            ExitCode::from(failure.kind as u8)
        }
    }
}

/// Says what is wrong with an invalid command line, or prints the requested help.
pub fn misused(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        println!("{}", serde_json::json!({ "error": misuse(error) }));
    }
    // A failed write means that nobody reads the output, so it cannot be reported.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Kind::Usage as u8))
}

/// The sentence of the parser's page: up to its first empty line.
fn misuse(error: &clap::Error) -> Failure {
    let page = error.to_string();
    let lines: Vec<&str> = page
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    Failure::usage(lines.join(" ").trim_start_matches("error: ").to_owned())
}

/// Prints why a command failed.
fn say(failure: &Failure, json: bool) {
    if json {
        println!("{}", serde_json::json!({ "error": failure }));
    }
    eprintln!("p2pvm: {}", shown::text(&failure.message));
}

/// A command's context: what it needs besides its arguments.
pub struct Context {
    /// This node's state.
    pub layout: Layout,
    /// Whether results are printed as JSON.
    pub json: bool,
}

impl Context {
    /// A connection to this node's daemon, on which it has answered.
    pub async fn daemon(&self) -> Outcome<Client> {
        Ok(silent::connect(&self.layout).await?)
    }

    /// As above; `None` if no daemon runs.
    pub async fn daemon_if_any(&self) -> Outcome<Option<Client>> {
        match silent::connect(&self.layout).await {
            Ok(client) => Ok(Some(client)),
            Err(silent::Missing::NotRunning(_)) => Ok(None),
            Err(missing) => Err(missing.into()),
        }
    }
}

fn dispatch(cli: Cli) -> Outcome<ExitCode> {
    let context = Context {
        layout: Layout::at(&cli.dir),
        json: cli.json,
    };
    let other = match cli.command {
        // The testbed enters namespaces, the daemon sizes its own runtime: neither is called inside
        // one.
        Command::Testbed(command) => return Ok(p2pvm_lab::cli::run(command)?),
        Command::Simulate(a) => return Ok(p2pvm_lab::sim::cli::run(&a, context.json)?),
        Command::Demo(a) => {
            lab::demo(&a, context.json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Bench(a) => {
            lab::bench(&a, context.json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Up(up) if !up.detach => {
            let set = Overrides {
                port: up.port,
                link_port: up.link_port,
                accel: up.accel,
            };
            p2pvm_daemon::run(&context.layout, &set)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Guardian(a) => {
            p2pvm_daemon::guardian::run(&context.layout, a.of)?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Kind::Failed, format!("cannot start: {e}")))?;
    if let Command::Doctor(a) = &other {
        return runtime.block_on(crate::doctor::run(&context, a.fix));
    }
    if let Command::Drain = &other {
        return runtime.block_on(drain::run(&context));
    }
    let outcome = runtime.block_on(command(context, other));
    // Standard input may be held by a blocked read (console, `join -`): do not wait for it.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn command(context: Context, command: Command) -> Outcome<()> {
    match command {
        Command::Init(a) => network::init(&context, a),
        Command::Up(a) => network::up_detached(&context, &a).await,
        Command::Down(a) => stop::down(&context, a.force).await,
        Command::Invite(a) => network::invite(&context, a).await,
        Command::Join(a) => network::join(&context, a).await,
        Command::Revoke(a) => network::revoke(&context, &a.what).await,
        Command::Status => network::status(&context).await,
        Command::Top(a) => crate::top::run(&context, &a).await,
        Command::Dashboard(a) => dashboard::run(&context, &a).await,
        Command::Bugreport(a) => crate::bugreport::run(&context, a.out).await,
        Command::Peers(a) if a.all => ring::cluster(&context).await,
        Command::Peers(_) => network::peers(&context).await,
        Command::Metrics(a) => ring::metrics(&context, a.all).await,
        Command::Traffic(a) => traffic::show(&context, a.all).await,
        Command::Ping(a) => network::ping(&context, a).await,
        Command::Netcheck => netcheck::run(&context).await,
        Command::Trace(a) => ring::trace(&context, &a.member).await,
        Command::Leave(a) => stop::leave(&context, a.force).await,
        Command::Acl(a) => policy::acl(&context, a).await,
        Command::Route(a) => policy::route(&context, a).await,
        Command::Vm(a) => vm::run(&context, a).await,
        Command::Iso(a) => appliance::iso(&context, a),
        Command::Image(a) => appliance::image(&context, a),
        Command::Install(a) => appliance::install(&context, &a),
        Command::Appliance(a) => appliance::run(&context, a).await,
        Command::Explain(a) => vm::explain(&context, &a.name).await,
        Command::Doctor(_)
        | Command::Drain
        | Command::Guardian(_)
        | Command::Demo(_)
        | Command::Bench(_)
        | Command::Testbed(_)
        | Command::Simulate(_) => {
            unreachable!("dispatched before the runtime began")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_command_line_that_is_not_understood_is_one_sentence_for_programs() {
        for (words, said) in [
            (
                "p2pvm --json ping",
                "the following required arguments were not provided: <MEMBER>",
            ),
            (
                "p2pvm --json ping lab1 -c 0",
                "invalid value '0' for '--count <COUNT>': 0 is not in 1..=1000000",
            ),
            ("p2pvm --json nosuch", "unrecognized subcommand 'nosuch'"),
        ] {
            let Err(error) = Cli::try_parse_from(words.split(' ')) else {
                panic!("{words} is understood")
            };
            assert_eq!(misuse(&error), Failure::usage(said), "{words}");
            assert_eq!(error.exit_code(), Kind::Usage as i32);
        }
    }
}
