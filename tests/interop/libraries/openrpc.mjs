// The OpenRPC document of a running headwater: valid by its own schema, and true: each method in it is called, each kind
// subscribed to, and what comes back is of the type that the document says.

import jsonSchema from "@json-schema-tools/meta-schema";
import metaSchema from "@open-rpc/meta-schema";
import Ajv from "ajv";
import { Wallet } from "ethers";
import { KEY, TRANSFER, npmVersion, same, startProxy, topicOf, until } from "../support.mjs";
import { RawClient } from "./raw.mjs";

export const name = "OpenRPC";
export const version = npmVersion("@open-rpc/meta-schema");

const METHOD_NOT_FOUND = -32601;
const schemaOf = (module) => module.default ?? module;

const outcome = (call) => call.then((result) => ({ result }), ({ code, message }) => ({ error: { code, message } }));

/** Fails with the places at which a value is not of its type. */
function valid(what, validate, value) {
  if (validate(value)) return;
  const errors = validate.errors.slice(0, 5).map((error) => `${error.instancePath || "/"} ${error.message}`);
  throw new Error(`${what}: ${errors.join("; ")}: ${JSON.stringify(value)?.slice(0, 400)}`);
}

/** The types of a document. */
class Types {
  constructor(document) {
    this.ajv = new Ajv({ allErrors: true, keywords: ["components"] });
    this.ajv.addSchema({ $id: "document", components: document.components });
    this.compiled = new Map();
  }

  check(what, schema, value) {
    const text = JSON.stringify(schema).replaceAll(`"#/components`, `"document#/components`);
    if (!this.compiled.has(text)) this.compiled.set(text, this.ajv.compile(JSON.parse(text)));
    valid(what, this.compiled.get(text), value);
  }

  /** Parameters by position: each of its type, none missing. */
  params(what, described, values) {
    same(`${what}: as many parameters as are described`, values.length <= described.length, true);
    described.forEach(({ name, required, schema }, at) => {
      if (at < values.length) this.check(`${what}: ${name}`, schema, values[at]);
      else same(`${what}: ${name} may be left out`, required, false);
    });
  }
}

async function over(http, method, params = []) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const answer = await (await fetch(http, { method: "POST", headers: { "content-type": "application/json" }, body })).json();
  if (answer.error) throw Object.assign(new Error(answer.error.message), answer.error);
  return answer.result;
}

