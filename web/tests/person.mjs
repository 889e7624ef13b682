// Shared by the scripts that play a user with a browser. node/tests/e2e_dashboard.rs runs each on a
// network of emulated hosts:
//   node SCRIPT URL TOKEN PICTURES PROFILE

import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

export const [url, token, pictures, profile] = process.argv.slice(2);
/** Generous: a move of 128 MiB over 200 Mbit/s takes seconds, on a busy machine many. */
export const SLOW = 120_000;
const QUICK = 20_000;
const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);

/** The errors that the browser logged. */
export const complaints = [];
/** Requested addresses that are not the dashboard's. */
const strangers = new Set();

mkdirSync(pictures, { recursive: true });

/** A window of a new browser. */
export async function open(options) {
  // A new and empty profile, and no requests of the browser's own.
  const context = await chromium.launchPersistentContext(join(profile, options.name), {
    executablePath: program,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"],
    ...options,
  });
  const page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(QUICK);
  page.on("console", (m) => m.type() === "error" && complaints.push(m.text()));
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => !r.url().startsWith(url) && !r.url().startsWith(url.replace("http", "ws")) && strangers.add(r.url()));
  return { context, page };
}

export async function step(what, work) {
  const began = Date.now();
  await work();
  console.log(`${what}: ${((Date.now() - began) / 1000).toFixed(1)} s`);
}

/** Types a line into the open console, again if needed, until the screen shows the wanted text. */
export async function typed(page, line, wanted) {
  for (let tries = 0; ; tries++) {
    await page.keyboard.type(`${line}\n`, { delay: 15 });
    try {
      return await page.locator(".xterm-accessibility").filter({ hasText: wanted }).waitFor({ timeout: 3000 });
    } catch (error) {
      if (tries > 6) throw error;
    }
  }
}

/** Does the work, takes a picture if it fails, and closes the window. */
export async function run(context, page, work) {
  try {
    await work();
    assert.deepEqual([...strangers], [], "every request goes to the dashboard");
    assert.deepEqual(complaints, [], "the browser logs no error");
  } catch (error) {
    await page.screenshot({ path: join(pictures, "dashboard-failed.png") }).catch(() => {});
    console.error(error, complaints);
    process.exitCode = 1;
  } finally {
    await context.close();
  }
}
