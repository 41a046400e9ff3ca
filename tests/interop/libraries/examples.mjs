// The examples of docs/resume.md, run as they stand there: each is cut off while logs arrive, misses some twenty
// blocks and a reorg, and must end with exactly the logs that are canonical. And what they rest on, on the wire.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { buildSync } from "esbuild";
import { Child, hex, here, pythonBinary, quiet, same, sleep, startProxy, topicOf, until } from "../support.mjs";
import { RawClient } from "./raw.mjs";

export const name = "resume";

const EXAMPLES = { ethers: "resume-ethers.ts", viem: "resume-viem.ts", "web3.py": "resume_web3.py" };

const file = (example) => path.join(here, "examples", example);

/** The example without its types, below node_modules, where its libraries are found. */
function script(example) {
  if (example.endsWith(".py")) return file(example);
  const outfile = path.join(here, "node_modules/.cache/headwater", example.replace(/\.ts$/, ".mjs"));
  buildSync({ entryPoints: [file(example)], outfile, bundle: true, packages: "external", format: "esm", logLevel: "error" });
  return outfile;
}

/** An example under way; `logs()` is what it has by now. */
class Example {
  constructor(which, url, chain, first) {
    const example = EXAMPLES[which];
    const interpreter = example.endsWith(".py") ? pythonBinary() : process.execPath;
    this.child = new Child(example, interpreter, [script(example), url, chain.contract, hex(first)]);
    this.which = which;
  }

  logs() {
    if (this.child.end) throw new Error(`${this.which} ended; its last lines:\n${this.child.tail()}`);
    const shown = this.child.lines.findLast((line) => line.startsWith("["));
    return shown ? JSON.parse(shown) : [];
  }

  /** Waits until it has exactly these, and for a moment longer. */
  async has(want) {
    const differs = () => {
      const got = this.logs();
      return got.length !== want.length || got.some((log, n) => log !== want[n]);
    };
    await until("", () => !differs(), 30_000).catch(() => {});
    await quiet();
    same(`the logs that ${this.which} has`, this.logs(), want);
  }
}

