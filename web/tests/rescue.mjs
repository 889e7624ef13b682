// A user who cancels a move, on the page that began it and on another, and restores a VM from a
// snapshot on another member. The links are slow, so that a move lasts long enough to be cancelled.

import assert from "node:assert/strict";
import { join } from "node:path";
import { SLOW, open, pictures, run, step, token, typed, url } from "./person.mjs";

const desk = await open({ name: "desk", viewport: { width: 1280, height: 800 }, colorScheme: "dark" });
const phone = await open({ name: "phone", viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 1, colorScheme: "light" });
const { page } = desk;

/** The VM's card on a page. */
const on = (page) => page.locator('[data-vm="web"]');
const card = on(page);
const where = async () => (await card.locator(".host").textContent()) ?? "";

/** Takes pictures of the page: dark and light on the desk, and, if asked, on the phone. */
async function shots(name, onPhone) {
  await page.screenshot({ path: join(pictures, `dashboard-${name}-dark.png`), animations: "disabled" });
  await page.getByLabel("Theme").evaluate((select) => {
    select.value = "light";
    select.dispatchEvent(new Event("change", { bubbles: true }));
  });
  await page.screenshot({ path: join(pictures, `dashboard-${name}-light.png`), animations: "disabled" });
  await page.getByLabel("Theme").evaluate((select) => {
    select.value = "auto";
    select.dispatchEvent(new Event("change", { bubbles: true }));
  });
  if (onPhone) await phone.page.screenshot({ path: join(pictures, `dashboard-${name}-phone.png`), animations: "disabled" });
}

async function inConsole(line, wanted) {
  await card.getByRole("button", { name: "Console" }).click();
  await page.locator(".console-state.ok").waitFor({ timeout: SLOW });
  await page.keyboard.press("Enter");
  await typed(page, line, wanted);
  await page.keyboard.press("Control+]");
  await page.locator("dialog").waitFor({ state: "detached" });
}

async function beginMove(to) {
  await card.locator(".migrate").click();
  await page.getByRole("radio", { name: to }).check();
  await page.getByRole("button", { name: `Move to ${to}` }).click();
  await page.waitForFunction(() => (document.querySelector("[data-vm=web] progress")?.value ?? 0) > 0, null, { timeout: SLOW });
}

async function dismiss() {
  await card.getByRole("button", { name: "Dismiss" }).click();
  await card.locator(".ended").waitFor({ state: "detached" });
}

/** Checks that no operation runs any more, on either page, and that the guest is where it was. */
async function stayed(at) {
  const said = await card.locator(".ended").textContent();
  assert.match(said, new RegExp(`^cancelled: web did not move and stays on ${at}`), said);
  assert.equal(await page.locator('[role="alert"]').count(), 0, "a cancelled move is no error");
  for (const seen of [page, phone.page]) {
    await on(seen).locator(".under-way").waitFor({ state: "detached" });
    await on(seen).locator(".state.running").waitFor();
  }
  assert.equal(await where(), at);
}

await run(phone.context, phone.page, () =>
  run(desk.context, page, async () => {
    // The page asks before it stops a VM.
    page.on("dialog", (question) => question.accept());
    for (const seen of [page, phone.page]) {
      await seen.goto(`${url}#token=${token}`);
      await on(seen).locator(".state.running").waitFor();
    }
    const from = await where();
    const to = from === "paris" ? "london" : "paris";

    await step("a snapshot holds the guest's memory", async () => {
      await inConsole("mark=before; echo is-$mark", "is-before");
      await card.getByRole("button", { name: /Snapshots/ }).click();
      await page.getByLabel("New snapshot").fill("good");
      await page.getByRole("button", { name: "Take it" }).click();
      await card.locator(".ended.ok").waitFor({ timeout: SLOW });
      await dismiss();
      await inConsole("mark=after; echo is-$mark", "is-after");
    });

    await step(`a move from ${from} to ${to} is cancelled on the page that began it, and the guest runs on`, async () => {
      await beginMove(to);
      await on(phone.page).locator(".cancel").waitFor();
      await on(phone.page).scrollIntoViewIfNeeded();
      await shots("giving-up", true);
      await card.getByRole("button", { name: "Cancel" }).click();
      await card.locator(".ended.cancelled").waitFor({ timeout: SLOW });
      await stayed(from);
      await shots("given-up", true);
      await dismiss();
      await inConsole("echo still-$mark", "still-after");
    });

    await step("a move is cancelled on another page", async () => {
      await beginMove(to);
      await on(phone.page).getByRole("button", { name: "Cancel" }).tap();
      await card.locator(".ended.cancelled").waitFor({ timeout: SLOW });
      await stayed(from);
      await dismiss();
    });

    await step("a running VM is not restored", async () => {
      await card.getByRole("button", { name: "Snapshots (1)" }).click();
      await page.getByRole("button", { name: "Restore…" }).click();
      await page.locator("dialog").getByText("stop it first").waitFor();
      assert.ok(await page.getByRole("button", { name: "Restore good" }).isDisabled());
      await shots("restore-refused", false);
      await page.keyboard.press("Escape");
      await page.locator("dialog").waitFor({ state: "detached" });
    });

    await step(`the stopped VM is restored on ${to} with the snapshot's memory`, async () => {
      await card.getByRole("button", { name: "Stop" }).click();
      await card.locator(".ended.ok").waitFor({ timeout: SLOW });
      await card.locator(".state.stopped").waitFor();
      await dismiss();
      await card.getByRole("button", { name: "Snapshots (1)" }).click();
      await page.getByRole("button", { name: "Restore…" }).click();
      await page.getByLabel("On member").selectOption({ label: to });
      await on(phone.page).getByRole("button", { name: "Snapshots (1)" }).tap();
      await phone.page.getByRole("button", { name: "Restore…" }).tap();
      await phone.page.getByRole("button", { name: "Restore good" }).scrollIntoViewIfNeeded();
      const [wide, room] = await phone.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(wide <= room, `${wide} > ${room}`);
      await shots("restore", true);
      await phone.page.getByRole("button", { name: "Close" }).tap();
      await phone.page.locator("dialog").waitFor({ state: "detached" });
      await page.getByRole("button", { name: "Restore good" }).click();
      await card.locator(".under-way progress").waitFor();
      await shots("restoring", false);
      await card.locator(".ended").waitFor({ timeout: SLOW });
      const said = await card.locator(".ended").textContent();
      assert.match(said, new RegExp(`web is running on ${to}`), said);
      await page.locator(`.node[data-name="${to}"] .chip`, { hasText: "web" }).waitFor();
      assert.equal(await where(), to);
      await shots("restored", true);
      await inConsole("echo back-$mark", "back-before");
    });
  }),
);
