// What every library is put through. A library gives a driver (see libraries/): one connection, made to its own taste,
// with `heads`, `logs`, `pending`, `call` and so on. What must come is always what the node itself says.

import {
  KEY,
  NOTE,
  TRANSFER,
  calldata,
  emitter,
  exactly,
  hex,
  many,
  outcome,
  plainLog,
  quiet,
  remaining,
  same,
  startProxy,
  topicOf,
  until,
  within,
} from "./support.mjs";
import { Tap } from "./tap.mjs";
import { TRAFFIC } from "./traffic.mjs";

export const UNKNOWN = "eth_fooBar";

export const FILTERS = ({ contract }) => ({
  transfers: { address: contract, topics: [TRANSFER] },
  either: { address: contract, topics: [[TRANSFER, NOTE]] },
  receivers: { address: [contract, topicOf(0).slice(0, 42)], topics: [TRANSFER, null, [topicOf(1), topicOf(2)]] },
  nobody: { address: topicOf(7).slice(0, 42), topics: [TRANSFER] },
});

export const scenarios = {
  /** What it sends when it connects and subscribes (or calls, if it cannot), to the byte: see traffic.mjs. */
  async connect(t) {
    const tap = await Tap.start(t.ws);
    try {
      const conn = await t.connectTo({ ws: tap.ws, http: t.http });
      if (conn.heads) await conn.heads(() => {});
      else await conn.call("eth_chainId", []);
      await quiet();
      same("connections", tap.upgrades.length, 1);
      const traffic = seenBy(tap.upgrades[0]);
      t.note(`sends ${headersOf(traffic)}`);
      traffic.frames.forEach((frame) => t.note(`      ${frame}`));
      const want = TRAFFIC[t.library.name] ?? {};
      same("traffic", want.userAgent ? traffic : { ...traffic, userAgent: undefined }, { ...NOTHING, ...want });
      same("what is answered to the offer", tap.upgrades[0].got.header("sec-websocket-extensions"), undefined);
    } finally {
      await t.close();
      tap.stop();
    }
  },

  async heads(t) {
    const conn = await t.connect();
    if (!conn.heads) t.lacks();
    const story = await t.story();
    const got = [];
    await conn.heads((hash) => got.push(hash));
    for (let n = 0; n < 7; n++) await story.mine();
    await story.mined(3);
    await exactly("heads", got, story.heads);
  },

  async logs(t) {
    const conn = await t.connect();
    if (!conn.logs) t.lacks();
    const story = await t.story(FILTERS(t.chain));
    const got = await listen(conn, story);
    await story.mine(4);
    await story.mine(1, 5, 2);
    await story.mine();
    await story.mine(6, 6);
    await story.mined(2);
    await story.mine(3);
    await compareLogs(got, story);
  },

  async pending(t) {
    const conn = await t.connect();
    if (!conn.pending) t.lacks();
    const { chain } = t;
    const hashes = [];
    const full = [];
    await conn.pending((hash) => hashes.push(hash));
    await conn.pendingFull?.((tx) => full.push(tx.hash));
    const sent = [];
    for (let n = 0; n < 6; n++) sent.push(await chain.emit(1, chain.accounts[n % 3]));
    await exactly("pending hashes", hashes, sent);
    if (conn.pendingFull) await exactly("full pending transactions", full, sent);
    await chain.rpc("evm_mine");
  },

  async unsubscribe(t) {
    const conn = await t.connect();
    if (!conn.heads) t.lacks();
    const story = await t.story({ transfers: FILTERS(t.chain).transfers });
    const stays = [];
    const left = { heads: [], logs: [], pending: [] };
    await conn.heads((hash) => stays.push(hash));
    const stops = [
      await conn.heads((hash) => left.heads.push(hash)),
      await conn.logs(story.filters.transfers, (log) => left.logs.push(log)),
      await conn.pending((hash) => left.pending.push(hash)),
    ];
    await story.mine(2);
    await until("the first events", () => left.heads.length && left.logs.length >= 2 && left.pending.length);
    await exactly("heads", stays, story.heads);
    const before = structuredClone(left);
    for (const stop of stops) {
      const answer = await stop();
      // Some libraries keep it for themselves.
      if (answer !== undefined) same("answer to eth_unsubscribe", answer, true);
    }
    await story.mine(2);
    await story.mine(3);
    await exactly("heads of the subscription that stays", stays, story.heads);
    same("after unsubscribing", left, before);
  },

  async reorg(t) {
    const conn = await t.connect();
    if (!conn.heads) t.lacks();
    const story = await t.story(FILTERS(t.chain));
    const heads = [];
    await conn.heads((hash) => heads.push(hash));
    const got = await listen(conn, story);
    await story.mine(2);
    await story.mine(3, 1);
    await story.mine(4);
    // The blocks must have been told before they are dropped: what nobody was told needs no taking back.
    await compareLogs(got, story);
    await story.reorg(2, [[5], [1, 2]]);
    await story.mine(3);
    await compareLogs(got, story);
    await story.reorg(3, [[], [2], []]);
    await story.mine(1);
    await exactly("heads", heads, story.heads);
    await compareLogs(got, story);
    await story.check();
    if (!t.direct) for (const logs of Object.values(got)) remaining(logs);
  },

  async calls(t) {
    const [proxy, node] = [await t.connect(), await t.connectNode()];
    const calls = await ordinaryCalls(t.chain);
    await reached(t);
    for (const by of ["call", "callHttp"].filter((by) => proxy[by])) {
      for (const [method, params] of calls) {
        // anvil refuses it with other words over HTTP than over WebSocket, and the proxy knows the latter only.
        if (by === "callHttp" && method === UNKNOWN) continue;
        const [got, want] = await Promise.all([proxy, node].map((conn) => outcome(conn[by](method, params))));
        same(`${by} ${method} ${JSON.stringify(params)}`, got, want);
      }
    }
    const facts = await factsOf(t.chain);
    for (const [name, read] of Object.entries(proxy.reads?.(facts) ?? {})) {
      same(name, await outcome(read()), await outcome(node.reads(facts)[name]()));
    }
  },

  /** 500 of them, as many at once as the library can have under way. */
  async mixed(t) {
    const [proxy, node] = [await t.connect(), await t.connectNode()];
    const calls = await ordinaryCalls(t.chain);
    await reached(t);
    // Far from each other in the list, so that neighbours are of another kind; all of them come up.
    const mix = Array.from({ length: 500 }, (_, n) => calls[(n * 7) % calls.length]);
    const [got, want] = [await manyCalls(proxy, mix), await manyCalls(node, mix)];
    same("answers", got.length, mix.length);
    mix.forEach((call, at) => same(`call ${at}, ${JSON.stringify(call)}`, got[at], want[at]));
  },

  async send(t) {
    const conn = await t.connect();
    if (!conn.send) t.lacks();
    let sent;
    // Mined on and on, as ethers looks for the receipt at each new head only.
    const sending = conn.send({ to: t.chain.contract, data: calldata("emitMany", 900, 2), gas: 200_000 }, KEY);
    sending.then(() => (sent = true), () => (sent = true));
    await t.mineUntil("the receipt", () => sent);
    const { hash, logs } = await sending;
    const receipt = await t.chain.rpc("eth_getTransactionReceipt", [hash]);
    same("the receipt's logs", logs, receipt.logs.map(plainLog).map(({ logIndex }) => logIndex));
  },

  async batch(t) {
    const conn = await t.connect();
    if (!conn.batch) t.lacks();
    const node = await t.connectNode();
    const calls = (await ordinaryCalls(t.chain)).filter(([method]) => method !== UNKNOWN);
    await reached(t);
    const [got, want] = [await conn.batch(calls), await node.batch(calls)];
    same("answers", got.length, calls.length);
    calls.forEach((call, at) => same(`batch ${JSON.stringify(call)}`, got[at], want[at]));
  },

  /**
   * SIGTERM: clients are told 1012 and the process ends well. A library that comes back by itself goes on with the
   * successor, with its subscriptions (`resumes`) or without (`back`); any other one connects anew.
   */
  async restart(t) {
    if (t.direct) t.skip();
    const first = await startProxy(t.chain.ws);
    let second;
    try {
      const conn = await t.connectTo(first, { reconnect: true });
      const [before, after] = [[], []];
      if (conn.heads) {
        await conn.heads((hash) => (second ? after : before).push(hash));
        await t.mineUntil("the first head", () => before.length);
      }
      const ended = await first.child.stop();
      same("how the proxy ended", ended, { code: 0, signal: null });
      if (conn.closed) same("close code", await within(10_000, "the close frame", conn.closed), 1012);
      const back = conn.back?.();
      second = await startProxy(t.chain.ws, first.port);
      if (conn.resumes) t.note("comes back by itself, with its subscriptions");
      else if (back) {
        await back;
        t.note("comes back by itself; its user subscribes again");
      } else t.note("does not come back by itself: a new connection");
      const next = conn.resumes || back ? conn : await t.connectTo(second);
      if (!conn.heads) return same("eth_chainId", await outcome(next.call("eth_chainId", [])), await chainId(t));
      if (!conn.resumes) await next.heads((hash) => after.push(hash));
      await t.mineUntil("heads after the restart", () => after.length > 2);
      const { number } = await t.chain.rpc("eth_getBlockByHash", [after[0], false]);
      const want = [];
      for (const n of after.keys()) want.push((await t.chain.block(Number(number) + n)).hash);
      same("heads", after.slice(0, want.length), want);
    } finally {
      await t.close();
      await first.child.stop();
      await second?.child.stop();
    }
  },

  /** With delivery.compression, permessage-deflate is agreed on and used, and tells what a plain client is told. */
  async deflate(t) {
    if (t.direct) t.skip();
    if (!t.library.deflate) t.lacks();
    const proxy = await t.compressing();
    const tap = await Tap.start(proxy.ws);
    try {
      const conn = await t.connectTo({ ws: tap.ws, http: proxy.http }, { deflate: true });
      await t.settle(proxy.ws);
      const story = await t.story({ contract: { address: t.chain.contract } });
      const told = { heads: [], logs: [] };
      // To the byte where the library shows it: what `ws`, that offers nothing, is told.
      const texts = { plain: [], deflated: [] };
      if (conn.texts) {
        const plain = await t.plain(proxy.ws);
        for (const params of [["newHeads"], ["logs", story.filters.contract]]) {
          await plain.texts(params, (text) => texts.plain.push(withoutId(text)));
          await conn.texts(params, (text) => texts.deflated.push(withoutId(text)));
        }
      }
      if (conn.heads) {
        await conn.heads((hash) => told.heads.push(hash));
        await conn.logs(story.filters.contract, (log) => told.logs.push(plainLog(log)));
      }
      for (let n = 0; n < 4; n++) await story.mine(n, 2, 6);
      if (conn.heads) {
        await until("all logs", () => told.logs.length >= story.logs.contract.length);
        await story.reorg(2, [[3], [1]]);
        await story.mine(2);
        await exactly("heads", told.heads, story.heads);
        await exactly("logs", told.logs, story.logs.contract.map(plainLog));
      }
      if (conn.texts) {
        const count = story.heads.length + story.logs.contract.length;
        await until("all that `ws` is told", () => texts.plain.length >= count);
        same("what `ws` is told", texts.plain.length, count);
        await exactly("notifications", texts.deflated, texts.plain);
      }
      // An answer of some kilobytes; without subscriptions it is what is compressed.
      const range = [{ fromBlock: hex(story.base), toBlock: "latest", address: t.chain.contract }];
      const node = await t.connectNode();
      same("a long answer", await outcome(conn.call("eth_getLogs", range)), await outcome(node.call("eth_getLogs", range)));
      const [{ sent, got }] = tap.upgrades;
      const agreed = got.header("sec-websocket-extensions");
      const compressed = got.frames.filter((frame) => frame.compressed).length;
      t.note(`offers ${sent.header("sec-websocket-extensions")}`);
      t.note(`agreed on ${agreed}; ${compressed} of ${got.frames.length} frames compressed`);
      same("agreed on permessage-deflate", agreed?.split(";")[0], "permessage-deflate");
      same("compressed frames", compressed > 0, true);
    } finally {
      await t.close();
      tap.stop();
    }
  },
};

