//! Runs what the command line asks for: a command of [`crate::cli`], the daemon, the status screen,
//! the lab. It also runs the commands that need no daemon (`init`, `join`, `testbed`, `demo`,
//! `bench`).

use crate::{
    bugreport,
    cli::{
        Cli, Command, Context, appliance, dashboard, drain, events, explain, lab, limit, members,
        netcheck, network, offer, policy, ring, say, stop, store, token, traffic, up, usage, user,
        vm,
    },
    doctor, top,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome};
use p2pvm_daemon::{Overrides, guardian, layout::Layout};
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
            guardian::run(&context.layout, a.of)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::GuestGuardian => {
            p2pvm_vm_manager::guardian::serve(context.layout.dir())
                .doing("cannot guard this host's guests")?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| {
            Failure::new(
                Kind::Failed,
                format!("cannot start: {}", p2pvm_host::chain(&e)),
            )
        })?;
    if let Command::Doctor(a) = &other {
        return runtime.block_on(doctor::run(&context, a.fix));
    }
    if let Command::Drain = &other {
        return runtime.block_on(drain::run(&context));
    }
    let other = match other {
        Command::Offer(a) => return runtime.block_on(offer::run(&context, a)),
        other => other,
    };
    let outcome = runtime.block_on(command(context, other));
    // Standard input may be held by a blocked read (console, `join -`): do not wait for it.
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn command(context: Context, command: Command) -> Outcome<()> {
    match command {
        Command::Init(a) => network::init(&context, a),
        Command::Up(a) => up::detached(&context, &a).await,
        Command::Down(a) => stop::down(&context, a.force).await,
        Command::Invite(a) => network::invite(&context, a).await,
        Command::Join(a) => network::join(&context, a).await,
        Command::Revoke(a) => network::revoke(&context, &a.what).await,
        Command::Status => members::status(&context).await,
        Command::Top(a) => top::run(&context, &a).await,
        Command::Dashboard(a) => dashboard::run(&context, &a).await,
        Command::Bugreport(a) => bugreport::run(&context, a.out).await,
        Command::Peers(a) if a.all => ring::cluster(&context).await,
        Command::Peers(_) => members::peers(&context).await,
        Command::Metrics(a) => ring::metrics(&context, a.all).await,
        Command::Traffic(a) => traffic::show(&context, a.all).await,
        Command::Ping(a) => members::ping(&context, a).await,
        Command::Netcheck => netcheck::run(&context).await,
        Command::Trace(a) => ring::trace(&context, &a.member).await,
        Command::Leave(a) => stop::leave(&context, a.force).await,
        Command::Acl(a) => policy::acl(&context, a).await,
        Command::Token(a) => token::run(&context, a).await,
        Command::Usage(a) => usage::show(&context, &a).await,
        Command::Store(a) => store::run(&context, a).await,
        Command::User(a) => user::run(&context, a).await,
        Command::Route(a) => policy::route(&context, a).await,
        Command::Vm(a) => vm::run(&context, a).await,
        Command::Iso(a) => appliance::iso(&context, a),
        Command::Image(a) => appliance::image(&context, a),
        Command::Install(a) => appliance::install(&context, &a),
        Command::Appliance(a) => appliance::run(&context, a).await,
        Command::Events(a) => events::run(&context, a).await,
        Command::Explain(a) => explain::run(&context, a).await,
        Command::Doctor(_)
        | Command::Drain
        | Command::Offer(_)
        | Command::Guardian(_)
        | Command::GuestGuardian
        | Command::Demo(_)
        | Command::Bench(_)
        | Command::Testbed(_)
        | Command::Simulate(_) => {
            unreachable!("dispatched before the runtime began")
        }
    }
}
