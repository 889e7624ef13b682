// A user with a browser: opens the dashboard, moves a VM by dragging it, types into its console,
// takes a snapshot, and takes pictures of it all. node/tests/e2e_dashboard.rs runs it on a network
// of emulated hosts.

import assert from "node:assert/strict";
import { join } from "node:path";
import { SLOW, complaints, open, pictures, run, step, token, typed, url } from "./person.mjs";

const { context, page } = await open({ name: "desk", viewport: { width: 1280, height: 800 }, colorScheme: "dark" });
const shot = (name) => page.screenshot({ path: join(pictures, `dashboard-${name}.png`), animations: "disabled" });
const card = page.locator('[data-vm="web"]');
const host = async () => (await card.locator(".host").textContent()) ?? "";

await run(context, page, async () => {
  await step("without a token the page shows a login, and rejects a wrong one", async () => {
    await page.goto(url);
    await page.getByLabel("Token").fill("wrong");
    await page.getByRole("button", { name: "Open" }).click();
    await page.getByRole("alert").filter({ hasText: "p2pvm dashboard" }).waitFor();
    // The browser logs the expected 401 as an error.
    assert.ok(complaints.every((c) => c.includes("401")), complaints.join("\n"));
    complaints.length = 0;
  });

  await step("the link opens the page and leaves no token in the address", async () => {
    await page.goto(`${url}#token=${token}`);
    await card.waitFor();
    assert.equal(await page.evaluate(() => location.hash), "");
    assert.equal(await page.evaluate(() => document.cookie), "");
  });

  await step("the map shows every member and every link with its round trip, the list a decision with its reason", async () => {
    await page.waitForFunction(() => document.querySelectorAll(".node:not(.silent)").length === 4 && document.querySelectorAll(".rtt").length >= 6, null, { timeout: 60_000 });
    await page.locator(".panel .decisions li").filter({ hasText: "load" }).first().waitFor();
    const ways = await page.evaluate(() => [...document.querySelectorAll(".canvas path.link")].map((l) => l.getAttribute("class")));
    assert.ok(ways.some((w) => w.includes("direct")) && ways.some((w) => w.includes("relayed")), ways.join(", "));
    await page.locator(".health.ok").waitFor({ timeout: 60_000 });
    await page.waitForTimeout(1500);
    await shot("dark");
    await page.getByLabel("Theme").selectOption("light");
    await shot("light");
    await page.getByLabel("Theme").selectOption("auto");
  });

  await step("the offer is shown, and is switched off only after a question", async () => {
    const offer = page.locator(".panel.offer");
    await offer.locator(".state", { hasText: "open" }).waitFor();
    await offer.getByRole("button", { name: "Switch off…" }).click();
    await page.getByRole("button", { name: "Not now" }).click();
    await page.locator("dialog").waitFor({ state: "detached" });
    await offer.getByRole("button", { name: "Change…" }).click();
    await page.locator("dialog").getByLabel("VMs", { exact: true }).fill("40");
    await page.getByRole("button", { name: "Change the offer" }).click();
    await offer.getByRole("row", { name: /^VMs 40/ }).waitFor();
    await offer.getByRole("button", { name: "Dismiss" }).click();
  });

  await step("the console shows the guest and sends what the user types", async () => {
    await card.getByRole("button", { name: "Console" }).click();
    await page.locator(".console-state.ok").waitFor();
    await page.keyboard.press("Enter");
    await typed(page, "echo answer-$((40+2))", "answer-42");
    await shot("console");
    await page.keyboard.press("Control+]");
    await page.locator("dialog").waitFor({ state: "detached" });
  });

  const from = await host();
  const to = from === "london" ? "paris" : "london";
  await step(`dragged from ${from} to ${to}, the VM moves with progress`, async () => {
    const chip = page.locator(`.node[data-name="${from}"] .chip`, { hasText: "web" });
    await chip.hover();
    await page.mouse.down();
    const target = await page.locator(`.node[data-name="${to}"]`).boundingBox();
    await page.mouse.move(target.x + 30, target.y + 20, { steps: 12 });
    await page.locator(`.node.over[data-name="${to}"]`).waitFor();
    await shot("drag");
    await page.mouse.up();
    const go = page.getByRole("button", { name: `Move to ${to}` });
    await go.waitFor();
    await shot("move");
    await go.click();
    await card.locator("progress").waitFor();
    await page.waitForFunction(() => (document.querySelector("[data-vm=web] progress")?.value ?? 0) > 0, null, { timeout: SLOW });
    await shot("moving");
    await card.locator(".ended").waitFor({ timeout: SLOW });
    const said = await card.locator(".ended").textContent();
    assert.match(said, new RegExp(`web runs on ${to}: moved in`), said);
    await page.locator(`.node[data-name="${to}"] .chip`, { hasText: "web" }).waitFor();
    assert.equal(await host(), to);
    await shot("moved");
    await card.getByRole("button", { name: "Dismiss" }).click();
  });

  await step("the console reconnects when another user moves the VM", async () => {
    await card.getByRole("button", { name: "Console" }).click();
    await page.locator(".console-state.ok").waitFor();
    const moved = page.evaluate(
      async ([to]) => {
        const headers = { authorization: `Bearer ${sessionStorage.getItem("p2pvm-token")}`, "content-type": "application/json" };
        return (await fetch("api/vms/web/migrate", { method: "POST", headers, body: JSON.stringify({ to }) })).text();
      },
      [from],
    );
    await page.locator(".console-state.troubled").waitFor({ timeout: SLOW });
    assert.match(await moved, /"done"/);
    await page.locator(".console-state.ok").waitFor({ timeout: SLOW });
    await typed(page, "echo again-$((40+2))", "again-42");
    await page.keyboard.press("Control+]");
    await page.locator("dialog").waitFor({ state: "detached" });
  });

  await step("the VM moves by keyboard alone", async () => {
    await page.locator(`.node[data-name="${from}"] .chip`, { hasText: "web" }).waitFor();
    await page.getByLabel("Theme").focus();
    for (let n = 0; n < 80 && !(await page.evaluate(() => document.activeElement?.matches("[data-vm=web] .migrate"))); n++) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.locator("dialog[open]").waitFor();
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "detached" });
    await card.locator(".migrate").focus();
    await page.keyboard.press("Enter");
    // The chosen member has the focus as soon as the dialog is open; the arrow keys choose another.
    const chosen = page.locator("dialog[open] input:focus");
    const go = page.getByRole("button", { name: `Move to ${to}` });
    await chosen.waitFor();
    for (let n = await page.getByRole("radio").count(); n > 1 && !(await go.isVisible()); n--) {
      const before = await chosen.inputValue();
      await page.keyboard.press("ArrowDown");
      await page.waitForFunction((value) => document.querySelector("label.chosen input:focus")?.value !== value, before);
    }
    await go.waitFor();
    await page.keyboard.press("Enter");
    await page.locator("dialog").waitFor({ state: "detached" });
    await card.locator(".ended.ok").waitFor({ timeout: SLOW });
    await page.locator(`.node[data-name="${to}"] .chip`, { hasText: "web" }).waitFor();
    await card.getByRole("button", { name: "Dismiss" }).click();
  });

  await step("a snapshot is taken and listed, and the reasons are shown", async () => {
    await card.getByRole("button", { name: /Snapshots/ }).click();
    await page.getByLabel("New snapshot").fill("before-upgrade");
    await page.getByRole("button", { name: "Take it" }).click();
    await card.locator(".ended").waitFor({ timeout: SLOW });
    assert.match(await card.locator(".ended").textContent(), /snapshot before-upgrade is (durable|replicating|local)/);
    await card.getByRole("button", { name: "Dismiss" }).click();
    await card.getByRole("button", { name: "Snapshots (1)" }).click();
    await page.getByRole("button", { name: "Restore…" }).click();
    await shot("snapshots");
    await page.keyboard.press("Escape");
    await card.getByRole("button", { name: "Why?" }).click();
    await page.locator("dialog .decisions li").first().waitFor();
    await shot("why");
    await page.keyboard.press("Escape");
  });

  await step("on a phone the page fits, and a tap opens the console", async () => {
    const phone = await open({ name: "phone", viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 1, colorScheme: "light" });
    try {
      await phone.page.goto(`${url}#token=${token}`);
      await phone.page.locator('[data-vm="web"]').waitFor();
      await phone.page.locator(".node").nth(3).waitFor();
      await phone.page.waitForTimeout(1500);
      const [wide, room] = await phone.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(wide <= room, `${wide} > ${room}`);
      await phone.page.screenshot({ path: join(pictures, "dashboard-phone.png"), fullPage: true, animations: "disabled" });
      await phone.page.locator('[data-vm="web"]').getByRole("button", { name: "Console" }).tap();
      await phone.page.locator(".console-state.ok").waitFor();
      await phone.page.screenshot({ path: join(pictures, "dashboard-phone-console.png"), animations: "disabled" });
    } finally {
      await phone.context.close();
    }
  });
});
