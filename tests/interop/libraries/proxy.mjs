// The proxy itself under circumstances that one library alone does not bring about, such as a crowd.

import { NOTE, Relay, TRANSFER, hex, plainLog, same, startProxy, topicOf, until } from "../support.mjs";
import { RawClient } from "./raw.mjs";
import * as web3py from "./web3py.mjs";

export const name = "proxy";

export const extras = {
  /**
   * E5: the id leaves before the first notification, with a pause between them. The relay keeps a head back until the
   * client has its id, so a server that does not pause betrays itself in every try. One that does may seem not to when
   * this process was late to read the answer, so a tenth of the tries is forgiven.
   */
  async holdoff(t) {
    if (t.direct) return t.skip();
    const relay = await Relay.start(t.chain.ws);
    const proxy = await startProxy(relay.url);
    const gaps = [];
    try {
      await t.settle(proxy.ws);
      for (let n = 0; n < 30; n++) {
        relay.hold();
        await t.chain.rpc("evm_mine");
        await until("the head at the relay", () => relay.held.length);
        const client = await RawClient.open(proxy.ws);
        client.keep = true;
        client.socket.once("message", () => relay.release());
        const heads = [];
        await client.subscribe(["newHeads"], (head) => heads.push(head));
        await until("the head", () => heads.length);
        const [answer, first] = client.frames;
        same("the answer comes first", ["id" in answer.message, first.message.method], [true, "eth_subscription"]);
        gaps.push(first.at - answer.at);
        client.close();
      }
    } finally {
      await proxy.child.stop();
      relay.stop();
    }
    const short = gaps.filter((gap) => gap < 5);
    if (short.length > 3) throw new Error(`${short.length} of 30 first notifications came less than 5 ms after the answer`);
  },

  /**
   * delivery.compression: `ws` (zlib) and web3.py (websockets, zlib too) agree on permessage-deflate and are told what a
   * client is told that did not offer it. `ws` compresses all that it sends, web3.py too. There are enough of them for
   * logs that refer to those before them, and one keeps no context.
   */
  async compression(t) {
    if (t.direct) return t.skip();
    const proxy = await startProxy(t.chain.ws, 0, { HEADWATER_DELIVERY_COMPRESSION: "on" });
    const alone = { threshold: 0, serverNoContextTakeover: true, clientMaxWindowBits: 9 };
    const offers = [false, alone, { threshold: 0 }, ...Array(32).fill(true)];
    const clients = [];
    let python;
    try {
      await t.settle(proxy.ws);
      const story = await t.story({ contract: { address: t.chain.contract } });
      python = await web3py.connect(proxy);
      const told = { heads: [], logs: [] };
      await python.heads((hash) => told.heads.push(hash));
      await python.logs({ address: t.chain.contract }, (log) => told.logs.push(plainLog(log)));
      for (const perMessageDeflate of offers) {
        const client = await RawClient.open(proxy.ws, { perMessageDeflate });
        same("what was agreed on", Boolean(client.socket.extensions), Boolean(perMessageDeflate));
        const agreed = client.socket._extensions["permessage-deflate"]?.params;
        same("whether it forgets", Boolean(agreed?.server_no_context_takeover), perMessageDeflate === alone);
        client.events = [];
        await client.subscribe(["newHeads"], (head) => client.events.push(JSON.stringify(head)));
        await client.subscribe(["logs", { address: t.chain.contract }], (log) => client.events.push(JSON.stringify(log)));
        clients.push(client);
      }
      for (let n = 0; n < 6; n++) await story.mine(n, 2, 12);
      await until("all heads and logs", () => told.logs.length >= story.logs.contract.length);
      await story.reorg(2, [[3], [1]]);
      for (let n = 0; n < 3; n++) await story.mine(n);
      const total = story.heads.length + story.logs.contract.length;
      await until("all events", () => clients.every(({ events }) => events.length >= total));
      await until("all events for web3.py", () => told.heads.length + told.logs.length >= total);
      const [plain, ...deflated] = clients;
      for (const client of deflated) same("what it was told", client.events, plain.events);
      same("web3.py's heads", told.heads, story.heads);
      same("web3.py's logs", told.logs, story.logs.contract.map(plainLog));
      const read = clients.slice(0, 4).map(({ socket }) => socket._socket.bytesRead);
      t.note(`bytes of events: ${read[0]} plain, ${read[1]} each alone, ${read.slice(2).join(", ")} referring to those before`);
      same("fewer bytes", Math.max(...read.slice(2)) < read[1] && read[1] < 0.7 * read[0], true);

      // Long ones: an answer of some hundred kilobytes, and a request of as many.
      const fromBlock = hex(Math.max(0, story.base - 100));
      const range = [{ fromBlock, toBlock: "latest", address: Array(5_000).fill(t.chain.contract) }];
      const answer = await plain.call("eth_getLogs", range);
      same("a long answer", JSON.stringify(answer).length > 50_000, true);
      const few = deflated.slice(0, 3);
      for (const client of few) same("a long answer", await client.call("eth_getLogs", range), answer);
      same("web3.py's long answer", (await python.call("eth_getLogs", range)).result, answer);

      const received = [plain, ...few].map(({ socket }) => socket._socket.bytesRead);
      t.note(`bytes received: ${received[0]} plain, ${received.slice(1).join(", ")} compressed`);
      same("fewer bytes", Math.max(...received.slice(1)) < 0.6 * received[0], true);
    } finally {
      clients.forEach((client) => client.close());
      await python?.close();
      await proxy.child.stop();
    }
  },

  /** 500 clients, 60 blocks and a reorg: each client gets exactly the node's events, the node hardly any work. */
  async crowd(t) {
    const relay = await Relay.start(t.chain.ws);
    const proxy = t.direct ? { ws: relay.url } : await startProxy(relay.url);
    const clients = [];
    try {
      const receiver = (n) => ({ topics: [TRANSFER, null, topicOf(n)] });
      const filters = {
        all: {},
        contract: { address: t.chain.contract },
        transfers: { topics: [TRANSFER] },
        notes: { address: t.chain.contract, topics: [NOTE] },
        either: { topics: [[TRANSFER, NOTE]] },
        one: receiver(1),
        two: receiver(2),
        nobody: { address: topicOf(9).slice(0, 42) },
      };
      const mixes = [
        ["heads"],
        ["all"],
        ["contract"],
        ["heads", "transfers"],
        ["notes", "one"],
        ["two"],
        ["either", "heads", "nobody"],
        ["heads", "all"],
      ];
      for (let n = 0; n < 500; n += 50) {
        clients.push(...(await Promise.all(Array.from({ length: 50 }, () => RawClient.open(proxy.ws)))));
      }
      await t.settle(proxy.ws);
      const story = await t.story(filters);
      const seen = await Promise.all(clients.map((client, n) => subscribeMix(client, mixes[n % mixes.length], filters)));
      const pending = await subscribePending(clients.slice(0, 40));

      const sent = [];
      for (let n = 0; n < 27; n++) sent.push(...(await story.mine(...[[], [3], [2, 4], [1, 1, 1]][n % 4])));
      await story.mined(10);
      sent.push(...(await story.mine(5)), ...(await story.mine(2)), ...(await story.mine(4)));
      // Only what was delivered is taken back, so all must have come before the chain changes its mind.
      await allCame(seen, story);
      await story.reorg(3, [[2], [], [3, 1]]);
      for (let n = 0; n < 20; n++) sent.push(...(await story.mine(...[[2], [], [1, 3]][n % 3])));
      same("blocks in the story", story.blocks.length, 60);
      await allCame(seen, story);
      await story.check();

      seen.forEach((events, n) => compareClient(`client ${n}`, events, story, t.direct));
      // Pending transactions are best effort, but so few of them must all come. Those of a reorg never were in the pool.
      const lists = Object.values(pending.lists).flat();
      await until("all pending transactions", () => lists.every((list) => list.length >= sent.length));
      for (const [form, lists] of Object.entries(pending.lists)) lists.forEach((list) => same(`pending (${form})`, list, sent));
      await Promise.all(pending.stops.map((stop) => stop()));
      if (t.direct) return;

      t.note(`for 500 clients the node saw ${relay.summary()}`);
      same("eth_subscribe newHeads at the node", relay.count("eth_subscribe newHeads"), 1);
      // Every call names one block, no block is named twice, and those that are not the story's are the history below it.
      const older = await hashesBelow(t.chain, story.base, HISTORY_BLOCKS);
      for (const [method, asked] of relay.byHash) {
        const twice = [...asked].filter(([, times]) => times > 1);
        same(`blocks for which ${method} was called more than once`, twice, []);
        same(`${method} for anything but a block's hash`, relay.count(method) - asked.size, 0);
        const strange = [...asked.keys()].filter((hash) => !story.heads.includes(hash) && !older.has(hash));
        same(`${method} for blocks neither of the story nor of the history below it`, strange, []);
      }
      const withLogs = story.heads.filter((hash) => relay.byHash.get("eth_getLogs").has(hash)).length;
      t.note(`eth_getLogs for ${withLogs} of the ${story.heads.length} blocks of the story`);
      for (const form of ["hashes", "full"]) {
        const kind = `newPendingTransactions ${form}`;
        const made = relay.count(`eth_subscribe ${kind}`);
        same(`eth_subscribe ${kind} at the node (${made}), at most one`, made <= 1, true);
        await until(`${kind} to be given up, which nobody wants any more`, () => !relay.live(kind));
      }
    } finally {
      clients.forEach((client) => client.close());
      await proxy.child?.stop();
      relay.stop();
    }
  },
};

