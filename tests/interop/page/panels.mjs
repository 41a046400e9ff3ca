// Each panel shows what is so, and says so.

import { same, until } from "../support.mjs";
import { connected, open } from "./browser.mjs";
import { Scene, transfers } from "./scene.mjs";

/** A page before a scene; both end with the test, which fails if the page complained. */
export async function show(after, scene, options) {
  const page = await open(scene.proxy.admin, options);
  after(async () => {
    await page.context().close();
    same("complaints of the page", page.complaints, []);
  });
  return page;
}

export async function begin(after, settings, options) {
  const scene = await Scene.start(settings);
  after(() => scene.stop());
  const page = await show(after, scene, options);
  if (!settings?.token) await connected(page);
  return { scene, page };
}

/** Text of each cell of a table, row by row. */
export const cells = (page, label) =>
  page.locator(`table[aria-label="${label}"] tbody tr`).evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent)));

/** Waits for a table that satisfies `holds`. */
export async function rows(page, label, holds) {
  let seen;
  await until(() => `${label}: ${JSON.stringify(seen)}`, async () => holds((seen = await cells(page, label))));
  return seen;
}

/** Value and second line of a figure. */
export const figure = (page, name) =>
  page.locator("#figures dl > div", { has: page.locator("dt", { hasText: new RegExp(`^${name}$`) }) }).locator("dd").allTextContents();

export const figureIs = (page, name, holds) => until(`the figure ${name}`, async () => holds(...(await figure(page, name))));

export const event = (page, name, text) => page.locator("#events li", { has: page.locator(".badge", { hasText: name }), hasText: text }).first().waitFor();

const column = (table, at) => table.map((row) => row[at]);

