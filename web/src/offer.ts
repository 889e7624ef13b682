// What this host offers to other members' VMs, in words, and a change of it from what a person typed.

import { bytes } from "./format";
import type { OfferChange, OfferEnded, OfferView } from "./types";

const MIB = 1024 * 1024;

/** One line of the panel: what is offered and what of it is used. */
export interface Row {
  what: string;
  offered: string;
  used: string;
  /** The used share; null without a limit. */
  share: number | null;
}

/** The offer's state in words, and its class. */
export function state(offer: OfferView): { text: string; how: "ok" | "off" | "closed" } {
  if (offer.off) return { text: offer.evacuating ? "off: other members' VMs are being moved away" : "off", how: "off" };
  if (offer.closed != null) return { text: `closed now: ${offer.closed}`, how: "closed" };
  return { text: "open", how: "ok" };
}

export function rows(offer: OfferView): Row[] {
  const { limits, used } = offer;
  const row = (what: string, most: number | null, has: number, say: (n: number) => string): Row => ({
    what,
    offered: most == null ? "no limit" : say(most),
    used: say(has),
    share: most == null ? null : most === 0 ? 1 : Math.min(has / most, 1),
  });
  const mib = (n: number) => bytes(n * MIB);
  return [
    row("VMs", limits.vms, used.vms, String),
    row("Processors", limits.cpus, used.cpus, String),
    row("Memory", limits.memory_mib, used.memory_mib, mib),
    row("Disk", limits.disk_mib, used.disk_mib, mib),
  ];
}

/** When the offer holds and how fast its VMs may be, in words. */
export function times(offer: OfferView): string {
  const hours = offer.hours.length > 0 ? offer.hours.join(", ") : "always";
  const each = offer.bits_per_second == null ? "" : `; each VM at most ${offer.bits_per_second / 1e6} Mbit/s each way`;
  return (offer.idle_only ? `${hours}, while this machine is idle` : hours) + each;
}

/** The fields of the form, as typed; an empty number is no limit. */
export interface Form {
  vms: string;
  cpus: string;
  memory_mib: string;
  disk_gib: string;
  hours: string;
  run: string;
  /** Mbit/s for each VM. */
  mbit: string;
  idle_only: boolean;
}

export function formOf(offer: OfferView): Form {
  const { limits } = offer;
  const number = (n: number | null) => (n == null ? "" : String(n));
  return {
    vms: number(limits.vms),
    cpus: number(limits.cpus),
    memory_mib: number(limits.memory_mib),
    disk_gib: number(limits.disk_mib == null ? null : Math.floor(limits.disk_mib / 1024)),
    hours: offer.hours.join(", "),
    run: offer.run.join(", "),
    mbit: number(offer.bits_per_second == null ? null : offer.bits_per_second / 1e6),
    idle_only: offer.idle_only,
  };
}

/** What the form changes; null if nothing. A word that is no number is left to the daemon's answer. */
export function changeOf(before: Form, now: Form): OfferChange | null {
  const words = (text: string) => text.split(/[,\s]+/).filter((word) => word !== "");
  const change: OfferChange = {};
  for (const field of ["vms", "cpus", "memory_mib", "disk_gib"] as const) {
    if (now[field].trim() !== before[field].trim()) change[field] = Number(now[field].trim() || 0);
  }
  if (now.mbit.trim() !== before.mbit.trim()) change.bits_per_second = Math.round(Number(now.mbit.trim() || 0) * 1e6);
  if (now.hours !== before.hours) change.hours = words(now.hours);
  if (now.run !== before.run) change.run = words(now.run);
  if (now.idle_only !== before.idle_only) change.idle_only = now.idle_only;
  return Object.keys(change).length > 0 ? change : null;
}

/** How the end of an offer went, in words. */
export function ended({ moved, stopped, kept }: OfferEnded): string {
  const said = [
    ...moved.map((vm) => `${vm.name} runs on ${vm.host}`),
    ...stopped.map((vm) => `${vm.name} was stopped: ${vm.why}`),
    ...kept.map((vm) => `${vm.name} runs on here: ${vm.why}`),
  ];
  return ["nothing is offered any more", ...said].join("; ");
}
