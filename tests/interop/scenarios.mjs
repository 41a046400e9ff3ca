// What every library is put through. A library gives a driver (see libraries/): one connection, made to its own taste,
// with `heads`, `logs`, `pending`, `call` and so on. What must come is always what the node itself says.

import { NOTE, TRANSFER, calldata, exactly, hex, outcome, plainLog, quiet, remaining, same, topicOf, until } from "./support.mjs";

export const UNKNOWN = "foo_bar";

const FILTERS = ({ contract }) => ({
  transfers: { address: contract, topics: [TRANSFER] },
  either: { address: contract, topics: [[TRANSFER, NOTE]] },
  receivers: { address: [contract, topicOf(0).slice(0, 42)], topics: [TRANSFER, null, [topicOf(1), topicOf(2)]] },
  nobody: { address: topicOf(7).slice(0, 42), topics: [TRANSFER] },
});

export const scenarios = {
  async heads(t) {
    const conn = await t.connect();
    const story = await t.story();
    const got = [];
    await conn.heads((hash) => got.push(hash));
    for (let n = 0; n < 7; n++) await story.mine();
    await story.mined(3);
    await exactly("heads", got, story.heads);
  },

  async logs(t) {
    const conn = await t.connect();
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
    for (const stop of stops) same("answer to eth_unsubscribe", await stop(), true);
    await story.mine(2);
    await story.mine(3);
    await exactly("heads of the subscription that stays", stays, story.heads);
    same("after unsubscribing", left, before);
  },

  async reorg(t) {
    const conn = await t.connect();
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
    for (const by of ["call", "callHttp"]) {
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

  async send(t) {
    const conn = await t.connect();
    if (!conn.send) return t.skip();
    let sent;
    // Mined on and on, as ethers looks for the receipt at each new head only.
    const sending = conn.send({ to: t.chain.contract, data: calldata("emitMany", 900, 2), gas: 200_000 });
    sending.then(() => (sent = true), () => (sent = true));
    await t.mineUntil("the receipt", () => sent);
    const { hash, logs } = await sending;
    const receipt = await t.chain.rpc("eth_getTransactionReceipt", [hash]);
    same("the receipt's logs", logs, receipt.logs.map(plainLog).map(({ logIndex }) => logIndex));
  },

  async batch(t) {
    const conn = await t.connect();
    if (!conn.batch) return t.skip();
    const node = await t.connectNode();
    const calls = (await ordinaryCalls(t.chain)).filter(([method]) => method !== UNKNOWN);
    const [got, want] = [await conn.batch(calls), await node.batch(calls)];
    same("answers", got.length, calls.length);
    calls.forEach((call, at) => same(`batch ${JSON.stringify(call)}`, got[at], want[at]));
  },
};

async function listen(conn, story) {
  const got = {};
  for (const [name, filter] of Object.entries(story.filters)) {
    got[name] = [];
    await conn.logs(filter, (log) => got[name].push(log));
  }
  return got;
}

async function compareLogs(got, story) {
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
  return chain.facts;
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
