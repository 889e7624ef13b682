//! The commands that found, join and leave a network.

use super::{
    Context,
    args::{Init, Invite, Join, Up},
    print::{self, or_dash},
    progress::Progress,
    up,
};
use p2pvm_api::{
    Doing, Failure, InviteAnswer, InviteRequest, Joined, Kind, NetworkFounded, Outcome,
    RevokeAnswer, RevokeRequest, Sorted, Status, Step,
};
use p2pvm_daemon::{layout::Layout, membership, naming, preflight};
use p2pvm_overlay::{identity::Identity, membership::Invite as InviteText};
use std::{fs, io::Read, os::unix::process::CommandExt, process::Command, time::Instant};

/// This machine's name in the network; makes its identity only if the name derives from it.
fn called(layout: &Layout, given: Option<String>) -> Outcome<naming::HostName> {
    naming::choose(given, || {
        layout.create()?;
        Ok(Identity::load_or_create(&layout.identity())
            .doing("making this node's identity")?
            .member_id())
    })
}

pub(crate) fn init(context: &Context, a: Init) -> Outcome<()> {
    membership::check_network(&a.network)?;
    membership::refuse_member(&context.layout)?;
    preflight::for_machine(&context.layout, "founding a network")?;
    preflight::clock()?;
    let called = called(&context.layout, a.name)?;
    let founded = membership::found(
        &context.layout,
        (&a.network, a.subnet.as_deref()),
        (&called.label, &a.groups),
        a.force,
    )?;
    if context.json {
        return print::json(&NetworkFounded {
            member: founded.member.into(),
            name: called.label,
            network: a.network,
            network_id: founded.network.to_string().into(),
            note: called.note,
            subnet: founded.subnet.to_string(),
        });
    }
    if let Some(note) = &called.note {
        eprintln!("note: {note}");
    }
    println!(
        "network {} ({}), subnet {}",
        a.network, founded.network, founded.subnet
    );
    println!(
        "this machine is its member {} ({})",
        called.label, founded.member
    );
    println!(
        "keep {} safe: it is the network's root key",
        context.layout.root_key().display()
    );
    println!("next: p2pvm up --detach, then p2pvm invite");
    Ok(())
}

pub(crate) async fn invite(context: &Context, a: Invite) -> Outcome<()> {
    let request = InviteRequest {
        uses: a.uses,
        expires_seconds: a.expires.as_secs(),
        delegate: a.delegate,
        groups: a.groups,
        short: a.qr,
    };
    let answer: InviteAnswer = context.daemon().await?.post("/invite", &request).await?;
    if context.json {
        return print::json(&answer);
    }
    println!("{}", answer.invite);
    if a.qr {
        print::codes(&answer.invite)?;
    }
    if let Some(note) = &answer.note {
        eprintln!("note: {note}");
    }
    eprintln!(
        "valid {} for {} machine(s); cancel it with: p2pvm revoke {}",
        humantime::format_duration(a.expires),
        a.uses,
        answer.id
    );
    Ok(())
}

/// The longest input read as an invite, bytes. Reason: a device such as /dev/zero never ends.
const MAX_INVITE: u64 = 1 << 20;

/// An invite given as itself, as a file, or as `-` for standard input.
pub(crate) fn read_invite(text: &str) -> Outcome<String> {
    if text == "-" {
        let mut read = String::new();
        std::io::stdin()
            .take(MAX_INVITE)
            .read_to_string(&mut read)
            .doing("reading the invite from standard input")?;
        return Ok(unquoted(&read));
    }
    // QR codes contain the invite in capitals.
    let bare = unquoted(text);
    if bare
        .to_ascii_lowercase()
        .starts_with(membership::INVITE_PREFIX)
    {
        return Ok(bare);
    }
    let read = fs::File::open(text).and_then(|file| std::io::read_to_string(file.take(MAX_INVITE)));
    match read {
        Ok(read) => Ok(unquoted(&read)),
        Err(e) => Err(Failure::usage(format!(
            "'{}' is neither an invite ({}...) nor a file that can be read: {e}",
            shortened(text),
            membership::INVITE_PREFIX
        ))),
    }
}

/// The invite without the marks that mail programs, chats and pages put around it.
fn unquoted(text: &str) -> String {
    let marks = [
        '>', '"', '\'', '`', '\u{ab}', '\u{bb}', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}',
        '\u{201e}',
    ];
    text.replace(marks, "").trim().to_owned()
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.to_owned()
    } else {
        format!("{}...", text.chars().take(40).collect::<String>())
    }
}

