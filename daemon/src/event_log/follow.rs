//! A reader that follows: first what is in the log, then each event as it is written. One that is
//! too slow for memory reads what it missed from the disk, so that it misses nothing.

use super::query::{Filter, MOST, find, view};
use crate::{http::report::Reporter, parts::Parts};
use p2pvm_api::{EventView, EventsEnd, EventsWanted, Outcome};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;

/// How many of the newest events a reader gets first that names no beginning.
const FIRST: usize = 10;

struct Reader<'a> {
    parts: &'a Parts,
    filter: Filter,
    /// The number of the last event that was looked at.
    last: u64,
    reporter: &'a Reporter<EventView>,
}

/// Reports events until the reader or the daemon goes.
pub(crate) async fn follow(
    parts: Arc<Parts>,
    wanted: EventsWanted,
    reporter: Reporter<EventView>,
) -> Outcome<EventsEnd> {
    // Before the disk is read, so that nothing is missed in between.
    let mut news = parts.events.written.subscribe();
    let mut reader = Reader {
        parts: &parts,
        filter: Filter::of(&wanted),
        last: wanted.after.unwrap_or(0),
        reporter: &reporter,
    };
    match wanted.after.is_some() || wanted.seconds.is_some() {
        true => reader.catch_up().await?,
        false => reader.begin(wanted.limit.unwrap_or(FIRST)).await?,
    }
    loop {
        let event = tokio::select! {
            () = reporter.gone() => break,
            event = news.recv() => event,
        };
        match event {
            Ok(event) => {
                if event.seq > reader.last && reader.filter.takes(&event) {
                    reader.report(&view(&event, reader.host())).await?;
                }
                reader.last = reader.last.max(event.seq);
            }
            Err(RecvError::Lagged(_)) => reader.catch_up().await?,
            Err(RecvError::Closed) => break,
        }
    }
    Ok(EventsEnd { seq: reader.last })
}

impl Reader<'_> {
    fn host(&self) -> &str {
        self.parts.certificate.name()
    }

    async fn report(&self, event: &EventView) -> Outcome<()> {
        self.reporter.item(event).await
    }

    /// Reports the newest events of the log.
    async fn begin(&mut self, count: usize) -> Outcome<()> {
        let (filter, count) = (self.filter.clone(), count.clamp(1, MOST));
        let read = self
            .parts
            .events
            .read(move |dir| find(dir, &filter, None, count));
        for event in read.await?.0 {
            self.report(&view(&event, self.host())).await?;
            self.last = event.seq;
        }
        Ok(())
    }

    /// Reports what is in the log after the last event that was looked at.
    async fn catch_up(&mut self) -> Outcome<()> {
        loop {
            let (filter, last) = (self.filter.clone(), self.last);
            let read = self
                .parts
                .events
                .read(move |dir| find(dir, &filter, Some(last), MOST));
            let (events, more) = read.await?;
            for event in events {
                self.report(&view(&event, self.host())).await?;
                self.last = event.seq;
            }
            if !more {
                return Ok(());
            }
        }
    }
}
