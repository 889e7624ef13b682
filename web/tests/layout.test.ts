import { expect, it } from "vitest";
import { boxOf, distances, fit, labels, lineOf, majorize, pointOn, type Known } from "../src/layout";

const far = (a: { x: number; y: number }, b: { x: number; y: number }) => Math.hypot(a.x - b.x, a.y - b.y);

it("members with a short round trip are nearer to each other", () => {
  const known: Known[] = [{ a: 0, b: 1, rttMs: 5 }, { a: 0, b: 2, rttMs: 150 }, { a: 1, b: 2, rttMs: 150 }];
  const [a, b, c] = majorize(distances(3, known));
  expect(far(a!, b!)).toBeLessThan(far(a!, c!) / 2);
  expect(Math.abs(far(a!, c!) - far(b!, c!)) / far(a!, c!)).toBeLessThan(0.1);
});

it("two members without a link are as far apart as their path over others", () => {
  const d = distances(3, [{ a: 0, b: 1, rttMs: 5 }, { a: 1, b: 2, rttMs: 12 }]);
  expect(d[0]![2]).toBeCloseTo(d[0]![1]! + d[1]![2]!);
  const lonely = distances(3, [{ a: 0, b: 1, rttMs: 5 }]);
  expect(lonely[0]![2]).toBeGreaterThan(lonely[0]![1]!);
});

it("the same network gives the same picture, a small change a small move", () => {
  const known = (rttMs: number): Known[] => [{ a: 0, b: 1, rttMs: 20 }, { a: 1, b: 2, rttMs }, { a: 0, b: 2, rttMs: 60 }, { a: 2, b: 3, rttMs: 30 }];
  const first = majorize(distances(4, known(40)));
  expect(majorize(distances(4, known(40)))).toEqual(first);
  const next = majorize(distances(4, known(44)), first);
  next.forEach((p, i) => expect(far(p, first[i]!)).toBeLessThan(1));
});

it.each([[1, 800, 450], [2, 800, 450], [3, 360, 320], [12, 800, 450], [50, 860, 450], [50, 1200, 600]])("%i members on %i x %i pixels are inside and do not overlap", (count, width, height) => {
  const known: Known[] = [];
  for (let i = 0; i < count; i++) for (let j = i + 1; j < count; j += 1 + (i % 3)) known.push({ a: i, b: j, rttMs: 5 + ((i * 31 + j * 17) % 150) });
  const box = boxOf(count, width, 3);
  const at = fit(majorize(distances(count, known)), box, width, height);
  let overlapping = 0;
  at.forEach((p, i) => {
    expect(p.x - box.w / 2).toBeGreaterThanOrEqual(0);
    expect(p.x + box.w / 2).toBeLessThanOrEqual(width);
    expect(p.y - box.h / 2).toBeGreaterThanOrEqual(0);
    expect(p.y + box.h / 2).toBeLessThanOrEqual(height);
    at.slice(i + 1).forEach((q) => {
      if (Math.abs(p.x - q.x) < box.w && Math.abs(p.y - q.y) < box.h) overlapping += 1;
    });
  });
  expect(overlapping).toBe(0);
});

it("a member that is far out does not press the others together", () => {
  const at = fit([{ x: 0, y: 0 }, { x: 1, y: 1 }, { x: 2, y: 0 }, { x: 100, y: 100 }], { w: 10, h: 10 }, 1000, 1000);
  expect(at[2]!.x - at[0]!.x).toBeGreaterThan(200);
});

it("a link's label is in its middle, unless a member or another label is there", () => {
  const box = { w: 100, h: 60 };
  const link = { ...lineOf({ x: 0, y: 0 }, { x: 600, y: 0 }, [], box), w: 60 };
  const [free] = labels([link], [link.a, link.b], box, 20);
  expect(free).toEqual({ x: 300, y: 0 });
  const [aside, other] = labels([link, link], [link.a, link.b, { x: 300, y: 10 }], box, 20);
  expect(Math.abs(aside!.x - 300)).toBeGreaterThan(80);
  expect(Math.abs(aside!.x - other!.x)).toBeGreaterThan(60);
});

it("two members are side by side", () => {
  const [a, b] = majorize(distances(2, [{ a: 0, b: 1, rttMs: 20 }]));
  expect(Math.abs(a!.x - b!.x)).toBeGreaterThan(10 * Math.abs(a!.y - b!.y));
});

it("a link bends around a member in its way, and is straight otherwise", () => {
  const [a, b, box] = [{ x: 0, y: 0 }, { x: 600, y: 0 }, { w: 150, h: 80 }];
  expect(pointOn(lineOf(a, b, [{ x: 300, y: 200 }], box), 0.5)).toEqual({ x: 300, y: 0 });
  expect(pointOn(lineOf(a, b, [{ x: 300, y: 10 }], box), 0.5).y).toBeLessThan(-40);
  expect(pointOn(lineOf(a, b, [{ x: 300, y: -10 }], box), 0.5).y).toBeGreaterThan(40);
});
