//! Paints a [`Model`]: the overview, and what [`super::dialogs`] puts in its place. Text that
//! others wrote (names, notes, decisions) goes through the buffer, which drops control characters:
//! nobody can write to the terminal by naming a machine.

use crate::{
    Health, Theme, dialogs,
    model::{Doing, Model, Node, Screen, Vm},
};
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::Style,
    text::{Line, Span},
};
use std::time::Duration;

/// Columns that are a gauge.
const GAUGE: usize = 8;
/// Round trips above this are written without decimals, milliseconds.
const WHOLE_MS: f64 = 100.0;

/// The lower part's sections, each with a title, a line of column names and as many rows as there
/// is room.
struct Section {
    title: String,
    columns: Line<'static>,
    rows: Vec<Line<'static>>,
    /// Rows left out before the first.
    skip: usize,
}

/// Paints the model into `buffer`.
pub fn draw(model: &Model, buffer: &mut Buffer) {
    let area = buffer.area;
    if area.height < 3 || area.width < 20 {
        return;
    }
    let mut page = Page {
        buffer,
        y: area.y,
        bottom: area.bottom() - 1,
        area,
    };
    header(model, &mut page);
    match &model.screen {
        Screen::Main => overview(model, &mut page),
        dialog => dialogs::draw(dialog, model, &mut page),
    }
    footer(model, buffer);
}

/// The model as lines of text, for logs and tests.
pub fn plain_text(model: &Model) -> String {
    let (width, height) = model.size;
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    draw(model, &mut buffer);
    let lines = (0..height).map(|y| {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

/// Where the next line goes.
pub(crate) struct Page<'a> {
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) y: u16,
    pub(crate) bottom: u16,
    pub(crate) area: Rect,
}

impl Page<'_> {
    pub(crate) fn left(&self) -> usize {
        usize::from(self.bottom.saturating_sub(self.y))
    }

    pub(crate) fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// One line; nothing where the page is full.
    pub(crate) fn line(&mut self, line: &Line<'_>) {
        if self.y < self.bottom {
            self.buffer
                .set_line(self.area.x, self.y, line, self.area.width);
            self.y += 1;
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.line(&Line::raw(text));
    }

    pub(crate) fn gap(&mut self) {
        self.y = (self.y + 1).min(self.bottom);
    }

    /// Text that is broken between words, or anywhere where there is no blank.
    pub(crate) fn wrapped(&mut self, text: &str, style: Style) {
        for line in wrap(text, self.width().saturating_sub(2)) {
            self.line(&Line::styled(format!(" {line}"), style));
        }
    }

    /// `- Title ------`
    pub(crate) fn rule(&mut self, theme: Theme, title: &str) {
        let rule = theme.rule();
        let rest = self.width().saturating_sub(title.chars().count() + 4);
        let line = vec![
            Span::styled(format!("{rule} "), theme.head()),
            Span::styled(title.to_owned(), theme.title()),
            Span::styled(
                format!(" {}", rule.to_string().repeat(rest + 1)),
                theme.head(),
            ),
        ];
        self.line(&Line::from(line));
    }
}

/// Breaks a text into lines of at most `width` characters.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            // There is always a last line.
            let Some(line) = lines.last_mut() else { break };
            let used = line.chars().count() + usize::from(!line.is_empty());
            if used + word.len() <= width {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.extend(word.drain(..));
            } else if line.is_empty() {
                line.extend(word.drain(..width.max(1).min(word.len())));
                lines.push(String::new());
            } else {
                lines.push(String::new());
            }
        }
    }
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// A cell of exactly `width` characters and a blank behind it; what is too long is cut visibly.
fn cell(text: &str, width: usize) -> String {
    let long = text.chars().count() > width;
    let shown: String = if long {
        text.chars()
            .take(width.saturating_sub(1))
            .chain(['~'])
            .collect()
    } else {
        text.to_owned()
    };
    format!("{shown:width$} ")
}

fn health_style(theme: Theme, health: Health) -> Style {
    match health {
        Health::Ok => theme.good(),
        Health::Alone | Health::Joining | Health::Starting | Health::Outside => theme.notable(),
        Health::Down | Health::Offline | Health::Degraded => theme.bad(),
    }
}

