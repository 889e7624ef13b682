import { expect, it } from "vitest";
import { bytes, duration, ms, percent, when } from "../src/format";
import { cut, follow, Refused } from "../src/lines";

async function* chunks(...parts: string[]) {
  for (const part of parts) yield new TextEncoder().encode(part);
}

it("a line that arrives in pieces is one line", () => {
  expect(cut('{"a":1}\n{"b"')).toEqual({ lines: ['{"a":1}'], rest: '{"b"' });
});

it("steps are reported as they arrive, the result at the end", async () => {
  const seen: string[] = [];
  const done = await follow(chunks('{"progress":{"phase":"di', 'sk"}}\n{"progress":{"phase":"ram"}}\n', '{"done":{"host":"c"}}\n'), (s) => seen.push(s.phase));
  expect(seen).toEqual(["disk", "ram"]);
  expect(done).toEqual({ host: "c" });
});

it("a refusal has the daemon's words, and an answer without an end is a failure", async () => {
  await expect(follow(chunks('{"error":{"kind":"refused","message":"no room on c"}}\n'), () => {})).rejects.toThrow("no room on c");
  await expect(follow(chunks('{"progress":{"phase":"ram"}}\n'), () => {})).rejects.toBeInstanceOf(Refused);
});

it("figures have units and few digits", () => {
  expect([ms(0.03), ms(20.34), ms(150.4), ms(null)]).toEqual(["<0.1 ms", "20.3 ms", "150 ms", "-"]);
  expect([percent(0.126), percent(2)]).toEqual(["13 %", "100 %"]);
  expect([bytes(900), bytes(90 << 20), bytes(3.5 * 2 ** 30)]).toEqual(["900 B", "90.0 MiB", "3.5 GiB"]);
  expect([duration(0), duration(59), duration(3600), duration(93784)]).toEqual(["0 s", "59 s", "1 h", "1 d 2 h"]);
});

it("a time of today has no date, and an invalid one is shown unchanged", () => {
  const now = new Date(2026, 4, 1, 12, 0, 0);
  expect(when(new Date(2026, 4, 1, 9, 5, 7).toISOString(), now)).toBe("09:05:07");
  expect(when(new Date(2026, 3, 30, 9, 5, 7).toISOString(), now)).toBe("2026-04-30 09:05:07");
  expect(when("soon", now)).toBe("soon");
});
