//! The overview: members, VMs and decisions, which share the rows of the screen.

use crate::{
    Theme,
    model::{Activity, Model, Vm},
    page::{Page, cell},
};
use p2pvm_api::{Health, VmStateView};
use ratatui::{style::Style, text::Line};

/// How many columns a gauge has.
const GAUGE: usize = 8;
/// From how many milliseconds a round trip is written without decimals.
const WHOLE_MS: f64 = 100.0;

/// A section: a title, a line of column names and as many rows as there is room for.
struct Section {
    title: String,
    columns: Line<'static>,
    rows: Vec<Line<'static>>,
    /// How many rows are left out at the beginning.
    skip: usize,
}

pub(crate) fn draw(model: &Model, page: &mut Page<'_>) {
    if model.node().is_none() {
        away(model, page);
        return;
    }
    let mut sections = Vec::new();
    match &model.invitation {
        Some(Ok(_)) if model.members.is_empty() => invitation(model, page),
        _ => sections.push(members(model)),
    }
    sections.push(vms(model));
    if !(model.decisions.is_empty() && model.members.is_empty()) {
        sections.push(decisions(model));
    }
    let wants: Vec<usize> = sections
        .iter()
        .map(|s| s.rows.len().saturating_sub(s.skip).max(1))
        .collect();
    // A title and, if there are rows, the columns' names.
    let fixed: usize = sections
        .iter()
        .map(|s| 1 + usize::from(!s.rows.is_empty() && s.columns.width() > 0))
        .sum();
    let rooms = share(page.left().saturating_sub(fixed), &wants);
    for (section, room) in sections.iter().zip(rooms) {
        page.rule(model.theme, &section.title);
        if section.rows.is_empty() {
            page.text("  none");
            continue;
        }
        if section.columns.width() > 0 {
            page.line(&section.columns);
        }
        let rows = &section.rows[section.skip.min(section.rows.len() - 1)..];
        let shown = if rows.len() > room {
            room.saturating_sub(1)
        } else {
            rows.len()
        };
        rows[..shown].iter().for_each(|row| page.line(row));
        if shown < rows.len() && room > 0 {
            page.text(&format!("  ... {} more", rows.len() - shown));
        }
    }
}

/// Divides `rows` among sections that have `wants` rows: equal shares, and what one section does
/// not need goes to the others.
fn share(rows: usize, wants: &[usize]) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let mut left = rows;
    while left > 0 {
        let Some(poorest) = (0..wants.len())
            .filter(|i| given[*i] < wants[*i])
            .min_by_key(|i| given[*i])
        else {
            break;
        };
        given[poorest] += 1;
        left -= 1;
    }
    given
}

fn away(model: &Model, page: &mut Page<'_>) {
    let advice = match model.health().0 {
        Health::Outside => {
            "Press j and type or paste an invite, or found a network with: p2pvm init --network \
                NAME"
        }
        Health::Starting => "This takes a second or two. l shows what the daemon says.",
        _ => {
            "This screen connects by itself as soon as the daemon answers. Start it with: p2pvm \
                up --detach. l shows what it said last."
        }
    };
    page.gap();
    page.wrapped(advice, Style::new());
}

fn invitation(model: &Model, page: &mut Page<'_>) {
    let Some(Ok(invitation)) = &model.invitation else {
        return;
    };
    page.rule(model.theme, "Invite");
    page.wrapped(
        &format!(
            "Elsewhere: p2pvm join, and this ({}). i: as QR code.",
            invitation.terms
        ),
        Style::new(),
    );
    page.wrapped(&invitation.text, model.theme.title());
    page.wrapped(
        "Or let this machine join a network that is there already: j.",
        Style::new(),
    );
}

fn rtt(ms: f64) -> String {
    if ms >= WHOLE_MS {
        format!("{ms:.0} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

fn members(model: &Model) -> Section {
    // The width of the path on this terminal.
    let path_width = usize::from(model.size.0)
        .saturating_sub(2 + 17 + 16 + 10)
        .max(10);
    let columns = Line::styled(
        format!(
            "  {}{}{}{:>9}",
            cell("NAME", 16),
            cell("ADDRESS", 15),
            cell("PATH", path_width),
            "RTT"
        ),
        model.theme.head(),
    );
    let rows = model.members.iter().map(|m| {
        let path = match (&m.path, m.connected) {
            (Some(path), _) => path.as_str(),
            (None, true) => "control connection only",
            (None, false) => "away",
        };
        let text = format!(
            "  {}{}{}{:>9}",
            cell(&m.name, 16),
            cell(m.address.as_deref().unwrap_or("-"), 15),
            cell(path, path_width),
            m.rtt_ms.map_or("-".to_owned(), rtt)
        );
        Line::styled(
            text,
            if m.connected || m.path.is_some() {
                Style::new()
            } else {
                model.theme.notable()
            },
        )
    });
    let connected = model.members.iter().filter(|m| m.connected).count();
    let title = format!("Members: {connected} of {} connected", model.members.len());
    Section {
        title,
        columns,
        rows: rows.collect(),
        skip: model.scroll,
    }
}

fn activity(theme: Theme, activity: &Activity) -> String {
    match activity.share {
        Some(share) => format!(
            "{} {} {:.0} %",
            activity.what,
            theme.gauge(share, GAUGE),
            share * 100.0
        ),
        None => activity.what.clone(),
    }
}

fn vms(model: &Model) -> Section {
    let theme = model.theme;
    let columns = Line::styled(
        format!(
            "  {}{}{}{}LOAD",
            cell("NAME", 16),
            cell("STATE", 12),
            cell("HOST", 16),
            cell("ADDRESS", 15)
        ),
        theme.head(),
    );
    let load = |vm: &Vm| match vm.cpu {
        Some(cpu) => {
            let share = cpu / f64::from(vm.cpus.max(1));
            format!("{} {:>3.0} %", theme.gauge(share, GAUGE), share * 100.0)
        }
        None => "-".to_owned(),
    };
    let mut rows = Vec::new();
    for vm in &model.vms {
        let text = format!(
            "  {}{}{}{}{}",
            cell(&vm.name, 16),
            cell(vm.state.as_str(), 12),
            cell(&vm.host, 16),
            cell(&vm.address, 15),
            load(vm)
        );
        rows.push(Line::styled(
            text,
            if vm.is_troubled() {
                theme.bad()
            } else {
                Style::new()
            },
        ));
        // A line of its own: an operation on a VM matters more than another row.
        rows.extend(
            vm.doing
                .iter()
                .map(|now| Line::styled(format!("    {}", activity(theme, now)), theme.notable())),
        );
        rows.extend(
            vm.note
                .iter()
                .map(|note| Line::styled(format!("    {note}"), theme.notable())),
        );
    }
    let runs = |vm: &&Vm| vm.state == VmStateView::Running;
    let running = model.vms.iter().filter(runs).count();
    Section {
        title: format!("VMs: {running} of {} running", model.vms.len()),
        columns,
        rows,
        skip: 0,
    }
}

fn decisions(model: &Model) -> Section {
    let rows = model
        .decisions
        .iter()
        .map(|d| Line::raw(format!("  {} {}: {}", d.at, d.vm, d.text)));
    Section {
        title: "Decisions".to_owned(),
        columns: Line::default(),
        rows: rows.collect(),
        skip: 0,
    }
}
