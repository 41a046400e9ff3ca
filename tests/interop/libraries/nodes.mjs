// Hardhat and ganache as the node behind the proxy, where a developer's chain is made, taken back and made anew.

import { createRequire } from "node:module";
import { mkdtempSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Chain, exactly, here, hex, npmVersion, plainLog, remaining, same, startProxy, until } from "../support.mjs";
import { FILTERS, compareLogs, listen } from "../scenarios.mjs";
import * as raw from "./raw.mjs";

const require = createRequire(import.meta.url);

const HARDHAT = {
  name: "hardhat",
  launch() {
    const cli = require.resolve("hardhat/internal/cli/bootstrap.js");
    const home = mkdtempSync(path.join(os.tmpdir(), "hardhat-"));
    // It asks nothing, reports nothing, and keeps its files out of the user's.
    const quiet = { CI: "true", HARDHAT_DISABLE_TELEMETRY_PROMPT: "true", XDG_CONFIG_HOME: home, XDG_DATA_HOME: home, XDG_CACHE_HOME: home };
    const args = [cli, "--config", "hardhat.config.cjs", "node", "--hostname", "127.0.0.1", "--port", "0"];
    return [process.execPath, args, { cwd: here, env: { ...process.env, ...quiet } }];
  },
  listening: /JSON-RPC server at http:\/\/127\.0\.0\.1:(\d+)/,
  async mine(chain, count) {
    for (let n = 0; n < count; n++) await chain.rpc("evm_mine");
  },
};

const GANACHE = {
  name: "ganache",
  launch: () => [process.execPath, [path.join(here, "ganache.mjs")]],
  listening: /Listening on 127\.0\.0\.1:(\d+)/,
  mine: (chain, count) => chain.rpc("evm_mine", [{ blocks: count }]),
};

const POLLING = { HEADWATER_NODE_POLL_INTERVAL: "50ms" };

async function place(node, transport) {
  const chain = await Chain.start(node);
  return { chain, server: await startProxy(chain[transport], 0, POLLING) };
}

/** A client that must see each head, beside those that ask for more. */
async function bystander(t, ws) {
  const conn = await t.plain(ws);
  const heads = [];
  await conn.heads((hash) => heads.push(hash));
  conn.closed.then(() => (heads.closed = true));
  return heads;
}

/** A watcher and a bystander before a node of their own, which the scenario may ruin. */
async function alone(t, node, transport, scenario) {
  const { chain, server } = await place(node, transport);
  try {
    await t.settle(server.ws, chain);
    const story = await t.story(FILTERS(chain), chain);
    const heads = await bystander(t, server.ws);
    const got = await listen(await t.plain(server.ws), story);
    await scenario({ chain, server, story, heads, got });
    await exactly("heads", [...heads], story.heads);
    await compareLogs(got, story);
    for (const logs of Object.values(got)) remaining(logs);
    await story.check();
    same("the bystander was closed", heads.closed, undefined);
  } finally {
    await t.close();
    await server.child.stop();
    await chain.child.stop();
  }
}

/** Waits until all is told that the story has up to here: what nobody was told needs no taking back. */
async function told({ server, story, heads, got }) {
  await until(() => `${heads.length} of ${story.heads.length} heads came; ${server.child.tail(5)}`, () => heads.length >= story.heads.length);
  await compareLogs(got, story);
}

