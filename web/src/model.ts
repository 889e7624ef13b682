// Turns the daemon's answer into what the page draws: members and links, each once, and the
// progress of VMs' moves. Pure functions, tested without a browser.

import type { Decided, PathKind, Peer, Step, View, VmView } from "./types";

/** How the page draws a path. */
export type Way = "direct" | "relayed" | "ring" | "stream" | "none";

/** A member on the map. */
export interface Member {
  id: string;
  name: string;
  address: string | null;
  /** The kind of its NAT; null: unknown. */
  nat: string | null;
  /** Load of its processors, 0 to 1; null: unknown. */
  cpu: number | null;
  /** The path from this page's node, in words. */
  path: string | null;
  rttMs: number | null;
  /** This page's node. */
  here: boolean;
  /** Whether it answers any member now. */
  heard: boolean;
  vms: VmView[];
}

/** A link between two members. */
export interface Edge {
  a: string;
  b: string;
  way: Way;
  /** In words. */
  path: string;
  rttMs: number | null;
}

/** Members and links. */
export interface Network {
  members: Member[];
  edges: Edge[];
}

const WAYS: readonly Way[] = ["direct", "relayed", "ring", "stream"];

/** How a path of this kind is drawn; none if it is missing or of a later version. */
export function wayOf(kind: PathKind | null | undefined): Way {
  return WAYS.find((way) => way === kind) ?? "none";
}

const pair = (a: string, b: string) => (a < b ? `${a} ${b}` : `${b} ${a}`);

/**
 * Every member and every link once. A member's report about itself takes precedence over this
 * node's record of it.
 */
export function network(view: View): Network {
  const members = new Map<string, Member>();
  const { status } = view;
  const here = { id: status.member, name: status.name, address: status.address, nat: status.nat, cpu: status.cpu };
  members.set(status.member, { ...here, path: null, rttMs: null, here: true, heard: true, vms: [] });
  for (const p of view.peers) {
    const known = { id: p.member, name: p.name, address: p.address, nat: null, cpu: null, path: p.path, rttMs: p.rtt_ms };
    members.set(p.member, { ...known, here: false, heard: p.connected, vms: [] });
  }
  for (const s of view.members) {
    if (s.member === status.member) continue;
    const known = members.get(s.member);
    members.set(s.member, {
      id: s.member,
      name: s.name,
      address: s.address ?? known?.address ?? null,
      nat: s.nat,
      cpu: s.cpu,
      path: known?.path ?? null,
      rttMs: known?.rttMs ?? null,
      here: false,
      heard: true,
      vms: [],
    });
  }
  for (const vm of view.vms) members.get(vm.host_id)?.vms.push(vm);

  const ids = [...members.keys()];
  const edges = new Map<string, Edge>();
  const add = (a: string, b: string, link: Pick<Peer, "path" | "rtt_ms"> & { path_kind?: PathKind | null }) => {
    const { path, rtt_ms: rttMs } = link;
    const key = pair(a, b);
    const known = edges.get(key);
    // Both ends report it; a report with a round trip replaces one without.
    if (path && (!known || (known.rttMs == null && rttMs != null))) edges.set(key, { a, b, way: wayOf(link.path_kind), path, rttMs });
  };
  for (const p of view.peers) add(status.member, p.member, p);
  for (const s of view.members) {
    for (const link of s.links) {
      const to = ids.find((id) => id.startsWith(link.to));
      if (to && to !== s.member) add(s.member, to, link);
    }
  }
  const sorted = [...members.values()].sort((a, b) => a.name.localeCompare(b.name) || a.id.localeCompare(b.id));
  return { members: sorted, edges: [...edges.values()] };
}

/** All members' latest decisions, the newest first, with the VM's name if it is known. */
export function decisions(view: View): Decided[] {
  const names = new Map(view.vms.map((vm) => [vm.id, vm.name]));
  return view.members
    .flatMap((m) => m.decisions.map((d) => ({ ...d, host: d.host || m.name, vm: names.get(d.vm) ?? d.vm.slice(0, 8) })))
    .sort((a, b) => b.at.localeCompare(a.at));
}

/** The progress of a step, 0 to 1; null: unknown. */
export function share(step: Step | null | undefined): number | null {
  if (!step || step.total_bytes <= 0) return null;
  return Math.min(step.done_bytes / step.total_bytes, 1);
}

/** The possible targets of a VM: every other member that answers, the least loaded first. */
export function targets(net: Network, vm: VmView): Member[] {
  return net.members
    .filter((m) => m.id !== vm.host_id && m.heard)
    .sort((a, b) => (a.cpu ?? 1) - (b.cpu ?? 1) || a.name.localeCompare(b.name));
}

/** The round trip between two members, if a link has it. */
export function rttBetween(net: Network, a: string, b: string): number | null {
  const key = pair(a, b);
  return net.edges.find((e) => pair(e.a, e.b) === key)?.rttMs ?? null;
}

/**
 * The default target of a restore: the VM's host if it answers, otherwise a member that has the
 * snapshot, otherwise this node.
 */
export function restoreOn(net: Network, vm: VmView, holders: string[]): string {
  const heard = net.members.filter((m) => m.heard);
  const best = heard.find((m) => m.id === vm.host_id) ?? heard.find((m) => holders.includes(m.name)) ?? heard.find((m) => m.here) ?? heard[0];
  return best?.id ?? vm.host_id;
}

/** Whether a VM's state needs attention; the leftover of a stopped VM does not. */
export function troubled(vm: VmView): boolean {
  return !["leftover", "orphaned"].includes(vm.state) && (vm.note != null || !["running", "stopped", "leaving", "arriving"].includes(vm.state));
}

/** Whether a VM's guest runs, also while it is being moved away. */
export function runs(vm: VmView): boolean {
  return vm.state === "running" || vm.state === "leaving";
}

/** Whether the token may change something. The daemon decides; the page only offers what it allows. */
export function mayAct(view: View): boolean {
  return view.role === "operator";
}

/** A button of a VM's card. */
export type Offer = "migrate" | "console" | "start" | "snapshots" | "why" | "stop";

/** The buttons of a VM's card in its state; a token that only reads has those that change nothing. */
export function offers(vm: VmView, acts: boolean): Offer[] {
  const held = vm.state === "paused";
  const on = runs(vm) || held;
  const all: [Offer, boolean][] = [
    ["migrate", acts && on],
    ["console", acts && on],
    ["start", acts && (held || vm.state === "stopped")],
    ["snapshots", true],
    ["why", true],
    ["stop", acts && on],
  ];
  return all.flatMap(([offer, is]) => (is ? [offer] : []));
}
