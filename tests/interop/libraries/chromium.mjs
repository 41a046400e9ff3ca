// A browser's own WebSocket.

import { same, startProxy } from "../support.mjs";
import { openPage, origin } from "./browser.mjs";
import { RawClient, driver } from "./raw.mjs";

export { end, missing, version } from "./browser.mjs";

export const name = "WebSocket (Chromium)";
export const deflate = true;

async function open(ws) {
  const client = new RawClient();
  let tellClosed;
  client.closed = new Promise((done) => (tellClosed = done));
  const page = await openPage((said) => {
    if ("closed" in said) tellClosed(said.closed);
    else client.receive(said.text ?? said.binary, "binary" in said);
  });
  client.socket = { send: (text) => page.run("sendText", text), terminate: () => page.close() };
  return { client, opened: await page.run("openSocket", ws), page };
}

export async function connect({ ws }) {
  const { client, opened } = await open(ws);
  same("the socket", Boolean(opened.open), true);
  return driver(client);
}

/** Whether a page gets in, and what `extensions` of its socket says. */
async function attempt(ws) {
  const { opened, page } = await open(ws);
  await page.close();
  return opened;
}

export const extras = {
  /** What a page can see of what was agreed on. */
  async extensions(t) {
    if (t.direct) t.skip();
    same("without delivery.compression", (await attempt(t.ws)).extensions, "");
    const { extensions } = await attempt((await t.compressing()).ws);
    same("with delivery.compression", extensions.split(";")[0], "permessage-deflate");
  },

  /** server.origins: the page's own origin is let in where it is named, and only there. */
  async origins(t) {
    if (t.direct) t.skip();
    for (const [origins, want] of [[await origin(), true], ["https://elsewhere.example", undefined]]) {
      const proxy = await startProxy(t.chain.ws, 0, { HEADWATER_SERVER_ORIGINS: origins });
      same(`let in by ${origins}`, (await attempt(proxy.ws)).open, want);
      await proxy.child.stop();
    }
  },
};
