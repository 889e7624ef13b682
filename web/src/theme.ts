// Light or dark: as the system says unless the person chose.

export type Theme = "auto" | "dark" | "light";
const KEY = "p2pvm-theme";

export function theme(): Theme {
  const kept = localStorage.getItem(KEY);
  return kept === "dark" || kept === "light" ? kept : "auto";
}

export function setTheme(to: Theme): void {
  if (to === "auto") localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, to);
  apply();
}

/** Puts the choice where the style sheet looks. */
export function apply(): void {
  document.documentElement.dataset.theme = theme();
}