/** The columns of the table; what else a library is put through is its own. */
export const COLUMNS = Object.keys(scenarios);

/** By the driver's own way, where it is far from here. */
const manyCalls = (conn, calls) => conn.many?.(calls) ?? many(conn, calls);
const chainId = async (t) => outcome((await t.connectNode()).call("eth_chainId", []));
const withoutId = (text) => text.replace(/"subscription":"0x[0-9a-f]+"/, "");

const NOTHING = { origin: undefined, subprotocols: undefined, extensions: undefined, userAgent: undefined };

function headersOf({ frames, ...headers }) {
  const sent = Object.entries(headers).filter(([, value]) => value);
  return sent.map(([name, value]) => `${name} ${value}`).join("; ") || "no header of note";
}

/** What it sent up to here, without what is another in each run: ids drawn at random, versions, a port. */
function seenBy({ sent }) {
  return {
    origin: sent.header("origin")?.replace(/:\d+$/, ":<port>"),
    subprotocols: sent.header("sec-websocket-protocol"),
    extensions: sent.header("sec-websocket-extensions"),
    userAgent: sent.header("user-agent")?.replaceAll(/\/[\d.]+/g, ""),
    frames: sent.frames.map(({ kind, payload }) => {
      const text = payload.toString().replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/, "<uuid>");
      return `${kind} ${text}`.trim();
    }),
  };
}

