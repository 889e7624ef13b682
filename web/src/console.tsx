// A VM's console: xterm.js over a WebSocket. When the VM moves, its previous host closes the
// connection, and the console reconnects to the new host.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Terminal } from "@xterm/xterm";
import type { Api } from "./api";
import { Dialog } from "./dialogs";
import type { NoConsole } from "./types";

/** The terminal's size. A serial line has no size of its own, and guests assume this one. */
const COLUMNS = 80;
const ROWS = 24;
/** A character's width relative to its height in browsers' monospace fonts. */
const ASPECT = 0.602;
/**
 * How many times a lost console reconnects before it gives up, and the time between two attempts.
 */
const TRIES = 30;
const RETRY_MS = 1000;
/** The key that leaves the console, as in `p2pvm vm console`: Ctrl-]. */
const ESCAPE = "\x1d";

export default function Console({ name, api, close }: { name: string; api: Api; close: () => void }) {
  const place = useRef<HTMLDivElement>(null);
  const [state, setState] = useState("connecting");

  useEffect(() => {
    let gone = false;
    let socket: WebSocket | null = null;
    let terminal: Terminal | null = null;
    let timer = 0;
    let tries = 0;

    const connect = () => {
      socket = api.console(name);
      let refused: string | null = null;
      socket.onopen = () => setState("connected");
      socket.onmessage = (message) => {
        if (typeof message.data === "string") {
          const said: Partial<NoConsole> = JSON.parse(message.data);
          refused = said.error ?? "";
          return;
        }
        tries = 0;
        terminal?.write(new Uint8Array(message.data));
      };
      socket.onclose = () => {
        if (gone) return;
        tries += 1;
        if (tries > TRIES) setState(refused ?? "the console is lost: close this window and open it again");
        else {
          setState(refused ?? "lost; reconnecting");
          timer = window.setTimeout(connect, RETRY_MS);
        }
      };
    };

    // Loaded when it is first needed, because most visits need no terminal.
    void Promise.all([import("@xterm/xterm"), import("@xterm/xterm/css/xterm.css")]).then(([{ Terminal }]) => {
      if (gone || !place.current) return;
      const fitting = Math.floor(place.current.clientWidth / COLUMNS / ASPECT);
      terminal = new Terminal({
        cols: COLUMNS,
        rows: ROWS,
        fontSize: Math.min(Math.max(fitting, 7), 15),
        fontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
        scrollback: 2000,
        cursorBlink: true,
        screenReaderMode: true,
        theme: { background: "#0e1418", foreground: "#d7dde0" },
      });
      terminal.open(place.current);
      terminal.focus();
      terminal.onData((typed) => {
        if (typed === ESCAPE) close();
        else if (socket?.readyState === WebSocket.OPEN) socket.send(new TextEncoder().encode(typed));
      });
      connect();
    });
    return () => {
      gone = true;
      window.clearTimeout(timer);
      socket?.close();
      terminal?.dispose();
    };
  }, [name]);

  return (
    <Dialog title={`Console of ${name}`} close={close} wide stays>
      <div class="screen" ref={place} />
      <p class="hint">
        <span role="status" class={`console-state ${state === "connected" ? "ok" : "troubled"}`}>
          {state}
        </span>{" "}
        Ctrl-] or the cross leaves the console. If it is empty, press Enter.
      </p>
    </Dialog>
  );
}
