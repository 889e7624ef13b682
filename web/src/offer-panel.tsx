// The panel with what this host offers to other members' VMs. Readers see it, operators change it.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import type { Api } from "./api";
import { Dialog } from "./dialogs";
import { percent } from "./format";
import { changeOf, ended, formOf, rows, state, times, type Form } from "./offer";
import type { OfferChange, OfferView } from "./types";

/** The time between two looks, milliseconds. It changes seldom. */
const EVERY_MS = 5000;

type Open = "change" | "off" | null;

export function Offer({ api, acts }: { api: Api; acts: boolean }) {
  const [offer, look] = useOffer(api);
  const [said, say] = useState<{ how: "ok" | "failed"; text: string } | null>(null);
  const [busy, setBusy] = useState<string | null>(null);
  const [open, setOpen] = useState<Open>(null);
  const close = useCallback(() => setOpen(null), []);
  if (!offer) return null;

  const run = (what: string, doing: Promise<string>) => {
    close();
    setBusy(what);
    doing
      .then(
        (text) => say({ how: "ok", text }),
        (error: Error) => say({ how: "failed", text: error.message }),
      )
      .then(() => {
        setBusy(null);
        look();
      });
  };
  const change = (to: OfferChange, text: string) => run("changing the offer", api.changeOffer(to).then(() => text));
  const end = (keep: boolean) => run("ending the offer", api.endOffer({ keep }, (step) => step.phase && setBusy(step.phase)).then(ended));
  const now = state(offer);
  return (
    <section class="panel offer" aria-labelledby="offer-title">
      <h2 id="offer-title">
        Offer <small>of {offer.host} to other members' VMs</small>
      </h2>
      <p>
        <span class={`state ${now.how}`}>{now.text}</span>
      </p>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th />
              <th class="figure">Offered</th>
              <th class="figure">Used</th>
              <th />
            </tr>
          </thead>
          <tbody>
            {rows(offer).map((row) => (
              <tr key={row.what}>
                <th scope="row">{row.what}</th>
                <td class="figure">{row.offered}</td>
                <td class="figure">{row.used}</td>
                <td>{row.share == null ? "" : percent(row.share)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="note">
        For {offer.run.length > 0 ? offer.run.join(", ") : "no member"}; {times(offer)}.
      </p>
      {offer.tenants.length > 0 && (
        <ul class="tenants">
          {offer.tenants.map(({ member, share }) => (
            <li key={member}>
              <b>{member}</b> has {share.vms} VM{share.vms === 1 ? "" : "s"}, {share.cpus} CPU{share.cpus === 1 ? "" : "s"}, {share.memory_mib} MiB
            </li>
          ))}
        </ul>
      )}
      {busy && <p role="status">{busy}</p>}
      {said && (
        <div class={`ended ${said.how}`} role={said.how === "failed" ? "alert" : "status"}>
          <span>{said.text}</span>
          <button type="button" class="plain" aria-label="Dismiss" onClick={() => say(null)}>
            ✕
          </button>
        </div>
      )}
      {acts && (
        <div class="buttons">
          <button type="button" disabled={busy != null} onClick={() => setOpen("change")}>
            Change…
          </button>
          {offer.off ? (
            <button type="button" class="primary" disabled={busy != null} onClick={() => change({ off: false }, "the offer is on")}>
              Switch on
            </button>
          ) : (
            <button type="button" class="danger" disabled={busy != null} onClick={() => setOpen("off")}>
              Switch off…
            </button>
          )}
        </div>
      )}
      {open === "off" && <Off offer={offer} end={end} close={close} />}
      {open === "change" && <Change offer={offer} change={(to) => change(to, "the offer is changed")} close={close} />}
    </section>
  );
}

/** The offer, asked for again now and then while the page is visible; and a function that asks now. */
function useOffer(api: Api): [OfferView | null, () => void] {
  const [offer, set] = useState<OfferView | null>(null);
  const look = useRef(() => {});
  useEffect(() => {
    let gone = false;
    const once = () => {
      // Why the daemon does not answer is on the page already.
      if (!document.hidden) api.offer().then((seen) => !gone && set(seen), () => {});
    };
    look.current = once;
    once();
    const timer = window.setInterval(once, EVERY_MS);
    return () => {
      gone = true;
      window.clearInterval(timer);
    };
  }, [api]);
  return [offer, useCallback(() => look.current(), [])];
}

function Off({ offer, end, close }: { offer: OfferView; end: (keep: boolean) => void; close: () => void }) {
  const [keep, setKeep] = useState(false);
  const { vms } = offer.used;
  return (
    <Dialog title={`End the offer of ${offer.host}`} close={close}>
      <p>
        {offer.host} then takes no VM of another member. {vms === 0 ? "No such VM is here now." : `Of the ${vms} here, those that run are moved to other members. One that cannot be moved is stopped.`}
      </p>
      <label class="check">
        <input type="checkbox" checked={keep} onChange={(e) => setKeep(e.currentTarget.checked)} /> A VM that cannot be moved runs on here
      </label>
      <footer>
        <button type="button" onClick={close} data-first>
          Not now
        </button>
        <button type="button" class="danger" onClick={() => end(keep)}>
          Switch off
        </button>
      </footer>
    </Dialog>
  );
}

const NUMBERS: ["vms" | "cpus" | "memory_mib" | "disk_gib", string][] = [
  ["vms", "VMs"],
  ["cpus", "Processors"],
  ["memory_mib", "Memory, MiB"],
  ["disk_gib", "Disk, GiB"],
];

function Change({ offer, change, close }: { offer: OfferView; change: (to: OfferChange) => void; close: () => void }) {
  const [before] = useState<Form>(() => formOf(offer));
  const [form, setForm] = useState(before);
  const put = (part: Partial<Form>) => setForm({ ...form, ...part });
  const wanted = changeOf(before, form);
  const submit = (e: Event) => {
    e.preventDefault();
    if (wanted) change(wanted);
  };
  return (
    <Dialog title={`What ${offer.host} offers`} close={close}>
      <form onSubmit={submit}>
        <p>An empty field is no limit. What is here already stays.</p>
        <div class="fields">
          {NUMBERS.map(([field, label]) => (
            <label key={field}>
              {label} <input type="number" min={0} step={1} value={form[field]} onInput={(e) => put({ [field]: e.currentTarget.value })} />
            </label>
          ))}
          <label>
            Mbit/s, each VM <input type="number" min={0} step="any" value={form.mbit} onInput={(e) => put({ mbit: e.currentTarget.value })} />
          </label>
          <label>
            For <input value={form.run} onInput={(e) => put({ run: e.currentTarget.value })} placeholder="*, a group, member:NAME" />
          </label>
          <label>
            Hours <input value={form.hours} onInput={(e) => put({ hours: e.currentTarget.value })} placeholder="always, or 18:00-08:00" />
          </label>
          <label class="check">
            <input type="checkbox" checked={form.idle_only} onChange={(e) => put({ idle_only: e.currentTarget.checked })} /> Only while this machine is idle
          </label>
        </div>
        <footer>
          <button type="button" onClick={close}>
            Not now
          </button>
          <button type="submit" class="primary" disabled={!wanted}>
            Change the offer
          </button>
        </footer>
      </form>
    </Dialog>
  );
}
