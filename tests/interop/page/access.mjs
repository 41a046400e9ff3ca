// Signing in and out, lost connections, and the policy of the page's content.

import { same, until } from "../support.mjs";
import { connected } from "./browser.mjs";
import { begin, figureIs, show } from "./panels.mjs";
import { Scene, TOKEN } from "./scene.mjs";

const stateIs = (page, state) => page.locator("#state", { hasText: new RegExp(`^${state}$`) }).waitFor();

/** The browser writes of its own that a request was refused, or found nobody. */
const forgive = (page, pattern) => (page.complaints = page.complaints.filter((text) => !pattern.test(text)));

export const access = {
  async "one signs in once, with the token"(after) {
    const { page } = await begin(after, { nodes: 1, token: TOKEN });
    await stateIs(page, "signed out");
    same("panels", await page.locator("#panels").isVisible(), false);
    same("the focus", await page.evaluate(() => document.activeElement.id), "token");
    await page.fill("#token", "wrong-wrong-wrong");
    await page.keyboard.press("Enter");
    await page.locator("#login-error", { hasText: "not the admin token" }).waitFor();
    await page.fill("#token", TOKEN);
    await page.click("#login button");
    await connected(page);
    await figureIs(page, "Clients", (clients) => clients === "0");
    same("the form", await page.locator("#login").isVisible(), false);
    same("the token is kept nowhere", await page.evaluate((token) => {
      const kept = JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie + location.href + document.getElementById("token").value;
      return kept.includes(token);
    }, TOKEN), false);
    await page.reload();
    await connected(page);
    await page.click("#logout");
    await stateIs(page, "signed out");
    await page.locator("#login").waitFor();
    await page.reload();
    await stateIs(page, "signed out");
    forgive(page, /status of 401/);
  },

  async "a lost connection is said, and comes back"(after) {
    const { scene, page } = await begin(after, { nodes: 1 });
    await scene.mine(2);
    await figureIs(page, "Head", (number) => number === scene.number(2));
    await scene.proxy.child.stop();
    await stateIs(page, "reconnecting");
    await page.locator("#notice", { hasText: /^Reconnecting: .*What is shown is from \d\d:\d\d:\d\d\.$/ }).waitFor();
    same("acts", await page.locator("#drain").isDisabled(), true);
    await scene.serve();
    await connected(page);
    await scene.mine();
    await figureIs(page, "Head", (number) => number === scene.number(3));
    same("the notice", await page.locator("#notice").isVisible(), false);
    same("acts", await page.locator("#drain").isDisabled(), false);
    forgive(page, /ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|WebSocket connection to/);
  },

  async "a session that ended shows the form"(after) {
    const { scene, page } = await begin(after, { nodes: 1, token: TOKEN });
    await page.fill("#token", TOKEN);
    await page.click("#login button");
    await connected(page);
    // A restart forgets the sessions.
    await scene.proxy.child.stop();
    await scene.serve();
    await stateIs(page, "signed out");
    await page.locator("#login").waitFor();
    forgive(page, /status of 401|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|WebSocket connection to/);
  },

  async "the policy forbids markup out of text, and other hosts"(after) {
    const scene = await Scene.start({ nodes: 1 });
    after(() => scene.stop());
    const page = await show(after, scene);
    await connected(page);
    const tried = await page.evaluate(async () => {
      const attempt = async (run) => Promise.resolve().then(run).then(() => "done", ({ name }) => name);
      return {
        markup: await attempt(() => (document.createElement("p").innerHTML = "<b>")),
        host: await attempt(() => fetch("http://127.0.0.2:1/")),
        script: await attempt(() => (document.createElement("script").textContent = "globalThis.ran = true")),
      };
    });
    same("what was tried", tried, { markup: "TypeError", host: "TypeError", script: "TypeError" });
    // The console and the events of the page come by two ways, in no order among each other.
    const breaches = [
      /^console: .*TrustedHTML/, /^console: Connecting to/, /^console: Fetch API/, /^console: .*TrustedScript/,
      /^policy: .*innerHTML/, /^policy: connect-src/, /^policy: .*textContent/,
    ];
    await until("breaches", () => breaches.every((breach) => page.complaints.some((text) => breach.test(text))));
    page.complaints.length = 0;
  },
};
