import { defineConfig } from "vite";

// `dist` is what daemon/build.rs puts into the program. Paths are relative: the page knows nothing of where it is served.
export default defineConfig({
  base: "./",
  build: {
    target: "es2022",
    // dist/.gitignore stays, so that the directory is always there for cargo to watch.
    emptyOutDir: false,
    // The policy of the page allows no data: address but for the icon.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
});
