import { defineConfig } from "vite";

// daemon/build.rs puts `dist` into the program. Paths are relative, so that the page works below
// any address.
export default defineConfig({
  base: "./",
  build: {
    target: "es2022",
    // dist/.gitignore stays, so that cargo always has the directory to watch.
    emptyOutDir: false,
    // The page's Content-Security-Policy (daemon/src/web/access.rs) allows no data: address.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
});