/** Passes bytes, and cuts the line when told to. */
class Line {
  static async open(target) {
    const line = new Line();
    line.target = target;
    line.sockets = new Set();
    line.allowance = Infinity;
    await line.mend();
    return line;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}`;
  }

  #join(near) {
    const far = net.connect(this.target, "127.0.0.1");
    for (const [from, to] of [[near, far], [far, near]]) {
      this.sockets.add(from);
      from.on("error", () => {});
      from.on("close", () => {
        this.sockets.delete(from);
        to.destroy();
      });
    }
    near.pipe(far);
    far.on("data", (bytes) => {
      const passed = bytes.subarray(0, Math.min(bytes.length, this.allowance));
      this.allowance -= passed.length;
      near.write(passed);
      if (this.allowance === 0) this.cut();
    });
  }

  /** Lets so many bytes more pass to the client; with that the line is cut, as likely as not within a frame. */
  cutAfter(bytes) {
    this.allowance = bytes;
  }

  /** `end` first, that what was passed arrives: a client that comes back has it. */
  cut() {
    this.isCut = true;
    this.server.close();
    for (const socket of this.sockets) socket.end();
    setTimeout(() => this.sockets.forEach((socket) => socket.destroy()), 50);
  }

  async mend() {
    this.allowance = Infinity;
    this.isCut = false;
    this.server = net.createServer((near) => this.#join(near));
    await new Promise((done) => this.server.listen(this.port ?? 0, "127.0.0.1", done));
    this.port = this.server.address().port;
  }
}

const key = (log) => `${log.blockHash}/${Number(log.logIndex)}`;
const canonical = (story) => story.blocks.flatMap((block) => block.logs.all.map(key));

/** Some twenty blocks, and a reorg that also drops the last three that the client has. */
async function meanwhile(story) {
  for (let n = 0; n < 6; n++) await story.mine(...[[2], [], [1, 3]][n % 3]);
  await story.reorg(9, [[1], [], [2, 2], [3], [], [1], [4], [], [2]]);
  for (let n = 0; n < 12; n++) await story.mine(...[[1], [2, 1], []][n % 3]);
}

async function begin(t, which, url) {
  const story = await t.story({ all: { address: t.chain.contract } });
  const example = new Example(which, url, t.chain, story.base + 1);
  for (const counts of [[2], [], [3, 1], [4]]) await story.mine(...counts);
  await example.has(canonical(story));
  return { story, example };
}

/** What comes after it is back: it lives on, a reorg included. */
async function live(story, example) {
  await example.has(canonical(story));
  await story.mine(3);
  await example.has(canonical(story));
  await story.reorg(2, [[1], [2]]);
  await story.mine(20, 2);
  await example.has(canonical(story));
  await story.check();
}

const cut = (which) => async (t) => {
  if (t.direct) return t.skip();
  const line = await Line.open(Number(new URL(t.ws).port));
  let example;
  try {
    let story;
    ({ story, example } = await begin(t, which, line.url));
    const before = example.logs().length;
    // The line breaks in the middle of a block of sixty logs.
    line.cutAfter(10_000);
    await story.mine(20, 20);
    await until("the cut", () => line.isCut);
    await sleep(200);
    const had = example.logs().length - before;
    t.note(`cut off with ${had} of ${story.blocks.at(-1).logs.all.length} logs of a block`);
    same("some of the block, and not all", had > 0 && had < story.blocks.at(-1).logs.all.length, true);
    await meanwhile(story);
    await line.mend();
    await live(story, example);

    // And once more in the middle of what a reorg takes back.
    line.cutAfter(5_000);
    await story.reorg(2, [[2], [1]]);
    await until("the cut", () => line.isCut);
    await story.mine(2);
    await line.mend();
    await example.has(canonical(story));

    // And in the middle of a block that stays.
    line.cutAfter(10_000);
    await story.mine(20, 20);
    await until("the cut", () => line.isCut);
    await story.mine(2);
    await line.mend();
    await example.has(canonical(story));
  } finally {
    await example?.child.stop();
    line.cut();
  }
};

const restart = (which) => async (t) => {
  if (t.direct) return t.skip();
  const first = await startProxy(t.chain.ws);
  let second, example;
  try {
    let story;
    ({ story, example } = await begin(t, which, first.ws));
    await story.mine(20, 20);
    // SIGTERM drains: which of these it still gets is up to the sockets.
    await first.child.stop();
    await meanwhile(story);
    second = await startProxy(t.chain.ws, first.port);
    await live(story, example);
  } finally {
    await example?.child.stop();
    await first.child.stop();
    await second?.child.stop();
  }
};

/** Heads and logs in one batch, so that they keep their order (E3) from the first event on; what came by now. */
async function resumeBoth(client, filter, { blockHash, logIndex }) {
  client.keep = true;
  const [heads, logs] = await client.exchangeBatch([
    ["eth_subscribe", ["newHeads", { after: { blockHash } }]],
    ["eth_subscribe", ["logs", filter, { after: { blockHash, logIndex } }]],
  ]);
  const line = ({ subscription, result }) => {
    if (subscription === heads.result) return `head ${result.hash}`;
    same("subscription", subscription, logs.result);
    return `${result.removed ? "undo" : "log"} ${key(result)}`;
  };
  return () => client.frames.filter(({ message }) => message.params).map(({ message }) => line(message.params));
}

/** Waits until the proxy has the story's last block. */
async function knows(ws, story) {
  const client = await RawClient.open(ws);
  const seen = new Set();
  await client.subscribe(["newHeads", { fromBlock: hex(story.base + story.blocks.length) }], ({ hash }) => seen.add(hash));
  await until("the story's last head", () => seen.has(story.heads.at(-1)));
  client.close();
}

const told = (blocks) => blocks.flatMap(({ hash, logs }) => [`head ${hash}`, ...logs.all.map((log) => `log ${key(log)}`)]);

export const extras = {
  /** docs/resume.md shows the examples as they are. */
  async page() {
    const page = readFileSync(path.join(here, "../../docs/resume.md"), "utf8");
    for (const example of ["kept.ts", ...Object.values(EXAMPLES)]) {
      const [, core] = readFileSync(file(example), "utf8").match(/^(?:\/\/|#) docs\/resume\.md\n(.*?)^(?:\/\/|#) end$/ms);
      const fence = `\`\`\`${example.endsWith(".py") ? "python" : "ts"}\n${core.trim()}\n\`\`\``;
      same(`docs/resume.md shows ${example} as it is`, page.includes(fence), true);
    }
  },

  /** TypeScript's compiler accepts the examples. */
  async types() {
    const compiler = path.join(here, "node_modules/typescript/bin/tsc");
    const options = "--noEmit --strict --skipLibCheck --allowImportingTsExtensions --module nodenext --target es2023 --types node";
    const files = Object.values(EXAMPLES).filter((example) => example.endsWith(".ts")).map(file);
    // Types are looked for from the current folder on.
    const { status, stdout } = spawnSync(process.execPath, [compiler, ...options.split(" "), ...files], { cwd: here, encoding: "utf8" });
    same("what the compiler says", stdout, "");
    same("exit code", status, 0);
  },

  /** On the wire: what was dropped is taken back first, then all that is canonical, heads and logs in their order. */
  async wire(t) {
    if (t.direct) return t.skip();
    const story = await t.story({ all: { address: t.chain.contract } });
    // Logs of dropped blocks are there where somebody had them: anvil forgets such blocks.
    const watcher = await RawClient.open(t.ws);
    await watcher.subscribe(["logs", story.filters.all], () => {});
    for (const counts of [[2], [3, 1], [], [4]]) await story.mine(...counts);
    await knows(t.ws, story);
    const last = story.blocks[3].logs.all[1];
    await story.reorg(3, [[1], [2], []]);
    await story.mine(2);
    await knows(t.ws, story);
    const client = await RawClient.open(t.ws);
    try {
      const dropped = story.logs.all.filter(({ removed }) => removed).map(key);
      const undone = dropped.slice(0, dropped.indexOf(key(last)) + 1);
      const seen = await resumeBoth(client, story.filters.all, last);
      const want = [...undone.map((log) => `undo ${log}`), ...told(story.blocks.slice(1))];
      await until(() => `${seen().length} of ${want.length} events`, () => seen().length >= want.length);
      await story.mine(1, 1);
      want.push(...told(story.blocks.slice(-1)));
      await until(() => `${seen().length} of ${want.length} events`, () => seen().length >= want.length);
      await quiet();
      same("events", seen(), want);

      const nowhere = ["newHeads", { after: { blockHash: topicOf(7) } }];
      const refused = await client.call("eth_subscribe", nowhere).catch((error) => error);
      same("code", refused.code, -32001);
      same("oldestBlock", refused.data, { oldestBlock: "0x0" });
    } finally {
      watcher.close();
      client.close();
    }
  },

  /** Away for longer than `history.max_replay`: they end and say so, and do not go on with a hole. */
  async "too old"(t) {
    if (t.direct) return t.skip();
    const story = await t.story();
    await story.mined(12);
    const proxy = await startProxy(t.chain.ws, 0, { HEADWATER_HISTORY_BLOCKS: "4", HEADWATER_HISTORY_MAX_REPLAY: "8" });
    try {
      for (const which of Object.keys(EXAMPLES)) {
        const { child } = new Example(which, proxy.ws, t.chain, story.base + 1);
        await until(`the end of ${which}`, () => child.end, 20_000);
        same(`exit code of ${which}`, child.end.code, 1);
        same(`${which} says why`, child.lines.some((line) => line.includes("away for too long")), true);
      }
    } finally {
      await proxy.child.stop();
    }
  },

  ...Object.fromEntries(Object.keys(EXAMPLES).flatMap((which) => [
    [`${which} cut`, cut(which)],
    [`${which} restart`, restart(which)],
  ])),
};
