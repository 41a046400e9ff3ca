// Panel of subscriptions and deliveries by kind.

import { byId, table } from "./dom.js";
import { brief, count } from "./format.js";

export function createStreams() {
  const rows = table({
    label: "Subscriptions by kind",
    key: ({ kind }) => kind,
    empty: "no subscription since the start",
    columns: [
      { title: "Kind", head: true, text: ({ kind }) => kind },
      { title: "Open", number: true, text: ({ open }) => count(open) },
      { title: "Delivered/s", number: true, text: ({ rate }) => brief(rate) },
      { title: "In all", number: true, text: ({ total }) => brief(total) },
    ],
  });
  byId("streams").append(rows.element);
  return {
    update(history) {
      const { subscriptions, deliveries } = history.newest;
      const kinds = Object.keys(subscriptions).filter((kind) => subscriptions[kind] || deliveries[kind]);
      const row = (kind) => ({
        kind,
        open: subscriptions[kind],
        rate: history.rate((state) => state.deliveries[kind] ?? 0),
        total: deliveries[kind],
      });
      rows.update(kinds.map(row).sort((a, b) => b.open - a.open || b.total - a.total));
    },
  };
}