export async function listen(conn, story) {
  const got = {};
  for (const [name, filter] of Object.entries(story.filters)) {
    got[name] = [];
    await conn.logs(filter, (log) => got[name].push(log));
  }
  return got;
}

export async function compareLogs(got, story) {
  for (const name of Object.keys(story.filters)) {
    const want = story.logs[name];
    await until(() => `${name}: ${got[name].length} of ${want.length} logs came`, () => got[name].length >= want.length);
  }
  await quiet();
  for (const name of Object.keys(story.filters)) {
    same(`logs (${name})`, got[name].map(plainLog), story.logs[name].map(plainLog));
  }
}

/** A block with transactions in it, and what hangs on it. */
async function factsOf(chain) {
  if (chain.facts) return chain.facts;
  const hash = await chain.emit(3);
  await chain.emit(2, chain.accounts[1]);
  await chain.rpc("evm_mine");
  const block = await chain.block();
  chain.facts = { hash, block: Number(block.number), blockHash: block.hash, contract: chain.contract, account: chain.accounts[0] };
  chain.facts.abi = emitter.abi;
  return chain.facts;
}

/** The newest block, which was mined over another connection, has reached the server under test: some milliseconds. */
async function reached(t) {
  const newest = await t.chain.rpc("eth_blockNumber");
  const number = () => t.chain.rpc.call({ http: t.http, node: t.chain.node }, "eth_blockNumber");
  await until("the newest block", async () => (await number()) === newest);
}

