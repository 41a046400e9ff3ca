// viem: webSocket and http transports. Apart from viem.mjs, for this runs in a browser too.

import { createPublicClient, createWalletClient, defineChain, http as httpTransport, webSocket } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { outcome } from "../outcome.mjs";

const anvil = defineChain({
  id: 31337,
  name: "anvil",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [] } },
});

// A retried call would hide a failed one.
const NO_RETRY = { retryCount: 0 };

export async function connect({ ws, http }, { reconnect = false } = {}) {
  const client = createPublicClient({ chain: anvil, transport: webSocket(ws, { reconnect, ...NO_RETRY }), pollingInterval: 50 });
  const web = createPublicClient({ chain: anvil, transport: httpTransport(http, NO_RETRY) });
  const batching = createPublicClient({ chain: anvil, transport: httpTransport(http, { batch: { wait: 20 }, ...NO_RETRY }) });
  const { socket } = await client.transport.getRpcClient();
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
    reads: ({ block, blockHash, hash, account, contract, abi }) => {
      const target = { address: contract, abi };
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
    send: async (request, key) => {
      const account = privateKeyToAccount(key);
      const wallet = createWalletClient({ account, chain: anvil, transport: webSocket(ws, NO_RETRY) });
      const hash = await wallet.sendTransaction({ ...request, gas: BigInt(request.gas) });
      const receipt = await client.waitForTransactionReceipt({ hash, timeout: 15_000 });
      return { hash, logs: receipt.logs.map(({ logIndex }) => logIndex) };
    },
    closed: new Promise((done) => socket.addEventListener("close", ({ code }) => done(code))),
    resumes: Boolean(reconnect),
    close: async () => (await client.transport.getRpcClient()).close(),
  };
}
