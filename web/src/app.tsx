// The page: polls the daemon every second while it is visible, and shows the answers.

import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Api, keepToken, takeToken } from "./api";
import { Move, Snapshots, Why } from "./dialogs";
import { useDrag } from "./drag";
import { Events } from "./events";
import { duration, percent } from "./format";
import { Refused } from "./lines";
import { lazy } from "./lazy";
import { NetworkMap } from "./map";
import { decisions, mayAct, network } from "./model";
import { Offer } from "./offer-panel";
import { useOperations } from "./operations";
import { Decisions, Members } from "./tables";
import { setTheme, theme, type Theme } from "./theme";
import type { View } from "./types";
import { Vms, type Ask } from "./vms";

/** The time between two polls. */
const EVERY_MS = 1000;
const Console = lazy(() => import("./console"));

/** The open dialog. */
type Open = { what: Ask; vm: string; to: string | null } | null;

export function App() {
  const [token, setToken] = useState(takeToken);
  const [refused, setRefused] = useState<string | null>(null);
  useEffect(() => {
    // The user opened a link with a new token in a tab that has the page open.
    const changed = () => location.hash.includes("token=") && setToken(takeToken());
    window.addEventListener("hashchange", changed);
    return () => window.removeEventListener("hashchange", changed);
  }, []);
  const leave = useCallback((why: string | null) => {
    keepToken(null);
    setToken(null);
    setRefused(why);
  }, []);
  if (!token) {
    const enter = (given: string) => {
      keepToken(given);
      setRefused(null);
      setToken(given.trim());
    };
    return <Login refused={refused} enter={enter} />;
  }
  return <Dashboard key={token} token={token} leave={leave} />;
}

function Login({ refused, enter }: { refused: string | null; enter: (token: string) => void }) {
  const [given, setGiven] = useState("");
  return (
    <main class="login">
      <form
        class="panel"
        onSubmit={(e) => {
          e.preventDefault();
          enter(given);
        }}
      >
        <h1>p2pvm</h1>
        {refused && <p role="alert">{refused}</p>}
        <label for="token">Token</label>
        <input id="token" type="password" autocomplete="off" autofocus value={given} onInput={(e) => setGiven(e.currentTarget.value)} />
        <p>
          <code>p2pvm dashboard</code>, run on the member that serves this page, prints a link with the token.
        </p>
        <button class="primary" type="submit" disabled={!given.trim()}>
          Open
        </button>
      </form>
    </main>
  );
}

/**
 * Polls every second. Returns the last view, why there is no newer one, and a function that polls
 * at once.
 */
