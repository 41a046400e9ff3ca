// The examples of docs/embedding.md, run as they stand there: a program with methods of its own inside headwater, and
// headwater as a module of a jsonrpsee server. Both before the real node, with ethers, viem and a plain client.

import { existsSync } from "node:fs";
import path from "node:path";
import { JsonRpcProvider, WebSocketProvider } from "ethers";
import { createPublicClient, webSocket } from "viem";
import { Child, here, hex, same, until } from "../support.mjs";
import { RawClient } from "./raw.mjs";

export const name = "embed";

/** Starts an example before the node; `cargo test` builds them. */
async function start(which, upstream) {
  const target = path.resolve(here, "../..", process.env.CARGO_TARGET_DIR ?? "target");
  const binary = path.join(target, "debug/examples", which);
  if (!existsSync(binary)) throw new Error(`no ${binary}: build it with \`cargo build --examples\``);
  const child = new Child(which, binary, [upstream, "127.0.0.1:0"]);
  const port = await child.says(/listening on ws:\/\/127\.0\.0\.1:(\d+)/);
  return { child, ws: `ws://127.0.0.1:${port}`, http: `http://127.0.0.1:${port}` };
}

const newest = async (chain) => (await chain.rpc("eth_getBlockByNumber", ["latest", false])).number;

export const extras = {
  /** A method and a subscription of the program, through ethers and over HTTP, beside headwater's own. */
  async program(t) {
    if (t.direct) return t.skip();
    const { child, ws, http } = await start("embed", t.chain.ws);
    const [provider, overHttp] = [new WebSocketProvider(ws), new JsonRpcProvider(http)];
    const client = await RawClient.open(ws);
    try {
      const rises = [];
      const id = await client.call("fees_subscribeRises", [0]);
      client.listen(id, (fee) => rises.push(fee));
      const heads = [];
      provider.on("block", (number) => heads.push(number));
      // Each block that was subscribed to arrives, for its fee is at least 0.
      await until("a block's fee", async () => {
        await t.chain.mine(1);
        return rises.length > 0 && heads.length > 0;
      });
      const last = BigInt(await newest(t.chain));
      await until("the newest block's fee", () => rises.some(({ block }) => BigInt(block) === last));
      same("blocks in order", rises.map(({ block }) => block), rises.map(({ block }) => block).sort((a, b) => a - b));
      const fees = rises.map(({ wei }) => wei);
      const average = await provider.send("fees_average", [1]);
      same("the average of one block", average, fees.at(-1));
      same("over HTTP", await overHttp.send("fees_average", [1]), average);
      same("beside the node's methods", BigInt(await overHttp.send("eth_blockNumber", [])), last);
      same("the end of the subscription", await client.call("fees_unsubscribeRises", [id]), true);
      const names = (await client.call("rpc_discover", [])).methods.map((method) => method.name);
      same("in the OpenRPC document", names.includes("fees_average") && names.includes("fees_subscribeRises"), true);
    } finally {
      client.close();
      overHttp.destroy();
      await provider.destroy();
      await child.stop();
    }
  },

  /** headwater's subscriptions and calls in a jsonrpsee server, through ethers and viem; and that server's rate limit. */
  async server(t) {
    if (t.direct) return t.skip();
    const { child, ws } = await start("jsonrpsee_server", t.chain.ws);
    const provider = new WebSocketProvider(ws);
    const viem = createPublicClient({ transport: webSocket(ws) });
    const client = await RawClient.open(ws);
    try {
      const [ofEthers, ofViem, logs] = [[], [], []];
      await provider.on("block", (number) => ofEthers.push(BigInt(number)));
      const unwatch = viem.watchBlockNumber({ onBlockNumber: (number) => ofViem.push(number) });
      const filter = { address: t.chain.contract };
      await provider.on(filter, (log) => logs.push(log));
      await until("both follow the chain", async () => {
        await t.chain.mine(1);
        return ofEthers.length > 0 && ofViem.length > 0;
      });
      await t.chain.emit(3);
      await t.chain.mine(1);
      const last = BigInt(await newest(t.chain));
      await until("the newest block", () => ofEthers.at(-1) === last && ofViem.at(-1) === last);
      const all = await t.chain.rpc("eth_getLogs", [{ ...filter, fromBlock: hex(last), toBlock: hex(last) }]);
      same("there are logs", all.length > 0, true);
      await until("the logs", () => logs.length === all.length);
      same("the chain's id", Number((await provider.getNetwork()).chainId), Number(await t.chain.rpc("eth_chainId", [])));
      same("a block", (await viem.getBlock()).number, last);
      unwatch();
      // 200 at once are within the limit, which belongs to one connection.
      const calls = Array.from({ length: 300 }, () => client.call("eth_chainId", []).then(() => 0, (error) => error.code));
      const codes = await Promise.all(calls);
      same("the only error", [...new Set(codes)].sort(), [-32005, 0]);
      same("calls within the burst", codes.filter((code) => code === 0).length >= 200, true);
      same("another connection", await provider.send("eth_chainId", []), await t.chain.rpc("eth_chainId", []));
    } finally {
      client.close();
      await provider.destroy();
      (await viem.transport.getRpcClient()).close();
      await child.stop();
    }
  },
};
