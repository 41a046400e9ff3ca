// viem in a browser, bundled as a page would have it: over the browser's own WebSocket, and its fetch.

import { openPage } from "./browser.mjs";
import { Remote } from "./remote.mjs";
import * as viem from "./viem.mjs";

export { end, missing } from "./browser.mjs";

export const name = "viem (Chromium)";
export const { version } = viem;
export const deflate = true;

export async function connect(server, taste) {
  const page = await openPage((said) => remote.receive(said));
  let fail;
  const broken = new Promise((_, reject) => (fail = reject));
  const remote = new Remote(name, (message) => page.run("command", message).catch(fail), broken);
  const subscribe = (kind, ...args) => remote.subscribe(args.pop(), "subscribe", kind, ...args);
  await remote.ask("connect", { ws: server.ws, http: server.http }, taste);
  return {
    heads: (on) => subscribe("heads", on),
    logs: (filter, on) => subscribe("logs", filter, on),
    pending: (on) => subscribe("pending", on),
    pendingFull: (on) => subscribe("pendingFull", on),
    call: (method, params) => remote.ask("call", method, params),
    callHttp: (method, params) => remote.ask("callHttp", method, params),
    many: (calls) => remote.ask("many", calls),
    batch: (calls) => remote.ask("batch", calls),
    reads: (facts) => ({ reads: () => remote.ask("reads", facts) }),
    send: (request, key) => remote.ask("send", request, key),
    resumes: Boolean(taste?.reconnect),
    closed: remote.closed,
    close: async () => {
      await remote.ask("close");
      await page.close();
    },
  };
}
