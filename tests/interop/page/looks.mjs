// Keyboard, screen readers, colours and widths.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { same, until } from "../support.mjs";
import { PHONE, connected, open } from "./browser.mjs";
import { begin, figureIs, rows } from "./panels.mjs";
import { Scene, TOKEN, transfers } from "./scene.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What axe-core finds that is serious, one line each. */
async function findings(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  return serious.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target}: ${failureSummary.replace(/\s+/g, " ")}`));
}

const focused = (page) => page.evaluate(() => document.activeElement.id);

export const looks = {
  async "shortcuts, listed by ?, that can be switched off"(after) {
    const { page } = await begin(after, { nodes: 1 });
    await page.keyboard.press("?");
    const listed = await rows(page, "Shortcuts", (all) => all.length > 5);
    for (const [key, id, text] of [["1", "upstreams", "Upstreams"], ["8", "clients", "Clients"], ["/", "client-text", "find a client"], ["s", "try-kind", "try a subscription"]]) {
      same(`${key} is listed`, listed.some(([own, what]) => own === key && what === text), true);
      await page.keyboard.press("Escape");
      await page.evaluate(() => document.activeElement.blur());
      await page.keyboard.press(key);
      same(`the focus after ${key}`, await focused(page), id);
    }
    const theme = () => page.evaluate(() => [document.documentElement.dataset.theme ?? "system", getComputedStyle(document.body).backgroundColor]);
    await page.evaluate(() => document.activeElement.blur());
    const seen = [await theme()];
    for (let at = 0; at < 3; at++) {
      await page.keyboard.press("t");
      seen.push(await theme());
    }
    same("themes", seen.map(([name]) => name), ["system", "light", "dark", "system"]);
    same("colours", [seen[1][1] === seen[0][1], seen[2][1] === seen[0][1]], [true, false]);
    await page.keyboard.press("?");
    await page.getByLabel("shortcuts of a single key are on").uncheck();
    await page.keyboard.press("Escape");
    await page.keyboard.press("t");
    same("off", (await theme())[0], "system");
  },

  async "nothing serious for axe-core, in each theme and width"(after) {
    const scene = await Scene.start();
    after(() => scene.stop());
    await scene.client([["newHeads"], transfers], "reader");
    await scene.mine(12);
    await scene.reorg(2, 3);
    for (const options of [{ colorScheme: "light" }, { colorScheme: "dark" }, PHONE]) {
      // The policy would keep axe-core from its work; the other tests are under it.
      const page = await open(scene.proxy.admin, { ...options, bypassCSP: true });
      after(() => page.context().close());
      await connected(page);
      await rows(page, "Clients", (all) => all.length === 1);
      await until("the tree", async () => (await page.locator("#tree rect.dropped").count()) === 2);
      same("the page", await findings(page), []);
      await page.getByRole("button", { name: "Cordon upstream 0" }).click();
      same("a dialog", await findings(page), []);
      await page.keyboard.press("Escape");
    }
  },

  async "nothing serious for axe-core in the form"(after) {
    const { page } = await begin(after, { nodes: 1, token: TOKEN }, { bypassCSP: true });
    await page.locator("#login").waitFor();
    await page.fill("#token", "wrong-wrong-wrong");
    await page.click("#login button");
    await page.locator("#login-error", { hasText: "not the admin token" }).waitFor();
    same("the form", await findings(page), []);
    // What it is there to find, it finds.
    await page.evaluate(() => document.querySelector("label[for=token]").remove());
    same("a field without a name", (await findings(page)).some((text) => text.startsWith("label: #token")), true);
    page.complaints = page.complaints.filter((text) => !text.includes("status of 401"));
  },

  async "a phone's width holds the page, and rows keep the focus"(after) {
    const { scene, page } = await begin(after, {}, PHONE);
    await scene.client([["newHeads"], transfers], "x".repeat(90));
    await scene.mine(70);
    await figureIs(page, "Head", (number) => number === scene.number(70));
    await until("64 blocks", async () => (await page.locator("#tree rect").count()) === 64);
    const { width, all } = await page.evaluate(() => ({ width: innerWidth, all: document.documentElement.scrollWidth }));
    same("the width", [width, all], [390, 390]);
    same("the newest block is in sight", await page.locator("#tree").evaluate((tree) => tree.scrollWidth > tree.clientWidth && tree.scrollLeft + tree.clientWidth >= tree.scrollWidth - 2), true);
    const button = page.getByRole("button", { name: "Cordon upstream 1" });
    await button.focus();
    await scene.mine();
    await rows(page, "Upstreams by priority", (upstreams) => upstreams[1][3] === scene.number(71));
    same("the focus", await button.evaluate((own) => own === document.activeElement), true);
  },
};
