// Feed of events, newest first.

import { byId, el } from "./dom.js";
import { clock, count, words } from "./format.js";

/** Entries that are kept. */
const KEPT = 200;

/** Events that come in floods, and may be left out. */
const COMMON = new Set(["closed", "refused"]);

const list = (names) => (names.length ? names.join(", ") : "nothing");

/** Text and mark of an event. */
const TEXTS = {
  failover: ({ from, to, reason }) => [from || to ? `${from ?? "none"} → ${to ?? "none"} (${words(reason)})` : words(reason), "warn"],
  reorg: ({ fork, depth }) => [`${count(depth)} block${depth === 1 ? "" : "s"} after ${count(fork)}`, "warn"],
  continuityLost: () => ["subscribers to the chain were closed", "bad"],
  closed: ({ client, account, reason, code }) => [`#${client} ${account}: ${words(reason)}${code ? ` (${code})` : ""}`],
  refused: ({ counts }) => [Object.entries(counts).map(([reason, number]) => `${words(reason)} ×${count(number)}`).join(", ")],
  reloaded: ({ needsRestart }) => [needsRestart.length ? `wait for a restart: ${list(needsRestart)}` : "configuration applied", "good"],
  reloadRefused: ({ error }) => [error, "bad"],
  cordoned: ({ upstream }) => [upstream, "warn"],
  uncordoned: ({ upstream }) => [upstream, "good"],
  drained: () => ["/ready answers 503", "warn"],
  undrained: () => ["", "good"],
  missed: ({ count: missed }) => [`this page missed ${count(missed)} events`, "warn"],
};

/** Events that are spoken. */
const SPOKEN = new Set(["failover", "reorg", "continuityLost", "reloadRefused"]);

function describe(entry) {
  const [text, mark] = TEXTS[entry.event]?.(entry) ?? [""];
  return { name: words(entry.event), text, mark };
}

export function createEvents(api, speak) {
  const feed = el("ol", { class: "plain" });
  // Not spoken as a whole: the few events that matter are.
  const log = el("div", { class: "feed", role: "log", "aria-live": "off", "aria-label": "Events, newest first", tabindex: "0" }, feed);
  const all = el("input", { type: "checkbox", id: "events-all", checked: true });
  const none = el("p", { class: "dim none" }, "nothing yet");
  byId("events").append(el("p", { class: "bar" }, el("label", {}, all, " closes and refusals")), log, none);
  all.addEventListener("change", () => feed.classList.toggle("rare", !all.checked));

  // Events that happened before the page came are not spoken; they are sent at once.
  let settling = 0;
  let waiting = [];
  function draw() {
    const fresh = waiting.slice(-KEPT).reverse();
    waiting = [];
    feed.prepend(...fresh.map((entry) => {
      const { name, text, mark } = describe(entry);
      return el("li", { class: COMMON.has(entry.event) ? "common" : null },
        el("time", { datetime: new Date(entry.at).toISOString() }, clock(entry.at)),
        " ",
        el("span", { class: "badge", "data-mark": mark }, name),
        " ",
        el("span", { class: "text" }, text));
    }));
    while (feed.children.length > KEPT) feed.lastElementChild.remove();
    none.hidden = feed.children.length > 0;
  }

  function add(entry) {
    // A restart of a balancer closes thousands at once: they are drawn together.
    if (waiting.push(entry) === 1) setTimeout(draw, 100);
    if (waiting.length > 4 * KEPT) waiting.splice(1, 2 * KEPT);
    if ("live" in log.dataset && SPOKEN.has(entry.event)) {
      const { name, text } = describe(entry);
      speak(`${name}: ${text}`);
    }
  }

  api.follow("operator_subscribeEvents", [KEPT], add, () => {
    clearTimeout(settling);
    delete log.dataset.live;
    settling = setTimeout(() => (log.dataset.live = ""), 1_000);
    feed.replaceChildren();
    waiting = [];
  });
}
