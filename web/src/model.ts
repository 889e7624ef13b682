// From what the daemon says to what is drawn: members and links each once, whoever told of them, and how far a VM's move is.
// Pure functions, tested without a browser.

import type { Decision, Step, View, Vm } from "./types";

/** How packets go: the word that a path begins with. */
export type Way = "direct" | "relayed" | "ring" | "stream" | "none";

/** A member on the map. */
export interface Member {
  id: string;
  name: string;
  address: string | null;
  /** What kind of NAT it sits behind; null: it did not say. */
  nat: string | null;
  /** Load of its processors, 0 to 1; null: it did not say. */
  cpu: number | null;
  /** The path from this page's node, in words. */
  path: string | null;
  rttMs: number | null;
  /** This page's node. */
  here: boolean;
  /** Whether anybody heard of it just now. */
  heard: boolean;
  vms: Vm[];
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

/** The way that a path's words name. */
export function wayOf(path: string | null | undefined): Way {
  if (!path) return "none";
  if (path.startsWith("direct")) return "direct";
  if (path.startsWith("relayed")) return "relayed";
  if (path.startsWith("over the ring")) return "ring";
  if (path.startsWith("stream")) return "stream";
  return "none";
}

const pair = (a: string, b: string) => (a < b ? `${a} ${b}` : `${b} ${a}`);

/** Everybody and every link once. A member's own word about itself counts more than what this node knows of it. */
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
  const add = (a: string, b: string, path: string | null, rttMs: number | null) => {
    const key = pair(a, b);
    const known = edges.get(key);
    // Both ends tell of it; a measured round trip counts more than none.
    if (path && (!known || (known.rttMs == null && rttMs != null))) edges.set(key, { a, b, way: wayOf(path), path, rttMs });
  };
  for (const p of view.peers) add(status.member, p.member, p.path, p.rtt_ms);
  for (const s of view.members) {
    for (const link of s.links) {
      const to = ids.find((id) => id.startsWith(link.to));
      if (to && to !== s.member) add(s.member, to, link.path, link.rtt_ms);
    }
  }
  const sorted = [...members.values()].sort((a, b) => a.name.localeCompare(b.name) || a.id.localeCompare(b.id));
  return { members: sorted, edges: [...edges.values()] };
}

/** What was decided lately anywhere, the newest first, with the VM's name where it is known. */
export function decisions(view: View): Decision[] {
  const names = new Map(view.vms.map((vm) => [vm.id, vm.name]));
  return view.members
    .flatMap((m) => m.decisions.map((d) => ({ ...d, host: d.host || m.name, vm: names.get(d.vm) ?? d.vm.slice(0, 8) })))
    .sort((a, b) => b.at.localeCompare(a.at));
}

/** How far something is, 0 to 1; null: nobody knows. */
export function share(step: Step | null | undefined): number | null {
  if (!step || step.total_bytes <= 0) return null;
  return Math.min(step.done_bytes / step.total_bytes, 1);
}

/** Where a VM may go: every other member that is heard, the least busy first. */
export function targets(net: Network, vm: Vm): Member[] {
  return net.members
    .filter((m) => m.id !== vm.host_id && m.heard)
    .sort((a, b) => (a.cpu ?? 1) - (b.cpu ?? 1) || a.name.localeCompare(b.name));
}

/** The round trip between two members, if a link tells it. */
export function rttBetween(net: Network, a: string, b: string): number | null {
  const key = pair(a, b);
  return net.edges.find((e) => pair(e.a, e.b) === key)?.rttMs ?? null;
}

/** Where a restore goes unless a person says otherwise: to its host if that is heard, else to a member that has the snapshot. */
export function restoreOn(net: Network, vm: Vm, holders: string[]): string {
  const heard = net.members.filter((m) => m.heard);
  const best = heard.find((m) => m.id === vm.host_id) ?? heard.find((m) => holders.includes(m.name)) ?? heard.find((m) => m.here) ?? heard[0];
  return best?.id ?? vm.host_id;
}

/** Whether a VM is in a state that somebody should look at; what a stopped VM left behind is not. */
export function troubled(vm: Vm): boolean {
  return !["leftover", "orphaned"].includes(vm.state) && (vm.note != null || !["running", "stopped", "leaving", "arriving"].includes(vm.state));
}

/** Whether its guest runs: also while it is being moved away. */
export function runs(vm: Vm): boolean {
  return vm.state === "running" || vm.state === "leaving";
}
