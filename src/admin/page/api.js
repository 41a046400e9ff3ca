// The operator's API: JSON-RPC over a WebSocket that is opened again whenever it ends.
//
//   signed out    the session is refused: no attempt until somebody signs in
//   connecting    the first attempt
//   connected
//   reconnecting  attempts with pauses between them

/** URL of another path of this port; a proxy may serve it below a path of its own. */
const at = (path) => new URL(path, document.baseURI);

/** Pauses between attempts, in milliseconds. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 5_000;

/** Silence of a connection on which a state comes every second, after which it is opened again. */
const SILENCE = 10_000;

/** Time for which a call, and a connection, is waited for. */
const PATIENCE = 15_000;
const OPENING = 5_000;

export class RpcError extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code;
  }
}

export class Api extends EventTarget {
  state = "connecting";
  session = null;
  #socket = null;
  /** Attempt to connect that is under way; what an earlier one comes to does not count. */
  #attempt = null;
  #nextId = 1;
  #calls = new Map();
  #subscriptions = new Map();
  #wanted = [];
  #pause = FIRST_PAUSE;
  #timer = 0;
  #heard = 0;

  constructor() {
    super();
    setInterval(() => this.#watch(), 2_000);
    addEventListener("online", () => this.state === "reconnecting" && this.connect());
  }

  /** Subscribes, now and after each reconnection. `begin` is called before the first item of each. */
  follow(method, params, item, begin = () => {}) {
    this.#wanted.push({ method, params, item, begin });
    if (this.state === "connected") this.#subscribe(this.#wanted.at(-1));
  }

  async connect() {
    clearTimeout(this.#timer);
    const attempt = {};
    this.#attempt = attempt;
    // A host that is gone answers nothing at all.
    this.#timer = setTimeout(() => this.#lost("headwater does not answer"), OPENING);
    // A browser does not tell why a WebSocket was refused, so the session is asked for first.
    const answer = await fetch(at("session"), { cache: "no-store" }).catch(() => null);
    const text = await answer?.text().catch(() => "");
    if (this.#attempt !== attempt) return;
    if (answer?.status === 401) return this.#leave();
    if (!answer?.ok) return this.#lost(text?.trim() || "headwater does not answer");
    this.session = JSON.parse(text);
    const url = at("api");
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    this.#socket?.close();
    this.#socket = socket;
    socket.onopen = () => {
      if (this.#socket !== socket) return;
      clearTimeout(this.#timer);
      this.#pause = FIRST_PAUSE;
      this.#heard = performance.now();
      this.#become("connected");
      this.#wanted.forEach((wanted) => this.#subscribe(wanted));
    };
    socket.onmessage = ({ data }) => {
      this.#heard = performance.now();
      this.#receive(JSON.parse(data));
    };
    socket.onclose = () => this.#socket === socket && this.#lost();
  }

  /** Calls a method; rejects with an `RpcError` if it is refused. */
  call(method, ...params) {
    return new Promise((resolve, reject) => this.#request(method, params, resolve, reject));
  }

  async signIn(token) {
    const body = new URLSearchParams({ token });
    // A redirect to the page means success, and need not be followed.
    const answer = await fetch(at("login"), { method: "POST", body, redirect: "manual" });
    if (answer.type === "opaqueredirect") return this.connect();
    if (answer.status === 401) throw new Error("This is not the admin token, or headwater has none.");
    throw new Error((await answer.text()).trim() || `headwater answered ${answer.status}`);
  }

  async signOut() {
    await fetch(at("logout"), { method: "POST", redirect: "manual" });
    this.#leave();
  }

  #leave() {
    clearTimeout(this.#timer);
    this.#drop();
    this.#become("signed out");
  }

  #become(state, reason = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: reason }));
  }

  #request(method, params, resolve, reject) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return reject(new Error("not connected to headwater"));
    const id = this.#nextId++;
    const timer = setTimeout(() => this.#calls.delete(id) && reject(new Error(`no answer to ${method}`)), PATIENCE);
    this.#calls.set(id, { resolve, reject, timer });
    this.#socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
  }

  #subscribe({ method, params, item, begin }) {
    // Set while the answer is read: the first item may follow in the next message.
    const accept = (id) => {
      begin();
      this.#subscriptions.set(id, item);
    };
    this.#request(method, params, accept, (why) => this.#lost(why.message));
  }

  #receive(message) {
    const { id, method, params, result, error } = message;
    if (method) return this.#subscriptions.get(params?.subscription)?.(params.result);
    const call = this.#calls.get(id);
    if (!call) return;
    this.#calls.delete(id);
    clearTimeout(call.timer);
    if (error) call.reject(new RpcError(error));
    else call.resolve(result);
  }

  #drop() {
    this.#attempt = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    for (const { reject, timer } of this.#calls.values()) {
      clearTimeout(timer);
      reject(new Error("the connection to headwater was lost"));
    }
    this.#calls.clear();
    this.#subscriptions.clear();
  }

  #lost(reason = "the connection was lost") {
    this.#drop();
    this.#retry(reason);
  }

  #retry(reason) {
    this.#become("reconnecting", reason);
    clearTimeout(this.#timer);
    // Drawn, so that many pages do not return in one moment.
    this.#timer = setTimeout(() => this.connect(), this.#pause * (0.5 + Math.random() / 2));
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
  }

  #watch() {
    if (this.state === "connected" && performance.now() - this.#heard > SILENCE) this.#lost("nothing came for ten seconds");
  }
}
