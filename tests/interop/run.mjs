// Real web3 libraries against the proxy in front of a real node (anvil).
//
//   node run.mjs [--direct] [--only <library or scenario>]
//
// --direct leaves the proxy out: it shows that the tests themselves hold for a node, apart from what anvil lacks.

import { parseArgs } from "node:util";
import { Chain, Story, hex, sleep, startProxy, stopAll, until, within } from "./support.mjs";
import { scenarios } from "./scenarios.mjs";
import * as examples from "./libraries/examples.mjs";
import * as ethers from "./libraries/ethers.mjs";
import * as proxyTests from "./libraries/proxy.mjs";
import * as raw from "./libraries/raw.mjs";
import * as viem from "./libraries/viem.mjs";
import * as web3js from "./libraries/web3js.mjs";
import * as web3py from "./libraries/web3py.mjs";

const LIBRARIES = [raw, ethers, viem, web3js, web3py, examples, proxyTests];
const SCENARIO_LIMIT = 120_000;

const { values: options } = parseArgs({ options: { direct: { type: "boolean" }, only: { type: "string" } } });

class Skipped extends Error {}

/** What one scenario sees: where to connect, the node to compare with, and what it may excuse. */
class Test {
  constructor(library, server, chain) {
    Object.assign(this, { library, chain, ws: server.ws, http: server.http, direct: Boolean(options.direct), notes: [], open: [] });
  }

  async #connect(server) {
    const conn = await this.library.connect(server);
    this.open.push(conn);
    return conn;
  }

  connect() {
    return this.#connect(this);
  }

  connectNode() {
    return this.#connect(this.chain);
  }

  story(filters) {
    return Story.begin(this.chain, filters, { direct: this.direct });
  }

  /** Runs a check that anvil itself is known to fail: with the proxy it counts, without it is only noted. */
  async gap(reason, check) {
    try {
      await check();
    } catch (error) {
      if (!this.direct) throw error;
      this.note(reason);
    }
  }

  note(text) {
    this.notes.push(text);
  }

  skip() {
    throw new Skipped();
  }

  /** Waits until the server tells of the node's newest block, so that no event of an earlier scenario is still under way. */
  async settle(ws = this.ws) {
    const client = await raw.RawClient.open(ws);
    try {
      const seen = new Set();
      await client.subscribe(["newHeads"], ({ hash }) => seen.add(hash));
      await this.chain.rpc("anvil_mine", [hex(1)]);
      const { hash } = await this.chain.block();
      await until("the newest head, before the scenario", () => seen.has(hash));
    } finally {
      client.close();
    }
  }

  async mineUntil(what, ready) {
    await until(what, async () => {
      await this.chain.rpc("evm_mine");
      await sleep(100);
      return ready();
    });
  }

  async close() {
    for (const conn of this.open.splice(0)) {
      const closed = within(10_000, "closing", Promise.resolve().then(() => conn.close()));
      await closed.catch((error) => this.note(`close: ${error.message}`));
    }
  }
}

// A library that throws where nobody can catch it has failed its user: that is a failure of the scenario under way.
const stray = [];
process.on("unhandledRejection", (error) => stray.push(error));
process.on("uncaughtException", (error) => stray.push(error));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => stopAll().finally(() => process.exit(1)));

const counts = { ok: 0, FAIL: 0, skip: 0 };

async function runScenario(library, name, scenario, server, chain) {
  const test = new Test(library, server, chain);
  stray.length = 0;
  let result = "ok";
  let why = "";
  const begun = Date.now();
  try {
    await test.settle();
    await within(SCENARIO_LIMIT, "the scenario", scenario(test));
  } catch (error) {
    result = error instanceof Skipped ? "skip" : "FAIL";
    why = error instanceof Skipped ? "" : error.message;
  }
  await test.close();
  await sleep(20);
  if (stray.length && result === "ok") [result, why] = ["FAIL", `thrown where nobody can catch it: ${stray[0]?.stack ?? stray[0]}`];
  counts[result]++;
  const row = [library.name.padEnd(10), name.padEnd(18), result.padEnd(4), `${Date.now() - begun} ms`.padStart(9)];
  console.log(`${row.join("  ")}${why ? `  ${why}` : ""}`);
  for (const note of test.notes) console.log(`${" ".repeat(12)}${note}`);
}

const chosen = (library, name) => !options.only || [library, name, `${library}/${name}`].some((text) => text.includes(options.only));

try {
  const chain = await Chain.start();
  const server = options.direct ? chain : await startProxy(chain.ws);
  for (const library of LIBRARIES) {
    const all = { ...(library.connect ? scenarios : {}), ...library.extras };
    for (const [name, scenario] of Object.entries(all)) {
      if (!chosen(library.name, name)) continue;
      await runScenario(library, name, scenario, server, chain);
      if (chain.child.end) throw new Error(`anvil ended; its last lines:\n${chain.child.tail()}`);
      if (server.child.end) throw new Error(`headwater ended; its last lines:\n${server.child.tail(40)}`);
    }
  }
  if (counts.ok + counts.FAIL === 0) throw new Error("no scenario ran");
  if (counts.FAIL && !options.direct) console.log(`headwater's last lines:\n${server.child.tail()}`);
} catch (error) {
  counts.FAIL++;
  console.error(error.message);
} finally {
  await stopAll();
}
console.log(`${counts.ok} passed, ${counts.FAIL} failed`);
process.exit(counts.FAIL ? 1 : 0);
