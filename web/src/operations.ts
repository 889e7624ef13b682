// The operations that this page started, and their progress, by the VM's name.

import { useCallback, useRef, useState } from "preact/hooks";
import type { Api, Body, VmOperation } from "./api";
import { bytes } from "./format";
import { Refused } from "./lines";
import { share } from "./model";
import type { Results, Step, VmView } from "./types";

/** An operation that shows its progress. */
export type OperationKind = VmOperation;

/** How an operation ended, in words. */
export interface Ended {
  how: "ok" | "failed" | "cancelled";
  text: string;
}

export interface Operation {
  kind: OperationKind;
  /** The operation in words. */
  what: string;
  step: Step | null;
  /** How it ended, if it has. */
  ended: Ended | null;
}

export type Operations = Record<string, Operation>;

export interface Doing {
  operations: Operations;
  /** Begins an operation, unless another one of the VM runs; a stop overrides a move. */
  begin(vm: string, kind: OperationKind, what: string, body?: Body): void;
  cancel(vm: string): void;
  dismiss(vm: string): void;
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

/** The message after each successful operation. */
const OUTCOMES: { [K in OperationKind]: (vm: string, done: Results[K]) => string } = {
  migrate(vm, { host, total_ms, downtime_ms, ram_bytes }) {
    // A host of a previous version does not say how much RAM it was.
    return `${vm} runs on ${host}: moved in ${seconds(total_ms)}, paused for ${downtime_ms} ms, ${bytes(ram_bytes ?? 0)} of RAM`;
  },
  restore: (vm, { state, host }) => `${vm} is ${state} on ${host}`,
  snapshot: (_, { name, state, pause_ms }) => `snapshot ${name} is ${state}; the guest was paused for ${pause_ms.toFixed(0)} ms`,
  start: (vm, { state }) => `${vm} is ${state}`,
  stop: (vm, { state }) => `${vm} is ${state}`,
};

/** The message after a successful operation. */
export function outcome<K extends OperationKind>(kind: K, vm: string, done: Results[K]): string {
  return OUTCOMES[kind](vm, done);
}

/** Whether an operation may begin while another one of this VM runs: a stop overrides a move. */
export function mayBegin(kind: OperationKind, underWay: OperationKind | undefined): boolean {
  return underWay === undefined || (kind === "stop" && underWay === "migrate");
}

/** The message after an operation that failed or was cancelled. */
export function undone(error: Error): Ended {
  const cancelled = error instanceof Refused && error.failure.cancelled === true;
  return { how: cancelled ? "cancelled" : "failed", text: error.message };
}

/** The running operation as a card shows it, also one started elsewhere; null: none runs. */
export function underWay(vm: VmView, operation: Operation | undefined): { what: string; share: number | null; note: string } | null {
  const say = (what: string, step: Step | null) => {
    const amount = step && step.total_bytes > 0 ? `${bytes(step.done_bytes)} of ${bytes(step.total_bytes)}` : "";
    return { what: step?.phase ? `${what}: ${step.phase}` : what, share: share(step), note: [amount, step?.note].filter(Boolean).join(", ") };
  };
  if (operation && !operation.ended) return say(operation.what, operation.step ?? vm.moving?.step ?? null);
  if (vm.moving) return say(`moving to ${vm.moving.to}`, vm.moving.step);
  if (vm.activity) return { what: vm.activity, share: null, note: "" };
  return null;
}

export function useOperations(api: Api | null, refresh: () => void): Doing {
  const [operations, set] = useState<Operations>({});
  const busy = useRef(new Map<string, { kind: OperationKind }>());
  const change = (vm: string, to: Operation | undefined) =>
    set((all) => {
      const { [vm]: _, ...rest } = all;
      return to ? { ...rest, [vm]: to } : rest;
    });

  const begin = useCallback(
    <K extends OperationKind>(vm: string, kind: K, what: string, body: Body | null = null) => {
      if (!api || !mayBegin(kind, busy.current.get(vm)?.kind)) return;
      const mine = { kind };
      busy.current.set(vm, mine);
      // A later operation of the VM shows its own progress.
      const shown = () => busy.current.get(vm) === mine;
      let last: Operation = { kind, what, step: null, ended: null };
      change(vm, last);
      api
        .run(vm, kind, body, (step) => shown() && change(vm, (last = { ...last, step })))
        .then(
          (done): Ended => ({ how: "ok", text: outcome(kind, vm, done) }),
          undone,
        )
        .then((ended) => {
          if (shown()) {
            busy.current.delete(vm);
            change(vm, { ...last, ended });
          }
          refresh();
        });
    },
    [api, refresh],
  );
  const cancel = useCallback(
    (vm: string) => {
      api?.cancel(vm).catch((error: Error) =>
        set((all) => {
          const known: Operation = all[vm] ?? { kind: "migrate", what: "", step: null, ended: null };
          return { ...all, [vm]: { ...known, ended: known.ended ?? undone(error) } };
        }),
      );
    },
    [api],
  );
  const dismiss = useCallback((vm: string) => change(vm, undefined), []);
  return { operations, begin, cancel, dismiss };
}
