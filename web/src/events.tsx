// What happened on this host, newest first. It is asked for more rarely than the view: events are
// few, and the daemon reads them from its disk.

import { useEffect, useState } from "preact/hooks";
import type { Api } from "./api";
import { when } from "./format";

/** The time between two requests. */
const EVERY_MS = 5000;

/** What the page shows of an event. */
export interface EventRow {
  at: string;
  kind: string;
  seq: number;
  text: string;
}

export function Events({ api }: { api: Api }) {
  const [events, setEvents] = useState<EventRow[]>([]);
  useEffect(() => {
    let gone = false;
    let timer = 0;
    const once = async () => {
      try {
        const seen = document.hidden ? null : await api.events();
        if (seen && !gone) setEvents(seen.reverse());
      } catch {
        // The page says itself that the daemon does not answer; a previous release has no events.
      }
      if (!gone) timer = window.setTimeout(() => void once(), EVERY_MS);
    };
    void once();
    return () => {
      gone = true;
      window.clearTimeout(timer);
    };
  }, [api]);
  return (
    <section class="panel" aria-labelledby="events-title">
      <h2 id="events-title">Events</h2>
      {events.length === 0 && <p class="empty">None yet. What happens to VMs and members on this host appears here.</p>}
      <ol class="decisions">
        {events.map((event) => (
          <li key={event.seq}>
            <time dateTime={event.at}>{when(event.at)}</time> <span>{event.text}</span> <small>{event.kind}</small>
          </li>
        ))}
      </ol>
    </section>
  );
}
