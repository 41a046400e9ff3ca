// A subscription in the page, over a connection of its own to the client port.

import { byId, el, setText } from "./dom.js";
import { bytes, clock, count, shortHash } from "./format.js";

/** Messages that are kept, and characters of each that are shown. */
const KEPT = 50;
const SHOWN = 20_000;

const EXAMPLES = {
  newHeads: [],
  logs: [{ topics: ["0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"] }],
  newPendingTransactions: [],
  transactionReceipts: [],
};

const UNREACHABLE =
  "This browser cannot open a WebSocket there. Either nothing listens at this address for this browser (a tunnel has to " +
  "forward the client port too), or headwater refuses this page or key: server.origins has to list this page's origin, and " +
  "auth.accept the query, for a browser cannot send a key otherwise.";

/** Reads the parameters of a subscription: `null` if they are not an array. */
function parameters(text) {
  try {
    const params = JSON.parse(`[${text}]`);
    return params.length <= 1 ? params : null;
  } catch {
    return null;
  }
}

const number = (hex) => (typeof hex === "string" ? count(Number(hex)) : "–");
const cut = (text, length) => (text.length > length ? `${text.slice(0, length)}… (${bytes(text.length)})` : text);

/** One line of a notification. */
export function summarize(result) {
  if (typeof result === "string") return result;
  if (Array.isArray(result)) return `${count(result.length)} items: ${cut(JSON.stringify(result), 80)}`;
  if (result?.parentHash) return `block ${number(result.number)} ${shortHash(result.hash)}, gas used ${number(result.gasUsed)}`;
  if (result?.topics) {
    const where = `block ${number(result.blockNumber)}, log ${number(result.logIndex)}`;
    return `${result.removed ? "removed: " : ""}${where}, ${result.address}, ${result.topics.map(shortHash).join(" ")}`;
  }
  return cut(JSON.stringify(result), 120);
}

export function createTry(api) {
  const kind = el("select", { id: "try-kind" }, ...Object.keys(EXAMPLES).map((name) => el("option", {}, name)));
  const options = el("input", { id: "try-options", autocomplete: "off", spellcheck: "false", placeholder: "none", "aria-describedby": "try-state" });
  const key = el("input", { id: "try-key", type: "password", autocomplete: "off", placeholder: "none" });
  const go = el("button", { type: "submit", class: "primary" }, "Subscribe");
  const place = el("code", {}, "–");
  const state = el("p", { class: "detail", id: "try-state", role: "status" });
  // Apart from the state, for that is spoken.
  const sum = el("p", { class: "dim", id: "try-totals" });
  const came = el("ol", { class: "plain" });
  const field = (label, input, grows) => el("span", { class: grows ? "grow field" : "field" }, el("label", { for: input.id }, label), input);
  const form = el("form", { class: "bar" }, field("Kind", kind), field("Options (JSON)", options, true), field("Key", key), go);
  byId("try").append(
    el("p", { class: "dim" }, "Subscribes at ", place, ", as any client: limits and quotas apply."),
    form,
    state,
    sum,
    el("div", { class: "feed messages", role: "log", "aria-live": "off", "aria-label": "Messages, newest first", tabindex: "0" }, came),
  );

  let socket = null;
  let totals = { messages: 0, bytes: 0 };

  const say = (text) => setText(state, text);
  kind.addEventListener("change", () => {
    const [example] = EXAMPLES[kind.value];
    options.value = example ? JSON.stringify(example) : "";
  });

  function add(messages, length) {
    totals.messages += messages;
    totals.bytes += length;
    setText(sum, `${count(totals.messages)} message${totals.messages === 1 ? "" : "s"}, ${bytes(totals.bytes)}`);
  }

  function show(result, length) {
    add(1, length);
    const whole = el("pre");
    const details = el("details", {}, el("summary", {}, el("time", {}, clock(Date.now())), " ", summarize(result)), whole);
    // Most are never opened.
    details.addEventListener("toggle", () => setText(whole, cut(JSON.stringify(result, null, 2), SHOWN)));
    came.prepend(el("li", {}, details));
    while (came.children.length > KEPT) came.lastElementChild.remove();
  }

  function end(text) {
    const own = socket;
    socket = null;
    own?.close(1000);
    setText(go, "Subscribe");
    say(text);
  }

  function begin(params) {
    const url = api.session?.clientUrl;
    if (!url) return say("headwater does not say where its client port is.");
    let opened = false;
    totals = { messages: 0, bytes: 0 };
    add(0, 0);
    came.replaceChildren();
    setText(go, "End");
    say("connecting…");
    const secret = key.value.trim();
    const own = new WebSocket(secret ? `${url}/?key=${encodeURIComponent(secret)}` : url);
    socket = own;
    own.onopen = () => {
      opened = true;
      own.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "eth_subscribe", params }));
    };
    own.onmessage = ({ data }) => {
      if (socket !== own) return;
      const message = JSON.parse(data);
      if (message.error) return end(`refused: ${message.error.message} (${message.error.code})`);
      if (message.id === 1) return say(`subscribed: ${message.result}`);
      show(message.params?.result ?? message, data.length);
    };
    own.onclose = ({ code, reason }) => {
      if (socket !== own) return;
      end(opened ? `closed by headwater: ${code}${reason ? `, ${reason}` : ""}` : UNREACHABLE);
    };
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (socket) return end("ended");
    const rest = parameters(options.value);
    if (!rest) return say("The options are not a JSON value.");
    begin([kind.value, ...rest]);
  });

  api.addEventListener("state", () => {
    setText(place, api.session?.clientUrl ?? "–");
    if (api.state === "signed out" && socket) end("signed out");
  });
  return { focus: () => kind.focus() };
}
