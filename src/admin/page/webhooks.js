// Panel of the webhooks, which is there if the settings have one.

import { byId, el, setAttribute, setText, table } from "./dom.js";
import { NONE, count, duration } from "./format.js";

const MARKS = { starting: null, idle: "good", delivering: "good", retrying: "warn", disabled: "bad" };

export function createWebhooks() {
  const rows = table({
    label: "Webhooks by name",
    key: ({ name }) => name,
    columns: [
      { title: "Name", head: true, text: ({ name }) => name },
      { title: "Kind", text: ({ kind }) => kind },
      {
        title: "State",
        make: () => el("span", { class: "badge" }),
        update(badge, { phase }) {
          setText(badge, phase);
          setAttribute(badge, "data-mark", MARKS[phase]);
        },
      },
      { title: "Blocks behind", number: true, text: ({ behind }) => (behind === null ? NONE : count(behind)) },
      { title: "Lag", number: true, text: ({ lagMs }) => (lagMs === 0 ? "0" : duration(lagMs)), mark: ({ lagMs }) => lagMs > 60_000 && "warn" },
      { title: "Events", number: true, text: ({ events }) => count(events) },
      { title: "Attempts", number: true, narrow: true, text: ({ attempts }) => count(attempts) },
      { title: "Error", text: ({ error }) => error ?? "", mark: () => "error" },
    ],
  });
  const panel = byId("webhooks");
  panel.append(rows.element);
  return {
    update({ newest }) {
      panel.hidden = newest.webhooks.length === 0;
      rows.update(newest.webhooks);
    },
  };
}
