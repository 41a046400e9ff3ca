// viem in Node.

import { emitter, exactly, npmVersion, same, until } from "../support.mjs";
import { connect } from "./viem-driver.mjs";

export { connect };

export const name = "viem";
export const version = npmVersion("viem");
export const deflate = true;

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
