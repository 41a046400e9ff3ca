// Runs in the browser: its own WebSocket, bare, and viem over it. `say` leads back to Node.

import { many, outcome } from "../outcome.mjs";
import { connect } from "./viem-driver.mjs";

let socket;

/** Resolves with the extensions when it is open, or with what it came to. */
globalThis.openSocket = (url) =>
  new Promise((done) => {
    socket = new WebSocket(url);
    socket.onopen = () => done({ open: true, extensions: socket.extensions });
    socket.onmessage = async ({ data }) => (typeof data === "string" ? say({ text: data }) : say({ binary: await data.text() }));
    socket.onclose = ({ code }) => {
      say({ closed: code });
      done({ closed: code });
    };
  });

globalThis.sendText = (text) => socket.send(text);

let conn;
const stops = new Map();

const COMMANDS = {
  async connect(_id, server, taste) {
    conn = await connect(server, taste);
    conn.closed.then((closed) => say({ closed }));
  },
  async subscribe(id, kind, ...args) {
    stops.set(id, await conn[kind](...args, (event) => say({ subscription: id, event })));
  },
  unsubscribe: (_id, subscription) => stops.get(subscription)(),
  call: (_id, method, params) => conn.call(method, params),
  callHttp: (_id, method, params) => conn.callHttp(method, params),
  batch: (_id, calls) => conn.batch(calls),
  many: (_id, calls) => many(conn, calls),
  async reads(_id, facts) {
    const told = {};
    for (const [name, read] of Object.entries(conn.reads(facts))) told[name] = await outcome(read());
    return told;
  },
  send: (_id, request, key) => conn.send(request, key),
  close: () => conn.close(),
};

/** As libraries/remote.mjs wants it: plain data, whatever came. */
globalThis.command = async ({ id, command, args }) => {
  const run = async () => COMMANDS[command](id, ...args);
  return say({ id, ...(await outcome(run())) });
};

globalThis.ready = true;
