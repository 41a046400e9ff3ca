// web3.js v4.

import { Web3, WebSocketProvider } from "web3";
import { npmVersion, outcome, until } from "../support.mjs";

export const name = "web3.js";
export const version = npmVersion("web3");
export const deflate = true;

export async function connect({ ws, http }, { reconnect } = {}) {
  const again = reconnect ? { autoReconnect: true, delay: 200, maxAttempts: 50 } : { autoReconnect: false };
  const provider = new WebSocketProvider(ws, {}, again);
  let opened = 0;
  provider.on("connect", () => opened++);
  const web3 = new Web3(provider);
  const web = new Web3(http);
  const unsubscribed = [];
  const { requestManager } = web3;
  const send = requestManager.send.bind(requestManager);
  // web3.js throws the answer to eth_unsubscribe away; this keeps it.
  requestManager.send = async (request) => {
    const answer = await send(request);
    if (request.method === "eth_unsubscribe") unsubscribed.push(answer);
    return answer;
  };
  const subscribe = async (kind, args, on) => {
    const subscription = await web3.eth.subscribe(kind, args);
    subscription.on("data", on);
    return async () => {
      await subscription.unsubscribe();
      return unsubscribed.pop();
    };
  };
  return {
    web3,
    heads: (on) => subscribe("newHeads", undefined, (head) => on(head.hash)),
    logs: (filter, on) => subscribe("logs", filter, on),
    pending: (on) => subscribe("pendingTransactions", undefined, on),
    call: (method, params) => send({ method, params }),
    callHttp: (method, params) => web.requestManager.send({ method, params }),
    batch: async (calls) => {
      const batch = new web3.BatchRequest();
      const answers = calls.map(([method, params]) => outcome(batch.add({ method, params })));
      await batch.execute();
      return Promise.all(answers);
    },
    reads: ({ block, blockHash, hash, account, contract, abi }) => {
      const target = new web3.eth.Contract(abi, contract);
      return {
        getChainId: () => web3.eth.getChainId(),
        getBlock: () => web3.eth.getBlock(block, true),
        getBlockByHash: () => web3.eth.getBlock(blockHash),
        getTransactionReceipt: () => web3.eth.getTransactionReceipt(hash),
        getBalance: () => web3.eth.getBalance(account),
        getFeeHistory: () => web3.eth.getFeeHistory(3, block, [25]),
        call: () => target.methods.double(21).call(),
        revert: () => target.methods.refuse(5).call(),
        revertPlainly: () => target.methods.refusePlainly().call(),
        getPastEvents: () => target.getPastEvents("Transfer", { fromBlock: block, toBlock: block }),
      };
    },
    send: async (request, key) => {
      const { address } = web3.eth.accounts.wallet.add(key)[0];
      const receipt = await web3.eth.sendTransaction({ ...request, from: address });
      return { hash: receipt.transactionHash, logs: receipt.logs.map(({ logIndex }) => Number(logIndex)) };
    },
    // It reconnects for codes other than 1000 and 1001, but leaves it to its user to subscribe again.
    back: () => until("web3.js to reconnect", () => opened > 1),
    close: () => provider.disconnect(),
  };
}
