// The logs of a contract with ethers 6, each once and none left out, whatever becomes of the connection.
//
//   node resume-ethers.ts ws://127.0.0.1:9546 0xCONTRACT 0xFIRSTBLOCK    (Node.js 22.18 or newer)

import { show } from "./kept.ts";

const url = process.argv[2]!;
show();

// docs/resume.md
import { WebSocketProvider } from "ethers";
import { params, refused, take } from "./kept.ts";

function connect() {
  const provider = new WebSocketProvider(url);
  const socket = provider.websocket as WebSocket;
  socket.onerror = () => {}; // "close" follows
  socket.onclose = () => setTimeout(connect, 1000); // ethers does not reconnect by itself
  const subscribed = provider.send("eth_subscribe", params());
  subscribed.then((id) => provider._register(id, { _handleMessage: take } as never)).catch((error) => {
    refused(error.error ?? error);
    provider.destroy();
  });
}

connect();
// end
