// What every scenario shares: bounded waits, child processes, the node, and the story of what the node's chain did.

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { isDeepStrictEqual } from "node:util";
import { WebSocket, WebSocketServer } from "ws";

export { many, outcome } from "./outcome.mjs";

export const here = path.dirname(fileURLToPath(import.meta.url));
export const emitter = JSON.parse(readFileSync(path.join(here, "contract/Emitter.json"), "utf8"));

// --- waiting and comparing ---------------------------------------------------------------------------------------

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Long enough that a second copy, or an event too many, would have come; used only to see that nothing comes. */
export const quiet = () => sleep(150);

/** Waits until `ready()` gives something truthy, and says what it waited for when that does not happen. */
export async function until(what, ready, ms = 15_000) {
  for (const deadline = Date.now() + ms; ; await sleep(5)) {
    const value = await ready();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited ${ms} ms for ${typeof what === "function" ? what() : what}`);
  }
}

export function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const brief = (value) => {
  const text = JSON.stringify(value, (_, v) => (typeof v === "bigint" ? `${v}n` : v)) ?? String(value);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
};

export function same(what, got, want) {
  if (isDeepStrictEqual(got, want)) return;
  if (Array.isArray(got) && Array.isArray(want)) {
    const at = [...got, ...want].findIndex((_, i) => !isDeepStrictEqual(got[i], want[i]));
    const sizes = `got ${got.length}, want ${want.length}`;
    throw new Error(`${what}: ${sizes}; first difference at [${at}]: got ${brief(got[at])}, want ${brief(want[at])}`);
  }
  throw new Error(`${what}: got ${brief(got)}, want ${brief(want)}`);
}

/** Waits for as many as are wanted, then a little longer for one too many, and compares. */
export async function exactly(what, got, want) {
  await until(() => `${what}: ${got.length} of ${want.length} came`, () => got.length >= want.length);
  await quiet();
  same(what, got, want);
}

// --- processes ---------------------------------------------------------------------------------------------------

const children = new Set();

/** A child process with its last lines of output, which are the best error message that it has. */
export class Child {
  constructor(name, command, args, options = {}) {
    this.name = name;
    this.lines = [];
    this.process = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"], ...options });
    children.add(this);
    this.exited = new Promise((done) => {
      const end = (code, signal) => {
        this.end = { code, signal };
        children.delete(this);
        done(this.end);
      };
      this.process.on("exit", end);
      this.process.on("error", (error) => {
        this.lines.push(String(error));
        end(null, null);
      });
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      let rest = "";
      stream.setEncoding("utf8").on("data", (text) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        this.lines.push(...lines);
        if (this.lines.length > 2000) this.lines.splice(0, 1000);
      });
    }
  }

  tail(count = 15) {
    return this.lines.slice(-count).map((line) => `    | ${line}`).join("\n");
  }

  /** The first group of `pattern` in the output. */
  async says(pattern, ms = 20_000) {
    const find = () => this.lines.map((line) => line.match(pattern)).find(Boolean)?.[1];
    const found = () => find() ?? (this.end ? "ended" : undefined);
    const value = await until("", found, ms).catch(() => undefined);
    if (find()) return find();
    const state = value === "ended" ? `ended with ${JSON.stringify(this.end)} before` : `in ${ms} ms did not come to`;
    throw new Error(`${this.name} ${state} saying ${pattern}; its last lines:\n${this.tail()}`);
  }

  /** Asks it to end; returns how it ended. One that does not listen is killed. */
  async stop(ms = 10_000) {
    if (!this.end) this.process.kill("SIGTERM");
    const patience = setTimeout(() => this.process.kill("SIGKILL"), ms);
    return this.exited.finally(() => clearTimeout(patience));
  }
}

export const stopAll = () => Promise.all([...children].map((child) => child.stop(3_000)));
process.on("exit", () => children.forEach((child) => child.process.kill("SIGKILL")));

const require = createRequire(import.meta.url);

/** The binary itself, not a launcher of it: ending a launcher would leave the node behind. */
function anvilBinary() {
  if (process.env.ANVIL_BIN) return process.env.ANVIL_BIN;
  const arch = { x64: "amd64", arm64: "arm64" }[process.arch] ?? process.arch;
  try {
    return require.resolve(`@foundry-rs/anvil-${process.platform}-${arch}/bin/anvil`);
  } catch {
    throw new Error("no anvil for this platform: run `npm ci` in tests/interop, or set ANVIL_BIN to one of version 1.7.1");
  }
}

export function proxyBinary() {
  const root = path.resolve(here, "../..");
  const target = path.resolve(root, process.env.CARGO_TARGET_DIR ?? "target");
  const binary = path.resolve(root, process.env.PROXY_BIN ?? path.join(target, "release/headwater"));
  if (!existsSync(binary)) throw new Error(`no ${binary}: build it with \`cargo build --release\`, or set PROXY_BIN`);
  return binary;
}

