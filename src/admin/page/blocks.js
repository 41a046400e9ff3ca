// Panel of the newest blocks: a tree in which reorgs are seen, the block under the pointer, and the reorgs in words.

import { byId, el, keyed, setAttribute, setText, svg } from "./dom.js";
import { count, date, duration, shortHash } from "./format.js";
import { layout } from "./tree.js";

const STEP = 19;
const SIZE = 12;
const LANE = 24;
const TOP = 22;
const MARGIN = 14;

/** Most blocks that are shown, as many as a status has. */
const KEPT = 64;

/** Returns the blocks of a state: its own, or those of the state before and its new ones, each with the time of its arrival. */
export function blocksOf({ blocks, newBlocks }, before) {
  const arrived = (block) => ({ ...block, arrived: performance.now() - block.ageMs });
  return newBlocks ? [...before, ...newBlocks.map(arrived)].slice(-KEPT) : blocks.map(arrived);
}

/** Creates the panel; `say` speaks at once. */
export function createBlocks(api, say) {
  const links = svg("g", { class: "links" });
  const marks = svg("g");
  const labels = svg("g", { class: "grid" });
  const picture = svg("svg", { class: "tree", role: "img" }, labels, links, marks);
  const view = el("div", { class: "scroll", tabindex: "0", role: "group", "aria-describedby": "block", id: "tree" }, picture);
  const detail = el("p", { id: "block", class: "detail" });
  const reorgs = el("ol", { class: "reorgs plain", "aria-label": "Reorgs, newest first" });
  const none = el("p", { class: "dim none" }, "no reorg since the start");
  byId("blocks").append(
    view,
    el("p", { class: "legend" },
      el("span", { class: "swatch canonical" }), "canonical ",
      el("span", { class: "swatch dropped" }), "dropped by a reorg ",
      el("span", { class: "dim spare" }, "← → ↑ ↓ move between blocks")),
    detail,
    el("h3", {}, "Reorgs"),
    reorgs,
    none,
  );

  let shown = { places: [] };
  /** Block that the reader picked; without one, the newest. */
  let picked = null;
  let told = null;

  const find = (hash) => shown.places.find(({ block }) => block.hash === hash);
  const place = () => find(picked) ?? shown.places.findLast(({ lane }) => lane === 0);

  function describe() {
    const at = place();
    for (const mark of marks.children) setAttribute(mark, "data-picked", mark.dataset.key === at?.block.hash && "true");
    if (!at) return setText(detail, "no block yet");
    const { block } = at;
    const age = duration(performance.now() - block.arrived);
    const fate = block.dropped ? "dropped by a reorg" : "canonical";
    const time = date(block.timestamp * 1000);
    setText(detail, `${count(block.number)} · ${fate} · ${block.hash} · parent ${shortHash(block.parent)} · came ${age} ago · timestamp ${time}`);
  }

  function pick(hash) {
    picked = hash;
    describe();
  }

  const NEXT = {
    ArrowRight: (from) => ({ column: from.column + 1, lane: from.lane }),
    ArrowLeft: (from) => ({ column: from.column - 1, lane: from.lane }),
    ArrowDown: (from) => ({ column: from.column, lane: from.lane + 1 }),
    ArrowUp: (from) => ({ column: from.column, lane: from.lane - 1 }),
  };
  view.addEventListener("keydown", (event) => {
    const [from, next] = [place(), NEXT[event.key]];
    if (!from || !next) return;
    event.preventDefault();
    const { column, lane } = next(from);
    const inColumn = shown.places.filter((other) => other.column === column);
    const to = inColumn.find((other) => other.lane === lane) ?? (lane === from.lane && inColumn[0]);
    if (!to) return;
    // At the newest block the choice follows the chain again.
    pick(to.lane === 0 && to.column === shown.numbers.length - 1 ? null : to.block.hash);
    say(detail.textContent);
    view.scrollTo({ left: to.column * STEP - view.clientWidth / 2 });
  });
  marks.addEventListener("pointerover", ({ target }) => target.dataset.key && pick(target.dataset.key));
  marks.addEventListener("click", ({ target }) => target.dataset.key && pick(target.dataset.key));
  view.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && pick(null));

  const x = (column) => MARGIN + column * STEP;
  const y = (lane) => TOP + lane * LANE;

  function draw(blocks) {
    const atEnd = view.scrollLeft + view.clientWidth >= view.scrollWidth - STEP;
    shown = layout(blocks);
    const { numbers, lanes, places } = shown;
    setAttribute(picture, "width", MARGIN * 2 + (numbers.length - 1) * STEP + SIZE);
    setAttribute(picture, "height", TOP + lanes * LANE);
    keyed(marks, places, ({ block }) => block.hash, () => svg("rect", { width: SIZE, height: SIZE, rx: 3 }), (mark, { block, column, lane }) => {
      setAttribute(mark, "x", x(column));
      setAttribute(mark, "y", y(lane));
      setAttribute(mark, "class", block.dropped ? "dropped" : "canonical");
    });
    const joined = places.filter(({ parent }) => parent);
    keyed(links, joined, ({ block }) => block.hash, () => svg("path"), (link, { block, column, lane, parent }) => {
      const half = SIZE / 2;
      const [x1, y1, x2, y2] = [x(parent.column) + SIZE, y(parent.lane) + half, x(column), y(lane) + half];
      setAttribute(link, "d", `M${x1} ${y1}L${x2} ${y2}`);
      setAttribute(link, "class", block.dropped ? "dropped" : "canonical");
    });
    const every = numbers.filter((number) => number % 10 === 0 || numbers.length < 10);
    keyed(labels, every, (number) => number, () => svg("text", { y: 12, "text-anchor": "middle" }), (label, number) => {
      setAttribute(label, "x", x(numbers.indexOf(number)) + SIZE / 2);
      setText(label, count(number));
    });
    const dropped = places.filter(({ block }) => block.dropped).length;
    const range = numbers.length ? `, ${count(numbers[0])} to ${count(numbers.at(-1))}` : "";
    setAttribute(picture, "aria-label", `Tree of the newest ${places.length} blocks${range}; ${dropped} dropped`);
    setAttribute(view, "aria-label", "Newest blocks; arrow keys move between them");
    if (atEnd) view.scrollLeft = view.scrollWidth;
  }

  async function tell(total) {
    told = total;
    const list = await api.call("operator_reorgs", 8).catch(() => null);
    if (!list) return void (told = null);
    const arrived = performance.now();
    const named = list.map((reorg) => ({ ...reorg, arrived }));
    none.hidden = named.length > 0;
    keyed(reorgs, named, ({ fork, next, dropped }) => `${fork} ${next} ${dropped[0]}`, () => el("li"), (item, reorg) => {
      item.reorg = reorg;
    });
    age();
  }

  function age() {
    for (const item of reorgs.children) {
      const { fork, depth, dropped, next, ageMs, arrived } = item.reorg;
      const blocks = `${count(depth)} block${depth === 1 ? "" : "s"} after ${count(fork)} dropped`;
      const hashes = dropped.slice(0, 3).map(shortHash).join(", ") + (depth > 3 ? ", …" : "");
      const instead = next ? `, replaced from ${shortHash(next)}` : "";
      setText(item, `${blocks} (${hashes})${instead}, ${duration(ageMs + performance.now() - arrived)} ago`);
    }
  }

  return {
    update({ newest }) {
      draw(newest.blocks);
      describe();
      if (told !== newest.reorgs) tell(newest.reorgs);
      else age();
    },
  };
}
