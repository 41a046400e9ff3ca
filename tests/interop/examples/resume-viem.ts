// The logs of a contract with viem 2, each once and none left out, whatever becomes of the connection.
//
//   node resume-viem.ts ws://127.0.0.1:9546 0xCONTRACT 0xFIRSTBLOCK    (Node.js 22.18 or newer)

import { show } from "./kept.ts";

const url = process.argv[2]!;
show();

// docs/resume.md
import { createPublicClient, webSocket } from "viem";
import { params, refused, take } from "./kept.ts";

async function follow() {
  // By itself, viem would reconnect with the old params; its types know only geth's.
  const { transport } = createPublicClient({ transport: webSocket(url, { reconnect: false }) });
  const socket = await transport.getRpcClient();
  const lost = new Promise<never>((_, onError) => {
    const after = params() as never;
    transport.subscribe({ params: after, onData: ({ result }) => take(result), onError }).catch(onError);
  });
  await lost.finally(() => socket.close());
}

while (true) {
  await follow().catch(refused);
  await new Promise((done) => setTimeout(done, 1000));
}
// end
