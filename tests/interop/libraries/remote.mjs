// Drivers that live in another process, one JSON value per line: commands to it, and what happens from it.

import { Child, within } from "../support.mjs";
import { RawClient } from "./raw.mjs";

function lines(child, on) {
  let rest = "";
  child.process.stdout.on("data", (text) => {
    const whole = (rest + text).split("\n");
    rest = whole.pop();
    for (const line of whole) if (line) on(line);
  });
}

const ended = (child) => {
  throw new Error(`${child.name} ended; its last lines:\n${child.tail()}`);
};

/** One that is asked ({id, command, args}), answers ({id, value} or {id, error}) and tells ({subscription, event}). */
export class Remote {
  #answers = new Map();
  #listeners = new Map();
  #next = 1;

  /** `send` passes a command on; `ended` is a promise that fails when nothing can come any more. */
  constructor(name, send, ended) {
    Object.assign(this, { name, send, ended });
    ended.catch(() => {});
    this.closed = new Promise((done) => (this.tellClosed = done));
  }

  static start(name, command, args) {
    const child = new Child(name, command, args);
    const send = (message) => child.process.stdin.write(`${JSON.stringify(message)}\n`);
    const remote = new Remote(name, send, child.exited.then(() => ended(child)));
    child.process.stdin.on("error", () => {});
    lines(child, (line) => remote.receive(JSON.parse(line)));
    remote.child = child;
    return remote;
  }

  receive(said) {
    if ("event" in said) this.#listeners.get(said.subscription)?.(said.event);
    else if ("closed" in said) this.tellClosed(said.closed);
    else this.#answers.get(said.id)?.(said);
  }

  async ask(command, ...args) {
    const id = this.#next++;
    const answer = new Promise((done) => this.#answers.set(id, done));
    this.send({ id, command, args });
    const said = await within(20_000, `${this.name}'s ${command}`, Promise.race([answer, this.ended]));
    this.#answers.delete(id);
    if (said.error) throw Object.assign(new Error(said.error.message), said.error);
    return said.value;
  }

  /** Subscribes by `command`, whose id is the subscription's from then on; returns how to unsubscribe. */
  async subscribe(on, command, ...args) {
    const subscription = this.#next;
    this.#listeners.set(subscription, on);
    await this.ask(command, ...args);
    return () => this.ask("unsubscribe", subscription);
  }
}

/**
 * One that only passes text, over a WebSocket of its own: on stdin the messages to send, on stdout {"open": true} for each
 * connection, {"text": ..} or {"binary": ..} for each message, and {"closed": code}. All else is ours, as over `ws`.
 */
export async function pipe(name, command, args) {
  const child = new Child(name, command, args);
  const client = new RawClient();
  const opened = [];
  client.closed = new Promise((done) => (client.tellClosed = done));
  child.process.stdin.on("error", () => {});
  lines(child, (line) => {
    const said = JSON.parse(line);
    if ("open" in said) opened.shift()?.();
    else if ("closed" in said) client.tellClosed(said.closed);
    else client.receive(said.text ?? said.binary, "binary" in said);
  });
  client.socket = {
    send: (text) => child.process.stdin.write(`${JSON.stringify(text)}\n`),
    terminate: () => child.stop(),
  };
  /** The next time that it is open. */
  client.open = () => {
    const open = new Promise((done) => opened.push(done));
    return within(20_000, `${name} to connect`, Promise.race([open, child.exited.then(() => ended(child))]));
  };
  await client.open();
  return client;
}
