// Queues, and what was refused, closed and answered, by reason: in the panels of limits and of subscriptions.

import { byId, el, setText, table } from "./dom.js";
import { brief, bytes, count, words } from "./format.js";

const MINUTE = 60_000;

/** Counters by reason: the panel, a member of the status, a title, and the text without any. */
const COUNTERS = [
  ["queues", "refusals", "Refused by limit", "nothing was refused since the start"],
  ["queues", "closes", "Connections closed by reason", "none was closed since the start"],
  ["queues", "failovers", "Failovers by reason", "no failover since the start"],
  ["streams", "requests", "Requests by outcome", "no request since the start"],
];

export function createLimits() {
  const [queued, longest, slow] = [el("dd"), el("dd"), el("dd")];
  const pair = (name, value) => el("div", {}, el("dt", {}, name), value);
  const queues = el("dl", { class: "pairs" }, pair("All queues", queued), pair("Longest", longest), pair("Slow clients", slow));
  byId("queues").append(queues);
  const tables = COUNTERS.map(([panel, member, label, empty]) => {
    const rows = table({
      label,
      empty,
      key: ({ reason }) => reason,
      columns: [
        { title: "Reason", head: true, text: ({ reason }) => words(reason) },
        { title: "Last minute", number: true, text: ({ recent }) => count(recent) },
        { title: "In all", number: true, text: ({ total }) => brief(total) },
      ],
    });
    byId(panel).append(el("h3", {}, label), rows.element);
    return [member, rows];
  });
  return {
    update(history) {
      const { newest } = history;
      setText(queued, bytes(newest.queues.bytes));
      setText(longest, bytes(newest.queues.largest));
      setText(slow, count(newest.queues.slow));
      for (const [member, rows] of tables) {
        const reasons = Object.entries(newest[member]).filter(([, total]) => total > 0);
        const row = ([reason, total]) => ({
          reason,
          total,
          recent: history.within(MINUTE, (state) => state[member][reason] ?? 0),
        });
        rows.update(reasons.map(row).sort((a, b) => b.total - a.total));
      }
    },
  };
}