/** Parameters for each method, as few as a node needs. */
async function parametersOf(chain, client) {
  await chain.emit(2);
  await chain.mine(1);
  const block = await chain.rpc("eth_getBlockByNumber", ["latest", true]);
  const { hash, number } = block;
  const transaction = block.transactions[0].hash;
  const [account] = chain.accounts;
  const call = { from: account, to: account };
  const slot = topicOf(0);
  const nonce = Number(await chain.rpc("eth_getTransactionCount", [new Wallet(KEY).address, "latest"]));
  const signed = (extra) =>
    new Wallet(KEY).signTransaction({ to: account, nonce: nonce + extra, gasLimit: 21_000, gasPrice: 10n ** 11n, chainId: 31_337 });
  const filter = () => client.call("eth_newFilter", [{ address: chain.contract }]);
  const byNumber = [number, "0x0"];
  const byHash = [hash, "0x0"];
  return {
    eth_accounts: [],
    eth_baseFee: [],
    eth_blobBaseFee: [],
    eth_blockNumber: [],
    eth_call: [call, "latest", { [account]: { balance: "0x1" } }],
    eth_capabilities: [],
    eth_chainId: [],
    eth_coinbase: [],
    eth_config: [],
    eth_createAccessList: [call, "latest"],
    eth_estimateGas: [call],
    eth_feeHistory: ["0x2", "latest", [25, 75]],
    eth_fillTransaction: [call],
    eth_gasPrice: [],
    eth_getBalance: [account, "latest"],
    eth_getBlockByHash: [hash, true],
    eth_getBlockByNumber: [number, false],
    eth_getBlockReceipts: [number],
    eth_getBlockTransactionCountByHash: [hash],
    eth_getBlockTransactionCountByNumber: [number],
    eth_getCode: [chain.contract, "latest"],
    eth_getFilterChanges: [await filter()],
    eth_getFilterLogs: [await filter()],
    eth_getHeaderByHash: [hash],
    eth_getHeaderByNumber: [number],
    eth_getLogs: [{ fromBlock: number, toBlock: "latest", topics: [[TRANSFER], null] }],
    eth_getProof: [chain.contract, [slot], "latest"],
    eth_getRawTransactionByBlockHashAndIndex: byHash,
    eth_getRawTransactionByBlockNumberAndIndex: byNumber,
    eth_getRawTransactionByHash: [transaction],
    eth_getStorageAt: [chain.contract, "0x0", { blockHash: hash }],
    eth_getStorageValues: [{ [chain.contract]: [slot] }, "latest"],
    eth_getTransactionByBlockHashAndIndex: byHash,
    eth_getTransactionByBlockNumberAndIndex: byNumber,
    eth_getTransactionByHash: [transaction],
    eth_getTransactionCount: [account, "latest"],
    eth_getTransactionReceipt: [transaction],
    eth_getUncleByBlockHashAndIndex: byHash,
    eth_getUncleByBlockNumberAndIndex: byNumber,
    eth_getUncleCountByBlockHash: [hash],
    eth_getUncleCountByBlockNumber: [number],
    eth_maxPriorityFeePerGas: [],
    eth_newBlockFilter: [],
    eth_newFilter: [{ address: [chain.contract] }],
    eth_newPendingTransactionFilter: [],
    eth_pendingTransactions: [],
    eth_protocolVersion: [],
    eth_sendRawTransaction: [await signed(0)],
    eth_sendRawTransactionSync: [await signed(1), 100],
    eth_simulateV1: [{ blockStateCalls: [{ calls: [call] }] }, "latest"],
    eth_subscribe: ["newHeads"],
    eth_syncing: [],
    eth_uninstallFilter: [await filter()],
    eth_unsubscribe: [await client.call("eth_subscribe", ["newHeads"])],
    headwater_accountLimits: [],
    headwater_accountSubscriptions: [],
    headwater_accountUsage: [],
    net_listening: [],
    net_peerCount: [],
    net_version: [],
    "rpc.discover": [],
    rpc_discover: [],
    rpc_modules: [],
    txpool_content: [],
    txpool_contentFrom: [account],
    txpool_inspect: [],
    txpool_status: [],
    web3_clientVersion: [],
    web3_sha3: ["0x68656164"],
  };
}

