//! The dialogs that are shown instead of the overview: logs, the invite, joining, stopping the
//! machine, help.

use crate::{
    model::{Invitation, Model, Power, Screen},
    page::{Page, wrap},
    qr,
};
use p2pvm_api::VmStateView;
use ratatui::{style::Style, text::Line};

pub(crate) fn draw(screen: &Screen, model: &Model, page: &mut Page<'_>) {
    match screen {
        Screen::Main => {}
        Screen::Logs { back } => logs(model, *back, page),
        Screen::Invite { page: shown } => match &model.invitation {
            Some(Ok(invitation)) => invite(model, invitation, *shown, page),
            Some(Err(reason)) => {
                page.rule(model.theme, "Invite");
                page.wrapped(reason, model.theme.bad());
            }
            None => {
                page.rule(model.theme, "Invite");
                page.text(" asking the daemon for one ...");
            }
        },
        Screen::Join { input, answer, .. } => join(model, input, answer.as_deref(), page),
        Screen::Confirm { power, again } => confirm(model, *power, *again, page),
        Screen::Help => help(model, page),
    }
}

fn logs(model: &Model, back: usize, page: &mut Page<'_>) {
    page.rule(model.theme, "Log of the daemon");
    if model.logs.is_empty() {
        page.text(" no lines yet");
    }
    let end = model.logs.len().saturating_sub(back);
    // As many of the last lines as fit, long ones wrapped.
    let width = page.width().saturating_sub(1);
    let mut lines: Vec<String> = Vec::new();
    for line in model.logs[..end].iter().rev() {
        let mut broken = wrap(line, width);
        broken.extend(std::mem::take(&mut lines));
        lines = broken;
        if lines.len() >= page.left() {
            break;
        }
    }
    for line in &lines[lines.len().saturating_sub(page.left())..] {
        page.line(&Line::raw(format!(" {line}")));
    }
}

/// Page 0 is the text; the others are codes, which take the whole screen except for the keys.
fn invite(model: &Model, invitation: &Invitation, shown: usize, page: &mut Page<'_>) {
    let rows = usize::from(page.area.height).saturating_sub(1);
    let codes = if model.theme.unicode {
        qr::codes(&invitation.text, page.width(), rows)
    } else {
        None
    };
    let pages = 1 + codes.as_ref().map_or(0, Vec::len);
    let shown = shown % pages;
    if let Some(code) = codes
        .as_ref()
        .and_then(|codes| codes.get(shown.checked_sub(1)?))
    {
        page.buffer.reset();
        page.y = page.area.y;
        for line in &code.lines {
            page.line(&Line::styled(line.as_str(), model.theme.paper()));
        }
        let beside = code.lines[0].chars().count();
        let parts = pages - 1;
        let said = match parts {
            1 => "Scan this: it is the whole invite.".to_owned(),
            _ => format!(
                "Part {shown} of {parts}. Scan all parts and put their texts one after the other; \
                    right shows the next."
            ),
        };
        let room = page.width().saturating_sub(beside + 2);
        if room >= 16 {
            for (n, line) in wrap(&said, room).iter().enumerate() {
                page.buffer.set_string(
                    page.area.x + beside as u16 + 1,
                    page.area.y + 1 + n as u16,
                    line,
                    Style::new(),
                );
            }
        }
        return;
    }
    page.rule(model.theme, &format!("Invite, {}", invitation.terms));
    page.wrapped(
        "On another machine: p2pvm join, and this text.",
        Style::new(),
    );
    page.gap();
    page.wrapped(&invitation.text, model.theme.title());
    page.gap();
    let codes = match (model.theme.unicode, pages) {
        (false, _) => {
            "This terminal shows no QR codes: p2pvm invite --qr shows one elsewhere.".to_owned()
        }
        (true, 1) => {
            "This screen is too small for its QR code: enlarge it, or use p2pvm invite --qr."
                .to_owned()
        }
        (true, 2) => "The right arrow shows it as a QR code.".to_owned(),
        (true, n) => format!(
            "The right arrow shows it as {} QR codes: one does not fit on this screen.",
            n - 1
        ),
    };
    page.wrapped(&codes, Style::new());
    page.wrapped(
        "Any machine with this text can join: keep it secret.",
        Style::new(),
    );
}

fn join(model: &Model, input: &str, answer: Option<&str>, page: &mut Page<'_>) {
    page.rule(model.theme, "Join a network");
    page.wrapped(
        "Type or paste an invite (p2pvm1...), then press Enter. On a member it is made \
        with: p2pvm invite",
        Style::new(),
    );
    page.gap();
    // The beginning is cut if not all fits, since the end is being typed.
    let width = page.width().saturating_sub(4).max(1);
    let all: Vec<char> = format!("{input}_").chars().collect();
    let lines: Vec<String> = all.chunks(width).map(|c| c.iter().collect()).collect();
    let room = page.left().saturating_sub(5).max(1);
    for line in &lines[lines.len().saturating_sub(room)..] {
        page.line(&Line::styled(format!("  {line}"), model.theme.title()));
    }
    page.gap();
    page.text(&format!("  {} characters", input.chars().count()));
    if let Some(answer) = answer {
        page.wrapped(answer, model.theme.notable());
    }
}

fn confirm(model: &Model, power: Power, again: bool, page: &mut Page<'_>) {
    let (title, verb) = match power {
        Power::Reboot => ("Reboot", "reboot this machine"),
        Power::Off => ("Power off", "power this machine off"),
    };
    page.rule(model.theme, title);
    page.gap();
    if !again {
        page.wrapped(&format!("Do you want to {verb}? (y/n)"), Style::new());
        return;
    }
    let own = model.node().map_or("", |node| node.name.as_str());
    let here: Vec<&str> = model
        .vms
        .iter()
        .filter(|vm| matches!(vm.state, VmStateView::Running | VmStateView::Paused))
        .filter(|vm| vm.host == own)
        .map(|vm| vm.name.as_str())
        .collect();
    let cost = if here.is_empty() {
        "No VM runs here.".to_owned()
    } else {
        format!(
            "These VMs run here and will be shut off: {}. 'p2pvm drain' moves them away first.",
            here.join(", ")
        )
    };
    page.wrapped(&cost, model.theme.notable());
    if let Some(warning) = &model.warning {
        page.wrapped(warning, model.theme.notable());
    }
    page.gap();
    page.wrapped(
        &format!("Really {verb}? Press a capital Y."),
        model.theme.title(),
    );
}

fn help(model: &Model, page: &mut Page<'_>) {
    page.rule(model.theme, "Help");
    let all = [
        (true, "up, down  scroll the members"),
        (true, "l         the daemon's last lines"),
        (
            true,
            "i         make an invite and show it as text and QR code",
        ),
        (true, "j         join a network with an invite"),
        (
            model.options.shell,
            "s         a shell; exit comes back here",
        ),
        (
            model.options.console,
            "r         reboot this machine (asked twice)",
        ),
        (
            model.options.console,
            "p         power this machine off (asked twice)",
        ),
        (
            !model.options.console,
            "q         leave this screen; the daemon goes on",
        ),
    ];
    all.iter()
        .filter(|(offered, _)| *offered)
        .for_each(|(_, line)| page.text(&format!("  {line}")));
    page.gap();
    page.wrapped(
        "Health: ok; alone (no other member yet); joining (no address yet); degraded (something \
            is missing; the text says what); offline (this machine has \
         no address); outside (in no network); starting; down (no daemon answers).",
        Style::new(),
    );
}
