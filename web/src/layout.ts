// Where the map's members stand: the nearer by round trip, the nearer on the page. Stress majorization (Gansner, Koren and North:
// Graph Drawing by Stress Majorization, 2004) over round trips, then boxes that overlap are pushed apart. The same input gives the
// same picture; a changed one begins from the picture before, so that members do not jump.

export interface Point {
  x: number;
  y: number;
}

/** A distance that is known, by the places of two members in the list. */
export interface Known {
  a: number;
  b: number;
  rttMs: number;
}

/** Rounds of majorization from nothing, and from a picture that is there. */
const FRESH_ROUNDS = 300;
const WARM_ROUNDS = 60;
/** Rounds of pushing apart. */
const PUSHES = 200;

/** A round trip as a length: long ones are pressed together, so that two neighbours are not one point beside a far third. */
export function lengthOf(rttMs: number): number {
  return Math.sqrt(Math.max(rttMs, 0) + 4);
}

/** All distances: along known links where two members have none of their own; half as far again as the farthest where there is no way. */
export function distances(count: number, known: Known[]): number[][] {
  const d = Array.from({ length: count }, (_, i) => Array.from({ length: count }, (_, j) => (i === j ? 0 : Infinity)));
  for (const { a, b, rttMs } of known) {
    const length = lengthOf(rttMs);
    d[a]![b] = Math.min(d[a]![b]!, length);
    d[b]![a] = d[a]![b]!;
  }
  for (let k = 0; k < count; k++)
    for (let i = 0; i < count; i++)
      for (let j = 0; j < count; j++) if (d[i]![k]! + d[k]![j]! < d[i]![j]!) d[i]![j] = d[i]![k]! + d[k]![j]!;
  const farthest = Math.max(lengthOf(10), ...d.flat().filter(Number.isFinite));
  return d.map((row) => row.map((v) => (Number.isFinite(v) ? v : farthest * 1.5)));
}

/** Places for `count` members whose distances are `d`; `before` has the places of those that were there. */
export function majorize(d: number[][], before: (Point | undefined)[] = []): Point[] {
  const count = d.length;
  const radius = Math.max(1, ...d.flat()) / 2;
  const warm = before.filter(Boolean).length > count / 2;
  // A circle that is a little uneven: an even one is a balance point where nobody moves.
  let at: Point[] = d.map((_, i) => {
    const angle = (2 * Math.PI * i) / count - Math.PI / 2;
    const r = radius * (1 + 0.1 * ((i * 7) % 5));
    return before[i] ?? { x: r * Math.cos(angle), y: r * Math.sin(angle) };
  });
  for (let round = 0; round < (warm ? WARM_ROUNDS : FRESH_ROUNDS); round++) {
    at = at.map((p, i) => {
      let [x, y, weights] = [0, 0, 0];
      at.forEach((q, j) => {
        if (i === j) return;
        const weight = 1 / (d[i]![j]! * d[i]![j]!);
        const [dx, dy] = [p.x - q.x, p.y - q.y];
        const s = d[i]![j]! / Math.max(Math.hypot(dx, dy), 1e-6);
        x += weight * (q.x + dx * s);
        y += weight * (q.y + dy * s);
        weights += weight;
      });
      return weights > 0 ? { x: x / weights, y: y / weights } : p;
    });
  }
  return at;
}

/** The box that stands for a member: with room it shows the member's VMs, in a crowd its name only. */
export function boxOf(members: number, width: number, vms: boolean): { w: number; h: number; small: boolean } {
  if (members > 24) return { w: 86, h: 32, small: true };
  if (members > 12 || width < 460) return { w: width < 460 ? 92 : 96, h: 40, small: true };
  return { w: 148, h: vms ? 84 : 58, small: false };
}

/** Fits places into a page of `width` x `height` pixels, where each stands for a box of `box`; no two boxes overlap if there is room. */
export function fit(places: Point[], box: { w: number; h: number }, width: number, height: number): Point[] {
  const gap = 10;
  const [w, h] = [Math.max(width - box.w - gap, 1), Math.max(height - box.h - gap, 1)];
  const span = (values: number[]) => ({ low: Math.min(...values), size: Math.max(...values) - Math.min(...values) });
  const [sx, sy] = [span(places.map((p) => p.x)), span(places.map((p) => p.y))];
  // A row of members would be torn over the whole height: what is flat stays flatter.
  const even = Math.max(sx.size, sy.size, 1e-6);
  const scale = (v: number, s: { low: number; size: number }, room: number) =>
    ((v - s.low - s.size / 2) / Math.max(s.size, even / 4)) * room + room / 2;
  let at = places.map((p) => ({ x: scale(p.x, sx, w) + (box.w + gap) / 2, y: scale(p.y, sy, h) + (box.h + gap) / 2 }));
  const inside = (p: Point): Point => ({
    x: Math.min(Math.max(p.x, (box.w + gap) / 2), width - (box.w + gap) / 2),
    y: Math.min(Math.max(p.y, (box.h + gap) / 2), height - (box.h + gap) / 2),
  });
  for (let push = 0; push < PUSHES; push++) {
    let moved = false;
    const next = at.map((p) => ({ ...p }));
    for (let i = 0; i < at.length; i++)
      for (let j = i + 1; j < at.length; j++) {
        const [dx, dy] = [next[j]!.x - next[i]!.x, next[j]!.y - next[i]!.y];
        const [ox, oy] = [box.w + gap - Math.abs(dx), box.h + gap - Math.abs(dy)];
        if (ox <= 0.5 || oy <= 0.5) continue;
        moved = true;
        // The way out that is the shorter one.
        if (ox / width < oy / height) {
          const by = (ox / 2) * (dx >= 0 ? 1 : -1);
          next[i]!.x -= by;
          next[j]!.x += by;
        } else {
          const by = (oy / 2) * (dy >= 0 ? 1 : -1);
          next[i]!.y -= by;
          next[j]!.y += by;
        }
      }
    at = next.map(inside);
    if (!moved) break;
  }
  return at;
}
