// Line plot of the last minutes, which moves to the left.

import { el, setAttribute, setText, svg } from "./dom.js";
import { duration } from "./format.js";
import { KEPT } from "./rates.js";

const HEIGHT = 132;
const LEFT = 52;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

/** Time that is shown at least and at most, in milliseconds. */
const SHORTEST = 60_000;
const LONGEST = KEPT * 1000;

/** Steps of the time, and the width that its labels need at least. */
const STEPS = [15_000, 30_000, 60_000, 120_000];
const LABEL = 68;

/** Ticks of a linear scale from 0 that reach `largest`: three or four round numbers. */
export function linearTicks(largest) {
  if (!(largest > 0)) return [0, 1];
  const rough = largest / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  return Array.from({ length: Math.ceil(largest / step) + 1 }, (_, at) => at * step);
}

/** Ticks of a logarithmic scale: the powers of ten around the values. */
export function powerTicks(smallest, largest) {
  if (!(largest > 0)) return [0.1, 1, 10];
  const first = Math.floor(Math.log10(smallest));
  const last = Math.max(Math.ceil(Math.log10(largest)), first + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => 10 ** (first + at));
}

/**
 * Creates a plot. `series` have a `name`; `format` writes a value; `logarithmic` is for values over several powers of ten.
 * `update` takes the newest time, the points, and a text for each series that stands beside its name.
 */
export function createPlot({ label, series, format, logarithmic = false }) {
  const grid = svg("g", { class: "grid" });
  const lines = series.map((_, at) => svg("path", { class: `line line-${at}` }));
  const picture = svg("svg", { role: "img", height: HEIGHT, width: "100%", class: "plot" }, grid, ...lines);
  const figures = series.map(() => el("b"));
  const legend = series.map(({ name, unit = "" }, at) => el("li", { class: `key-${at}` }, name, " ", figures[at], unit));
  const element = el("figure", {}, el("ul", { class: "legend" }, ...legend), picture);

  function update(now, points, texts) {
    texts.forEach((text, at) => setText(figures[at], text));
    const width = picture.clientWidth;
    if (!width) return;
    const known = points.flatMap(({ values }) => values).filter((value) => value !== null && (value > 0 || !logarithmic));
    const [smallest, largest] = [Math.min(...known), Math.max(0, ...known)];
    const ticks = logarithmic ? powerTicks(smallest, largest) : linearTicks(largest);
    const scale = logarithmic ? Math.log10 : (value) => value;
    const [low, high] = [scale(ticks[0]), scale(ticks.at(-1))];
    const span = Math.min(LONGEST, Math.max(SHORTEST, now - (points[0]?.at ?? now)));
    const x = (at) => width - RIGHT - ((now - at) / span) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - (scale(value) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);

    grid.replaceChildren();
    for (const tick of ticks) {
      grid.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
      grid.append(svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
    }
    const room = (width - LEFT - RIGHT) / span;
    const step = STEPS.find((size) => size * room >= LABEL) ?? LONGEST;
    for (let ago = 0; ago <= span; ago += step) {
      const text = ago ? `−${duration(ago)}` : "now";
      const anchor = ago ? "middle" : "end";
      if (x(now - ago) >= LEFT) grid.append(svg("text", { x: x(now - ago), y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    lines.forEach((line, of) => {
      let path = "";
      let open = false;
      for (const { at, values } of points) {
        const value = values[of];
        const drawn = value !== null && (value > 0 || !logarithmic);
        if (drawn) path += `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        open = drawn;
      }
      setAttribute(line, "d", path);
    });
    const newest = series.map(({ name, unit = "" }, at) => `${name} ${texts[at]}${unit}`).join(", ");
    setAttribute(picture, "aria-label", `${label}: ${newest}; highest within ${duration(span)}: ${format(largest)}`);
  }

  return { element, update };
}
