// What the page is shown: two nodes with one chain, headwater before them, and clients of several kinds.

import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { WebSocket } from "ws";
import { Child, proxyBinary, startProxy, until } from "../support.mjs";

const TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
const SECRET = "11".repeat(32);
export const TOKEN = "0123456789abcdef-page";

/** A simulated node that mines only when told to. */
class Node {
  static async start(size) {
    const node = new Node();
    const args = ["devnet", "--listen", "127.0.0.1:0", "--seed", "7", "--block-time", "0s", "--pending-rate", "0", ...size];
    node.child = new Child("devnet", proxyBinary(), args);
    const port = await node.child.says(/127\.0\.0\.1:(\d+)/);
    node.ws = `ws://127.0.0.1:${port}`;
    return node;
  }

  async command(method, ...params) {
    const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
    const request = { method: "POST", headers: { "content-type": "application/json" }, body };
    const answer = await (await fetch(this.ws.replace("ws", "http"), request)).json();
    if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
    return answer.result;
  }
}

/** The whole. Commands go to all nodes, which come to the same blocks: they have one seed. */
export class Scene {
  clients = [];

  /** Number, as the page shows it, of a block after the first ones. */
  number = (after) => (this.base + after).toLocaleString("en");

  /** `lines` are of the configuration, `token` is set where the page has to sign in. */
  static async start({ nodes = 2, size = [], lines = "", token } = {}) {
    const scene = new Scene();
    scene.folder = mkdtempSync(path.join(tmpdir(), "headwater-page-"));
    scene.config = path.join(scene.folder, "headwater.toml");
    const secret = path.join(scene.folder, "jwt");
    writeFileSync(secret, SECRET);
    scene.settings = { HEADWATER_CONFIG: scene.config, HEADWATER_AUTH_JWT_SECRET_FILE: secret };
    if (token) {
      scene.settings.HEADWATER_ADMIN_TOKEN_FILE = path.join(scene.folder, "token");
      writeFileSync(scene.settings.HEADWATER_ADMIN_TOKEN_FILE, token);
    }
    scene.write(lines);
    scene.nodes = await Promise.all(Array.from({ length: nodes }, () => Node.start(size)));
    scene.base = Number(await scene.all("eth_blockNumber"));
    await scene.serve();
    return scene;
  }

  write(lines) {
    writeFileSync(this.config, lines);
  }

  /** Starts headwater, at the ports that it had. */
  async serve() {
    const [port, admin] = [this.proxy?.port ?? 0, this.proxy ? new URL(this.proxy.admin).port : 0];
    this.proxy = await startProxy(this.nodes.map(({ ws }) => ws), port, this.settings, admin);
  }

  async all(method, ...params) {
    const alive = this.nodes.filter(({ child }) => !child.end);
    const outcomes = await Promise.all(alive.map((node) => node.command(method, ...params)));
    return outcomes[0];
  }

  mine = (count = 1) => this.all("devnet_mine", count);
  reorg = (depth, length) => this.all("devnet_reorg", depth, length);

  /** A client with these subscriptions. With a `subject` it has a token. */
  async client(subscriptions, subject) {
    const socket = new WebSocket(this.proxy.ws, { headers: subject ? { authorization: `Bearer ${token(subject)}` } : {} });
    this.clients.push(socket);
    socket.on("error", () => {});
    socket.answers = [];
    socket.notified = 0;
    socket.on("message", (data) => {
      const message = JSON.parse(data);
      if ("id" in message) socket.answers.push(message);
      else socket.notified++;
    });
    socket.on("close", (code) => (socket.code = code));
    await new Promise((done, failed) => socket.once("open", done).once("error", failed));
    subscriptions.forEach((params, at) => socket.send(JSON.stringify({ jsonrpc: "2.0", id: at, method: "eth_subscribe", params })));
    await until("answers to eth_subscribe", () => socket.answers.length === subscriptions.length);
    return socket;
  }

  /** A client that subscribes to all logs, and then reads nothing more. */
  async slow(subject) {
    const socket = await this.client([["logs", {}]], subject);
    socket.pause();
    return socket;
  }

  async stop() {
    this.clients.forEach((socket) => socket.terminate());
    await this.proxy.child.stop();
    await Promise.all(this.nodes.map(({ child }) => child.stop()));
    rmSync(this.folder, { recursive: true });
  }
}

export const transfers = ["logs", { topics: [TRANSFER] }];

function token(subject) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: subject, iat: now, exp: now + 3600 })}`;
  const signature = createHmac("sha256", Buffer.from(SECRET, "hex")).update(signed).digest("base64url");
  return `${signed}.${signature}`;
}