/// The invite's text, and the multiaddr to ask first if one is given.
fn invite_of(a: &Join) -> Outcome<(String, Option<String>)> {
    let is_address = a.bootstrap.starts_with('/') && !fs::exists(&a.bootstrap).unwrap_or(false);
    match (is_address, &a.invite) {
        (true, Some(invite)) => Ok((read_invite(invite)?, Some(a.bootstrap.clone()))),
        (true, None) => Err(Failure::usage(
            "a multiaddr needs --invite: p2pvm join /ip4/... --invite FILE",
        )),
        (false, Some(_)) => Err(Failure::usage(format!(
            "--invite goes with a multiaddr; '{}' is not one",
            shortened(&a.bootstrap)
        ))),
        (false, None) => Ok((read_invite(&a.bootstrap)?, None)),
    }
}

/// Checks what joining needs before the invite is used.
async fn check_join(context: &Context, a: &Join, invite: &InviteText) -> Outcome<()> {
    let ports = (a.up.port, a.up.link_port);
    if !membership::already(&context.layout, invite, a.name.as_deref())? {
        preflight::for_daemon(&context.layout, "joining", ports)?;
        preflight::subnet(
            invite.network().subnet,
            "this machine would lose the hosts that it reaches there. Change that network here, \
                or found the p2pvm network again with a free --subnet; the invite is not used up",
        )?;
    } else if context.daemon_if_any().await?.is_none() {
        preflight::for_daemon(&context.layout, "joining", ports)?;
    }
    Ok(())
}

/// Replaces this process by the daemon; returns only if that fails.
fn become_daemon(context: &Context) -> Failure {
    let program = match std::env::current_exe().doing("finding this program") {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let error = Command::new(program)
        .arg("--dir")
        .arg(context.layout.dir())
        .arg("up")
        .exec();
    Failure::new(Kind::Failed, format!("cannot become the daemon: {error}"))
}

pub(crate) async fn join(context: &Context, a: Join) -> Outcome<()> {
    let (text, address) = invite_of(&a)?;
    let invite = InviteText::parse(&text).map_err(membership::refused)?;
    check_join(context, &a, &invite).await?;
    let called = called(&context.layout, a.name)?;
    let began = Instant::now();
    let welcome = {
        let mut progress = Progress::new("joining");
        progress.step(&Step {
            phase: "asking to be admitted".to_owned(),
            ..Step::default()
        });
        membership::join(&context.layout, &text, address, &called).await?
    };
    for note in welcome.notes.iter().filter(|_| !context.json) {
        eprintln!("note: {note}");
    }
    let admitted = began.elapsed();
    if a.foreground {
        return Err(become_daemon(context));
    }
    let status: Status = match context.daemon_if_any().await? {
        Some(mut client) => client.get("/status").await?,
        None => {
            let options = Up {
                detach: true,
                port: a.up.port,
                link_port: a.up.link_port,
                accel: None,
            };
            up::start_daemon(context, &options).await?
        }
    };
    if context.json {
        return print::json(&Sorted(Joined {
            status,
            admitted_ms: admitted.as_millis() as u64,
            joined_ms: began.elapsed().as_millis() as u64,
            notes: welcome.notes,
        }));
    }
    println!(
        "{} is a member of {}, address {} ({} ms)",
        status.name,
        status.network,
        or_dash(status.address.as_ref()),
        began.elapsed().as_millis()
    );
    Ok(())
}

pub(crate) async fn revoke(context: &Context, what: &str) -> Outcome<()> {
    let answer: RevokeAnswer = context
        .daemon()
        .await?
        .post(
            "/revoke",
            &RevokeRequest {
                what: what.to_owned(),
            },
        )
        .await?;
    if context.json {
        return print::json(&answer);
    }
    println!(
        "{what} is revoked; {} connected members were told",
        answer.told
    );
    if let Some(note) = &answer.note {
        eprintln!("note: {note}");
    }
    if !answer.with.is_empty() {
        println!(
            "also revoked: {} (admitted by it, or joined with a copy of its state)",
            answer.with.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_is_taken_out_of_the_marks_of_mails_and_chats() {
        for text in [
            "p2pvm1abcd",
            "\"p2pvm1abcd\"",
            "\u{201c}p2pvm1abcd\u{201d}\n",
            "> p2pvm1ab\n> cd",
            "`p2pvm1abcd`",
        ] {
            let read: String = read_invite(text).unwrap().split_whitespace().collect();
            assert_eq!(read, "p2pvm1abcd", "{text}");
        }
        assert!(
            read_invite("'nofile'")
                .unwrap_err()
                .message
                .contains("neither an invite")
        );
    }
}