/** `history.blocks` by default: so many the proxy fetches below the first block that it sees. */
const HISTORY_BLOCKS = 256;

async function hashesBelow(chain, top, count) {
  const numbers = Array.from({ length: Math.min(count, top) + 1 }, (_, n) => top - n);
  return new Set((await Promise.all(numbers.map((number) => chain.block(number)))).map(({ hash }) => hash));
}

async function subscribeMix(client, mix, filters) {
  const events = { order: [] };
  for (const name of mix) {
    events[name] = [];
    await client.subscribe(name === "heads" ? ["newHeads"] : ["logs", filters[name]], (event) => {
      events[name].push(name === "heads" ? event.hash : event);
      events.order.push(name === "heads" ? { head: event.hash } : { log: event });
    });
  }
  return events;
}

async function subscribePending(clients) {
  const lists = { hashes: [], full: [] };
  const stops = [];
  for (const [n, client] of clients.entries()) {
    const list = [];
    lists[n % 2 ? "full" : "hashes"].push(list);
    const form = n % 2 ? [true] : [];
    stops.push(await client.subscribe(["newPendingTransactions", ...form], (tx) => list.push(tx.hash ?? tx)));
  }
  return { lists, stops };
}

const wanted = (story, name) => (name === "heads" ? story.heads : story.logs[name]);
const namesOf = ({ order, ...lists }) => Object.keys(lists);

const allCame = (seen, story) =>
  until("all events at all clients", () =>
    seen.every((events) => namesOf(events).every((name) => events[name].length >= wanted(story, name).length)), 30_000);

function compareClient(who, events, story, direct) {
  for (const name of namesOf(events)) same(`${who}, ${name}`, events[name], wanted(story, name));
  if (direct || !events.heads) return;
  let head;
  for (const event of events.order) {
    if (event.head) head = event.head;
    else if (!event.log.removed) same(`${who}: the head before a log`, head, event.log.blockHash);
  }
}
