// viem on a session, driven by tests/sessions: subscribes to heads and all logs, and prints what the application gets, an
// event a line. `slow` is the pause after each event, in milliseconds.

import { createPublicClient, webSocket } from "viem";

const [url, slow] = process.argv.slice(2);
const transport = webSocket(url, { reconnect: { attempts: 1_000_000, delay: 20 }, retryCount: 1_000, retryDelay: 20 });
const client = createPublicClient({ transport });

const queue = [];
const print = (line) => new Promise((done) => process.stdout.write(`${line}\n`, done));
const on = (event) => {
  queue.push(event);
  // A slow application keeps the process busy, as one does that computes.
  const until = Date.now() + Number(slow);
  while (Date.now() < until);
};
const describe = (event) =>
  "logIndex" in event
    ? `${event.removed ? "undo" : "log"} ${event.blockHash} ${event.logIndex}`
    : `head ${event.hash} 0x0`;
await client.transport.subscribe({ params: ["newHeads"], onData: ({ result }) => on(result), onError: () => {} });
await client.transport.subscribe({ params: ["logs", {}], onData: ({ result }) => on(result), onError: () => {} });
for (;;) {
  while (queue.length > 0) await print(describe(queue.shift()));
  await new Promise((done) => setTimeout(done, 5));
}
