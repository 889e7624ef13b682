//! `p2pvm iso`, `p2pvm install`, and the hidden `p2pvm appliance` for the appliance's units and
//! console.

use super::{
    Context,
    appliance_args::{Appliance, FindNetwork, Install, Iso},
    network, print,
};
use crate::appliance::{customize, install as disk, prepare, reserved, sources};
use nix::sys::termios::{FlushArg, tcflush};
use p2pvm_api::{ApplianceInstalled, Doing, Failure, InviteFound, IsoCustomized, Kind, Outcome};
use p2pvm_daemon::membership;
use p2pvm_overlay::{UnixTime, membership::Invite};
use std::{
    fs,
    io::{BufRead, IsTerminal, Write},
    path::Path,
    sync::mpsc,
    time::Duration,
};

/// How often an asking console checks whether another console was answered.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// `p2pvm image`, the previous name of `p2pvm iso`.
pub(crate) fn image(context: &Context, what: Iso) -> Outcome<()> {
    eprintln!("p2pvm: 'p2pvm image customize' is now 'p2pvm iso customize'");
    iso(context, what)
}

pub(crate) fn iso(context: &Context, what: Iso) -> Outcome<()> {
    let Iso::Customize(a) = what;
    let invite = a
        .join
        .as_deref()
        .map_or(Ok(String::new()), network::read_invite)?;
    if invite.is_empty() && !a.clear {
        return Err(Failure::usage(
            "the invite is empty: make one with 'p2pvm invite'",
        ));
    }
    customize::customize(&a.input, &invite, &a.output, UnixTime::now())?;
    let leads = Invite::parse(&invite)
        .ok()
        .map(|invite| invite.network().name.clone());
    if context.json {
        return print::json(&IsoCustomized {
            iso: a.output,
            network: leads,
        });
    }
    match leads {
        Some(network) => println!(
            "{}: machines booted from it join {network}",
            a.output.display()
        ),
        None => println!("{}: it contains no invite", a.output.display()),
    }
    Ok(())
}

pub(crate) fn install(context: &Context, a: &Install) -> Outcome<()> {
    if !a.yes {
        agree(&a.disk)?;
    }
    let state = disk::install(&a.disk, a.from.as_deref(), a.force)?;
    if context.json {
        return print::json(&ApplianceInstalled {
            disk: a.disk.clone(),
            state,
        });
    }
    println!(
        "{} boots by itself now; identity and VMs will be on {}",
        a.disk.display(),
        state.display()
    );
    println!("next: remove the medium and restart");
    Ok(())
}

fn agree(disk: &Path) -> Outcome<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(format!(
            "the installation overwrites {}: confirm with --yes",
            disk.display()
        )));
    }
    print!(
        "The installation overwrites {}. Type the disk's name again to continue: ",
        disk.display()
    );
    std::io::stdout().flush().doing("asking")?;
    if line()?.trim() == disk.to_string_lossy() {
        Ok(())
    } else {
        Err(Failure::refused("nothing was written"))
    }
}

fn line() -> Outcome<String> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .doing("reading from the terminal")?;
    Ok(line)
}

pub(crate) async fn run(context: &Context, what: Appliance) -> Outcome<()> {
    match what {
        Appliance::Prepare => prepare::prepare(&context.layout).await,
        Appliance::FindNetwork(a) => find_network(context, a),
        Appliance::Ask => ask(),
        Appliance::Reserve => {
            let room = reserved::filled("")
                .map_err(|problem| Failure::new(Kind::Failed, problem.to_string()))?;
            std::io::stdout()
                .write_all(&room)
                .doing("writing to standard output")
        }
    }
}

fn find_network(context: &Context, a: FindNetwork) -> Outcome<()> {
    let places = sources::Places {
        typed: prepare::typed(),
        cmdline: a.cmdline,
        volumes: a.volumes,
        room: a.room,
        serial: a.serial,
    };
    let found =
        sources::find(&places, UnixTime::now()).map_err(|bad| Failure::refused(bad.to_string()))?;
    if context.json {
        let (source, invite) = found
            .invite
            .map(|(source, invite)| (source.to_string(), invite))
            .unzip();
        return print::json(&InviteFound {
            invite,
            name: found.name,
            source,
        });
    }
    match found.invite {
        Some((source, invite)) => println!("{source}\n{invite}"),
        None => println!("no place has an invite: this machine would found a network of its own"),
    }
    Ok(())
}

fn ask() -> Outcome<()> {
    let why = fs::read_to_string(prepare::refusal()).doing("nothing was refused")?;
    println!("\nThis machine joined no network. Refused: {why}");
    loop {
        print!("Type or paste another invite, or just Enter to try the same again: ");
        std::io::stdout().flush().doing("asking")?;
        let text = line_unless_answered_elsewhere()?;
        let text = text.trim();
        if !text.is_empty()
            && let Err(refusal) = Invite::parse(text)
        {
            println!("{}", membership::refused(refusal));
            continue;
        }
        return prepare::retry_with(text);
    }
}

/// Reads an answer. The screen and the serial port ask at the same time: when one is answered, the
/// other must not wait for ever.
fn line_unless_answered_elsewhere() -> Outcome<String> {
    let (tell, told) = mpsc::channel();
    // If nobody types, the thread ends with the process.
    std::thread::spawn(move || tell.send(line()));
    loop {
        match told.recv_timeout(LOOK_AGAIN) {
            Ok(line) => return line,
            Err(_) if prepare::refusal().exists() => {}
            Err(_) => {
                // A half-typed invite must not act as keys on the next screen.
                let _ = tcflush(std::io::stdin(), FlushArg::TCIFLUSH);
                return Err(Failure::refused("another console was answered"));
            }
        }
    }
}
