// web3.py's blocking WebSocket provider: calls and batches, one at a time, and no subscriptions. Version 8 dropped it.

import path from "node:path";
import { here, outcome, pipVersion, pythonBinary, sleep } from "../support.mjs";
import { Remote } from "./remote.mjs";

const REQUIREMENTS = "requirements-web3-7.txt";

export const name = "web3.py sync";
export const version = pipVersion("web3", REQUIREMENTS);
export const deflate = true;

export async function connect({ ws, http }) {
  const python = pythonBinary(".venv-web3-7", REQUIREMENTS);
  const remote = Remote.start(name, python, ["-u", path.join(here, "libraries/web3py_sync.py"), ws, http]);
  const call = (method, params) => remote.ask("call", method, params);
  return {
    call,
    many: (calls) => remote.ask("many", calls),
    batch: (calls) => remote.ask("batch", calls),
    reads: (facts) => ({ reads: () => remote.ask("reads", facts) }),
    // The call that finds the connection closed fails, and the next one makes another.
    back: async () => {
      while ((await outcome(call("eth_chainId", []))).error) await sleep(50);
    },
    close: () => remote.child.stop(),
  };
}
