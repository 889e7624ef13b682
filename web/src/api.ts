// The part of the daemon's API that this page may use. Every request carries the token in a header,
// never in an address or a cookie: a cookie would go to every port of the host, and an address into
// logs.

import type { EventRow } from "./events";
import { follow, Refused } from "./lines";
import type { Explained, Failure, MigrateVm, OfferChange, OfferEnded, OfferOff, OfferView, RestoreVm, Results, SnapshotVm, Step, View } from "./types";

/** The token's key in the tab's session storage, which lasts until the tab is closed. */
const KEY = "p2pvm-token";
/** How long a request for the view may take, milliseconds. */
const PATIENCE_MS = 10_000;

/** The body of an operation's request. */
export type Body = MigrateVm | RestoreVm | SnapshotVm;
/** An operation on a VM that is answered in lines. */
export type VmOperation = Exclude<keyof Results, "off">;

/**
 * Returns the token of the address (`#token=...`) or the stored one. Stores the former and removes
 * it from the address, so that it stays out of the browser's history.
 */
export function takeToken(): string | null {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    keepToken(given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return sessionStorage.getItem(KEY);
}

export function keepToken(token: string | null): void {
  if (token) sessionStorage.setItem(KEY, token.trim());
  else sessionStorage.removeItem(KEY);
}

export class Api {
  constructor(private readonly token: string) {}

  private async send(method: string, path: string, body?: Body | OfferChange | OfferOff | null, signal?: AbortSignal): Promise<Response> {
    const headers: Record<string, string> = { authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["content-type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(`api${path}`, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
        cache: "no-store",
        credentials: "omit",
      });
    } catch {
      throw new Refused({ kind: "failed", message: "the daemon does not answer: is it running, and is this machine in the network?" });
    }
    if (answer.ok) return answer;
    const text = await answer.text();
    let failure: Failure = { kind: "failed", message: text || `${answer.status} ${answer.statusText}` };
    try {
      const parsed: Partial<Failure> = JSON.parse(text);
      if (typeof parsed.message === "string") failure = { kind: parsed.kind ?? "failed", message: parsed.message };
    } catch {
      // Not JSON: the text is the message.
    }
    throw new Refused(failure, answer.status);
  }

  async view(): Promise<View> {
    const view: View = await (await this.send("GET", "/view", undefined, AbortSignal.timeout(PATIENCE_MS))).json();
    return view;
  }

  async explain(vm: string): Promise<Explained[]> {
    const explained: Explained[] = await (await this.send("GET", `/vms/${encodeURIComponent(vm)}/explain`)).json();
    return explained;
  }

  /** The newest events of this host, oldest first. */
  async events(): Promise<EventRow[]> {
    const page: { events: EventRow[] } = await (await this.send("GET", "/events?limit=30", undefined, AbortSignal.timeout(PATIENCE_MS))).json();
    return page.events;
  }

  /** Runs a long operation; `onStep` gets its progress. It continues when this page is closed. */
  async run<K extends VmOperation>(vm: string, operation: K, body: Body | null, onStep: (step: Step) => void): Promise<Results[K]> {
    const answer = await this.send("POST", `/vms/${encodeURIComponent(vm)}/${operation}`, body);
    return follow(chunksOf(answer.body), onStep);
  }

  /** What this host offers to other members' VMs. */
  async offer(): Promise<OfferView> {
    const offer: OfferView = await (await this.send("GET", "/offer", undefined, AbortSignal.timeout(PATIENCE_MS))).json();
    return offer;
  }

  async changeOffer(change: OfferChange): Promise<OfferView> {
    const offer: OfferView = await (await this.send("POST", "/offer", change)).json();
    return offer;
  }

  /** Ends the offer; moves of other members' VMs continue when this page is closed. */
  async endOffer(end: OfferOff, onStep: (step: Step) => void): Promise<OfferEnded> {
    const answer = await this.send("POST", "/offer/off", end);
    return follow(chunksOf(answer.body), onStep);
  }

  async cancel(vm: string): Promise<void> {
    await this.send("DELETE", `/vms/${encodeURIComponent(vm)}/migrate`);
  }

  /**
   * A VM's console. The token is a second subprotocol name, because a page cannot set another
   * header of a WebSocket.
   */
  console(vm: string): WebSocket {
    const at = new URL(`api/vms/${encodeURIComponent(vm)}/console`, location.href);
    at.protocol = at.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(at, ["p2pvm-console", `bearer.${this.token}`]);
    socket.binaryType = "arraybuffer";
    return socket;
  }
}

async function* chunksOf(body: ReadableStream<Uint8Array> | null): AsyncGenerator<Uint8Array> {
  if (!body) return;
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
