import { describe, expect, it } from "vitest";
import { Refused } from "../src/lines";
import { decisions, mayAct, network, offers, restoreOn, rttBetween, share, targets, troubled, wayOf } from "../src/model";
import { mayBegin, outcome, underWay, undone, type Operation } from "../src/operations";
import type { Peer, Sight, Status, View, VmMoved, VmView } from "../src/types";

const id = (letter: string) => letter.repeat(64);
const sight = (letter: string, more: Partial<Sight> = {}): Sight => ({
  member: id(letter), name: letter, address: `10.1.0.${letter.charCodeAt(0)}`, nat: "none", position: "", neighbours: 0, cpu: 0.2, running_vms: 0,
  links: [], decisions: [], ...more,
});
const vm = (more: Partial<VmView> = {}): VmView => ({
  name: "web", id: id("9"), state: "running", host: "b", host_id: id("b"), address: "10.1.0.9", address_v6: "fd00::9", mac: "",
  cpus: 1, memory_mib: 128, image: "", epoch: 1, voters: [], activity: null, note: null, reach: null, still: null, cpu: 0.1, moving: null,
  snapshots: [], ...more,
});
const peer = (letter: string, more: Partial<Peer> = {}): Peer => ({
  member: id(letter), name: letter, address: null, connected: false, linked: false, path: null, path_kind: null, rtt_ms: null, sent_bytes: 0, received_bytes: 0,
  packet_bytes: null, ring: null, ...more,
});
const status: Status = {
  member: id("a"), name: "a", network: "lab", network_id: "", subnet: "10.1.0.0/16", address: "10.1.0.1", address_v6: "fd00::1",
  reflexive: null, nat: "none", mapped: null, punches: { tried: 0, direct: 0, first_try: 0, hopeless: 0, median_ms: null, list: [] },
  connected: 1, known: 2, joined_another: false,
  ring: {
    joined: true, was_joined: true, position: "", size_estimate: 3, near: 2, far: 0, shortcuts: 0, leaves: 0, repairs: 0, carried: 0,
    coordinate_error: 0.1,
  },
  running_vms: 0, answering_vms: 0, cpu: 0.5, listen: [], up_seconds: 1, start_ms: { connected: null, address: null, claim: null },
  resident_bytes: 1, version: "0", health: { word: "ok", why: "" }, findings: [],
};
const view = (more: Partial<View> = {}): View => ({
  status,
  health: status.health,
  peers: [peer("b", { address: "10.1.0.2", connected: true, path: "direct 198.18.0.2:4002", path_kind: "direct", rtt_ms: 20 }), peer("c")],
  members: [], vms: [], silent: [], role: "operator", ...more,
});

describe("the network of a view", () => {
  it("has this node, its peers and the members that others report, each once", () => {
    const net = network(view({ members: [sight("a"), sight("b"), sight("d")] }));
    expect(net.members.map((m) => [m.name, m.here, m.heard])).toEqual([["a", true, true], ["b", false, true], ["c", false, false], ["d", false, true]]);
    expect(net.members[1]!.path).toBe("direct 198.18.0.2:4002");
  });

  it("has a link that both ends report once, with the known round trip", () => {
    const told = [
      sight("b", { links: [{ to: id("a").slice(0, 8), path: "direct", path_kind: "direct", rtt_ms: 21 }, { to: id("d").slice(0, 8), path: "relayed via a", path_kind: "relayed", rtt_ms: null }] }),
      sight("d", { links: [{ to: id("b").slice(0, 8), path: "relayed via a", path_kind: "relayed", rtt_ms: 44 }, { to: "ffff", path: "direct", path_kind: "direct", rtt_ms: 1 }] }),
    ];
    const net = network(view({ members: told }));
    expect(net.edges.map((e) => [e.a[0], e.b[0], e.way, e.rttMs])).toEqual([["a", "b", "direct", 20], ["d", "b", "relayed", 44]]);
    expect(rttBetween(net, id("b"), id("d"))).toBe(44);
    expect(rttBetween(net, id("a"), id("d"))).toBeNull();
  });

  it("has each VM on its host", () => {
    const net = network(view({ vms: [vm()] }));
    expect(net.members.map((m) => m.vms.length)).toEqual([0, 1, 0]);
  });

  it("offers every member that answers but the VM's host, the least busy first", () => {
    const net = network(view({ members: [sight("d", { cpu: 0.9 }), sight("e", { cpu: 0.1 })] }));
    expect(targets(net, vm()).map((m) => m.name)).toEqual(["e", "a", "d"]);
  });
});