function useView(api: Api, leave: (why: string) => void): [View | null, string | null, () => void] {
  const [view, setView] = useState<View | null>(null);
  const [trouble, setTrouble] = useState<string | null>(null);
  const look = useRef(() => {});
  useEffect(() => {
    let gone = false;
    let timer = 0;
    let looking = false;
    const once = async () => {
      window.clearTimeout(timer);
      if (looking || gone || document.hidden) return;
      looking = true;
      try {
        const seen = await api.view();
        if (gone) return;
        setView(seen);
        setTrouble(null);
      } catch (error) {
        if (gone) return;
        if (error instanceof Refused && error.status === 401) return leave(error.message);
        setTrouble((error as Error).message);
      } finally {
        looking = false;
      }
      if (!gone) timer = window.setTimeout(once, EVERY_MS);
    };
    look.current = () => void once();
    const shown = () => void once();
    document.addEventListener("visibilitychange", shown);
    void once();
    return () => {
      gone = true;
      window.clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [api]);
  const refresh = useCallback(() => look.current(), []);
  return [view, trouble, refresh];
}

function Dashboard({ token, leave }: { token: string; leave: (why: string | null) => void }) {
  const api = useMemo(() => new Api(token), [token]);
  const [view, trouble, refresh] = useView(api, leave);
  const doing = useOperations(api, refresh);
  const [open, setOpen] = useState<Open>(null);
  const [selected, select] = useState<string | null>(null);
  const latest = useRef(view);
  latest.current = view;
  const drop = useCallback((name: string, member: string) => {
    const vm = latest.current?.vms.find((v) => v.name === name);
    if (vm && vm.state === "running" && vm.host_id !== member) setOpen({ what: "migrate", vm: name, to: member });
  }, []);
  const [drag, take] = useDrag(drop);
  const close = useCallback(() => setOpen(null), []);
  useEffect(() => {
    document.title = view ? `${view.status.name} in ${view.status.network} · p2pvm` : "p2pvm";
  }, [view?.status.name]);

  if (!view) {
    return (
      <main class="login">
        <p role="status">{trouble ?? "Asking the daemon…"}</p>
      </main>
    );
  }
  const net = network(view);
  const acts = mayAct(view);
  const vm = open && view.vms.find((v) => v.name === open.vm);
  return (
    <>
      <Header view={view} leave={() => leave(null)} />
      {trouble && (
        <p class="banner" role="alert">
          {trouble} The page shows the last answer; retrying.
        </p>
      )}
      {view.silent.length > 0 && <p class="banner soft">No answer from {view.silent.join(", ")}: its VMs may be missing here.</p>}
      <main class={`page${trouble ? " stale" : ""}`}>
        <div class="column">
          <NetworkMap net={net} drag={drag} take={acts ? take : null} selected={selected} select={select} />
          <Members net={net} selected={selected} select={select} />
        </div>
        <div class="column">
          <Vms vms={view.vms} acts={acts} doing={doing} ask={(what, name) => setOpen({ what, vm: name, to: null })} take={take} />
          <Offer api={api} acts={acts} />
          <Decisions list={decisions(view)} />
          <Events api={api} />
        </div>
      </main>
      {drag && (
        <div class={`ghost${drag.over ? " over" : ""}`} style={{ transform: `translate(${drag.x + 8}px, ${drag.y + 8}px)` }}>
          {drag.vm}
        </div>
      )}
      {open && vm && open.what === "migrate" && <Move vm={vm} net={net} to={open.to} doing={doing} close={close} />}
      {open && vm && open.what === "snapshots" && <Snapshots vm={vm} net={net} acts={acts} doing={doing} close={close} />}
      {open && vm && open.what === "why" && <Why vm={vm} api={api} close={close} />}
      {open?.what === "console" && <Console name={open.vm} api={api} close={close} />}
    </>
  );
}

const THEMES: [Theme, string][] = [
  ["auto", "System"],
  ["dark", "Dark"],
  ["light", "Light"],
];

function Header({ view, leave }: { view: View; leave: () => void }) {
  const { status, health } = view;
  const [shown, setShown] = useState(theme);
  return (
    <header class="top">
      <h1>
        {status.name} <small>in {status.network}</small>
      </h1>
      <span class={`health ${health.word}`} title={health.why} role="status">
        {health.word}
      </span>
      <span class="why">{health.why}</span>
      {!mayAct(view) && (
        <span class="reads" title="This link shows everything and changes nothing">
          read only
        </span>
      )}
      <dl>
        <div>
          <dt>address</dt>
          <dd>{status.address ?? "-"}</dd>
        </div>
        <div>
          <dt>load</dt>
          <dd>{percent(status.cpu)}</dd>
        </div>
        <div>
          <dt>up</dt>
          <dd>{duration(status.up_seconds)}</dd>
        </div>
        <div>
          <dt>version</dt>
          <dd>{status.version}</dd>
        </div>
      </dl>
      <label class="theme">
        <span class="unseen">Theme</span>
        <select
          value={shown}
          onChange={(e) => {
            const to = e.currentTarget.value as Theme;
            setTheme(to);
            setShown(to);
          }}
        >
          {THEMES.map(([value, text]) => (
            <option key={value} value={value}>
              {text}
            </option>
          ))}
        </select>
      </label>
      <button type="button" class="plain" onClick={leave} title="Forget the token in this tab">
        Log out
      </button>
    </header>
  );
}
