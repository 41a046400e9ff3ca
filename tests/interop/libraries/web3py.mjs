// web3.py 8, by a Python process that takes one command per line and says what happens one line each.

import path from "node:path";
import { Child, KEY, here, pythonBinary, until } from "../support.mjs";

export const name = "web3.py 8";

export async function connect({ ws, http }) {
  const child = new Child("web3.py", pythonBinary(), ["-u", path.join(here, "libraries/web3py.py"), ws, http]);
  const answers = new Map();
  const listeners = new Map();
  let rest = "";
  child.process.stdout.on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const said = JSON.parse(line);
      if ("event" in said) listeners.get(said.subscription)?.(said.event);
      else answers.set(said.id, said);
    }
  });
  let next = 1;
  const ask = async (command, ...args) => {
    const id = next++;
    child.process.stdin.write(`${JSON.stringify({ id, command, args })}\n`);
    const said = await until(`web3.py's ${command}`, () => {
      if (child.end) throw new Error(`web3.py ended; its last lines:\n${child.tail()}`);
      return answers.get(id);
    });
    if (said.error) throw Object.assign(new Error(said.error.message), said.error);
    return said.value;
  };
  const subscribe = async (kind, arg, on) => {
    const subscription = next;
    listeners.set(subscription, on);
    await ask("subscribe", kind, arg);
    return () => ask("unsubscribe", subscription);
  };
  await ask("connect");
  return {
    heads: (on) => subscribe("newHeads", null, (head) => on(head.hash)),
    logs: (filter, on) => subscribe("logs", filter, on),
    pending: (on) => subscribe("newPendingTransactions", false, on),
    pendingFull: (on) => subscribe("newPendingTransactions", true, on),
    call: (method, params) => ask("call", method, params),
    callHttp: (method, params) => ask("call_http", method, params),
    batch: (calls) => ask("batch", calls),
    reads: (facts) => ({ reads: () => ask("reads", facts), readsHttp: () => ask("reads_http", facts) }),
    send: (request) => ask("send", request, KEY),
    close: () => child.stop(),
  };
}
