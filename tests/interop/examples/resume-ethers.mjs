// The logs of a contract with ethers 6, each once and none left out, whatever becomes of the connection.
//
//   node resume-ethers.mjs ws://127.0.0.1:9546 0xCONTRACT 0xFIRSTBLOCK

import { show } from "./kept.mjs";

const url = process.argv[2];
show();

// docs/resume.md
import { WebSocketProvider } from "ethers";
import { params, refused, take } from "./kept.mjs";

function connect() {
  const provider = new WebSocketProvider(url);
  provider.websocket.onerror = () => {}; // "close" follows
  provider.websocket.onclose = () => setTimeout(connect, 1000); // ethers does not reconnect by itself
  const subscribed = provider.send("eth_subscribe", params());
  subscribed.then((id) => provider._register(id, { _handleMessage: take })).catch((error) => {
    refused(error.error ?? error);
    provider.destroy();
  });
}

connect();
// end