export function pythonBinary(venv = ".venv", requirements = "requirements.txt") {
  const python = path.join(here, venv, "bin/python");
  if (!existsSync(python)) throw new Error(`no ${python}: make the venv out of ${requirements}`);
  return python;
}

/** The version that `file` pins, to name a library by: `pattern` has it as its group. */
export const pinned = (file, pattern) => readFileSync(path.join(here, file), "utf8").match(pattern)[1];
export const npmVersion = (name) => pinned("package.json", new RegExp(`"${name}": "(.*)"`));
export const pipVersion = (name, file = "requirements.txt") => pinned(file, new RegExp(`^${name}==(.*)$`, "m"));
export const goVersion = (module) => pinned("go/go.mod", new RegExp(`${module} v(\\S+)`));

/** A proxy that serves, before one node or several. Port 0 takes any free one; `settings` are variables. */
export async function startProxy(upstream, port = 0, settings = {}, adminPort = 0) {
  const upstreams = [upstream].flat().flatMap((address) => ["--upstream", address]);
  const args = ["run", ...upstreams, "--listen", `127.0.0.1:${port}`, "--admin", `127.0.0.1:${adminPort}`];
  const child = new Child("headwater", proxyBinary(), args, { env: { ...process.env, ...settings } });
  const serving = await child.says(/serving on ws:\/\/127\.0\.0\.1:(\d+)/);
  adminPort = await child.says(/admin on http:\/\/127\.0\.0\.1:(\d+)/);
  const ready = () => fetch(`http://127.0.0.1:${adminPort}/ready`).then((r) => r.status === 200, () => false);
  await until("/ready", ready, 20_000).catch((error) => {
    throw new Error(`headwater is not ready (${error.message}); its last lines:\n${child.tail()}`);
  });
  const [ws, http] = ["ws", "http"].map((scheme) => `${scheme}://127.0.0.1:${serving}`);
  return { child, port: Number(serving), ws, http, admin: `http://127.0.0.1:${adminPort}` };
}

// --- the node ----------------------------------------------------------------------------------------------------

/** The tenth of anvil's well-known accounts, for libraries that sign; nothing else here sends from it. */
export const KEY = "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6";

const word = (value) => BigInt(value).toString(16).padStart(64, "0");
export const topicOf = (value) => `0x${word(value)}`;
export const hex = (value) => `0x${BigInt(value).toString(16)}`;

export const TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
export const NOTE = "0x65b360985453687445a7c456f6bbedbff9af3294dcd65b0fc5cc5140d337266d";
const SELECTOR = { emitMany: "0x3d23178e", double: "0xeee97206", refuse: "0xa60a07b2", refusePlainly: "0x64e1c79d" };
export const calldata = (name, ...args) => SELECTOR[name] + args.map(word).join("");

const ANVIL = {
  name: "anvil",
  launch: () => [anvilBinary(), ["--host", "127.0.0.1", "--port", "0", "--no-mining"]],
  listening: /Listening on 127\.0\.0\.1:(\d+)/,
  mine: (chain, count) => chain.rpc("anvil_mine", [hex(count)]),
};

/** A node that mines only when told to, with the Emitter contract on it. Spoken to directly, never by the proxy. */
export class Chain {
  static async start(node = ANVIL) {
    const chain = new Chain();
    chain.node = node;
    chain.child = new Child(node.name, ...node.launch());
    const port = await chain.child.says(node.listening, 60_000);
    chain.ws = `ws://127.0.0.1:${port}`;
    chain.http = `http://127.0.0.1:${port}`;
    chain.accounts = await chain.rpc("eth_accounts");
    await chain.deploy();
    return chain;
  }

  /** Mines a block with the contract. */
  async deploy() {
    const creation = { from: this.accounts[0], data: emitter.bytecode, gas: "0x300000" };
    const hash = await this.rpc("eth_sendTransaction", [creation]);
    await this.mine(1);
    this.contract = (await this.rpc("eth_getTransactionReceipt", [hash])).contractAddress;
  }

