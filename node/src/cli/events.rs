//! `p2pvm events`.

use super::{
    Context,
    events_args::EventsArgs,
    limit,
    print::{self, or_dash},
};
use p2pvm_api::{
    EventKind, EventView, EventsEnd, EventsPage, EventsWanted, Failure, Outcome, client::Event,
};

pub(crate) async fn run(context: &Context, a: EventsArgs) -> Outcome<()> {
    let wanted = EventsWanted {
        after: None,
        kind: a.kind.map(kind).transpose()?,
        limit: a.since.is_none().then_some(a.limit.into()),
        member: a.member,
        seconds: a.since.map(|since| since.as_secs()),
        vm: a.vm,
    };
    match a.follow {
        true => follow(context, &wanted).await,
        false => list(context, wanted).await,
    }
}

/// The kind of that word; refuses one that no event has.
fn kind(word: String) -> Outcome<EventKind> {
    match EventKind::from(word) {
        EventKind::Other(word) => Err(Failure::usage(format!(
            "'{word}' is no kind of event: docs/events.md lists them, such as guest-crashed"
        ))),
        known => Ok(known),
    }
}

async fn follow(context: &Context, wanted: &EventsWanted) -> Outcome<()> {
    let show = |event: Event<EventView>| {
        let Event::Item(event) = event else { return };
        match context.json {
            true => print::json_line(&event),
            false => println!("{}", line(&event)),
        }
    };
    let mut client = context.daemon().await?;
    limit::unheard(false);
    let ended = client.follow::<EventView, EventsEnd>("/events/follow", wanted, show);
    ended.await.map(drop)
}

async fn list(context: &Context, mut wanted: EventsWanted) -> Outcome<()> {
    let mut client = context.daemon().await?;
    let mut events = Vec::new();
    loop {
        let page: EventsPage = client.get(&path(&wanted)).await?;
        events.extend(page.events);
        match page.next {
            Some(next) => wanted.after = Some(next),
            None => break,
        }
    }
    if context.json {
        return print::json(&events);
    }
    let row = |event: &EventView| {
        [
            event.at.clone(),
            event.kind.to_string(),
            or_dash(event.name.as_ref()),
            p2pvm_daemon::shown::text(&event.text).to_string(),
        ]
    };
    let rows: Vec<_> = events.iter().map(row).collect();
    print::table(["WHEN", "KIND", "ABOUT", "WHAT"], &rows);
    Ok(())
}

fn line(event: &EventView) -> String {
    let text = p2pvm_daemon::shown::text(&event.text);
    format!("{}  {}  {text}", event.at, event.kind)
}

/// The path of a request for a page.
fn path(wanted: &EventsWanted) -> String {
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let parameters = [
        ("after", number(wanted.after)),
        ("kind", wanted.kind.as_ref().map(ToString::to_string)),
        ("limit", wanted.limit.map(|limit| limit.to_string())),
        ("member", wanted.member.clone()),
        ("seconds", number(wanted.seconds)),
        ("vm", wanted.vm.clone()),
    ];
    let given = parameters.iter().filter_map(|(key, value)| {
        let value = value.as_deref()?;
        Some(format!("{key}={}", escaped(value)))
    });
    let query: Vec<_> = given.collect();
    format!("/events?{}", query.join("&"))
}

/// A value as a query holds it (RFC 3986 §2).
fn escaped(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    value.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_what_is_wanted_and_nothing_else() {
        let wanted = EventsWanted {
            kind: Some(EventKind::GuestCrashed),
            limit: Some(7),
            vm: Some("a&b".into()),
            ..EventsWanted::default()
        };
        assert_eq!(path(&wanted), "/events?kind=guest-crashed&limit=7&vm=a%26b");
        assert_eq!(path(&EventsWanted::default()), "/events?");
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_page_that_lists_them() {
        assert_eq!(kind("vm-moved".into()).unwrap(), EventKind::VmMoved);
        let refused = kind("dancing".into()).unwrap_err();
        assert!(refused.message.contains("docs/events.md"), "{refused}");
    }
}
