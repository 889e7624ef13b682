import { describe, expect, it } from "vitest";
import { changeOf, ended, formOf, rows, state, times } from "../src/offer";
import type { OfferView } from "../src/types";

const none = { cpus: 0, disk_mib: 0, memory_mib: 0, vms: 0 };
const offer = (more: Partial<OfferView> = {}): OfferView => ({
  all_cpus: null, all_memory_mib: 0, bits_per_second: null, changed: false, closed: null, evacuating: false, host: "attic", hours: [], idle_after_s: 600, idle_only: false,
  images: [], limits: { cpus: null, disk_mib: null, memory_mib: null, vms: null }, off: false, run: ["*"], tenants: [], used: none, ...more,
});

describe("an offer on the page", () => {
  it("is open, off, or closed with the reason", () => {
    expect(state(offer())).toEqual({ text: "open", how: "ok" });
    expect(state(offer({ off: true, closed: "its offer is off" })).text).toBe("off");
    expect(state(offer({ closed: "it runs on battery" })).text).toBe("closed now: it runs on battery");
    expect(state(offer({ off: true, evacuating: true })).text).toContain("moved away");
  });

  it("shows what is offered beside what is used", () => {
    const limits = { cpus: null, disk_mib: 4096, memory_mib: 2048, vms: 0 };
    const all = rows(offer({ limits, used: { cpus: 3, disk_mib: 1024, memory_mib: 4096, vms: 1 } }));
    expect(all.map((row) => row.offered)).toEqual(["0", "no limit", "2.0 GiB", "4.0 GiB"]);
    expect(all.map((row) => row.share)).toEqual([1, null, 1, 0.25]);
    expect(times(offer({ hours: ["18:00-08:00"], idle_only: true }))).toBe("18:00-08:00, while this machine is idle");
    expect(times(offer())).toBe("always");
    expect(times(offer({ bits_per_second: 100_000_000 }))).toBe("always; each VM at most 100 Mbit/s each way");
  });

  it("is changed by what was typed alone", () => {
    const before = formOf(offer({ limits: { cpus: 2, disk_mib: 3072, memory_mib: null, vms: 1 }, run: ["friends", "member:cellar"] }));
    expect(before).toMatchObject({ cpus: "2", disk_gib: "3", memory_mib: "", run: "friends, member:cellar" });
    expect(changeOf(before, { ...before })).toBeNull();
    expect(changeOf(before, { ...before, cpus: "", memory_mib: " 512 " })).toEqual({ cpus: 0, memory_mib: 512 });
    expect(changeOf(before, { ...before, mbit: "1.5" })).toEqual({ bits_per_second: 1_500_000 });
    expect(changeOf(before, { ...before, run: "*", hours: "18:00-08:00, 12:00-13:00" })).toEqual({ run: ["*"], hours: ["18:00-08:00", "12:00-13:00"] });
  });

  it("ends with a word about each VM", () => {
    const said = ended({ cancelled: false, moved: [], stopped: [{ name: "db", why: "no room" }], kept: [] });
    expect(said).toBe("nothing is offered any more; db was stopped: no room");
  });
});
