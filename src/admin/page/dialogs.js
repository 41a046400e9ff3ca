// Acts on headwater: each asks once, in a dialog, and shows why it was refused.

import { byId, el, setText } from "./dom.js";

/** Error code of an act that is refused, which some can be told to do all the same. */
const REFUSED = -32000;

let announce = () => {};

/** Sets the function that is told of each act that was done. */
export function onDone(listener) {
  announce = listener;
}

function open(dialog) {
  document.body.append(dialog);
  const before = document.activeElement;
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
  });
  // A click beside the dialog hits the dialog itself.
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  dialog.showModal();
}

/**
 * Asks, and acts if the reader agrees. `text` lists paragraphs, `fields` further elements; `run(force)` acts, and `force`
 * names what may be done if it is refused. Resolves when the dialog has closed.
 */
export function act({ title, text, fields = [], action, run, force, done }) {
  const error = el("p", { class: "error", role: "alert" });
  const yes = el("button", { type: "submit", class: "primary" }, action);
  const forced = force && el("label", { hidden: true }, el("input", { type: "checkbox" }), ` ${force}`);
  const no = el("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel");
  const form = el("form", { method: "dialog" },
    el("h2", { id: "dialog-title" }, title),
    ...text.map((paragraph) => el("p", {}, paragraph)),
    ...fields,
    error,
    ...(forced ? [forced] : []),
    el("div", { class: "buttons" }, no, yes));
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    yes.disabled = true;
    setText(error, "");
    try {
      const outcome = await run(forced?.querySelector("input").checked ?? false);
      dialog.close();
      announce(typeof done === "function" ? done(outcome) : done);
    } catch (why) {
      setText(error, why.message);
      if (forced && why.code === REFUSED) forced.hidden = false;
    }
    yes.disabled = false;
  });
  return new Promise((resolve) => {
    dialog.addEventListener("close", resolve);
    open(dialog);
    no.focus();
  });
}

/** Shows a dialog that only tells. */
export function tell(title, ...content) {
  const close = el("button", { type: "button", class: "primary", on: { click: () => dialog.close() } }, "Close");
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, el("h2", { id: "dialog-title" }, title), ...content, el("div", { class: "buttons" }, close));
  open(dialog);
  close.focus();
}

/** Buttons of the acts on headwater as a whole. */
export function createActs(api) {
  const [drain, reload] = [byId("drain"), byId("reload")];
  let drained = false;

  async function askDrain() {
    const choices = [["", "stay connected"], ["60000", "are closed within a minute"], ["300000", "are closed within 5 minutes"], ["1800000", "are closed within 30 minutes"]];
    const select = el("select", { id: "drain-close" }, ...choices.map(([value, text]) => el("option", { value }, text)));
    const within = () => (select.value ? { closeWithinMs: Number(select.value) } : {});
    await act({
      title: "Drain headwater?",
      text: ["/ready answers 503, so that balancers send no new clients."],
      fields: [el("p", {}, el("label", { for: "drain-close" }, "Connected clients "), select)],
      action: "Drain",
      run: () => api.call("operator_drain", within()),
      done: "headwater is drained",
    });
  }

  const askUndrain = () => act({
    title: "End the drain?",
    text: ["/ready answers 200 again, and no more clients are closed."],
    action: "Undrain",
    run: () => api.call("operator_undrain"),
    done: "headwater is not drained any more",
  });

  async function askReload() {
    const list = (names) => (names.length ? `Changed settings that wait for a restart: ${names.join(", ")}.` : "No changed setting waits for a restart.");
    const check = await api.call("operator_checkConfig").then(({ needsRestart }) => `The configuration is valid. ${list(needsRestart)}`, (why) => `Checked: ${why.message}`);
    await act({
      title: "Reload the configuration?",
      text: [check],
      action: "Reload",
      run: () => api.call("operator_reload"),
      done: ({ needsRestart }) => `the configuration is applied. ${list(needsRestart)}`,
    });
  }

  drain.addEventListener("click", () => (drained ? askUndrain() : askDrain()));
  reload.addEventListener("click", askReload);
  return {
    update({ newest }) {
      drained = newest.drained;
      setText(drain, drained ? "Undrain…" : "Drain…");
    },
  };
}
