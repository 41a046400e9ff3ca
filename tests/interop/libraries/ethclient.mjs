// go-ethereum's ethclient, with rpc.Client and gethclient below and beside it.

import { calldata, goVersion, outcome, sleep } from "../support.mjs";
import { binary } from "./go.mjs";
import { Remote } from "./remote.mjs";

export { missing } from "./go.mjs";

export const name = "ethclient (Go)";
export const version = goVersion("go-ethereum");

export async function connect({ ws, http }) {
  const remote = Remote.start("ethclient", binary, ["ethclient", ws, http]);
  const subscribe = async (kind, arg, on) => {
    const stop = await remote.subscribe(on, "subscribe", kind, arg);
    // The answer to eth_unsubscribe it keeps for itself.
    return async () => void (await stop());
  };
  const call = (method, params) => remote.ask("call", method, params);
  const data = { double: calldata("double", 21), refuse: calldata("refuse", 5), refusePlainly: calldata("refusePlainly") };
  return {
    heads: (on) => subscribe("heads", null, on),
    logs: (filter, on) => subscribe("logs", filter, on),
    pending: (on) => subscribe("pending", null, on),
    pendingFull: (on) => subscribe("pendingFull", null, on),
    call,
    callHttp: (method, params) => remote.ask("call_http", method, params),
    many: (calls) => remote.ask("many", calls),
    batch: (calls) => remote.ask("batch", calls),
    reads: (facts) => ({ reads: () => remote.ask("reads", { ...facts, ...data }) }),
    send: (request, key) => remote.ask("send", request, key),
    closed: remote.closed,
    // The call that finds the connection closed may fail; each call dials again.
    back: async () => {
      while ((await outcome(call("eth_chainId", []))).error) await sleep(50);
    },
    close: () => remote.child.stop(),
  };
}