it("draws a path by its kind, and one of a later version as none", () => {
  const ways = ["direct", "relayed", "ring", "stream", "pigeon", null].map(wayOf);
  expect(ways).toEqual(["direct", "relayed", "ring", "stream", "none", "none"]);
});

it("lists decisions of all members, the newest first, with the VM's and the member's names", () => {
  const d = (at: string, of: string) => ({ vm: of, at, host: "", text: `at ${at}`, details: null });
  const told = [sight("b", { decisions: [d("2026-01-01T00:00:01Z", id("9"))] }), sight("d", { decisions: [d("2026-01-01T00:00:02Z", id("8"))] })];
  expect(decisions(view({ members: told, vms: [vm()] })).map((x) => [x.vm, x.host])).toEqual([["88888888", "d"], ["web", "b"]]);
});

describe("a running operation", () => {
  const step = { phase: "ram", done_bytes: 1 << 20, total_bytes: 4 << 20, note: "dirty 1 MB/s" };
  it("is the page's own, else the one that the VM's host reports, else none", () => {
    const operation: Operation = { kind: "migrate", what: "moving to c", step, ended: null };
    expect(underWay(vm(), operation)).toEqual({ what: "moving to c: ram", share: 0.25, note: "1.0 MiB of 4.0 MiB, dirty 1 MB/s" });
    expect(underWay(vm({ moving: { to: "d", step } }), undefined)?.what).toBe("moving to d: ram");
    expect(underWay(vm({ activity: "stopping" }), undefined)).toEqual({ what: "stopping", share: null, note: "" });
    expect(underWay(vm(), { ...operation, ended: { how: "ok", text: "" } })).toBeNull();
  });
  it("has no share if the total is unknown, and never more than the whole", () => {
    expect(share({ ...step, total_bytes: 0 })).toBeNull();
    expect(share({ ...step, done_bytes: 9 << 20 })).toBe(1);
  });
  it("ends in a sentence", () => {
    const done: VmMoved = {
      name: "web", from: "b", host: "c", epoch: 2, migration: "m1", pause_ms: 140, total_ms: 5230, downtime_ms: 131, ram_bytes: 90 << 20,
    };
    expect(outcome("migrate", "web", done)).toBe("web runs on c: moved in 5.2 s, paused for 131 ms, 90.0 MiB of RAM");
  });
  it("is cancelled, not failed, if a user cancelled it", () => {
    const said = (cancelled?: boolean) => undone(new Refused({ kind: "failed", message: "web still runs on b", cancelled })).how;
    expect([said(true), said(false), said()]).toEqual(["cancelled", "failed", "failed"]);
    expect(undone(new Error("no daemon"))).toEqual({ how: "failed", text: "no daemon" });
  });
});

it("a VM is troubled in a state that no user asked for", () => {
  expect([vm(), vm({ state: "stopped" }), vm({ state: "arriving" }), vm({ state: "branch" }), vm({ note: "no majority" })].map(troubled)).toEqual([false, false, false, true, true]);
});

describe("beside a running operation", () => {
  it("only a stop may begin, and only beside a move", () => {
    expect(mayBegin("stop", undefined)).toBe(true);
    expect(mayBegin("stop", "migrate")).toBe(true);
    expect(mayBegin("stop", "snapshot")).toBe(false);
    expect(mayBegin("snapshot", "migrate")).toBe(false);
  });
});

describe("the buttons of a VM's card", () => {
  it("are those of its state", () => {
    expect(offers(vm(), true)).toEqual(["migrate", "console", "snapshots", "why", "stop"]);
    expect(offers(vm({ state: "stopped" }), true)).toEqual(["start", "snapshots", "why"]);
    expect(offers(vm({ state: "paused" }), true)).toEqual(["migrate", "console", "start", "snapshots", "why", "stop"]);
  });
  it("change nothing for a token that only reads", () => {
    for (const state of ["running", "stopped", "paused", "leaving"] as const) expect(offers(vm({ state }), false)).toEqual(["snapshots", "why"]);
    expect([view(), view({ role: "reader" }), view({ role: "auditor" })].map(mayAct)).toEqual([true, false, false]);
  });
});

it("a leftover is not troubled, a dead host's VM is", () => {
  expect([vm({ state: "leftover", note: "epoch 2 went to c" }), vm({ state: "unreachable", note: "host b is dead" })].map(troubled)).toEqual([false, true]);
});

it("restores a dead host's VM on a member that answers and has the snapshot", () => {
  const net = network(view({ peers: [peer("b"), peer("c", { connected: true }), peer("d", { connected: true })], members: [] }));
  expect(restoreOn(net, vm({ host_id: id("b") }), ["d"])).toBe(id("d"));
  expect(restoreOn(net, vm({ host_id: id("c") }), ["d"])).toBe(id("c"));
});
