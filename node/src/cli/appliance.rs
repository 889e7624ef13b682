//! `p2pvm image`, `p2pvm install`, and the hidden `p2pvm appliance` that the appliance's units and console call.

use super::{
    Context,
    appliance_args::{Appliance, FindNetwork, Image, Install},
    network, print,
};
use crate::{
    api::types::{InviteAnswer, InviteRequest, Status},
    appliance::{customize, install as disk, prepare, reserved, sources},
    failure::{Doing, Failure, Kind, Outcome},
    layout::write_atomically,
    membership,
};
use p2pvm_overlay::{UnixTime, membership::Invite};
use serde_json::json;
use std::{
    fs,
    io::{BufRead, IsTerminal, Write},
    path::Path,
};

/// The invite that a machine shows which founded its network: for all the machines of a small cluster, for a week.
const SHOWN_USES: u32 = 100;
const SHOWN_SECONDS: u64 = 7 * 24 * 3600;

pub(super) fn image(context: &Context, image: Image) -> Outcome<()> {
    let Image::Customize(a) = image;
    let invite = a.join.as_deref().map_or(Ok(String::new()), network::read_invite)?;
    if invite.is_empty() && !a.clear {
        return Err(Failure::usage("the invite is empty: 'p2pvm invite' makes one"));
    }
    customize::customize(&a.input, &invite, &a.output, UnixTime::now())?;
    let leads = Invite::parse(&invite).ok().map(|invite| invite.network().name.clone());
    if context.json {
        return print::json(&json!({ "iso": a.output, "network": leads }));
    }
    match leads {
        Some(network) => println!("{}: whatever boots from it joins {network}", a.output.display()),
        None => println!("{}: it holds no invite", a.output.display()),
    }
    Ok(())
}

pub(super) fn install(context: &Context, a: &Install) -> Outcome<()> {
    if !a.yes {
        agree(&a.disk)?;
    }
    let state = disk::install(&a.disk, a.from.as_deref(), a.force)?;
    if context.json {
        return print::json(&json!({ "disk": a.disk, "state": state }));
    }
    println!("{} boots by itself now; identity and VMs will be on {}", a.disk.display(), state.display());
    println!("next: take the medium out and restart");
    Ok(())
}

fn agree(disk: &Path) -> Outcome<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused(format!("installing writes over {}: say --yes", disk.display())));
    }
    print!("Installing writes over {}. Type the disk's name again to go on: ", disk.display());
    std::io::stdout().flush().doing("asking")?;
    if line()?.trim() == disk.to_string_lossy() { Ok(()) } else { Err(Failure::refused("nothing was written")) }
}

fn line() -> Outcome<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).doing("reading from the terminal")?;
    Ok(line)
}

pub(super) async fn run(context: &Context, what: Appliance) -> Outcome<()> {
    match what {
        Appliance::Prepare => prepare::prepare(&context.layout).await,
        Appliance::FindNetwork(a) => find_network(context, a),
        Appliance::Show => show(context).await,
        Appliance::Ask => ask(),
        Appliance::Reserve => {
            let room = reserved::filled("").map_err(|problem| Failure::new(Kind::Failed, problem.to_string()))?;
            std::io::stdout().write_all(&room).doing("writing to standard output")
        }
    }
}

fn find_network(context: &Context, a: FindNetwork) -> Outcome<()> {
    let places = sources::Places { typed: prepare::typed(), cmdline: a.cmdline, volumes: a.volumes, room: a.room, serial: a.serial };
    let found = sources::find(&places, UnixTime::now()).map_err(|bad| Failure::refused(bad.to_string()))?;
    if context.json {
        let (source, invite) = found.invite.map(|(source, invite)| (source.to_string(), invite)).unzip();
        return print::json(&json!({ "source": source, "invite": invite, "name": found.name }));
    }
    match found.invite {
        Some((source, invite)) => println!("{source}\n{invite}"),
        None => println!("no place holds an invite: this machine would found a network of its own"),
    }
    Ok(())
}

async fn show(context: &Context) -> Outcome<()> {
    let mut daemon = context.daemon().await?;
    let status: Status = daemon.get("/status").await?;
    println!(
        "\nThis is {} of the network {}, address {}",
        status.name,
        status.network,
        status.address.as_deref().unwrap_or("not claimed yet")
    );
    println!("{}", prepare::state());
    if let Some((used, total)) = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(memory) {
        println!("{used} of {total} MiB of memory are used");
    }
    if context.layout.root_key().exists() {
        let kept = Path::new("/run/p2pvm/invite");
        let invite = match fs::read_to_string(kept) {
            Ok(invite) => invite,
            Err(_) => {
                let request =
                    InviteRequest { uses: SHOWN_USES, expires_seconds: SHOWN_SECONDS, delegate: false, groups: Vec::new(), short: true };
                let answer: InviteAnswer = daemon.post("/invite", &request).await?;
                write_atomically(kept, answer.invite.as_bytes(), 0o600)?;
                answer.invite
            }
        };
        println!("Others join with this invite ({SHOWN_USES} machines, 7 days):\n\n{invite}\n");
    }
    Ok(())
}

/// Memory in use and in all, MiB, out of /proc/meminfo.
fn memory(text: &str) -> Option<(u64, u64)> {
    let kib = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok());
    let total = kib("MemTotal:")?;
    Some((total.checked_sub(kib("MemAvailable:")?)? >> 10, total >> 10))
}

fn ask() -> Outcome<()> {
    let why = fs::read_to_string(prepare::refusal()).doing("nothing was refused")?;
    println!("\nThis machine joined no network. Refused: {why}");
    loop {
        print!("Type or paste another invite, or just Enter to try the same again: ");
        std::io::stdout().flush().doing("asking")?;
        let text = line()?;
        let text = text.trim();
        if !text.is_empty()
            && let Err(refusal) = Invite::parse(text).and_then(|invite| invite.check(UnixTime::now()))
        {
            println!("{}", membership::refused(refusal));
            continue;
        }
        return prepare::retry_with(text);
    }
}

#[cfg(test)]
mod tests {
    use super::memory;

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        assert_eq!(memory("MemTotal:  768000 kB\nMemFree: 1 kB\nMemAvailable:   512000 kB\n"), Some((250, 750)));
        assert_eq!(memory("MemTotal: x kB"), None);
    }
}
