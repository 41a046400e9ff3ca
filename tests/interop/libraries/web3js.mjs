// web3.js v4.

import { Web3, WebSocketProvider } from "web3";
import { KEY, emitter, outcome } from "../support.mjs";

export const name = "web3.js 4";

export async function connect({ ws, http }, reconnect = { autoReconnect: false }) {
  const provider = new WebSocketProvider(ws, {}, reconnect);
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
    reads: ({ block, blockHash, hash, account, contract }) => {
      const target = new web3.eth.Contract(emitter.abi, contract);
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
    send: async (request) => {
      const { address } = web3.eth.accounts.wallet.add(KEY)[0];
      const receipt = await web3.eth.sendTransaction({ ...request, from: address });
      return { hash: receipt.transactionHash, logs: receipt.logs.map(({ logIndex }) => Number(logIndex)) };
    },
    close: () => provider.disconnect(),
  };
}
