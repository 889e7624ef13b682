// The dialogs: moving a VM, its snapshots, the reasons of decisions.

import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Api } from "./api";
import { duration, ms, percent, when } from "./format";
import { rttBetween, restoreOn, runs, targets, type Network } from "./model";
import type { Doing } from "./operations";
import type { Explained, ScheduleView, VmView } from "./types";

interface DialogProps {
  title: string;
  close: () => void;
  wide?: boolean;
  /** Whether Escape and a click outside leave it open, because its content uses them. */
  stays?: boolean;
  children: ComponentChildren;
}

/** A browser's dialog: it keeps the focus, and Escape closes it. */
export function Dialog({ title, close, wide, stays, children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  // Before the page is drawn: a key pressed meanwhile would go to the button that opened it.
  useLayoutEffect(() => {
    element.current?.showModal();
    element.current?.querySelector<HTMLElement>("[data-first]")?.focus();
  }, []);
  return (
    <dialog
      ref={element}
      class={wide ? "wide" : ""}
      aria-labelledby="dialog-title"
      onClose={close}
      onCancel={(e) => stays && e.preventDefault()}
      onClick={(e) => !stays && e.target === element.current && close()}
    >
      <header>
        <h2 id="dialog-title">{title}</h2>
        <button type="button" class="plain" aria-label="Close" onClick={close}>
          ✕
        </button>
      </header>
      {children}
    </dialog>
  );
}

export function Move({ vm, net, to, doing, close }: { vm: VmView; net: Network; to: string | null; doing: Doing; close: () => void }) {
  const places = targets(net, vm);
  const [chosen, choose] = useState(to ?? places[0]?.id ?? "");
  const name = places.find((m) => m.id === chosen)?.name ?? "";
  const begin = (e: Event) => {
    e.preventDefault();
    doing.begin(vm.name, "migrate", `moving to ${name}`, { to: chosen });
    close();
  };
  return (
    <Dialog title={`Move ${vm.name} away from ${vm.host}`} close={close}>
      {places.length === 0 ? (
        <p>No other member answers now. The VM can be moved when one does.</p>
      ) : (
        <form onSubmit={begin}>
          <p>The VM keeps running while its disk and memory are copied, and pauses for a moment at the end. It keeps its address and its connections.</p>
          <div class="choices" role="radiogroup" aria-label="To which member">
            {places.map((m) => (
              <label key={m.id} class={chosen === m.id ? "chosen" : ""}>
                <input type="radio" name="to" value={m.id} checked={chosen === m.id} onChange={() => choose(m.id)} data-first={chosen === m.id || undefined} />
                <b>{m.name}</b>
                <span>{m.cpu == null ? "" : `load ${percent(m.cpu)}`}</span>
                <span>{ms(rttBetween(net, vm.host_id, m.id))}</span>
              </label>
            ))}
          </div>
          <footer>
            <button type="button" onClick={close}>
              Not now
            </button>
            <button type="submit" class="primary" disabled={!name}>
              Move to {name}
            </button>
          </footer>
        </form>
      )}
    </Dialog>
  );
}

/** A schedule in words. */
export function scheduled({ every_seconds, keep }: ScheduleView): string {
  const rules: [number, string][] = [
    [keep.last, ""],
    [keep.hours, "h"],
    [keep.days, "d"],
    [keep.weeks, "w"],
  ];
  const kept = rules.filter(([number]) => number > 0).map(([number, letter]) => `${number}${letter}`);
  return `Taken by themselves every ${duration(every_seconds)}; kept are ${kept.join(", ")}, those made by hand and the newest durable one.`;
}

export function Snapshots({ vm, net, acts, doing, close }: { vm: VmView; net: Network; acts: boolean; doing: Doing; close: () => void }) {
  const [name, setName] = useState("");
  const [restoring, setRestoring] = useState<string | null>(null);
  const [chosen, setOn] = useState<string | null>(null);
  const on = chosen ?? restoreOn(net, vm, vm.snapshots.find((s) => s.name === restoring)?.holders ?? []);
  const [force, setForce] = useState(false);
  const take = (e: Event) => {
    e.preventDefault();
    doing.begin(vm.name, "snapshot", "taking a snapshot", { name: name.trim() || null });
    close();
  };
  const restore = () => {
    doing.begin(vm.name, "restore", `restoring ${restoring}`, { snapshot: restoring, on, force });
    close();
  };
  return (
    <Dialog title={`Snapshots of ${vm.name}`} close={close} wide>
      {vm.schedule && <p>{scheduled(vm.schedule)}</p>}
      {vm.snapshots.length === 0 ? (
        <p class="empty">None yet. A snapshot contains disk and memory, and is copied to other members.</p>
      ) : (
        <div class="scroll">
          <table>
            <thead>
              <tr>
                <th>Name</th>
                <th>Taken</th>
                <th>State</th>
                <th>Held by</th>
                <th />
              </tr>
            </thead>
            <tbody>
              {[...vm.snapshots].reverse().map((s) => (
                <tr key={s.name}>
                  <td>
                    {s.name}
                    {s.with_ram === false && " (disk only)"}
                  </td>
                  <td>{when(s.taken)}</td>
                  <td>{s.state}</td>
                  <td>{s.holders.join(", ")}</td>
                  <td>
                    {acts && (
                      <button type="button" aria-expanded={restoring === s.name} onClick={() => setRestoring(restoring === s.name ? null : s.name)}>
                        Restore…
                      </button>
                    )}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {restoring && (
        <fieldset>
          <legend>Restore {restoring}</legend>
          <p>
            {runs(vm)
              ? `${vm.name} runs: stop it first. What it did since the snapshot is lost.`
              : `${vm.name} continues from the snapshot; what it did since is lost.`}
          </p>
          <label>
            On member{" "}
            <select value={on} onChange={(e) => setOn(e.currentTarget.value)}>
              {net.members
                .filter((m) => m.heard)
                .map((m) => (
                  <option key={m.id} value={m.id}>
                    {m.name}
                  </option>
                ))}
            </select>
          </label>
          <label class="check">
            <input type="checkbox" checked={force} onChange={(e) => setForce(e.currentTarget.checked)} /> Its host {vm.host} is dead: take the VM over
          </label>
          <footer>
            <button type="button" class="danger" disabled={runs(vm) && !force} onClick={restore}>
              Restore {restoring}
            </button>
          </footer>
        </fieldset>
      )}
      {acts && (
        <form onSubmit={take} class="inline">
          <label>
            New snapshot{" "}
            <input value={name} onInput={(e) => setName(e.currentTarget.value)} placeholder="name (optional)" maxLength={63} pattern={"[A-Za-z0-9][A-Za-z0-9._\\-]*"} />
          </label>
          <button type="submit" class="primary" disabled={vm.state !== "running"} title={vm.state === "running" ? "" : "only for a running VM"}>
            Take it
          </button>
        </form>
      )}
    </Dialog>
  );
}

export function Why({ vm, api, close }: { vm: VmView; api: Api; close: () => void }) {
  const [told, setTold] = useState<Explained[] | string | null>(null);
  useEffect(() => {
    api.explain(vm.name).then(
      (lines) => setTold([...lines].reverse()),
      (error: Error) => setTold(error.message),
    );
  }, []);
  return (
    <Dialog title={`Why ${vm.name} is on ${vm.host}`} close={close} wide>
      {told == null && <p>Asking the members…</p>}
      {typeof told === "string" && <p role="alert">{told}</p>}
      {Array.isArray(told) && told.length === 0 && <p class="empty">No member has recorded a decision about {vm.name}.</p>}
      {Array.isArray(told) && told.length > 0 && (
        <ol class="decisions">
          {told.map((e) => (
            <li key={e.at + e.host}>
              <time dateTime={e.at}>{when(e.at)}</time> <b>{e.host}</b> <span>{e.text}</span>
            </li>
          ))}
        </ol>
      )}
    </Dialog>
  );
}
