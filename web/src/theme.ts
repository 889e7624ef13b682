// Light or dark: the system's theme unless the user chose one.

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

/** Stores the choice in the attribute that the style sheet reads. */
export function apply(): void {
  document.documentElement.dataset.theme = theme();
}
