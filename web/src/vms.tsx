// A card for each VM: its host, its load, its running operation, and the possible operations.

import { percent } from "./format";
import { offers, runs, troubled } from "./model";
import { underWay, type Doing, type Operation } from "./operations";
import type { VmView } from "./types";

/** The dialog that a button opens. */
export type Ask = "migrate" | "console" | "snapshots" | "why";

interface Props {
  vms: VmView[];
  /** Whether the token may change something. */
  acts: boolean;
  doing: Doing;
  ask: (what: Ask, vm: string) => void;
  take: (vm: string, event: PointerEvent) => void;
}

export function Vms({ vms, acts, doing, ask, take }: Props) {
  const running = vms.filter(runs).length;
  return (
    <section class="panel" aria-labelledby="vms-title">
      <h2 id="vms-title">
        VMs <small>{vms.length > 0 && `${running} of ${vms.length} running`}</small>
      </h2>
      {vms.length === 0 && (
        <p class="empty">
          No VM yet. On a member: <code>p2pvm vm create web --image IMAGE --start</code>
        </p>
      )}
      <ul class="cards">
        {vms.map((vm) => (
          <Card key={vm.id} vm={vm} acts={acts} operation={doing.operations[vm.name]} doing={doing} ask={ask} take={take} />
        ))}
      </ul>
    </section>
  );
}

function Card({ vm, acts, operation, doing, ask, take }: { vm: VmView; operation: Operation | undefined } & Omit<Props, "vms">) {
  const now = underWay(vm, operation);
  const running = runs(vm);
  const held = vm.state === "paused";
  const has = new Set(offers(vm, acts));
  // A stop overrides a move: the daemon ends the move for it.
  const moves = vm.moving != null || (operation?.kind === "migrate" && !operation.ended);
  const load = vm.cpu == null ? null : vm.cpu / Math.max(vm.cpus, 1);
  return (
    <li class="card" data-vm={vm.name}>
      <div class="head">
        {acts && (
          <span class="grip" onPointerDown={(e) => take(vm.name, e)} title="Drag onto a member to move it" aria-hidden="true">
            ⠿
          </span>
        )}
        <strong class="name">{vm.name}</strong>
        <span class={`state ${troubled(vm) ? "troubled" : vm.state}`}>{vm.still ? `${vm.state}: ${vm.still.why}` : vm.state}</span>
        <span class="on">
          on <b class="host">{vm.host}</b>
        </span>
      </div>
      <div class="facts">
        <span>{vm.address}</span>
        <span>
          {vm.cpus} CPU{vm.cpus > 1 ? "s" : ""}, {vm.memory_mib} MiB
        </span>
        {vm.protection && <span title={vm.protection.text}>{vm.protection.protected ? "protected" : "not protected"}</span>}
        {vm.replication && <span class={vm.replication.late ? "troubled" : ""}>{vm.replication.text}</span>}
        {running && (
          <span class="busy">
            <span class="gauge" aria-hidden="true">
              <span class="fill" style={{ width: percent(load ?? 0).replace(" ", "") }} />
            </span>
            load {load == null ? "-" : percent(load)}
          </span>
        )}
      </div>
      {vm.note && <p class="note troubled">{vm.note}</p>}
      {vm.advice && <p class="note">{vm.advice}</p>}
      {now && (
        <div class="under-way" role="status">
          <div class="row">
            <span class="what">{now.what}</span>
            {acts && moves && (
              <button type="button" class="plain cancel" onClick={() => doing.cancel(vm.name)}>
                Cancel
              </button>
            )}
          </div>
          <progress {...(now.share == null ? {} : { value: now.share, max: 1 })} aria-label={now.what} />
          <span class="note">{[now.share == null ? "" : percent(now.share), now.note].filter(Boolean).join(" · ")}</span>
        </div>
      )}
      {operation?.ended && (
        <div class={`ended ${operation.ended.how}`} role={operation.ended.how === "failed" ? "alert" : "status"}>
          <span>{operation.ended.text}</span>
          <button type="button" class="plain" aria-label="Dismiss" onClick={() => doing.dismiss(vm.name)}>
            ✕
          </button>
        </div>
      )}
      <div class="buttons">
        {has.has("migrate") && (
          <button type="button" class="migrate" disabled={now != null} onClick={() => ask("migrate", vm.name)}>
            Move…
          </button>
        )}
        {has.has("console") && (
          <button type="button" class="console" onClick={() => ask("console", vm.name)}>
            Console
          </button>
        )}
        {has.has("start") && (
          <button type="button" disabled={now != null} onClick={() => doing.begin(vm.name, "start", `starting ${vm.name}`)}>
            {held ? "Resume" : "Start"}
          </button>
        )}
        <button type="button" onClick={() => ask("snapshots", vm.name)}>
          Snapshots{vm.snapshots.length > 0 && ` (${vm.snapshots.length})`}
        </button>
        <button type="button" onClick={() => ask("why", vm.name)}>
          Why?
        </button>
        {has.has("stop") && (
          <button type="button" class="danger" disabled={now != null && !moves} onClick={() => confirm(`Stop ${vm.name}? Its guest is asked to power down.`) && doing.begin(vm.name, "stop", `stopping ${vm.name}`)}>
            Stop
          </button>
        )}
      </div>
    </li>
  );
}
