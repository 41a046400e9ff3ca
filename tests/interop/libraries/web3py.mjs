// web3.py's asynchronous WebSocketProvider, in a Python process.

import path from "node:path";
import { here, pipVersion, pythonBinary } from "../support.mjs";
import { Remote } from "./remote.mjs";

export const name = "web3.py async";
export const version = pipVersion("web3");
export const deflate = true;

export async function connect({ ws, http }) {
  const remote = Remote.start("web3.py", pythonBinary(), ["-u", path.join(here, "libraries/web3py.py"), ws, http]);
  const subscribe = (kind, arg, on) => remote.subscribe(on, "subscribe", kind, arg);
  await remote.ask("connect");
  return {
    heads: (on) => subscribe("newHeads", null, (head) => on(head.hash)),
    logs: (filter, on) => subscribe("logs", filter, on),
    pending: (on) => subscribe("newPendingTransactions", false, on),
    pendingFull: (on) => subscribe("newPendingTransactions", true, on),
    call: (method, params) => remote.ask("call", method, params),
    callHttp: (method, params) => remote.ask("call_http", method, params),
    many: (calls) => remote.ask("many", calls),
    batch: (calls) => remote.ask("batch", calls),
    reads: (facts) => ({ reads: () => remote.ask("reads", facts), readsHttp: () => remote.ask("reads_http", facts) }),
    send: (request, key) => remote.ask("send", request, key),
    closed: remote.closed,
    // By `async for`, its own way to come back; subscribing again is its user's.
    back: () => remote.ask("back"),
    close: () => remote.child.stop(),
  };
}
