// The bare protocol over `ws`: what no library shows, byte for byte.

import WebSocket from "ws";
import { exactly, npmVersion, outcome, same, until, within } from "../support.mjs";
import { UNKNOWN, ordinaryCalls } from "../scenarios.mjs";

export const name = "ws (Node)";
export const version = npmVersion("ws");
export const deflate = true;

/** A JSON-RPC client that hides nothing: every message is kept in `frames`, with the time it came. */
export class RawClient {
  frames = [];
  waiting = new Map();
  listeners = new Map();
  early = new Map();
  next = 1;

  /** Over `ws`. */
  static async open(url, options) {
    const client = new RawClient();
    const socket = new WebSocket(url, options);
    client.socket = socket;
    client.closed = new Promise((done) => socket.on("close", done));
    socket.on("message", (data, binary) => client.receive(data.toString(), binary));
    await within(10_000, `connecting to ${url}`, new Promise((done, fail) => socket.on("open", done).on("error", fail)));
    return client;
  }

  receive(text, binary) {
    const message = JSON.parse(text);
    if (this.keep) this.frames.push({ text, message, binary, at: performance.now() });
    if (message.method && message.params?.subscription) {
      const { subscription } = message.params;
      const event = [message.params.result, text];
      const listener = this.listeners.get(subscription);
      if (listener) listener(...event);
      else this.early.set(subscription, [...(this.early.get(subscription) ?? []), event]);
      return;
    }
    const id = Array.isArray(message) ? message[0].id : message.id;
    this.waiting.get(id)?.(message);
    this.waiting.delete(id);
  }

  #exchange(id, payload) {
    const answer = new Promise((done) => this.waiting.set(id, done));
    this.socket.send(JSON.stringify(payload));
    return within(15_000, JSON.stringify(payload).slice(0, 120), answer);
  }

  async call(method, params) {
    const id = this.next++;
    const answer = await this.#exchange(id, { jsonrpc: "2.0", id, method, params });
    if (answer.error) throw Object.assign(new Error(answer.error.message), answer.error);
    return answer.result;
  }

  exchangeBatch(calls) {
    const payload = calls.map(([method, params]) => ({ jsonrpc: "2.0", id: this.next++, method, params }));
    return this.#exchange(payload[0].id, payload);
  }

  listen(id, listener) {
    this.listeners.set(id, listener);
    this.early.get(id)?.forEach((event) => listener(...event));
    this.early.delete(id);
  }

  async subscribe(params, listener) {
    const id = await this.call("eth_subscribe", params);
    this.listen(id, listener);
    return () => this.call("eth_unsubscribe", [id]);
  }

  close() {
    this.socket.terminate();
  }
}

/** The driver for whatever passes text: `client.socket` sends it, and `client.receive` is told what comes. */
export const driver = (client) => ({
  client,
  heads: (on) => client.subscribe(["newHeads"], (head) => on(head.hash)),
  logs: (filter, on) => client.subscribe(["logs", filter], on),
  pending: (on) => client.subscribe(["newPendingTransactions"], on),
  pendingFull: (on) => client.subscribe(["newPendingTransactions", true], on),
  texts: (params, on) => client.subscribe(params, (_result, text) => on(text)),
  call: (method, params) => client.call(method, params),
  batch: async (calls) => (await client.exchangeBatch(calls)).map(({ result, error }) => ({ result, error })),
  closed: client.closed,
  close: () => client.socket.terminate(),
});

export async function connect({ ws, http }) {
  return {
    ...driver(await RawClient.open(ws)),
    // The very bytes of the answer: over HTTP the proxy must not so much as reorder a member of the result.
    callHttp: (method, params) => post(http, { jsonrpc: "2.0", id: 1, method, params }),
  };
}

async function post(url, payload) {
  const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(payload) };
  return (await fetch(url, request)).text();
}

