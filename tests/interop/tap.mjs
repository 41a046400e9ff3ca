// What a client really puts on the wire, and what it gets: bytes pass as they are, and are read on the side.

import net from "node:net";

const OPCODES = { 0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong" };

/** One direction of a connection, taken apart as it comes: the head of the HTTP message, then WebSocket frames. */
class Reading {
  rest = Buffer.alloc(0);
  frames = [];

  take(bytes) {
    this.rest = Buffer.concat([this.rest, bytes]);
    if (this.head === undefined) {
      const end = this.rest.indexOf("\r\n\r\n");
      if (end < 0) return;
      this.head = this.rest.toString("latin1", 0, end);
      this.rest = this.rest.subarray(end + 4);
    }
    while (this.#frame());
  }

  #frame() {
    const bytes = this.rest;
    if (bytes.length < 2) return false;
    const short = bytes[1] & 0x7f;
    const extended = short === 126 ? 2 : short === 127 ? 8 : 0;
    const masked = bytes[1] >> 7;
    const start = 2 + extended + 4 * masked;
    if (bytes.length < start) return false;
    const length = { 0: () => short, 2: () => bytes.readUInt16BE(2), 8: () => Number(bytes.readBigUInt64BE(2)) }[extended]();
    if (bytes.length < start + length) return false;
    const payload = Buffer.from(bytes.subarray(start, start + length));
    if (masked) for (let at = 0; at < length; at++) payload[at] ^= bytes[start - 4 + (at % 4)];
    this.frames.push({ kind: OPCODES[bytes[0] & 0x0f], compressed: Boolean(bytes[0] & 0x40), payload });
    this.rest = bytes.subarray(start + length);
    return true;
  }

  header(name) {
    const lines = this.head?.split("\r\n") ?? [];
    return lines.find((line) => line.toLowerCase().startsWith(`${name}:`))?.slice(name.length + 1).trim();
  }
}

/** Stands before a server, on a port of its own. */
export class Tap {
  static async start(target) {
    const tap = new Tap();
    tap.connections = [];
    tap.sockets = new Set();
    tap.server = net.createServer((near) => tap.#join(near, net.connect(Number(new URL(target).port), "127.0.0.1")));
    await new Promise((done) => tap.server.listen(0, "127.0.0.1", done));
    tap.ws = `ws://127.0.0.1:${tap.server.address().port}`;
    return tap;
  }

  #join(near, far) {
    const [sent, got] = [new Reading(), new Reading()];
    this.connections.push({ sent, got });
    for (const [from, to, reading] of [[near, far, sent], [far, near, got]]) {
      this.sockets.add(from);
      from.setNoDelay();
      from.on("data", (bytes) => {
        reading.take(bytes);
        to.write(bytes);
      });
      from.on("end", () => to.end());
      from.on("error", () => to.destroy());
      from.on("close", () => this.sockets.delete(from));
    }
  }

  /** Those that asked to become WebSockets: a library may fetch over HTTP first. */
  get upgrades() {
    return this.connections.filter(({ sent }) => sent.header("upgrade"));
  }

  stop() {
    this.sockets.forEach((socket) => socket.destroy());
    this.server.close();
  }
}
