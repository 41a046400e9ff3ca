// Elements. Text comes from nodes and clients: it is only ever set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Creates an element; children are nodes or text. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** Creates an SVG element. */
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = (id) => document.getElementById(id);

/** Sets the text of a node, if it differs: a selection in it survives. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets or removes an attribute, if it differs. */
export function setAttribute(node, name, value) {
  if (value === undefined || value === null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/**
 * Makes the children of `parent` those of `items`, in their order. A child is kept as long as its key is there, so that
 * the focus stays where it is.
 */
export function keyed(parent, items, key, create, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = before.get(name);
    before.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
  before.forEach((child) => child.remove());
}

/**
 * Table with a row for each item. A column has a `title` and either `text(item)` or `make(item)` with `update(node, item)`;
 * `number` aligns it to the right, `head` makes it the row's header, `mark(item)` gives a class, `hint(item)` a tooltip.
 */
export function table({ label, columns, key, empty }) {
  const heads = columns.map(({ title, number, narrow }) => {
    const head = el("th", { scope: "col", class: [number && "number", narrow && "spare"].filter(Boolean).join(" ") || null });
    head.append(title || el("span", { class: "hidden" }, "action"));
    return head;
  });
  const body = el("tbody");
  const none = el("p", { class: "dim none", hidden: true }, empty ?? "none");
  const whole = el("table", { "aria-label": label, hidden: true }, el("thead", {}, el("tr", {}, ...heads)), body);
  const element = el("div", { class: "scroll" }, whole, none);
  // Only what scrolls has to be reached by keyboard.
  const observer = new ResizeObserver(() => {
    const scrolls = element.scrollWidth > element.clientWidth;
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", `${label}, table`]]) {
      setAttribute(element, name, scrolls && value);
    }
  });
  observer.observe(element);
  observer.observe(whole);

  function create() {
    const cells = columns.map((column) => {
      const classes = [column.number && "number", column.narrow && "spare"].filter(Boolean).join(" ");
      return column.head ? el("th", { scope: "row", class: classes || null }) : el("td", { class: classes || null });
    });
    return el("tr", {}, ...cells);
  }

  function update(row, item) {
    columns.forEach((column, at) => {
      const cell = row.children[at];
      if (column.text) setText(cell, column.text(item));
      else {
        if (!cell.firstChild) cell.append(column.make(item));
        column.update(cell.firstChild, item);
      }
      if (column.mark) setAttribute(cell, "data-mark", column.mark(item));
      if (column.hint) setAttribute(cell, "title", column.hint(item));
    });
  }

  return {
    element,
    update(items) {
      whole.hidden = items.length === 0;
      none.hidden = items.length > 0;
      keyed(body, items, key, create, update);
    },
  };
}

/** Calls `refresh` once, when asked, and every `seconds` as long as the element can be seen: nobody asks for what is not. */
export function whileSeen(element, seconds, refresh) {
  let seen = false;
  let last = -Infinity;
  const run = () => {
    last = performance.now();
    refresh();
  };
  const due = () => (seen || last === -Infinity) && !document.hidden && performance.now() - last >= seconds * 1000 - 200 && run();
  new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    if (seen) due();
  }).observe(element);
  return { due, run };
}
