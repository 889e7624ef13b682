//! The command line: parse, ask the daemon, print. What needs no daemon (`init`, `join`, `testbed`,
//! `demo`, `bench`) is called from here too. Results go to standard output, everything else to standard error.

mod appliance;
mod appliance_args;
mod args;
mod dashboard;
mod drain;
pub mod limit;
pub mod netcheck;
mod network;
mod policy;
pub mod print;
mod progress;
mod ring;
mod traffic;
mod vm;

pub use args::{Bench as BenchArgs, Cli, Command, Demo as DemoArgs, Top as TopArgs, Up as UpArgs};
pub use progress::Progress;

use crate::{
    api::client::Client,
    daemon,
    failure::{Failure, Kind, Outcome},
    layout::Layout,
};
use std::process::ExitCode;

/// Runs one command to its exit code.
pub fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    limit::watch(limit::of(&cli), json);
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            say(&failure, json);
            ExitCode::from(failure.kind as u8)
        }
    }
}

/// Prints why a command did not do what it was asked.
fn say(failure: &Failure, json: bool) {
    if json {
        println!("{}", serde_json::json!({ "error": failure }));
    }
    eprintln!("p2pvm: {failure}");
}

/// What a command needs besides its arguments.
pub struct Context {
    /// This node's state.
    pub layout: Layout,
    /// Whether results are printed as JSON.
    pub json: bool,
}

impl Context {
    /// A connection to this node's daemon.
    pub async fn daemon(&self) -> Outcome<Client> {
        Client::connect(&self.layout.socket()).await
    }
}

fn dispatch(cli: Cli) -> Outcome<ExitCode> {
    let context = Context { layout: Layout::at(&cli.dir), json: cli.json };
    let other = match cli.command {
        // The testbed enters namespaces, the daemon sizes its own runtime: neither is called inside one.
        Command::Testbed(command) => return Ok(p2pvm_tests::cli::run(command)?),
        Command::Simulate(a) => return Ok(p2pvm_tests::sim::cli::run(&a, context.json)?),
        Command::Demo(a) => {
            crate::demo::run(&a, context.json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Bench(a) => {
            crate::bench::run(&a, context.json)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Up(up) if !up.detach => {
            daemon::run(&context.layout, &up)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Guardian(a) => {
            crate::guardian::run(&context.layout, a.of)?;
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
    let outcome = runtime.block_on(command(context, other));
    // Standard input may be held by a blocked read (console, `join -`): do not wait for it.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn command(context: Context, command: Command) -> Outcome<()> {
    match command {
        Command::Init(a) => network::init(&context, a),
        Command::Up(a) => network::up_detached(&context, &a).await,
        Command::Down => network::down(&context).await,
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
        Command::Leave(a) => network::leave(&context, a.force).await,
        Command::Acl(a) => policy::acl(&context, a).await,
        Command::Route(a) => policy::route(&context, a).await,
        Command::Vm(a) => vm::run(&context, a).await,
        Command::Drain => drain::run(&context).await,
        Command::Image(a) => appliance::image(&context, a),
        Command::Install(a) => appliance::install(&context, &a),
        Command::Appliance(a) => appliance::run(&context, a).await,
        Command::Explain(a) => vm::explain(&context, &a.name).await,
        Command::Doctor(_) | Command::Guardian(_) | Command::Demo(_) | Command::Bench(_) | Command::Testbed(_) | Command::Simulate(_) => {
            unreachable!("dispatched before the runtime began")
        }
    }
}
