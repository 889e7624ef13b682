// Places the map's members: the shorter their round trip, the nearer on the page. It uses stress
// majorization (Gansner, Koren and North: Graph Drawing by Stress Majorization, 2004) over round
// trips, then pushes overlapping boxes apart. The same input gives the same picture; a changed
// input begins from the previous picture, so that members do not jump.

export interface Point {
  x: number;
  y: number;
}

/** A known distance between two members, given by their indices in the list. */
export interface Known {
  a: number;
  b: number;
  rttMs: number;
}

/** How many rounds of majorization run without and with a previous picture. */
const FRESH_ROUNDS = 300;
const WARM_ROUNDS = 60;
/** How many times overlapping boxes are pushed apart at most. */
const PUSHES = 200;

/**
 * A round trip as a length. Long ones are compressed, so that two neighbours do not become one
 * point beside a distant third.
 */
export function lengthOf(rttMs: number): number {
  return Math.sqrt(Math.max(rttMs, 0) + 4);
}

/**
 * All distances: along known links if two members have none of their own; 1.5 times the longest if
 * no links connect them.
 */
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

/** Places for `count` members with distances `d`; `before` has the previous places. */
export function majorize(d: number[][], before: (Point | undefined)[] = []): Point[] {
  const count = d.length;
  const radius = Math.max(1, ...d.flat()) / 2;
  const warm = before.filter(Boolean).length > count / 2;
  // A slightly uneven circle: an even one is an equilibrium that majorization never leaves.
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
  return warm ? at : lain(at);
}

/** Rotates the places so that they are widest from left to right, like a page. */
function lain(at: Point[]): Point[] {
  const mean = (of: (p: Point) => number) => at.reduce((sum, p) => sum + of(p), 0) / at.length;
  const [mx, my] = [mean((p) => p.x), mean((p) => p.y)];
  const [xx, yy, xy] = [mean((p) => (p.x - mx) ** 2), mean((p) => (p.y - my) ** 2), mean((p) => (p.x - mx) * (p.y - my))];
  const angle = -Math.atan2(2 * xy, xx - yy) / 2;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return at.map((p) => ({ x: (p.x - mx) * cos - (p.y - my) * sin, y: (p.x - mx) * sin + (p.y - my) * cos }));
}

/** A member's box: it shows up to `vms` VMs if there is room, otherwise only the name. */
export function boxOf(members: number, width: number, vms: number): { w: number; h: number; small: boolean } {
  if (members > 24) return { w: 86, h: 32, small: true };
  if (members > 12 || width < 460) return { w: width < 460 ? 92 : 96, h: 40, small: true };
  return { w: 156, h: vms > 2 && members <= 7 ? 108 : vms > 0 ? 84 : 56, small: false };
}

/**
 * Coordinates as shares of the room, 0 to 1, half by their values and half by their order. Reason:
 * one that is far out would press the others together.
 */
function spread(values: number[]): number[] {
  const low = Math.min(...values);
  const size = Math.max(...values) - low;
  if (values.length < 2 || size < 1e-6) return values.map(() => 0.5);
  const order = [...values].sort((a, b) => a - b);
  return values.map((v) => {
    // Equal values share the middle of their ranks.
    const rank = (order.indexOf(v) + order.lastIndexOf(v)) / 2 / (values.length - 1);
    return ((v - low) / size + rank) / 2;
  });
}

/** A link's line from one end to the other; `bend` is the control point of a quadratic curve. */
export interface Line {
  a: Point;
  b: Point;
  bend: Point;
}

/** The line between two members: straight, or bent around a third member between them. */
export function lineOf(a: Point, b: Point, others: Point[], box: { w: number; h: number }): Line {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const far = Math.max(Math.hypot(dx, dy), 1);
  const middle = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
  // A box is as wide as its shadow on the line across.
  const reach = (box.w * Math.abs(dy) + box.h * Math.abs(dx)) / far / 2;
  for (const p of others) {
    const along = ((p.x - a.x) * dx + (p.y - a.y) * dy) / (far * far);
    const aside = ((p.x - a.x) * -dy + (p.y - a.y) * dx) / far;
    if (along < 0.1 || along > 0.9 || Math.abs(aside) > reach) continue;
    // To the side with the shorter detour; a quadratic curve reaches half-way to its control point.
    const past = aside > 0 ? aside - reach - 16 : aside + reach + 16;
    return { a, b, bend: { x: middle.x + (-dy / far) * past * 2, y: middle.y + (dx / far) * past * 2 } };
  }
  return { a, b, bend: middle };
}

/** A point on a line at a share of its length. */
export function pointOn({ a, b, bend }: Line, t: number): Point {
  const at = (of: (p: Point) => number) => (1 - t) * (1 - t) * of(a) + 2 * t * (1 - t) * of(bend) + t * t * of(b);
  return { x: at((p) => p.x), y: at((p) => p.y) };
}

/**
 * The places of the links' labels: on the visible part of the link, clear of boxes and of each
 * other if possible.
 */
export function labels(links: (Line & { w: number })[], boxes: Point[], box: { w: number; h: number }, height: number): Point[] {
  const set: { x: number; y: number; w: number }[] = [];
  const overlap = (p: Point, w: number, q: Point, qw: number, qh: number) =>
    Math.max(0, (w + qw) / 2 - Math.abs(p.x - q.x)) * Math.max(0, (height + qh) / 2 - Math.abs(p.y - q.y));
  return links.map(({ w, ...line }) => {
    const [dx, dy] = [line.b.x - line.a.x, line.b.y - line.a.y];
    const far = Math.max(Math.hypot(dx, dy), 1);
    const place = (t: number, aside: number) => {
      const on = pointOn(line, t);
      return { x: on.x - (dy / far) * aside, y: on.y + (dx / far) * aside };
    };
    const shares = [0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73];
    // If boxes cover the whole link, the label goes beside it.
    const places = [0, height * 1.2, -height * 1.2].flatMap((aside) => shares.map((t) => place(t, aside)));
    const cost = (p: Point) =>
      boxes.reduce((sum, q) => sum + overlap(p, w, q, box.w + 6, box.h + 6), 0) + set.reduce((sum, q) => sum + overlap(p, w + 4, q, q.w, height), 0);
    // The first of the best, which is the middle if that is free.
    const best = places.reduce((known, p) => (cost(p) < cost(known) - 1 ? p : known));
    set.push({ ...best, w });
    return best;
  });
}

/**
 * Fits places into a page of `width` x `height` pixels, each with a box of size `box`; boxes do not
 * overlap if there is room.
 */
export function fit(places: Point[], box: { w: number; h: number }, width: number, height: number): Point[] {
  // Large boxes leave room for a label between them.
  const gap = box.w > 120 ? 40 : 10;
  const edge = 6;
  const [w, h] = [Math.max(width - box.w - 2 * edge, 1), Math.max(height - box.h - 2 * edge, 1)];
  const [xs, ys] = [spread(places.map((p) => p.x)), spread(places.map((p) => p.y))];
  let at = places.map((_, i) => ({ x: xs[i]! * w + box.w / 2 + edge, y: ys[i]! * h + box.h / 2 + edge }));
  const inside = (p: Point): Point => ({
    x: Math.min(Math.max(p.x, box.w / 2 + edge), width - box.w / 2 - edge),
    y: Math.min(Math.max(p.y, box.h / 2 + edge), height - box.h / 2 - edge),
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
        // Along the shorter way out.
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
