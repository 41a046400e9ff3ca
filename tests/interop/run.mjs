// Real web3 libraries against the proxy in front of a real node (anvil), and other real nodes behind it.
//
//   node run.mjs [--direct] [--only <library or scenario>]
//
// --direct leaves the proxy out: it shows that the tests themselves hold for a node, apart from what anvil lacks.

import { parseArgs } from "node:util";
import { Chain, Story, sleep, startProxy, stopAll, until, within } from "./support.mjs";
import { COLUMNS, scenarios } from "./scenarios.mjs";
import { Table } from "./table.mjs";
import * as aiohttp from "./libraries/aiohttp.mjs";
import * as chromium from "./libraries/chromium.mjs";
import * as chromiumViem from "./libraries/chromium-viem.mjs";
import * as embed from "./libraries/embed.mjs";
import * as ethclient from "./libraries/ethclient.mjs";
import * as ethers from "./libraries/ethers.mjs";
import * as examples from "./libraries/examples.mjs";
import * as gorilla from "./libraries/gorilla.mjs";
import * as nodes from "./libraries/nodes.mjs";
import * as openrpc from "./libraries/openrpc.mjs";
import * as proxyTests from "./libraries/proxy.mjs";
import * as raw from "./libraries/raw.mjs";
import * as viem from "./libraries/viem.mjs";
import * as web3js from "./libraries/web3js.mjs";
import * as web3py from "./libraries/web3py.mjs";
import * as web3pySync from "./libraries/web3py-sync.mjs";
import * as websockets from "./libraries/websockets.mjs";
import * as wscat from "./libraries/wscat.mjs";

const LIBRARIES = [
  ...[ethers, viem, web3js, web3py, web3pySync, ethclient, chromiumViem],
  ...[raw, chromium, websockets, aiohttp, gorilla, wscat],
  ...[embed, examples, openrpc, proxyTests],
  ...nodes.rows,
];
const SCENARIO_LIMIT = 120_000;

// They come from one address, and in a minute make as many calls as is good for several.
const ALL_ARE_ONE_CLIENT = { HEADWATER_LIMITS_REQUESTS_PER_SECOND: "5000", HEADWATER_LIMITS_REQUEST_BURST: "20000" };

const { values: options } = parseArgs({ options: { direct: { type: "boolean" }, only: { type: "string" } } });

/** Left out here, where it could not hold, or for good, since the library has no such thing. */
class LeftOut extends Error {
  constructor(cell) {
    super();
    this.cell = cell;
  }
}

/** What one scenario sees: where to connect, the node to compare with, and what it may excuse. */
class Test {
  constructor(library, server, chain) {
    Object.assign(this, { library, chain, ws: server.ws, http: server.http, direct: Boolean(options.direct), notes: [], open: [] });
  }

  /** A connection to another server, or to this one in another way. */
  async connectTo(server, taste) {
    const conn = await this.library.connect(server, taste);
    this.open.push(conn);
    return conn;
  }

  connect() {
    return this.connectTo(this);
  }

  connectNode() {
    return this.connectTo(this.chain);
  }

  /** A client that shows all and offers no compression. */
  async plain(ws) {
    const conn = raw.driver(await raw.RawClient.open(ws, { perMessageDeflate: false }));
    this.open.push(conn);
    return conn;
  }

  /** One for all libraries. */
  compressing() {
    compressing ??= startProxy(this.chain.ws, 0, { HEADWATER_DELIVERY_COMPRESSION: "on" });
    return compressing;
  }

  story(filters, chain = this.chain) {
    return Story.begin(chain, filters, { direct: this.direct });
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
    throw new LeftOut("skip");
  }

  lacks() {
    throw new LeftOut("-");
  }

  /** Waits until the server tells of the node's newest block, so that no event of an earlier scenario is still under way. */
  async settle(ws = this.ws, chain = this.chain) {
    const client = await raw.RawClient.open(ws);
    try {
      const seen = new Set();
      await client.subscribe(["newHeads"], ({ hash }) => seen.add(hash));
      await chain.mine(1);
      const { hash } = await chain.block();
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

const table = new Table(COLUMNS);
let compressing;

async function runScenario(library, name, scenario, server, chain) {
  const test = new Test(library, server, chain);
  stray.length = 0;
  let cell = "ok";
  let why = "";
  const begun = Date.now();
  try {
    await test.settle();
    await within(SCENARIO_LIMIT, "the scenario", scenario(test));
  } catch (error) {
    [cell, why] = error instanceof LeftOut ? [error.cell, ""] : ["FAIL", error.message];
  }
  await test.close();
  await sleep(20);
  if (stray.length && cell === "ok") {
    [cell, why] = ["FAIL", `thrown where nobody can catch it: ${stray[0]?.stack ?? stray[0]}`];
  }
  table.add(library, name, cell, why);
  const row = [library.name.padEnd(22), name.padEnd(18), cell.padEnd(4), `${Date.now() - begun} ms`.padStart(9)];
  console.log(`${row.join("  ")}${why ? `  ${why}` : ""}`);
  for (const note of test.notes) console.log(`${" ".repeat(24)}${note}`);
}

const chosen = (library, name) => !options.only || [library, name, `${library}/${name}`].some((text) => text.includes(options.only));

try {
  const chain = await Chain.start();
  const server = options.direct ? chain : await startProxy(chain.ws, 0, ALL_ARE_ONE_CLIENT);
  for (const library of LIBRARIES) {
    const common = Object.entries(library.connect ? scenarios : {}).filter(([name]) => library.only?.includes(name) ?? true);
    const scenariosOf = [...common, ...Object.entries(library.extras ?? {})];
    const all = scenariosOf.filter(([name]) => chosen(library.name, name));
    if (!all.length) continue;
    const lack = await library.missing?.(options);
    if (lack) {
      table.leaveOut(library, lack);
      console.log(`${library.name.padEnd(22)}  left out: ${lack}`);
      continue;
    }
    table.name(library, await (library.version?.call ? library.version() : library.version));
    const place = (await library.place?.()) ?? { chain, server };
    for (const [name, scenario] of all) {
      await runScenario(library, name, scenario, place.server, place.chain);
      for (const { child } of [place.chain, place.server]) {
        if (child.end) throw new Error(`${child.name} ended; its last lines:\n${child.tail(40)}`);
      }
    }
  }
  if (table.count("ok") + table.count("FAIL") === 0) throw new Error("no scenario ran");
  if (table.count("FAIL") && !options.direct) console.log(`headwater's last lines:\n${server.child.tail()}`);
} catch (error) {
  table.broke(error.message);
} finally {
  for (const library of LIBRARIES) await library.end?.();
  await stopAll();
}
table.addAlloy(process.env.CARGO_TEST_LOG);
table.print();
console.log(`${table.count("ok")} passed, ${table.count("FAIL")} failed`);
process.exit(table.count("FAIL") ? 1 : 0);
