// The page: the API's states and events go to the panels.

import { Api } from "./api.js";
import { blocksOf, createBlocks } from "./blocks.js";
import { createClients } from "./clients.js";
import { createActs, onDone } from "./dialogs.js";
import { byId, setAttribute, setText } from "./dom.js";
import { createEvents } from "./events.js";
import { createFigures } from "./figures.js";
import { clock, duration } from "./format.js";
import { createKeyboard } from "./keyboard.js";
import { createLimits } from "./limits.js";
import { History } from "./rates.js";
import { createStreams } from "./streams.js";
import { createTry } from "./try.js";
import { createUpstreams } from "./upstreams.js";
import { createUsage } from "./usage.js";
import { createWebhooks } from "./webhooks.js";

const THEMES = ["system", "light", "dark"];
const THEME = "headwater.theme";

const api = new Api();
const history = new History();

// --- what is spoken: joined, and not more often than every few seconds ---

const SPEECH = 3_000;
let speech = [];
let speaking = 0;

function speak(text) {
  speech = [...speech, text].slice(-3);
  speaking ||= setTimeout(() => {
    setText(byId("spoken"), speech.join("; "));
    speech = [];
    speaking = 0;
  }, spokenAt + SPEECH < performance.now() ? 50 : SPEECH);
  spokenAt = performance.now();
}
let spokenAt = -Infinity;

// --- colours ---

function paint(theme) {
  setAttribute(document.documentElement, "data-theme", theme === "system" ? null : theme);
  setText(byId("theme"), `Theme: ${theme}`);
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(localStorage.getItem(THEME) ?? "system") + 1) % THEMES.length];
  localStorage.setItem(THEME, theme);
  paint(theme);
}

paint(localStorage.getItem(THEME) ?? "system");
byId("theme").addEventListener("click", nextTheme);

// --- panels ---

const clients = createClients(api);
const trial = createTry(api);
const panels = [createActs(api), createFigures(), createUpstreams(api), createWebhooks(), createBlocks(api, (text) => setText(byId("spoken"), text)), createStreams(), createLimits(), createUsage(api), clients];
createEvents(api, speak);

createKeyboard([
  ["/", "find a client", clients.focus],
  ["s", "try a subscription", trial.focus],
  ["t", "colours: system, light, dark", nextTheme],
]);

function draw() {
  const { newest } = history;
  // Nobody looks at a hidden page.
  if (!newest || document.hidden) return;
  const id = Number(newest.chainId);
  const chain = newest.chainId ? ` · chain ${Number.isSafeInteger(id) ? id : newest.chainId}` : "";
  setText(byId("about"), `${newest.version}${chain} · up ${duration(newest.uptimeMs)}`);
  const badge = byId("readiness");
  badge.hidden = false;
  setText(badge, newest.ready ? "ready" : `not ready: ${newest.notReady}`);
  setAttribute(badge, "data-mark", newest.ready ? "good" : "bad");
  panels.forEach((panel) => panel.update(history));
}

addEventListener("resize", draw);
document.addEventListener("visibilitychange", draw);

// --- connection ---

function notice(text, mark) {
  const place = byId("notice");
  place.hidden = !text;
  setText(place, text);
  setAttribute(place, "data-mark", mark);
}

let fading;
onDone((text) => {
  notice(`Done: ${text}.`, "good");
  clearTimeout(fading);
  fading = setTimeout(() => api.state === "connected" && notice(""), 6_000);
});

const MARKS = { connected: "good", connecting: null, reconnecting: "warn", "signed out": "warn" };

api.addEventListener("state", ({ detail }) => {
  const { state } = api;
  const isOut = state === "signed out";
  document.body.dataset.state = state;
  setText(byId("state"), state);
  setAttribute(byId("state"), "data-mark", MARKS[state]);
  // What was so before may be otherwise now.
  if (state !== "connected") byId("readiness").hidden = true;
  byId("panels").hidden = isOut || (!history.newest && state !== "connected");
  byId("login").hidden = !isOut;
  for (const id of ["drain", "reload"]) byId(id).hidden = isOut;
  byId("logout").hidden = isOut || api.session?.credential !== "session";
  for (const button of document.querySelectorAll("#drain, #reload")) button.disabled = state !== "connected";
  if (isOut) {
    notice("");
    byId("token").focus();
  } else if (state === "reconnecting") {
    const since = history.newest ? ` What is shown is from ${clock(history.newest.atMs)}.` : "";
    notice(`Reconnecting: ${detail}.${since}`, "warn");
  } else notice("");
});

let blocks = [];
api.follow("operator_subscribeStatus", [], (state) => {
  state.blocks = blocks = blocksOf(state, blocks);
  history.add(state);
  draw();
});

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = byId("token");
  setText(byId("login-error"), "");
  await api.signIn(token.value).then(
    () => (token.value = ""),
    (why) => setText(byId("login-error"), why.message),
  );
});
byId("logout").addEventListener("click", () => api.signOut().catch((why) => notice(why.message, "bad")));

api.connect();