fn header(model: &Model, page: &mut Page<'_>) {
    let theme = model.theme;
    let (health, why) = model.health();
    let who = model.node().map_or_else(
        || "p2pvm".to_owned(),
        |node| format!("p2pvm  {} in {}", node.name, node.network),
    );
    let right = format!(" {} ", model.clock);
    let room = page.width().saturating_sub(right.chars().count() + 1);
    page.line(&Line::styled(
        format!(" {}{right}", cell(&who, room.saturating_sub(1))),
        theme.bar(),
    ));
    let line = vec![
        Span::raw(" health   "),
        Span::styled(
            health.word(),
            health_style(theme, health).patch(theme.title()),
        ),
        Span::raw(format!(": {why}")),
    ];
    page.line(&Line::from(line));
    if let Some(node) = model.node() {
        node_lines(node, page);
    }
    if let Some(warning) = &model.warning {
        page.line(&Line::styled(
            format!(" note     {warning}"),
            theme.notable(),
        ));
    }
}

fn node_lines(node: &Node, page: &mut Page<'_>) {
    let seen = node
        .seen_as
        .as_ref()
        .map_or(String::new(), |seen| format!(", seen as {seen}"));
    page.text(&format!(
        " address  {}  {}",
        node.address.as_deref().unwrap_or("not claimed yet"),
        node.address_v6
    ));
    page.text(&format!(" NAT      {}{seen}", node.nat));
    page.text(&format!(
        " host     cpu {:.0} %, daemon {} MiB, up {}, p2pvm {}",
        node.cpu * 100.0,
        node.resident_bytes >> 20,
        duration(node.up_seconds),
        node.version
    ));
}

/// "3d 4h", "2h 5m", "41s": two figures are enough.
fn duration(seconds: u64) -> String {
    let (d, h, m) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match Duration::from_secs(seconds).as_secs() {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{m}m {}s", s % 60),
        s if s < 86_400 => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

fn overview(model: &Model, page: &mut Page<'_>) {
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
    // A title and, where there are rows, the columns' names.
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

/// Divides `rows` among those who want so many: equal shares, and what one does not need goes to
/// the others.
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
    // What the path may take on this terminal.
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

fn doing(theme: Theme, doing: &Doing) -> String {
    match doing.share {
        Some(share) => format!(
            "{} {} {:.0} %",
            doing.what,
            theme.gauge(share, GAUGE),
            share * 100.0
        ),
        None => doing.what.clone(),
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
            cell(&vm.state, 12),
            cell(&vm.host, 16),
            cell(&vm.address, 15),
            load(vm)
        );
        rows.push(Line::styled(
            text,
            if vm.troubled() {
                theme.bad()
            } else {
                Style::new()
            },
        ));
        // A line of its own: what happens to a VM matters more than another row.
        rows.extend(
            vm.doing
                .iter()
                .map(|now| Line::styled(format!("    {}", doing(theme, now)), theme.notable())),
        );
        rows.extend(
            vm.note
                .iter()
                .map(|note| Line::styled(format!("    {note}"), theme.notable())),
        );
    }
    let running = model.vms.iter().filter(|vm| vm.state == "running").count();
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

fn footer(model: &Model, buffer: &mut Buffer) {
    let area = buffer.area;
    let text = model.notice.clone().unwrap_or_else(|| keys(model));
    let width = usize::from(area.width);
    buffer.set_line(
        area.x,
        area.bottom() - 1,
        &Line::styled(
            format!(" {}", cell(&text, width.saturating_sub(2))),
            model.theme.bar(),
        ),
        area.width,
    );
}

fn keys(model: &Model) -> String {
    let mut keys = match &model.screen {
        Screen::Main => vec!["l logs", "i invite", "j join"],
        Screen::Logs { .. } => vec!["up/down scroll", "l again", "Esc back"],
        Screen::Invite { .. } => vec!["left/right page", "Esc back"],
        Screen::Join { .. } => vec!["Enter join", "Ctrl-U empty", "Esc back"],
        Screen::Confirm { again: false, .. } => vec!["y yes", "any other key: no"],
        Screen::Confirm { again: true, .. } => vec!["Y (capital) yes", "any other key: no"],
        Screen::Help => vec!["any key: back"],
    };
    if model.screen == Screen::Main {
        let more = [
            (model.options.shell, "s shell"),
            (model.options.console, "r reboot"),
            (model.options.console, "p power off"),
        ];
        keys.extend(
            more.iter()
                .filter(|(offered, _)| *offered)
                .map(|(_, key)| *key),
        );
        keys.push("? help");
        if !model.options.console {
            keys.push("q quit");
        }
    }
    keys.join("   ")
}
