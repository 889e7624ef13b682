// Streamed answers: one JSON value a line. An incomplete line waits for its end.

import type { Failure, Line, Step } from "./types";

/** A failure with the daemon's sentence, or this page's if the daemon gave none. */
export class Refused extends Error {
  constructor(
    readonly failure: Failure,
    readonly status = 0,
  ) {
    super(failure.message);
  }
}

/** Splits the received text into whole lines and the rest. */
export function cut(text: string): { lines: string[]; rest: string } {
  const parts = text.split("\n");
  const rest = parts.pop() ?? "";
  return { lines: parts.filter((line) => line.trim() !== ""), rest };
}

/** Reads lines until the answer's end; returns the result or throws the failure. */
export async function follow<Done>(chunks: AsyncIterable<Uint8Array>, onStep: (step: Step) => void): Promise<Done> {
  const decoder = new TextDecoder();
  let waiting = "";
  for await (const chunk of chunks) {
    const { lines, rest } = cut(waiting + decoder.decode(chunk, { stream: true }));
    waiting = rest;
    for (const text of lines) {
      const line: Line<Done> = JSON.parse(text);
      if ("progress" in line) onStep(line.progress);
      else if ("done" in line) return line.done;
      else if ("error" in line) throw new Refused(line.error);
    }
  }
  throw new Refused({ kind: "failed", message: "the daemon ended before it answered; the operation may go on: look at the VM's state" });
}
