// Dragging a VM onto a member with a mouse, a pen or a finger. It uses pointer events, because
// HTML's drag and drop does not support touch.

import { useEffect, useState } from "preact/hooks";

/** How many pixels a pressed pointer may move before it drags. */
const SLACK = 6;

export interface Drag {
  /** The dragged VM. */
  vm: string;
  x: number;
  y: number;
  /** The member below the pointer. */
  over: string | null;
}

/** Returns the drag, and the handler for `pointerdown` of a draggable element. */
export function useDrag(drop: (vm: string, member: string) => void): [Drag | null, (vm: string, event: PointerEvent) => void] {
  const [drag, setDrag] = useState<Drag | null>(null);
  const [held, setHeld] = useState<{ vm: string; x: number; y: number; pointer: number } | null>(null);

  useEffect(() => {
    if (!held) return;
    let last: Drag | null = null;
    const memberAt = (x: number, y: number) =>
      document.elementFromPoint(x, y)?.closest<HTMLElement>("[data-member]")?.dataset.member ?? null;
    const move = (e: PointerEvent) => {
      if (e.pointerId !== held.pointer) return;
      if (!last && Math.hypot(e.clientX - held.x, e.clientY - held.y) < SLACK) return;
      e.preventDefault();
      last = { vm: held.vm, x: e.clientX, y: e.clientY, over: memberAt(e.clientX, e.clientY) };
      setDrag(last);
    };
    const end = (e: PointerEvent) => {
      if (e.pointerId !== held.pointer) return;
      if (e.type === "pointerup" && last?.over) drop(held.vm, last.over);
      setDrag(null);
      setHeld(null);
    };
    const key = (e: KeyboardEvent) => {
      if (e.key !== "Escape") return;
      setDrag(null);
      setHeld(null);
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
    window.addEventListener("keydown", key);
    return () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
      window.removeEventListener("keydown", key);
    };
  }, [held, drop]);

  const take = (vm: string, event: PointerEvent) => {
    if (event.button !== 0) return;
    // The touched element captures a finger's pointer: release it, so that `elementFromPoint` finds
    // the element below.
    (event.target as Element).releasePointerCapture?.(event.pointerId);
    setHeld({ vm, x: event.clientX, y: event.clientY, pointer: event.pointerId });
  };
  return [drag, take];
}