export const extras = {
  /** Frames: binary requests, ids byte for byte, answers always as text, deflate offered (as `ws` does by default). */
  async frames(t) {
    const { client } = await t.connect();
    client.keep = true;
    t.note(`permessage-deflate offered; extensions agreed on: ${client.socket.extensions || "none"}`);
    const ask = async (what, request, want) => {
      client.frames.length = 0;
      client.socket.send(request);
      await until(`an answer to ${what}`, () => client.frames.length, 5_000);
      const { text, binary } = client.frames[0];
      same(`frame type of the answer to ${what}`, binary, false);
      same(`answer to ${what}`, text.replaceAll(/\s/g, ""), want);
    };
    const request = (id) => `{"jsonrpc":"2.0","id":${id},"method":"eth_chainId","params":[]}`;
    const answer = (id) => `{"jsonrpc":"2.0","id":${id},"result":"0x7a69"}`;
    await ask("a binary frame", Buffer.from(request(7)), answer(7));
    await ask("a request without params", `{"jsonrpc":"2.0","id":8,"method":"eth_chainId"}`, answer(8));
    for (const id of ["0", "-1", "null"]) await ask(`id ${id}`, request(id), answer(id));
    for (const id of ["1.50", `"a\\u0041"`, "123456789012345678901234567890"]) {
      await t.gap(`anvil does not echo the id ${id}`, () => ask(`id ${id}`, request(id), answer(id)));
    }
  },

  /** E3: head N, then the logs of N, then head N+1. */
  async order(t) {
    const { client } = await t.connect();
    const story = await t.story({ all: {} });
    const seen = [];
    await client.subscribe(["logs", {}], (log) => seen.push(`log of ${log.blockHash}`));
    await client.subscribe(["newHeads"], (head) => seen.push(`head ${head.hash}`));
    for (let n = 0; n < 6; n++) await story.mine(n, 2);
    await until("all events", () => seen.length >= story.heads.length + story.logs.all.length);
    const blockByBlock = story.blocks.flatMap(({ hash, logs }) => [`head ${hash}`, ...logs.all.map(() => `log of ${hash}`)]);
    await t.gap("anvil orders nothing across subscriptions", () => same("heads and logs", seen, blockByBlock));
  },

  /** Transactions by sender and recipient, as providers offer them and no node does; each is the node's own. */
  async transactions(t) {
    if (t.direct) return t.skip();
    const { client } = await t.connect();
    const { chain } = t;
    const [from, other] = chain.accounts;
    const pending = [];
    const mined = [];
    const both = { addresses: [{ from, to: chain.contract }], includeRemoved: true };
    await client.subscribe(["alchemy_pendingTransactions", { fromAddress: from, toAddress: other }], (tx) => pending.push(tx));
    await client.subscribe(["alchemy_minedTransactions", both], (event) => mined.push(event));
    await client.subscribe(["newHeads"], (head) => mined.push(head.hash));
    const story = await t.story();
    const want = [];
    const block = async (...transactions) => {
      const sent = [];
      for (const transaction of transactions) sent.push(await chain.rpc("eth_sendTransaction", [transaction]));
      await until("pending transactions", () => pending.length >= sent.length - 1);
      const whole = await Promise.all(pending.splice(0).map(({ hash }) => chain.rpc("eth_getTransactionByHash", [hash])));
      same("pending", whole.map(({ hash }) => hash), sent.slice(0, -1));
      await story.mined(1);
      const { transactions: all } = await chain.rpc("eth_getBlockByHash", [story.heads.at(-1), true]);
      const fit = all.filter((tx) => tx.from === from.toLowerCase() && tx.to === chain.contract.toLowerCase());
      same("the first of them", fit.map(({ hash }) => hash), sent.slice(0, 1));
      want.push(story.heads.at(-1), ...fit.map((transaction) => ({ removed: false, transaction })));
    };
    const gift = (from, to) => ({ from, to, value: "0x1" });
    // The last one is from neither and to neither.
    await block(chain.emission(1, from), gift(chain.accounts[2], other), gift(other, chain.accounts[2]));
    await block(chain.emission(2, from), gift(from, chain.accounts[3]), chain.emission(1, other));
    await exactly("heads and mined transactions", mined, want);
    const removed = want.filter((event) => event.transaction).map(({ transaction }) => ({ removed: true, transaction }));
    want.push(...removed);
    await story.reorg(2, [[], []]);
    want.push(...story.heads.slice(-2));
    await exactly("the reorg", mined, want);
  },

  /** A batch is answered in request order, subscriptions in it included, and only then do their events come. */
  async "subscribe in batch"(t) {
    const { client } = await t.connect();
    client.keep = true;
    const story = await t.story();
    const calls = [["eth_chainId", []], ["eth_subscribe", ["newHeads"]], [UNKNOWN, []], ["eth_blockNumber", []]];
    const answers = await client.exchangeBatch(calls);
    same("ids", answers.map(({ id }) => id), [1, 2, 3, 4]);
    same("chain id", answers[0].result, "0x7a69");
    same("error in its place", Boolean(answers[2].error), true);
    const heads = [];
    client.listen(answers[1].result, (head) => heads.push(head.hash));
    await story.mine();
    await story.mine();
    await exactly("heads", heads, story.heads);
    same("frames", client.frames.length, 3);
    same("unsubscribe", await client.call("eth_unsubscribe", [answers[1].result]), true);
  },

  /** Answers over HTTP and over WebSocket, single and in an HTTP batch, must all be the node's. */
  async "http batch"(t) {
    const calls = await ordinaryCalls(t.chain);
    const payload = calls.filter(([method]) => method !== UNKNOWN).map(([method, params], id) => ({ jsonrpc: "2.0", id, method, params }));
    const [got, want] = await Promise.all([t.http, t.chain.http].map((url) => outcome(post(url, payload).then(JSON.parse))));
    same("answers", got.value, want.value);
  },
};
