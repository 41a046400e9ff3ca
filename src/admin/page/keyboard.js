// Shortcuts: single keys, listed by `?`, which can be switched off.

import { tell } from "./dialogs.js";
import { byId, el } from "./dom.js";

const OFF = "headwater.shortcuts";

const PANELS = ["upstreams", "latency", "blocks", "events", "streams", "queues", "usage", "clients", "try"];

function go(id) {
  const panel = byId(id);
  panel.scrollIntoView({ block: "start" });
  panel.focus({ preventScroll: true });
}

/** Listens for the keys; `acts` are further ones: key, description, function. */
export function createKeyboard(acts) {
  const keys = new Map(acts.map(([key, , run]) => [key, run]));
  PANELS.forEach((id, at) => keys.set(String(at + 1), () => go(id)));
  keys.set("?", help);

  function help() {
    const panels = PANELS.map((id, at) => [String(at + 1), byId(`${id}-title`).textContent]);
    const all = [...panels, ...acts, ["?", "this list"], ["Esc", "close a dialog"]];
    const rows = all.map(([key, text]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, key)), el("td", {}, text)));
    const on = el("input", { type: "checkbox", checked: !localStorage.getItem(OFF) });
    on.addEventListener("change", () => (on.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "off")));
    tell("Keyboard", el("table", { class: "keys", "aria-label": "Shortcuts" }, el("tbody", {}, ...rows)), el("p", {}, el("label", {}, on, " shortcuts of a single key are on")));
  }

  byId("keys").addEventListener("click", help);
  addEventListener("keydown", (event) => {
    const { target, key, ctrlKey, metaKey, altKey } = event;
    const writes = target.closest?.("input, select, textarea, dialog");
    if (writes || ctrlKey || metaKey || altKey || localStorage.getItem(OFF) || byId("panels").hidden) return;
    const run = keys.get(key);
    if (!run) return;
    event.preventDefault();
    run();
  });
}