const sharedExtras = (node, transport) => ({
  /** Mined transactions by sender and recipient; neither node has `eth_getBlockReceipts`. */
  async mined(t) {
    const { client } = await t.connect();
    const { chain } = t;
    const [from] = chain.accounts;
    const told = [];
    await client.subscribe(["alchemy_minedTransactions", { addresses: [{ from, to: chain.contract }] }], (event) => told.push(event));
    const story = await t.story();
    const want = [];
    for (const count of [1, 2, 3]) {
      await story.mine(count, 1);
      const { transactions } = await chain.rpc("eth_getBlockByHash", [story.heads.at(-1), true]);
      want.push(...transactions.map((transaction) => ({ removed: false, transaction })));
    }
    await exactly("mined transactions", told, want);
  },

  /** These nodes serve no `eth_getBlockReceipts`: a block's receipts are fetched one by one. */
  receipts: (t) =>
    alone(t, node, transport, async (scene) => {
      const { chain, story, server } = scene;
      const { client } = await t.connectTo(server);
      const blocks = [];
      await client.subscribe(["transactionReceipts"], (receipts) => blocks.push(receipts));
      for (const count of [1, 2, 3]) await story.mine(count, 1);
      await until("the receipts of three blocks", () => blocks.length === 3);
      for (const receipts of blocks) {
        for (const receipt of receipts) {
          same("a receipt", receipt, await chain.rpc("eth_getTransactionReceipt", [receipt.transactionHash]));
        }
      }
    }),

  /** `evm_revert` and another branch: each log that was told is taken back, each new head is told. */
  evm_revert: (t) =>
    alone(t, node, transport, async (scene) => {
      const { chain, story } = scene;
      await story.mine(2);
      for (const depth of [1, 3]) {
        const snapshot = await chain.rpc("evm_snapshot");
        for (let n = 0; n < depth; n++) await story.mine(n + 1, 2);
        await told(scene);
        await story.revert(snapshot, depth, [[4], [3, 1]]);
        await story.mine(1);
        await told(scene);
      }
    }),
});

const hardhatExtras = (node, transport) => ({
  /** The chain begins anew from the same genesis: a reorg below the first block that was announced. */
  hardhat_reset: (t) =>
    alone(t, node, transport, async (scene) => {
      const { chain, story } = scene;
      for (const count of [1, 2, 3]) await story.mine(count);
      await told(scene);
      await story.reset();
      await story.mine(2);
      await story.mine(3, 1);
      for (let number = 0; number < 5; number++) await story.mine();
      await told(scene);
      // What a client asks for is the new chain's.
      const { client } = await t.connectTo(scene.server);
      const range = [{ fromBlock: "0x0", toBlock: "latest", address: chain.contract }];
      same("eth_getLogs", await client.call("eth_getLogs", range), await chain.rpc("eth_getLogs", range));
    }),

  /**
   * `hardhat_mine` of many blocks at once: all but a few are announced by nobody and name no parent. Each is a head in
   * the order of the numbers; what comes before and after is as ever, and so is an `evm_revert` below them.
   */
  hardhat_mine: (t) =>
    alone(t, node, transport, async (scene) => {
      const { chain, story, server } = scene;
      await story.mine(2);
      for (const count of [1, 5, 100, 700]) {
        await told(scene);
        const snapshot = await chain.rpc("evm_snapshot");
        await story.command("hardhat_mine", [hex(count)]);
        await story.mine(3);
        await told(scene);
        if (count !== 100) continue;
        await story.revert(snapshot, count + 1, [[1], [2]]);
        await told(scene);
      }
      const { client } = await t.connectTo(server);
      for (const [from, to] of [[0, 8], [5, 90], [50, 120], [100, 10_000]]) {
        const range = [{ fromBlock: hex(from), toBlock: hex(to), address: chain.contract }];
        const [mine, theirs] = [await client.call("eth_getLogs", range), await chain.rpc("eth_getLogs", range)];
        same(`eth_getLogs ${from} to ${to}`, mine.map(plainLog), theirs.map(plainLog));
      }
    }),
});

const row = (node, transport, extras) => {
  let placed;
  return {
    name: transport === "ws" ? node.name : `${node.name}, polled`,
    version: npmVersion(node.name),
    only: ["heads", "logs", "pending", "unsubscribe"],
    extras,
    connect: raw.connect,
    missing: ({ direct }) => direct && "a node is not put through itself",
    place: () => (placed ??= place(node, transport)),
  };
};

export const rows = ["ws", "http"].flatMap((transport) => [
  row(HARDHAT, transport, { ...sharedExtras(HARDHAT, transport), ...hardhatExtras(HARDHAT, transport) }),
  row(GANACHE, transport, sharedExtras(GANACHE, transport)),
]);
