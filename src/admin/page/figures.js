// Strip of the figures that matter most, and the plots of the last minutes.

import { byId, el, setAttribute, setText } from "./dom.js";
import { brief, bytes, count, duration } from "./format.js";
import { createPlot } from "./plot.js";
import { deliveries, refusals, requests, subscriptions } from "./rates.js";

const perSecond = (value) => `${brief(value)}/s`;
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** Figures: a name, the value, a second line, and a mark where something is wrong. */
const FIGURES = [
  ["Head", ({ newest: { head } }) => (head ? count(head.number) : "–"), ({ newest: { head } }) => (head ? `${duration(head.ageMs)} ago` : "none yet")],
  ["Clients", ({ newest }) => count(newest.clients), ({ newest }) => `${plural(newest.accounts, "account")}`],
  ["Subscriptions", ({ newest }) => count(subscriptions(newest)), ({ newest }) => plural(newest.logFilters, "log filter")],
  ["Deliveries", (history) => perSecond(history.rate(deliveries)), ({ newest }) => `${brief(deliveries(newest))} in all`],
  ["Sent", (history) => `${bytes(history.rate((state) => state.sentBytes))}/s`, ({ newest }) => `${bytes(newest.sentBytes)} in all`],
  ["Requests", (history) => perSecond(history.rate(requests)), (history) => `${perSecond(history.rate(refusals))} refused`, (history) => history.rate(refusals) > 0 && "warn"],
  ["Latency p99", ({ newest }) => duration(newest.latency.p99Ms), ({ newest }) => `p50 ${duration(newest.latency.p50Ms)}, last minute`],
  ["Queued", ({ newest }) => bytes(newest.queues.bytes), ({ newest }) => plural(newest.queues.slow, "slow client"), ({ newest }) => newest.queues.slow > 0 && "warn"],
];

export function createFigures() {
  const tiles = FIGURES.map(([name]) => {
    const [value, more] = [el("dd", { class: "value" }), el("dd", { class: "more dim" })];
    return { element: el("div", {}, el("dt", {}, name), value, more), value, more };
  });
  byId("figures").append(el("dl", {}, ...tiles.map(({ element }) => element)));

  const latency = createPlot({
    label: "Latency from a node's message to the client's socket",
    series: [{ name: "p50" }, { name: "p99" }],
    format: duration,
    logarithmic: true,
  });
  const delivered = createPlot({ label: "Notifications a second", series: [{ name: "written", unit: "/s" }], format: brief });
  const volume = createPlot({
    label: "Bytes a second",
    series: [{ name: "sent", unit: "/s" }, { name: "received", unit: "/s" }],
    format: bytes,
  });
  byId("latency").append(latency.element);
  byId("deliveries").append(delivered.element);
  byId("bytes").append(volume.element);

  return {
    update(history) {
      FIGURES.forEach(([, value, more, mark], at) => {
        setText(tiles[at].value, value(history));
        setText(tiles[at].more, more(history));
        setAttribute(tiles[at].element, "data-mark", mark?.(history));
      });
      const now = history.newest.atMs;
      const latencies = history.latencies([0.5, 0.99]);
      latency.update(now, latencies, (latencies.at(-1)?.values ?? [null, null]).map(duration));
      delivered.update(now, history.points(deliveries), [brief(history.rate(deliveries))]);
      const [sent, received] = [(state) => state.sentBytes, (state) => state.receivedBytes];
      volume.update(now, history.points(sent, received), [bytes(history.rate(sent)), bytes(history.rate(received))]);
    },
  };
}
