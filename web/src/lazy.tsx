// A part that is loaded when it is first shown.

import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";

/** A component that loads itself and shows nothing until it is loaded. */
export function lazy<P extends object>(load: () => Promise<{ default: ComponentType<P> }>): ComponentType<P> {
  let loaded: ComponentType<P> | null = null;
  return (props: P) => {
    const [, shown] = useState(loaded !== null);
    useEffect(() => {
      void load().then((module) => {
        loaded = module.default;
        shown(true);
      });
    }, []);
    const Part = loaded;
    return Part ? <Part {...props} /> : null;
  };
}
