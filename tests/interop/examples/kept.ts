// What the examples for ethers and viem share: the logs they have, and from where on they need more.

const [, , , address, fromBlock] = process.argv;

// docs/resume.md
export type Log = { blockHash: string; blockNumber: string; logIndex: string; removed: boolean };

export const logs: Log[] = []; // what you have, oldest first; a table in production

export function take(log: Log) {
  if (log.removed) undo((own) => own.blockHash === log.blockHash && own.logIndex === log.logIndex);
  else logs.push(log);
}

function undo(isDropped: (log: Log) => boolean) {
  const at = logs.findIndex(isDropped);
  if (at >= 0) logs.splice(at); // and everything after it, which is built on it
}

export function params() {
  const last = logs.at(-1);
  const after = last && { blockHash: last.blockHash, logIndex: last.logIndex };
  return ["logs", { address }, after ? { after } : { fromBlock }];
}

export function refused({ code, data }: { code?: number; data?: { oldestBlock: string } }) {
  if (code !== -32001) return; // the connection was lost, or the node is busy: try again
  const last = logs.at(-1);
  if (!last || Number(last.blockNumber) < Number(data?.oldestBlock)) throw new Error("away for too long");
  undo((own) => own.blockHash === last.blockHash); // dropped and forgotten: resume after the block before
}
// end

/** Shows what there is whenever it changes. */
export function show() {
  let shown: string;
  setInterval(() => {
    const now = JSON.stringify(logs.map(({ blockHash, logIndex }) => `${blockHash}/${Number(logIndex)}`));
    if (now !== shown) console.log((shown = now));
  }, 50);
}