export const panels = {
  async "upstreams: state, head, lag and calls of each"(after) {
    const { scene, page } = await begin(after);
    await scene.mine(3);
    const table = await rows(page, "Upstreams by priority", (all) => all.length === 2 && all.every((row) => row[3] === scene.number(3)));
    same("numbers", column(table, 0), ["0", "1"]);
    same("addresses", column(table, 1), scene.nodes.map(({ ws }) => ws));
    same("states", column(table, 2), ["active", "standby"]);
    same("connects", column(table, 7), ["1", "1"]);
    await figureIs(page, "Head", (number) => number === scene.number(3));
    same("the chain", (await page.textContent("#about")).includes("chain 1337"), true);
    same("readiness", await page.textContent("#readiness"), "ready");
  },

  async "subscriptions, deliveries and clients by kind"(after) {
    const { scene, page } = await begin(after);
    const socket = await scene.client([["newHeads"], ["newHeads"], transfers]);
    await scene.client([["newHeads"]]);
    await figureIs(page, "Clients", (clients) => clients === "2");
    await figureIs(page, "Subscriptions", (all, filters) => all === "4" && filters === "1 log filter");
    await scene.mine(4);
    const table = await rows(page, "Subscriptions by kind", (all) => all[0]?.[3] === "12");
    same("heads", [table[0][0], table[0][1]], ["newHeads", "3"]);
    same("logs", [table[1][0], table[1][1]], ["logs", "1"]);
    await until("the logs", async () => Number((await cells(page, "Subscriptions by kind"))[1][3].replace(",", "")) === socket.notified - 8);
    await rows(page, "Requests by outcome", (all) => all.some(([outcome, , total]) => outcome === "local result" && total === "4"));
    await page.click("#clients button:text('Refresh')");
    const clients = await rows(page, "Clients", (all) => all.length === 2 && all[0][10] !== "0");
    same("the subscriptions of the clients", column(clients, 6).sort(), ["logs, newHeads ×2", "newHeads"]);
    await page.selectOption("#client-kind", "logs");
    await rows(page, "Clients", (all) => all.length === 1 && all[0][6] === "logs, newHeads ×2");
    await page.fill("#client-text", "nobody");
    await page.locator("#clients .none").waitFor();
    same("the range", await page.textContent("#client-range"), "none");
  },

  async "clients are paged"(after) {
    const { scene, page } = await begin(after);
    for (let at = 0; at < 23; at++) await scene.client([["newHeads"]]);
    await figureIs(page, "Clients", (clients) => clients === "23");
    await page.click("#clients button:text('Refresh')");
    await rows(page, "Clients", (all) => all.length === 20);
    await page.click("#clients button:text('Next')");
    const last = await rows(page, "Clients", (all) => all.length === 3);
    same("the range", await page.textContent("#client-range"), "21–23 of 23");
    same("the last", last.at(-1)[0], "#0");
    await page.click("#clients button:text('Back')");
    await rows(page, "Clients", (all) => all.length === 20);
  },

  async "deliveries, bytes and latency are plotted"(after) {
    const { scene, page } = await begin(after);
    await scene.client([["newHeads"], transfers]);
    const drawn = (panel, line) => page.getAttribute(`#${panel} .line-${line}`, "d");
    await until("lines", async () => {
      await scene.mine();
      const lines = await Promise.all([drawn("latency", 0), drawn("latency", 1), drawn("deliveries", 0), drawn("bytes", 0), drawn("bytes", 1)]);
      return lines.every((line) => line?.includes("L"));
    });
    const label = await page.getAttribute("#latency svg", "aria-label");
    same(`a label with numbers: ${label}`, /p50 [\d.]+ m?s, p99 [\d.]+ m?s; highest within/.test(label), true);
    await figureIs(page, "Deliveries", (rate) => /^[1-9][\d.,k]*\/s$/.test(rate));
    await figureIs(page, "Sent", (rate) => /^[1-9][\d.]* k?M?B\/s$/.test(rate));
    await figureIs(page, "Latency p99", (value, more) => /^[\d.]+ m?s$/.test(value) && /^p50 [\d.]+ m?s, last minute$/.test(more));
  },

  async "a reorg is seen in the tree, in words, and in the feed"(after) {
    const { scene, page } = await begin(after);
    await scene.mine(5);
    const tree = (kind) => page.locator(`#tree rect.${kind}`);
    await until("the chain", async () => (await tree("canonical").count()) >= 5);
    // Earlier events are not spoken.
    await page.locator("#events [role=log][data-live]").waitFor();
    const { dropped, adopted } = await scene.reorg(2, 3);
    await until("dropped blocks", async () => (await tree("dropped").count()) === 2);
    same("their links", await page.locator("#tree path.dropped").count(), 2);
    same("the label", (await page.getAttribute("#tree svg", "aria-label")).endsWith("; 2 dropped"), true);
    await page.locator(".reorgs li", { hasText: new RegExp(`^2 blocks after ${scene.number(3)} dropped \\(0x.*, replaced from 0x`) }).waitFor();
    await event(page, "reorg", `2 blocks after ${scene.number(3)}`);
    await page.locator("#spoken", { hasText: `reorg: 2 blocks after ${scene.number(3)}` }).waitFor();
    // By keyboard: from the newest block, the sixth, to the left, and down to the branch.
    await page.focus("#tree");
    for (const key of ["ArrowLeft", "ArrowLeft", "ArrowDown"]) await page.keyboard.press(key);
    const detail = await page.textContent("#block");
    same(`the fourth block, dropped: ${detail}`, detail.startsWith(`${scene.number(4)} · dropped by a reorg · 0x`), true);
    same("its hash", dropped.some((hash) => detail.includes(hash)), true);
    same("adopted", adopted.length, 3);
  },

  async "a slow client is seen, and what a limit refuses"(after) {
    const lines = '[limits]\nrequests_per_second = 10\nrequest_burst = 40\nmax_batch = 10\n';
    const { scene, page } = await begin(after, { size: ["--transactions", "100", "--logs", "8"], lines });
    await scene.client([["newHeads"]]);
    await scene.slow("sloth");
    await until("a slow client", async () => {
      await scene.mine(2);
      return (await figure(page, "Queued"))[1] === "1 slow client";
    }, 40_000);
    same("the mark", await page.locator('#figures div[data-mark="warn"] dt', { hasText: "Queued" }).count(), 1);
    await page.click("#clients button:text('Refresh')");
    const [slowest] = await rows(page, "Clients", (all) => all.length > 0 && all[0][9] !== "–");
    same("the longest queue first", [slowest[1], slowest[6]], ["token sloth", "logs"]);
    // Its bytes may be in the write under way.
    same(`its queue: ${slowest}`, /^[\d.]+ [kM]?B$/.test(slowest[8]), true);
    await until("the queue", async () => (await page.textContent("#queues .pairs")).includes("Slow clients1"));

    const busy = await scene.client([], "busy");
    for (let id = 0; id < 100; id++) busy.send(JSON.stringify({ jsonrpc: "2.0", id, method: "eth_chainId" }));
    await until("answers", () => busy.answers.length === 100);
    await rows(page, "Refused by limit", (all) => all.some(([reason, , total]) => reason === "requests" && Number(total) >= 40));
    await event(page, "refused", "requests");
    const accounts = await rows(page, "Usage by account", (all) => all.some(([account]) => account === "token busy"));
    same("the account to which most was written", accounts[0][0], "token sloth");
    await page.selectOption("#usage-hours", "24");
    await rows(page, "Usage by account", (all) => all.some(([account, , , requests, refused]) => account === "token busy" && Number(requests) >= 40 && Number(refused) >= 40));
  },

  async "text of clients stays text"(after) {
    const { scene, page } = await begin(after);
    const hostile = '<img src=x onerror="breach(1)"><script>breach(2)</script>';
    await scene.client([["newHeads"]], hostile);
    await scene.mine();
    await page.click("#clients button:text('Refresh')");
    const shown = await rows(page, "Clients", (all) => all.length === 1);
    same("the account", shown[0][1].startsWith('token <img src=x onerror="breach'), true);
    same("pictures in the table", await page.locator("#clients img").count(), 0);
  },

  async "the page asks rarely"(after) {
    const { scene, page } = await begin(after);
    await scene.client([["newHeads"]]);
    await page.locator("#clients").scrollIntoViewIfNeeded();
    await scene.mine();
    await figureIs(page, "Head", (number) => number === scene.number(1));
    const sent = page.framesSent;
    const begun = Date.now();
    const seconds = () => (Date.now() - begun) / 1000;
    await until("six states", async () => seconds() > 6 && (await figure(page, "Head"))[1] !== "");
    same("at most one request a second", page.framesSent - sent <= seconds(), true);
  },
};