  /** Mines blocks in one go. */
  mine(count) {
    return this.node.mine(this, count);
  }

  async rpc(method, params = []) {
    const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
    const request = { method: "POST", headers: { "content-type": "application/json" }, body };
    const answer = await (await fetch(this.http, request)).json();
    if (answer.error) throw new Error(`${this.node.name} ${method}: ${JSON.stringify(answer.error)}`);
    return answer.result;
  }

  emission(count, from = this.accounts[0]) {
    this.emitted = (this.emitted ?? 0) + count;
    return { from, to: this.contract, gas: "0x100000", data: calldata("emitMany", this.emitted - count, count) };
  }

  /** Puts a transaction with so many transfers (and half as many notes) into the pool. */
  emit(count, from) {
    return this.rpc("eth_sendTransaction", [this.emission(count, from)]);
  }

  block(tag = "latest") {
    return this.rpc("eth_getBlockByNumber", [typeof tag === "number" ? hex(tag) : tag, false]);
  }
}

/** A log as plain data, whatever a library made of it. */
export const plainLog = (log) => ({
  address: log.address.toLowerCase(),
  topics: [...log.topics],
  data: log.data,
  blockHash: log.blockHash,
  blockNumber: Number(log.blockNumber),
  transactionHash: log.transactionHash,
  transactionIndex: Number(log.transactionIndex),
  logIndex: Number(log.logIndex ?? log.index),
  removed: log.removed,
});

/**
 * What the chain did since the story began, as the node tells it block by block: the heads, and for each named filter
 * the logs, with the `removed: true` ones that each reorg calls for. This is what a subscriber must be told.
 */
export class Story {
  static async begin(chain, filters = {}, { direct = false } = {}) {
    const story = new Story();
    Object.assign(story, { chain, filters, direct, blocks: [], heads: [] });
    story.base = Number((await chain.block()).number);
    story.logs = Object.fromEntries(Object.keys(filters).map((name) => [name, []]));
    return story;
  }

  /** Mines one block with a transaction for each of `counts`; returns the transactions' hashes. */
  async mine(...counts) {
    const hashes = [];
    for (const count of counts) hashes.push(await this.chain.emit(count));
    await this.mined(1);
    return hashes;
  }

  /** Mines `count` blocks in one go, so that their heads come as a burst. */
  async mined(count) {
    await this.chain.mine(count);
    await this.#adopt();
  }

  /** Mines blocks by a command of the node's own. */
  async command(method, params) {
    await this.chain.rpc(method, params);
    await this.#adopt();
  }

  /** Goes back by `depth` blocks to a snapshot and mines a block for each of `counts`. */
  async revert(snapshot, depth, counts) {
    same("evm_revert", await this.chain.rpc("evm_revert", [snapshot]), true);
    this.#drop(depth);
    for (const list of counts) await this.mine(...list);
  }

  /** Begins the chain anew from its genesis, with the contract in its first block. */
  async reset() {
    const before = [];
    for (let number = 0; number <= this.base; number++) before.push((await this.chain.block(number)).hash);
    await this.chain.rpc("hardhat_reset");
    this.#drop(this.blocks.length);
    await this.chain.deploy();
    // A block that comes out as it was, to the hash, is the same block, and nobody is told of it again.
    let same = 0;
    while (before[same] && before[same] === (await this.chain.block(same))?.hash) same++;
    this.base = same - 1;
    await this.#adopt();
  }

  /** Replaces the last `depth` blocks by as many new ones; `counts[i]` lists the transactions of the i-th. */
  async reorg(depth, counts) {
    this.#drop(depth);
    const transactions = counts.flatMap((list, at) => list.map((count) => [this.chain.emission(count), at]));
    await this.chain.rpc("anvil_reorg", [depth, transactions]);
    await this.#adopt();
  }

