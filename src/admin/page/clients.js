// Panel of the connected clients: selection, order, pages, disconnect.

import { act } from "./dialogs.js";
import { byId, el, setAttribute, setText, table, whileSeen } from "./dom.js";
import { NONE, brief, bytes, count, duration } from "./format.js";

/** Seconds between two readings: each looks at every client. */
const EVERY = 10;

const PAGE = 20;

const SORTS = [["queue", "longest queue"], ["sent", "most bytes"], ["notifications", "most notifications"], ["subscriptions", "most subscriptions"], ["calls", "most calls"], ["newest", "newest"]];

/** Time without room in the socket from which a client counts as slow. */
const SLOW = 1_000;

const options = (pairs) => pairs.map(([value, text]) => el("option", { value }, text));

export function createClients(api) {
  const text = el("input", { type: "search", id: "client-text", placeholder: "account or address", autocomplete: "off", spellcheck: "false" });
  const sort = el("select", { id: "client-sort" }, ...options(SORTS));
  const kind = el("select", { id: "client-kind" }, el("option", { value: "" }, "all"));
  const again = el("button", { type: "button", class: "live" }, "Refresh");
  const [back, on] = [el("button", { type: "button", class: "live" }, "← Back"), el("button", { type: "button", class: "live" }, "Next →")];
  const range = el("span", { class: "dim", id: "client-range" });
  let offset = 0;

  async function disconnect(client) {
    await act({
      title: `Disconnect client ${client.id}?`,
      text: [
        `${client.account}${client.address ? `, from ${client.address}` : ""}, connected for ${duration(client.connectedMs)}`,
        "Its connection is closed with 1008. It may connect again.",
      ],
      action: "Disconnect",
      run: () => api.call("operator_disconnect", client.id),
      done: `client ${client.id} is disconnected`,
    });
    reading.run();
  }

  const rows = table({
    label: "Clients",
    key: ({ id }) => id,
    empty: "no such client",
    columns: [
      { title: "Client", head: true, text: ({ id }) => `#${id}` },
      { title: "Account", text: ({ account }) => account, hint: ({ account }) => account },
      { title: "Address", narrow: true, text: ({ address }) => address ?? "withheld" },
      { title: "Plan", narrow: true, text: ({ plan }) => plan },
      { title: "Connected", number: true, narrow: true, text: ({ connectedMs }) => duration(connectedMs) },
      { title: "Silent", number: true, narrow: true, text: ({ silentMs }) => duration(silentMs) },
      {
        title: "Subscriptions",
        text: ({ subscriptions }) => Object.entries(subscriptions).map(([name, number]) => (number > 1 ? `${name} ×${number}` : name)).join(", ") || NONE,
        hint: ({ subscriptions }) => Object.keys(subscriptions).join(", "),
      },
      { title: "Calls", number: true, narrow: true, text: ({ callsInFlight }) => count(callsInFlight) },
      { title: "Queue", number: true, text: ({ queuedBytes }) => bytes(queuedBytes) },
      { title: "Blocked", number: true, text: ({ blockedMs }) => (blockedMs === null ? NONE : duration(blockedMs)), mark: ({ blockedMs }) => blockedMs > SLOW && "warn" },
      { title: "Notifications", number: true, narrow: true, text: ({ notifications }) => brief(notifications) },
      { title: "Sent", number: true, text: ({ sentBytes }) => bytes(sentBytes) },
      { title: "Dropped", number: true, narrow: true, text: ({ dropped }) => brief(dropped), mark: ({ dropped }) => dropped > 0 && "warn" },
      {
        title: "",
        make: () => el("button", { type: "button", class: "live", on: { click: ({ target }) => disconnect(target.client) } }, "Disconnect…"),
        update(button, client) {
          button.client = client;
          button.disabled = client.closing;
          setAttribute(button, "aria-label", `Disconnect client ${client.id}`);
        },
      },
    ],
  });

  async function read() {
    const query = { sort: sort.value, offset, limit: PAGE };
    if (text.value.trim()) query.text = text.value.trim();
    if (kind.value) query.kind = kind.value;
    const page = await api.call("operator_clients", query).catch(() => null);
    if (!page) return;
    // Of two readings, the one that was asked for last counts.
    if (query.offset !== offset || query.sort !== sort.value) return;
    if (offset > 0 && offset >= page.matching) {
      offset = 0;
      return read();
    }
    rows.update(page.clients);
    const last = offset + page.clients.length;
    setText(range, page.matching ? `${count(offset + 1)}–${count(last)} of ${count(page.matching)}` : "none");
    back.disabled = offset === 0;
    on.disabled = last >= page.matching;
  }
  const reading = whileSeen(byId("clients"), EVERY, read);
  const anew = () => {
    offset = 0;
    reading.run();
  };
  let typing;
  text.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(anew, 300);
  });
  for (const select of [sort, kind]) select.addEventListener("change", anew);
  again.addEventListener("click", reading.run);
  back.addEventListener("click", () => {
    offset = Math.max(0, offset - PAGE);
    reading.run();
  });
  on.addEventListener("click", () => {
    offset += PAGE;
    reading.run();
  });

  const field = (label, input) => el("span", {}, el("label", { for: input.id }, label), " ", input);
  byId("clients").append(
    el("div", { class: "bar", role: "search", "aria-label": "Clients" }, field("Find", text), field("By", sort), field("With", kind), again, el("span", { class: "grow" }), range, back, on),
    rows.element,
    el("p", { class: "dim" }, `read every ${EVERY} seconds while it is on the screen`),
  );

  return {
    update({ newest }) {
      if (kind.options.length === 1) kind.append(...options(Object.keys(newest.subscriptions).map((name) => [name, name])));
      reading.due();
    },
    focus: () => text.focus(),
  };
}
