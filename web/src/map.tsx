// The map: members placed by their round trips, links coloured by path, VMs on their hosts.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Drag } from "./drag";
import { ms, percent } from "./format";
import { boxOf, distances, fit, labels, lineOf, majorize, type Known, type Point } from "./layout";
import { troubled, type Edge, type Member, type Network, type Way } from "./model";

/** Up to how many links all have labels; beyond, only the chosen member's have. */
const LABELLED = 15;
/** How many VMs a member shows by name in a row, and the height from which it has two rows. */
const CHIPS = 2;
const TALL = 100;
/** A label's height, pixels. */
const LABEL = 20;

const WAYS: [Way, string][] = [
  ["direct", "direct"],
  ["relayed", "relayed"],
  ["ring", "over the ring"],
  ["stream", "stream"],
];

interface Props {
  net: Network;
  drag: Drag | null;
  /** Null: the token only reads. */
  take: ((vm: string, event: PointerEvent) => void) | null;
  selected: string | null;
  select: (member: string | null) => void;
}

/** The current size of an element. */
function useSize(): [{ current: HTMLDivElement | null }, { width: number; height: number }] {
  const element = useRef<HTMLDivElement | null>(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  useEffect(() => {
    if (!element.current) return;
    const watch = new ResizeObserver(([entry]) => {
      if (entry) setSize({ width: entry.contentRect.width, height: entry.contentRect.height });
    });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return [element, size];
}

/**
 * Places that change only if members come or go, or a round trip changes a lot, so that jitter does
 * not move the picture.
 */
function usePlaces(net: Network): Point[] {
  const before = useRef(new Map<string, Point>());
  const coarse = (rtt: number) => Math.round(Math.log2(rtt + 2) * 2) / 2;
  const index = new Map(net.members.map((m, i) => [m.id, i]));
  const known: Known[] = net.edges
    .filter((e) => e.rttMs != null)
    .map((e) => ({ a: index.get(e.a)!, b: index.get(e.b)!, rttMs: e.rttMs! }))
    .filter((k) => k.a !== undefined && k.b !== undefined);
  const key = JSON.stringify([net.members.map((m) => m.id), known.map((k) => [k.a, k.b, coarse(k.rttMs)]).sort()]);
  return useMemo(() => {
    const places = majorize(
      distances(net.members.length, known),
      net.members.map((m) => before.current.get(m.id)),
    );
    before.current = new Map(net.members.map((m, i) => [m.id, places[i]!]));
    return places;
  }, [key]);
}

export function NetworkMap({ net, drag, take, selected, select }: Props) {
  const [element, { width, height }] = useSize();
  const places = usePlaces(net);
  const [hovered, setHovered] = useState<string | null>(null);
  const box = boxOf(net.members.length, width, Math.max(0, ...net.members.map((m) => m.vms.length)));
  const at = useMemo(() => (width > 0 ? fit(places, box, width, height) : []), [places, box.w, box.h, width, height]);
  const index = new Map(net.members.map((m, i) => [m.id, i]));
  const inView = hovered ?? selected;
  const crowded = net.edges.length > LABELLED;
  const touches = (e: Edge) => inView != null && (e.a === inView || e.b === inView);
  const ends = (e: Edge) => {
    const [a, b] = [at[index.get(e.a)!], at[index.get(e.b)!]];
    if (!a || !b) return [];
    // With many members every line would be bent.
    const others = box.small ? [] : at.filter((p) => p !== a && p !== b);
    return [{ edge: e, ...lineOf(a, b, others, box) }];
  };
  const lines = net.edges.flatMap(ends);
  const named = lines
    .filter(({ edge: e }) => e.rttMs != null && (inView ? touches(e) : !crowded))
    .map((line) => ({ ...line, text: ms(line.edge.rttMs), w: ms(line.edge.rttMs).length * 7.2 + 12 }));
  const spots = labels(named, at, box, LABEL);

  return (
    <section class="panel map" aria-label="Map of members and links">
      <div class="canvas" ref={element}>
        {at.length === net.members.length && (
          <>
            <svg width={width} height={height} aria-hidden="true">
              {lines.map(({ edge: e, a, b, bend }) => {
                const weight = inView ? (touches(e) ? "" : " dim") : crowded ? " faint" : "";
                return <path key={`${e.a} ${e.b}`} class={`link ${e.way}${weight}`} d={`M${a.x} ${a.y}Q${bend.x} ${bend.y} ${b.x} ${b.y}`} />;
              })}
              {named.map(({ edge: e, text, w }, i) => (
                <g key={`${e.a} ${e.b}`} class={`rtt ${e.way}`} transform={`translate(${spots[i]!.x} ${spots[i]!.y})`}>
                  <rect x={-w / 2} y={-LABEL / 2} width={w} height={LABEL} rx={LABEL / 2} />
                  <text dy="0.35em">{text}</text>
                </g>
              ))}
            </svg>
            {net.members.map((m, i) => (
              <Node
                key={m.id}
                member={m}
                at={at[i]!}
                box={box}
                small={box.small}
                over={drag?.over === m.id && !m.vms.some((vm) => vm.name === drag.vm)}
                selected={selected === m.id}
                take={take}
                hover={setHovered}
                select={() => select(selected === m.id ? null : m.id)}
              />
            ))}
          </>
        )}
      </div>
      <ul class="legend" aria-label="How packets go">
        {WAYS.map(([way, text]) => (
          <li key={way}>
            <svg width="26" height="8" aria-hidden="true">
              <line class={`link ${way}`} x1="1" y1="4" x2="25" y2="4" />
            </svg>
            {text}
          </li>
        ))}
        {take && <li class="hint">Drag a VM onto a member to move it there.</li>}
      </ul>
    </section>
  );
}

interface NodeProps {
  member: Member;
  at: Point;
  box: { w: number; h: number };
  small: boolean;
  over: boolean;
  selected: boolean;
  take: Props["take"];
  hover: (member: string | null) => void;
  select: () => void;
}

function Node({ member: m, at, box, small, over, selected, take, hover, select }: NodeProps) {
  const words = [m.name, m.here ? "this node" : "", m.heard ? "" : "not heard", m.cpu == null ? "" : `load ${percent(m.cpu)}`];
  const path = m.path ? `${m.path}, ${ms(m.rttMs)}` : "";
  const chips = box.h > TALL ? 2 * CHIPS : CHIPS;
  const shown = small ? [] : m.vms.slice(0, m.vms.length > chips ? chips - 1 : chips);
  return (
    <div
      class={`node${m.here ? " here" : ""}${m.heard ? "" : " silent"}${over ? " over" : ""}${selected ? " selected" : ""}${small ? " small" : ""}`}
      style={{ width: `${box.w}px`, height: `${box.h}px`, transform: `translate(${at.x - box.w / 2}px, ${at.y - box.h / 2}px)` }}
      data-member={m.id}
      data-name={m.name}
      onPointerEnter={() => hover(m.id)}
      onPointerLeave={() => hover(null)}
    >
      <button
        type="button"
        class="who"
        aria-pressed={selected}
        aria-label={[...words.filter(Boolean), path, `${m.vms.length} VMs`].filter(Boolean).join(", ")}
        title={[path, m.address, m.nat].filter(Boolean).join("\n")}
        onFocus={() => hover(m.id)}
        onBlur={() => hover(null)}
        onClick={select}
      >
        <span class="name">{m.name}</span>
        {small ? m.vms.length > 0 && <span class="count">{m.vms.length}</span> : <span class="load">{m.cpu == null ? "" : percent(m.cpu)}</span>}
      </button>
      <div class="gauge" aria-hidden="true">
        <div class={`fill${(m.cpu ?? 0) > 0.8 ? " high" : ""}`} style={{ width: percent(m.cpu ?? 0).replace(" ", "") }} />
      </div>
      {shown.length > 0 && (
        <div class="chips">
          {shown.map((vm) => (
            <span key={vm.id} class={`chip ${troubled(vm) ? "troubled" : vm.state}`} onPointerDown={(e) => take?.(vm.name, e)} title={`${vm.name}: ${vm.state}`}>
              {vm.name}
            </span>
          ))}
          {m.vms.length > shown.length && <span class="chip more">+{m.vms.length - shown.length}</span>}
        </div>
      )}
    </div>
  );
}