export const extras = {
  /** The document is valid, each reference in it resolves, and both transports and both names give it. */
  async document(t) {
    if (t.direct) return t.skip();
    const client = await RawClient.open(t.ws);
    try {
      const document = await client.call("rpc_discover", []);
      const ajv = new Ajv({ strict: false, allErrors: true, validateSchema: false, validateFormats: false });
      const { $id, ...types } = schemaOf(jsonSchema);
      // Referred to with and without the slash that its own id ends in.
      for (const id of [$id, $id.replace(/\/$/, "")]) ajv.addSchema({ ...types, $id: id });
      valid("the document", ajv.compile(schemaOf(metaSchema)), document);
      const components = new Ajv({ strict: true, allowUnionTypes: true, keywords: ["components"] });
      components.addSchema({ $id: "document", components: document.components });
      for (const name of Object.keys(document.components.schemas)) {
        components.compile({ $ref: `document#/components/schemas/${name}` });
      }
      const names = document.methods.map(({ name }) => name);
      same("each name once", new Set(names).size, names.length);
      same("under OpenRPC's own name", await client.call("rpc.discover", []), document);
      const overHttp = (await over(t.http, "rpc_discover")).methods.map(({ name }) => name);
      same("over HTTP, without subscriptions", overHttp, names.filter((name) => !/^eth_(un)?subscribe$/.test(name)));
    } finally {
      client.close();
    }
  },

  /** Each method in the document is called: none is unknown to headwater, and the answers have their types. */
  async methods(t) {
    if (t.direct) return t.skip();
    const client = await RawClient.open(t.ws);
    const node = await RawClient.open(t.chain.ws);
    try {
      const document = await client.call("rpc_discover", []);
      const types = new Types(document);
      const parameters = await parametersOf(t.chain, client);
      await t.settle();
      same("methods with parameters here", Object.keys(parameters).sort(), document.methods.map(({ name }) => name).sort());
      const refused = [];
      for (const method of document.methods) {
        const params = parameters[method.name];
        types.params(method.name, method.params, params);
        const { result, error } = await outcome(client.call(method.name, params));
        if (error === undefined) {
          types.check(`answer to ${method.name}`, method.result.schema, result);
          continue;
        }
        if (method["x-answered-by"] === "headwater") throw new Error(`${method.name}: ${error.message}`);
        // A node lacks some methods; headwater has all that it lists.
        same(`the node's own error for ${method.name}`, error, (await outcome(node.call(method.name, params))).error);
        refused.push(method.name);
      }
      t.note(`refused by this node: ${refused.join(", ")}`);
      same("answered methods, which are most", refused.length < document.methods.length / 4, true);
    } finally {
      client.close();
      node.close();
    }
  },

  /** Each kind in the document can be subscribed to, and its events have their type. */
  async kinds(t) {
    if (t.direct) return t.skip();
    const client = await RawClient.open(t.ws);
    try {
      const document = await client.call("rpc_discover", []);
      const types = new Types(document);
      const subscribe = document.methods.find(({ name }) => name === "eth_subscribe");
      const { hash, number } = await t.chain.block();
      const starts = [{ after: { blockHash: hash } }, { fromBlock: number }];
      const [account] = t.chain.accounts;
      const variants = {
        newHeads: [[], ...starts.map((start) => [start])],
        logs: [[], [{ address: t.chain.contract }], ...starts.map((start) => [{ topics: [TRANSFER] }, start])],
        newPendingTransactions: [[], [true], [{ fromAddress: account, hashesOnly: false }]],
        alchemy_pendingTransactions: [[], [{ fromAddress: [account], hashesOnly: true }]],
        alchemy_minedTransactions: [[], [{ addresses: [{ from: account }], includeRemoved: true, hashesOnly: true }]],
        transactionReceipts: [[], [{ transactionHashes: [] }]],
      };
      const streams = [];
      for (const kind of subscribe["x-subscriptions"]) {
        for (const params of variants[kind.name] ?? [[]]) {
          const what = `${kind.name} ${JSON.stringify(params)}`;
          types.params(what, subscribe.params, [kind.name, ...params]);
          types.params(what, kind.params, params);
          const events = [];
          await client.subscribe([kind.name, ...params], (event) => events.push(event));
          streams.push({ what, kind, events });
        }
      }
      await t.chain.emit(2);
      // Pending transactions are told before they are mined.
      const pending = streams.filter(({ kind }) => /pending/i.test(kind.name));
      await until("pending transactions", () => pending.every(({ events }) => events.length));
      await t.chain.mine(1);
      await until(
        () => `events of ${streams.filter(({ events }) => !events.length).map(({ what }) => what)}`,
        () => streams.every(({ events }) => events.length),
      );
      for (const { what, kind, events } of streams) {
        for (const event of events) types.check(`event of ${what}`, kind.event, event);
      }
      const report = await client.call("headwater_accountSubscriptions", []);
      const own = report.subscriptions.filter(({ connection }) => connection === report.connection);
      same("own subscriptions", own.map(({ id }) => id).sort(), [...client.listeners.keys()].sort());
    } finally {
      client.close();
    }
  },

  /** What a client may not use is not in its document, and not served. */
  async denied(t) {
    if (t.direct) return t.skip();
    const settings = { HEADWATER_METHODS_DENIED: '["eth_getProof", "headwater_accountUsage"]' };
    const proxy = await startProxy(t.chain.ws, 0, settings);
    const client = await RawClient.open(proxy.ws);
    try {
      const { methods, components } = await client.call("rpc_discover", []);
      const names = methods.map(({ name }) => name);
      for (const denied of ["eth_getProof", "headwater_accountUsage"]) {
        same(`${denied} in the document`, names.includes(denied), false);
        const { error } = await outcome(client.call(denied, []));
        same(`the answer to ${denied}`, error?.code, METHOD_NOT_FOUND);
      }
      same("a type that only it needs", components.schemas.AccountProof, undefined);
    } finally {
      client.close();
      await proxy.child.stop();
    }
  },
};
