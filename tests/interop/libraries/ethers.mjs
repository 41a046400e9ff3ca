// ethers v6: WebSocketProvider, and JsonRpcProvider over HTTP.

import { Contract, JsonRpcProvider, SocketSubscriber, Wallet, WebSocketProvider } from "ethers";
import { emitter, exactly, npmVersion, outcome, plainLog, same, until } from "../support.mjs";

export const name = "ethers";
export const version = npmVersion("ethers");
export const deflate = true;

/** ethers throws the answers to subscribe and unsubscribe away; this keeps them. */
class Provider extends WebSocketProvider {
  answers = { eth_subscribe: [], eth_unsubscribe: [] };

  async send(method, params) {
    const answer = await super.send(method, params);
    this.answers[method]?.push(answer);
    return answer;
  }

  async answer(method, action) {
    const before = this.answers[method].length;
    await action();
    return until(`an answer to ${method}`, () => this.answers[method].length > before).then(() => this.answers[method].at(-1));
  }
}

/** ethers' own way to add a subscription: unlike `provider.on` it passes on every event as it came. */
class Subscription extends SocketSubscriber {
  constructor(provider, filter, on) {
    super(provider, filter);
    this.on = on;
  }

  async _emit(_provider, message) {
    this.on(message);
  }
}

export async function connect({ ws, http }) {
  const provider = new Provider(ws);
  const web = new JsonRpcProvider(http, undefined, { batchMaxCount: 1 });
  const batching = new JsonRpcProvider(http, undefined, { batchStallTime: 20 });
  const subscribe = async (filter, on) => {
    const subscription = new Subscription(provider, filter, on);
    await provider.answer("eth_subscribe", () => subscription.start());
    return () => provider.answer("eth_unsubscribe", () => subscription.stop());
  };
  await provider.getNetwork();
  return {
    provider,
    heads: (on) => subscribe(["newHeads"], (head) => on(head.hash)),
    logs: (filter, on) => subscribe(["logs", filter], on),
    pending: (on) => subscribe(["newPendingTransactions"], on),
    pendingFull: (on) => subscribe(["newPendingTransactions", true], on),
    call: (method, params) => provider.send(method, params),
    callHttp: (method, params) => web.send(method, params),
    batch: (calls) => Promise.all(calls.map(([method, params]) => outcome(batching.send(method, params)))),
    reads: ({ block, blockHash, hash, account, contract, abi }) => {
      const target = new Contract(contract, abi, provider);
      return {
        getNetwork: async () => (await provider.getNetwork()).toJSON(),
        getBlock: async () => (await provider.getBlock(block)).toJSON(),
        getBlockWithTransactions: async () => (await provider.getBlock(blockHash, true)).prefetchedTransactions.map((tx) => tx.toJSON()),
        getTransactionReceipt: async () => (await provider.getTransactionReceipt(hash)).toJSON(),
        getBalance: () => provider.getBalance(account),
        getFeeData: async () => (await provider.getFeeData()).toJSON(),
        call: () => target.double(21),
        revert: () => target.refuse(5),
        revertPlainly: () => target.refusePlainly(),
        queryFilter: async () => (await target.queryFilter("Transfer", block, block)).map(({ args }) => args.toArray()),
      };
    },
    send: async ({ gas, ...request }, key) => {
      const wallet = new Wallet(key, provider);
      const response = await wallet.sendTransaction({ ...request, gasLimit: gas });
      const receipt = await response.wait(1, 15_000);
      return { hash: receipt.hash, logs: receipt.logs.map(({ index }) => index) };
    },
    closed: new Promise((done) => provider.websocket.on("close", done)),
    close: async () => {
      // destroy() leaves calls in flight as rejected promises that nobody can catch; let the last answers come first.
      if (provider.websocket.readyState === 1) await provider.getBlockNumber().catch(() => {});
      web.destroy();
      batching.destroy();
      await provider.destroy();
    },
  };
}

export const extras = {
  /** As people use it: provider.on("block"), contract.on(event), and removed logs on their own path. */
  async events(t) {
    const { provider } = await t.connect();
    const story = await t.story({ all: { address: t.chain.contract } });
    const blocks = [];
    const values = [];
    const [logs, dropped] = [[], []];
    await provider.answer("eth_subscribe", () => provider.on("block", (number) => blocks.push(number)));
    const contract = new Contract(t.chain.contract, emitter.abi, provider);
    await provider.answer("eth_subscribe", () => contract.on("Transfer", (_from, _to, value) => values.push(value)));
    const filter = { address: t.chain.contract };
    await provider.answer("eth_subscribe", () => provider.on(filter, (log) => logs.push(log)));
    await provider.on({ orphan: "drop-log", ...filter }, (log) => dropped.push(log));
    for (let n = 1; n <= 4; n++) await story.mine(n);
    await exactly("block numbers", blocks, story.heads.map((_, at) => story.base + 1 + at));
    await exactly("logs", logs.map(plainLog), story.logs.all.map(plainLog));
    const transfers = story.logs.all.filter(({ topics }) => topics.length === 3);
    await exactly("decoded values", values, transfers.map(({ data }) => BigInt(data)));
    same("dropped", dropped.length, 0);
  },
};