  #drop(depth) {
    const dropped = this.blocks.splice(this.blocks.length - depth);
    for (const name of Object.keys(this.filters)) {
      // anvil 1.7.1 never says what a reorg removed, so without the proxy nobody does.
      if (this.direct) break;
      for (const block of dropped) this.logs[name].push(...block.logs[name].map((log) => ({ ...log, removed: true })));
    }
  }

  async #adopt() {
    const latest = Number((await this.chain.block()).number);
    for (let number = this.base + this.blocks.length + 1; number <= latest; number++) {
      const { hash } = await this.chain.block(number);
      const logs = {};
      for (const [name, filter] of Object.entries(this.filters)) {
        logs[name] = await this.chain.rpc("eth_getLogs", [{ ...filter, blockHash: hash }]);
        this.logs[name].push(...logs[name]);
      }
      this.blocks.push({ hash, logs });
      this.heads.push(hash);
    }
  }

  /** Added minus removed must be what the node says in the end: for the story itself, else it proves nothing. */
  async check() {
    for (const [name, filter] of Object.entries(this.filters)) {
      const range = { ...filter, fromBlock: hex(this.base + 1), toBlock: "latest" };
      const left = this.blocks.flatMap((block) => block.logs[name]);
      same(`the story's own logs (${name})`, left, await this.chain.rpc("eth_getLogs", [range]));
      if (!this.direct) same(`added minus removed (${name})`, remaining(this.logs[name]), left.map(key));
    }
  }
}

const key = (log) => `${log.blockHash}/${Number(log.logIndex ?? log.index)}`;

/** What is left of a stream of logs when each `removed: true` takes its log away. A removal of nothing is an error. */
export function remaining(logs) {
  const left = new Set();
  for (const log of logs) {
    if (log.removed ? !left.delete(key(log)) : left.has(key(log))) throw new Error(`out of turn: ${brief(log)}`);
    if (!log.removed) left.add(key(log));
  }
  return [...left];
}

/** Passes frames between proxy and node, and counts what the node is asked for. */
export class Relay {
  static async start(upstream) {
    const relay = new Relay();
    Object.assign(relay, { counts: new Map(), byHash: new Map(), asked: new Map(), subscriptions: new Map() });
    relay.server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
    await new Promise((done) => relay.server.on("listening", done));
    relay.url = `ws://127.0.0.1:${relay.server.address().port}`;
    relay.server.on("connection", (near) => relay.#join(near, new WebSocket(upstream, { perMessageDeflate: false })));
    return relay;
  }

  #join(near, far) {
    const early = [];
    const mine = new Set();
    near.on("message", (data, binary) => {
      for (const request of [JSON.parse(data)].flat()) this.#request(request, mine);
      if (far.readyState === WebSocket.OPEN) far.send(data, { binary });
      else early.push([data, { binary }]);
    });
    far.on("open", () => early.forEach(([data, options]) => far.send(data, options)));
    far.on("message", (data, binary) => {
      const message = JSON.parse(data);
      for (const answer of [message].flat()) this.#answer(answer, mine);
      const pass = () => near.send(data, { binary });
      if (this.held && this.subscriptions.get(message.params?.subscription) === "newHeads") this.held.push(pass);
      else pass();
    });
    for (const [from, to] of [[near, far], [far, near]]) {
      from.on("error", () => {});
      from.on("close", () => {
        mine.forEach((id) => this.subscriptions.delete(id));
        to.close();
      });
    }
  }

  #request({ id, method, params = [] }, mine) {
    const form = params[0] === "newPendingTransactions" ? (params[1] === true ? " full" : " hashes") : "";
    const name = method === "eth_subscribe" ? `${method} ${params[0]}${form}` : method;
    this.counts.set(name, this.count(name) + 1);
    if (method === "eth_subscribe") this.asked.set(JSON.stringify(id), `${params[0]}${form}`);
    if (method === "eth_unsubscribe") {
      this.subscriptions.delete(params[0]);
      mine.delete(params[0]);
    }
    const block = { eth_getLogs: params[0]?.blockHash, eth_getBlockByHash: params[0] }[method];
    if (!block) return;
    if (!this.byHash.has(method)) this.byHash.set(method, new Map());
    const asked = this.byHash.get(method);
    asked.set(block, (asked.get(block) ?? 0) + 1);
  }

  #answer({ id, result }, mine) {
    const kind = this.asked.get(JSON.stringify(id));
    if (!kind || typeof result !== "string") return;
    this.asked.delete(JSON.stringify(id));
    this.subscriptions.set(result, kind);
    mine.add(result);
  }

  /** Keeps heads back until `release`. */
  hold() {
    this.held = [];
  }

  release() {
    const held = this.held ?? [];
    this.held = undefined;
    held.forEach((pass) => pass());
  }

  count(name) {
    return this.counts.get(name) ?? 0;
  }

  live(kind) {
    return [...this.subscriptions.values()].filter((other) => other === kind).length;
  }

  summary() {
    return [...this.counts].sort().map(([name, count]) => `${name} ×${count}`).join(", ");
  }

  stop() {
    this.server.clients.forEach((client) => client.terminate());
    this.server.close();
  }
}