export async function ordinaryCalls(chain) {
  const { hash, block, blockHash, contract, account } = await factsOf(chain);
  const [number, nothing] = [hex(block), topicOf(0)];
  const call = (...data) => ({ from: account, to: contract, data: calldata(...data) });
  return [
    ["eth_chainId", []],
    ["net_version", []],
    ["web3_clientVersion", []],
    ["eth_syncing", []],
    ["eth_accounts", []],
    ["eth_blockNumber", []],
    ["eth_gasPrice", []],
    ["eth_maxPriorityFeePerGas", []],
    ["eth_blobBaseFee", []],
    ["eth_feeHistory", ["0x4", number, [10, 50]]],
    ["eth_getBlockByNumber", [number, false]],
    ["eth_getBlockByNumber", [number, true]],
    ["eth_getBlockByNumber", ["latest", false]],
    ["eth_getBlockByNumber", ["earliest", false]],
    ["eth_getBlockByNumber", ["0xffffff", false]],
    ["eth_getBlockByHash", [blockHash, false]],
    ["eth_getBlockByHash", [blockHash, true]],
    ["eth_getBlockByHash", [nothing, false]],
    ["eth_getBlockReceipts", [number]],
    ["eth_getBlockTransactionCountByNumber", [number]],
    ["eth_getBlockTransactionCountByHash", [blockHash]],
    ["eth_getUncleCountByBlockNumber", [number]],
    ["eth_getTransactionByHash", [hash]],
    ["eth_getTransactionByHash", [nothing]],
    ["eth_getTransactionByBlockNumberAndIndex", [number, "0x1"]],
    ["eth_getTransactionByBlockHashAndIndex", [blockHash, "0x0"]],
    ["eth_getTransactionReceipt", [hash]],
    ["eth_getTransactionReceipt", [nothing]],
    ["eth_getTransactionCount", [account, "latest"]],
    ["eth_getTransactionCount", [account, "pending"]],
    ["eth_getBalance", [account, "latest"]],
    ["eth_getBalance", [account, number]],
    ["eth_getCode", [contract, "latest"]],
    ["eth_getCode", [account, "latest"]],
    ["eth_getStorageAt", [contract, "0x0", "latest"]],
    ["eth_getProof", [contract, [], "latest"]],
    ["eth_getLogs", [{ address: contract, fromBlock: number, toBlock: number }]],
    ["eth_getLogs", [{ blockHash, topics: [[TRANSFER, NOTE]] }]],
    ["eth_getLogs", [{ blockHash: nothing }]],
    ["eth_call", [call("double", 21), "latest"]],
    ["eth_call", [call("refuse", 5), "latest"]],
    ["eth_call", [call("refusePlainly"), number]],
    ["eth_estimateGas", [call("emitMany", 0, 2)]],
    ["eth_estimateGas", [call("refusePlainly")]],
    ["eth_createAccessList", [call("double", 1), "latest"]],
    ["eth_sendRawTransaction", ["0x00"]],
    [UNKNOWN, []],
  ];
}
