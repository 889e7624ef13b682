//! Paints a [`Model`]: the header, the overview or a dialog, and the keys. Text of other members
//! (names, notes, decisions) goes through the buffer, which drops control characters: the name of a
//! machine cannot control the terminal.

use crate::{
    Theme, dialogs,
    model::{Model, Node, Screen},
    overview,
    page::{Page, cell},
};
use p2pvm_api::Health;
use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

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
        Screen::Main => overview::draw(model, &mut page),
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

fn health_style(theme: Theme, health: &Health) -> Style {
    match health {
        Health::Ok => theme.good(),
        Health::Alone | Health::Joining | Health::Starting | Health::Outside => theme.notable(),
        Health::Down | Health::Offline | Health::Degraded | Health::Other(_) => theme.bad(),
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
            health.to_string(),
            health_style(theme, &health).patch(theme.title()),
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

/// "3d 4h", "2h 5m", "41s": at most two units.
fn duration(seconds: u64) -> String {
    let (d, h, m) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{m}m {}s", s % 60),
        s if s < 86_400 => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
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
