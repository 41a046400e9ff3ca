// viem: webSocket and http transports.

import { createPublicClient, createWalletClient, defineChain, http as httpTransport, webSocket } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { KEY, emitter, exactly, outcome, same, until } from "../support.mjs";

export const name = "viem 2";

const anvil = defineChain({
  id: 31337,
  name: "anvil",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [] } },
});

// A retried call would hide a failed one.
const NO_RETRY = { retryCount: 0 };

export async function connect({ ws, http }, reconnect = false) {
  const client = createPublicClient({ chain: anvil, transport: webSocket(ws, { reconnect, ...NO_RETRY }), pollingInterval: 50 });
  const web = createPublicClient({ chain: anvil, transport: httpTransport(http, NO_RETRY) });
  const batching = createPublicClient({ chain: anvil, transport: httpTransport(http, { batch: { wait: 20 }, ...NO_RETRY }) });
  const subscribe = async (params, on) => {
    const { unsubscribe } = await client.transport.subscribe({ params, onData: ({ result }) => on(result) });
    return async () => (await unsubscribe()).result;
  };
  return {
    client,
    heads: (on) => subscribe(["newHeads"], (head) => on(head.hash)),
    logs: (filter, on) => subscribe(["logs", filter], on),
    pending: (on) => subscribe(["newPendingTransactions"], on),
    pendingFull: (on) => subscribe(["newPendingTransactions", true], on),
    call: (method, params) => client.request({ method, params }),
    callHttp: (method, params) => web.request({ method, params }),
    batch: (calls) => Promise.all(calls.map(([method, params]) => outcome(batching.request({ method, params })))),
    reads: ({ block, blockHash, hash, account, contract }) => {
      const target = { address: contract, abi: emitter.abi };
      return {
        getChainId: () => client.getChainId(),
        getBlock: () => client.getBlock({ blockNumber: BigInt(block), includeTransactions: true }),
        getBlockByHash: () => client.getBlock({ blockHash }),
        getTransaction: () => client.getTransaction({ hash }),
        getTransactionReceipt: () => client.getTransactionReceipt({ hash }),
        getBalance: () => client.getBalance({ address: account }),
        getFeeHistory: () => client.getFeeHistory({ blockCount: 3, rewardPercentiles: [25], blockNumber: BigInt(block) }),
        readContract: () => client.readContract({ ...target, functionName: "double", args: [21n] }),
        revert: () => client.readContract({ ...target, functionName: "refuse", args: [5n] }),
        revertPlainly: () => client.readContract({ ...target, functionName: "refusePlainly" }),
        getContractEvents: () => client.getContractEvents({ ...target, fromBlock: BigInt(block), toBlock: BigInt(block) }),
      };
    },
    send: async (request) => {
      const account = privateKeyToAccount(KEY);
      const wallet = createWalletClient({ account, chain: anvil, transport: webSocket(ws, NO_RETRY) });
      const hash = await wallet.sendTransaction({ ...request, gas: BigInt(request.gas) });
      const receipt = await client.waitForTransactionReceipt({ hash, timeout: 15_000 });
      return { hash, logs: receipt.logs.map(({ logIndex }) => logIndex) };
    },
    close: async () => (await client.transport.getRpcClient()).close(),
  };
}

export const extras = {
  /** As people use it: each head is followed at once by a call for its block, which must be there. */
  async watch(t) {
    const { client } = await t.connect();
    const story = await t.story({ notes: { address: t.chain.contract } });
    const blocks = [];
    const events = [];
    const errors = [];
    const onError = (error) => errors.push(error.message);
    let answers = 0;
    const { socket } = await client.transport.getRpcClient();
    socket.addEventListener("message", ({ data }) => (answers += "id" in JSON.parse(data)));
    const stops = [
      client.watchBlocks({ onBlock: (block) => blocks.push(block?.hash), onError }),
      client.watchContractEvent({
        address: t.chain.contract,
        abi: emitter.abi,
        onLogs: (logs) => events.push(...logs.map(({ eventName, logIndex, blockHash }) => `${eventName} ${logIndex} ${blockHash}`)),
        onError,
      }),
    ];
    await until("the answers to two eth_subscribe", () => answers >= 2);
    for (let n = 1; n <= 6; n++) {
      await story.mine(n, 1);
      // viem hands blocks out as its own calls for them come back, so only one at a time has an order.
      await until("viem's block", () => blocks.length >= n);
    }
    await exactly("blocks", blocks, story.heads);
    const nameOf = (log) => (log.topics.length === 3 ? "Transfer" : "Note");
    await exactly("events", events, story.logs.notes.map((log) => `${nameOf(log)} ${Number(log.logIndex)} ${log.blockHash}`));
    same("errors", errors, []);
    stops.forEach((stop) => stop());
  },
};
