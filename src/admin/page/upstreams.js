// Panel of the upstreams, with cordon and uncordon.

import { act } from "./dialogs.js";
import { byId, el, setAttribute, setText, table } from "./dom.js";
import { NONE, count, duration } from "./format.js";

const MARKS = { active: "good", standby: null, cordoned: "warn", refused: "bad", down: "bad" };

export function createUpstreams(api) {
  async function cordon(upstream) {
    await act({
      title: `Cordon upstream ${upstream.index}?`,
      text: [
        upstream.address,
        `It gets no more calls${upstream.active ? ", and another upstream becomes active" : ""}. No event is lost, and no client is closed.`,
      ],
      action: "Cordon",
      run: (force) => api.call("operator_cordon", upstream.index, force),
      force: "Cordon all the same: calls fail until the cordon ends",
      done: `upstream ${upstream.index} is cordoned`,
    });
  }

  async function uncordon(upstream) {
    await act({
      title: `Uncordon upstream ${upstream.index}?`,
      text: [upstream.address, "It takes calls again, and becomes active by its priority."],
      action: "Uncordon",
      run: () => api.call("operator_uncordon", upstream.index),
      done: `upstream ${upstream.index} is not cordoned any more`,
    });
  }

  const rows = table({
    label: "Upstreams by priority",
    key: ({ index, address }) => `${index} ${address}`,
    columns: [
      { title: "#", text: ({ index }) => String(index), number: true },
      { title: "Address", head: true, text: ({ address }) => address, hint: ({ address }) => address },
      {
        title: "State",
        make: () => el("span", { class: "badge" }),
        update(badge, { state }) {
          setText(badge, state);
          setAttribute(badge, "data-mark", MARKS[state]);
        },
      },
      { title: "Head", number: true, text: ({ head }) => count(head) },
      { title: "Lag", number: true, text: ({ lagMs }) => (lagMs === 0 ? "0" : duration(lagMs)), mark: ({ lagMs }) => lagMs > 5000 && "warn" },
      { title: "Latency", number: true, text: ({ latencyMs }) => duration(latencyMs) },
      { title: "Calls in flight", number: true, text: ({ callsInFlight }) => count(callsInFlight) },
      { title: "Connects", number: true, narrow: true, text: ({ connects }) => count(connects) },
      { title: "Heads by", narrow: true, text: ({ announcements }) => announcements ?? NONE },
      { title: "Error", text: ({ error }) => error ?? "", mark: () => "error" },
      {
        title: "",
        make: () => el("button", { type: "button", class: "live", on: { click: ({ target }) => (target.upstream.cordoned ? uncordon : cordon)(target.upstream) } }),
        update(button, upstream) {
          button.upstream = upstream;
          setText(button, upstream.cordoned ? "Uncordon…" : "Cordon…");
          setAttribute(button, "aria-label", `${upstream.cordoned ? "Uncordon" : "Cordon"} upstream ${upstream.index}`);
        },
      },
    ],
  });
  byId("upstreams").append(rows.element);
  return { update: ({ newest }) => rows.update(newest.upstreams) };
}
