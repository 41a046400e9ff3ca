// Acts ask once, and act.

import { WebSocket } from "ws";
import { same, until } from "../support.mjs";
import { begin, cells, event, figureIs, rows } from "./panels.mjs";

const dialog = (page) => page.locator("dialog[open]");
const answer = (page, name) => dialog(page).getByRole("button", { name, exact: true }).click();
const closed = (page) => until("the dialog to close", async () => (await dialog(page).count()) === 0);
const states = async (page) => (await cells(page, "Upstreams by priority")).map((row) => row[2]);
const statesAre = (page, want) => rows(page, "Upstreams by priority", (all) => JSON.stringify(all.map((row) => row[2])) === JSON.stringify(want));
const done = (page, text) => page.locator("#notice", { hasText: `Done: ${text}` }).waitFor();

export const acts = {
  async "cordon asks, fails over, and is refused for the last one"(after) {
    const { scene, page } = await begin(after);
    const client = await scene.client([["newHeads"]]);
    await scene.mine(2);
    await statesAre(page, ["active", "standby"]);
    const button = page.getByRole("button", { name: "Cordon upstream 0" });
    await button.click();
    same("the focus", await page.evaluate(() => document.activeElement.textContent), "Cancel");
    await answer(page, "Cancel");
    await closed(page);
    same("nothing was done", await states(page), ["active", "standby"]);
    same("the focus is back", await button.evaluate((own) => own === document.activeElement), true);

    await button.click();
    await answer(page, "Cordon");
    await done(page, "upstream 0 is cordoned");
    await statesAre(page, ["cordoned", "active"]);
    await event(page, "failover", "(cordoned)");
    await event(page, "cordoned", scene.nodes[0].ws);
    await scene.mine(2);
    await until("heads of the other node", () => client.notified === 4);

    await page.getByRole("button", { name: "Cordon upstream 1" }).click();
    await answer(page, "Cordon");
    await dialog(page).locator(".error", { hasText: "calls would fail" }).waitFor();
    same("a choice", await dialog(page).locator("label", { hasText: "all the same" }).isVisible(), true);
    await page.keyboard.press("Escape");
    await closed(page);
    same("nothing was done", await states(page), ["cordoned", "active"]);

    await page.getByRole("button", { name: "Uncordon upstream 0" }).click();
    await answer(page, "Uncordon");
    await done(page, "upstream 0 is not cordoned any more");
    await rows(page, "Upstreams by priority", (all) => all[0][2] !== "cordoned");
  },

  async "a killed node is seen, and its error"(after) {
    const { scene, page } = await begin(after);
    const client = await scene.client([["newHeads"]]);
    await scene.mine(2);
    await statesAre(page, ["active", "standby"]);
    scene.nodes[0].child.process.kill("SIGKILL");
    await scene.nodes[0].child.exited;
    await statesAre(page, ["down", "active"]);
    await event(page, "failover", scene.nodes[1].ws);
    await rows(page, "Upstreams by priority", (all) => all[0][9] !== "");
    await scene.mine(2);
    await until("heads of the other node", () => client.notified === 4);
    await figureIs(page, "Head", (number) => number === scene.number(4));
    await rows(page, "Failovers by reason", (all) => all.some(([reason, , total]) => reason === "lost" && total === "1"));
  },

  async "disconnect closes the client"(after) {
    const { scene, page } = await begin(after);
    const [kept, gone] = [await scene.client([["newHeads"]], "kept"), await scene.client([["newHeads"]], "gone")];
    await page.fill("#client-text", "gone");
    const [row] = await rows(page, "Clients", (all) => all.length === 1 && all[0][1] === "token gone");
    await page.getByRole("button", { name: `Disconnect client ${row[0].slice(1)}` }).click();
    await answer(page, "Disconnect");
    await until("the close", () => gone.code);
    same("the code", gone.code, 1008);
    same("the other one", kept.readyState, WebSocket.OPEN);
    await event(page, "closed", "token gone");
    await rows(page, "Connections closed by reason", (all) => all.length === 1 && all[0][2] === "1");
    await page.locator("#clients .none").waitFor();
  },

  async "drain and undrain"(after) {
    const { scene, page } = await begin(after);
    const client = await scene.client([["newHeads"]]);
    await page.click("#drain");
    await dialog(page).locator("select").selectOption({ label: "are closed within a minute" });
    await answer(page, "Cancel");
    await page.click("#drain");
    await answer(page, "Drain");
    await done(page, "headwater is drained");
    await page.locator("#readiness", { hasText: "not ready: drained by the operator" }).waitFor();
    same("/ready", (await fetch(`${scene.proxy.admin}/ready`)).status, 503);
    same("the client", client.readyState, WebSocket.OPEN);
    await event(page, "drained", "503");
    await page.locator("#drain", { hasText: "Undrain…" }).click();
    await answer(page, "Undrain");
    await page.locator("#readiness", { hasText: /^ready$/ }).waitFor();
  },

  async "reload checks, applies, and shows the error"(after) {
    const { scene, page } = await begin(after);
    scene.write("[limits]\nmax_subscriptions = 7\n");
    await page.click("#reload");
    await dialog(page).locator("p", { hasText: "The configuration is valid. No changed setting waits for a restart." }).waitFor();
    await answer(page, "Reload");
    await done(page, "the configuration is applied");
    await event(page, "reloaded", "configuration applied");
    scene.write("[limits]\nmax_subscriptions = 'many'\n");
    await page.click("#reload");
    await dialog(page).locator("p", { hasText: /^Checked: .*max_subscriptions/ }).waitFor();
    await answer(page, "Reload");
    await dialog(page).locator(".error", { hasText: "max_subscriptions" }).waitFor();
    await answer(page, "Cancel");
    await closed(page);
  },

  async "a subscription is tried in the page"(after) {
    const { scene, page } = await begin(after);
    await page.click("#try button[type=submit]");
    await page.locator("#try-state", { hasText: /^subscribed: 0x/ }).waitFor();
    await scene.mine(2);
    const summary = page.locator("#try summary", { hasText: `block ${scene.number(2)} 0x` });
    await summary.click();
    await page.locator("#try details[open] pre", { hasText: '"parentHash": "0x' }).waitFor();
    await page.locator("#try-totals", { hasText: /^2 messages, / }).waitFor();
    await page.click("#try button[type=submit]");
    await page.locator("#try-state", { hasText: /^ended$/ }).waitFor();

    await page.selectOption("#try-kind", "logs");
    same("an example", (await page.inputValue("#try-options")).startsWith('{"topics":["0xddf252ad'), true);
    await page.click("#try button[type=submit]");
    await page.locator("#try-state", { hasText: /^subscribed: 0x/ }).waitFor();
    await scene.mine();
    await page.locator("#try summary", { hasText: `block ${scene.number(3)}, log 0, 0x` }).waitFor();
    await page.click("#try button[type=submit]");

    for (const [options, want] of [["{", "The options are not a JSON value."], ["7", /^refused: .+ \(-32602\)$/]]) {
      await page.fill("#try-options", options);
      await page.click("#try button[type=submit]");
      await page.locator("#try-state", { hasText: want }).waitFor();
    }
  },

  async "a client port that refuses the page is named"(after) {
    const { page } = await begin(after, { lines: '[server]\norigins = ["https://elsewhere.example"]\n' });
    await page.click("#try button[type=submit]");
    await page.locator("#try-state", { hasText: "server.origins has to list this page's origin" }).waitFor();
    // The browser writes of its own that a WebSocket failed.
    same("complaints", page.complaints.splice(0).every((text) => text.includes("WebSocket connection to")), true);
  },
};
