// What each library sends when it connects and subscribes to newHeads (one that cannot, calls eth_chainId): the headers that
// can matter to a server, and every frame. A header that is not named is not sent; User-Agent is compared where it is named.

const OFFER = "permessage-deflate; client_max_window_bits";
const PYTHON = { userAgent: "Python websockets", extensions: OFFER };
const PAGE = { origin: "http://127.0.0.1:<port>", extensions: OFFER };
const GO = { userAgent: "Go-http-client" };

/** The bare ones send what our own client writes. */
const BARE = 'text {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}';

const VIEM = BARE.replace('"id":1', '"id":0');

export const TRAFFIC = {
  ethers: {
    extensions: OFFER,
    frames: [
      'text {"id":1,"method":"eth_chainId","params":[],"jsonrpc":"2.0"}',
      'text {"method":"eth_subscribe","params":["newHeads"],"id":2,"jsonrpc":"2.0"}',
    ],
  },
  viem: { extensions: OFFER, frames: [VIEM] },
  "viem (Chromium)": { ...PAGE, frames: [VIEM] },
  "web3.js": {
    extensions: OFFER,
    frames: [
      'text {"jsonrpc":"2.0","id":"<uuid>","method":"eth_chainId","params":[]}',
      'text {"jsonrpc":"2.0","id":"<uuid>","method":"eth_accounts","params":[]}',
      'text {"jsonrpc":"2.0","id":"<uuid>","method":"eth_subscribe","params":["newHeads"]}',
    ],
  },
  // The pong is how it finds out whether it is connected.
  "web3.py async": {
    ...PYTHON,
    frames: ["pong", 'binary {"id": 0, "jsonrpc": "2.0", "method": "eth_subscribe", "params": ["newHeads"]}'],
  },
  "web3.py sync": { ...PYTHON, frames: ['binary {"jsonrpc": "2.0", "method": "eth_chainId", "params": [], "id": 0}'] },
  "ethclient (Go)": { ...GO, frames: [BARE] },
  "WebSocket (Chromium)": { ...PAGE, frames: [BARE] },
  "ws (Node)": { extensions: OFFER, frames: [BARE] },
  "websockets (Python)": { ...PYTHON, frames: [BARE] },
  "aiohttp (Python)": { userAgent: "Python aiohttp", frames: [BARE] },
  "gorilla/websocket (Go)": { ...GO, frames: [BARE] },
  // The first call is ours, to see that it is connected.
  wscat: {
    extensions: OFFER,
    frames: ['text {"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}', BARE.replace('"id":1', '"id":2')],
  },
};
