// Panel of what costs most: accounts, within the last seconds or by the usage of hours, and clients within the last second.

import { byId, el, setAttribute, setText, table, whileSeen } from "./dom.js";
import { brief, bytes, count } from "./format.js";

/** Seconds between two readings of the usage. */
const EVERY = 15;

/** Accounts that are shown. */
const SHOWN = 12;

/** Times of which the usage is shown, in hours; what the state has needs no reading. */
const TIMES = [["", "last 10 seconds"], ["1", "this hour"], ["24", "24 hours"], ["168", "7 days"], ["720", "30 days"]];

const bar = (of, read) => ({
  make: () => el("meter", { min: 0, max: 1, "aria-label": "share" }),
  update(meter, item) {
    const share = read(item) / Math.max(1, of());
    setAttribute(meter, "value", share.toFixed(3));
    setAttribute(meter, "title", `${(share * 100).toFixed(1)} %`);
  },
});

export function createUsage(api) {
  const select = el("select", { id: "usage-hours" }, ...TIMES.map(([value, text]) => el("option", { value }, text)));
  let all = 0;
  let busy = 0;

  const accounts = table({
    label: "Usage by account",
    key: ({ account }) => account,
    empty: "nothing was used in this time",
    columns: [
      { title: "Account", head: true, text: ({ account }) => account, hint: ({ account }) => account },
      { title: "Notifications", number: true, text: ({ notifications }) => brief(notifications) },
      { title: "Bytes", number: true, text: (row) => bytes(row.bytes) },
      { title: "Requests", number: true, text: ({ requests }) => brief(requests) },
      { title: "Refused", number: true, text: ({ refusals }) => brief(refusals), mark: ({ refusals }) => refusals > 0 && "warn" },
      { title: "Share", narrow: true, ...bar(() => all, (row) => row.bytes) },
    ],
  });
  const busiest = table({
    label: "Clients to which most was written within the last second",
    key: ({ client }) => client,
    empty: "nothing was written within the last second",
    columns: [
      { title: "Client", head: true, text: ({ client }) => `#${client}` },
      { title: "Account", text: ({ account }) => account, hint: ({ account }) => account },
      { title: "Bytes", number: true, text: (row) => bytes(row.bytes) },
      { title: "Of the most", narrow: true, ...bar(() => busy, (row) => row.bytes) },
    ],
  });
  const more = el("p", { class: "dim" });
  byId("usage").append(
    el("div", { class: "columns" },
      el("div", {}, el("div", { class: "bar" }, el("h3", {}, "Accounts"), el("label", { for: "usage-hours", class: "hidden" }, "Time"), select), accounts.element, more),
      el("div", {}, el("h3", {}, "Busiest clients, last second"), busiest.element)),
  );

  let newest = [];
  function show(rows) {
    all = rows.reduce((sum, row) => sum + row.bytes, 0);
    accounts.update(rows.slice(0, SHOWN));
    setText(more, rows.length > SHOWN ? `and ${count(rows.length - SHOWN)} more: headwater usage` : "");
  }
  async function read() {
    const hours = select.value;
    if (!hours) return show(newest);
    const rows = await api.call("operator_usage", { total: true, hours: Number(hours) }).catch(() => null);
    if (rows && hours === select.value) show(rows);
  }
  const reading = whileSeen(byId("usage"), EVERY, read);
  select.addEventListener("change", reading.run);

  return {
    update({ newest: state }) {
      busy = Math.max(0, ...state.busiest.map((row) => row.bytes));
      busiest.update(state.busiest);
      newest = state.costliest;
      if (select.value) reading.due();
      else show(newest);
    },
  };
}
