// The page's own arithmetic, in the browser: rates, quantiles, scales, the places of blocks, and numbers as text.

import { same } from "../support.mjs";
import { begin } from "./panels.mjs";

/** Runs `use` in the page with one of its modules. */
const inPage = (page, file, use, argument) =>
  page.evaluate(
    async ([file, use, argument]) => {
      const module = await import(`/page/${file}`);
      return globalThis.uses[use](module, argument);
    },
    [file, use, argument],
  );

const buckets = (...counts) => counts.map((count, at) => ({ upToMs: [1, 10, 100, null][at], count }));

export const units = {
  async "rates, quantiles, scales and places"(after) {
    const { page } = await begin(after, { nodes: 1 });
    await page.evaluate(() => {
      globalThis.uses = {
        quantiles: ({ quantile }, cases) => cases.map(([before, now, share]) => quantile(before, now, share)),
        history({ History }, states) {
          const history = new History();
          const counter = (state) => state.count;
          return states.map((state) => {
            history.add(state);
            return [history.states.length, history.rate(counter), history.within(60_000, counter)];
          });
        },
        ticks: ({ linearTicks, powerTicks }) => [linearTicks(0), linearTicks(7), linearTicks(1234), powerTicks(0.3, 40), powerTicks(5, 5)],
        places({ layout }, blocks) {
          const { numbers, lanes, places } = layout(blocks);
          return { numbers, lanes, places: places.map(({ block, column, lane, parent }) => [block.hash, column, lane, parent?.block.hash ?? null]) };
        },
        texts: ({ brief, bytes, duration, words, shortHash }) => [
          [0, 0.05, 1.25, 99.96, 1234, 12_345, 1_500_000, null].map(brief),
          [0, 999, 1_500, 12_345_678].map(bytes),
          [0.25, 12, 999, 4_200, 61_000, 3_600_000, 90_061_000, null].map(duration),
          [words("write_deadline"), words("noneLeft"), shortHash("0x12345678901234567890"), shortHash("0x1")],
        ],
      };
    });
    const quantiles = [
      [buckets(0, 0, 0, 0), buckets(0, 0, 0, 0), 0.5],
      [buckets(0, 0, 0, 0), buckets(10, 10, 10, 10), 0.5],
      [buckets(10, 10, 10, 10), buckets(10, 20, 20, 20), 0.5],
      [buckets(0, 0, 0, 0), buckets(0, 0, 0, 4), 0.99],
      [[], buckets(0, 0, 2, 2), 1],
    ];
    same("quantiles", await inPage(page, "rates.js", "quantiles", quantiles), [null, 0.5, 5.5, 100, 100]);
    const states = [[0, 0, 5], [1_000, 1_000, 15], [20_000, 20_000, 205], [21_000, 500, 3], [22_000, 1_500, 4]];
    const history = await inPage(page, "rates.js", "history", states.map(([atMs, uptimeMs, count]) => ({ atMs, uptimeMs, count })));
    same("rates, and a restart", history, [[1, null, 0], [2, 10, 10], [3, 10, 200], [1, null, 0], [2, 1, 1]]);
    same("ticks", await inPage(page, "plot.js", "ticks"), [[0, 1], [0, 5, 10], [0, 500, 1000, 1500], [0.1, 1, 10, 100], [1, 10]]);
    const block = (hash, number, parent, dropped = false) => ({ hash, number, parent, dropped });
    const fork = [block("a", 5, "z"), block("b", 6, "a", true), block("c", 7, "b", true), block("d", 6, "a", true), block("e", 6, "a"), block("f", 7, "d", true), block("g", 9, "x")];
    same("places", await inPage(page, "tree.js", "places", fork), {
      numbers: [5, 6, 7, 9],
      lanes: 3,
      places: [["a", 0, 0, null], ["b", 1, 1, "a"], ["c", 2, 1, "b"], ["d", 1, 2, "a"], ["e", 1, 0, "a"], ["f", 2, 2, "d"], ["g", 3, 0, null]],
    });
    same("texts", await inPage(page, "format.js", "texts"), [
      ["0", "0.05", "1.3", "100", "1,234", "12.3k", "1.5M", "–"],
      ["0 B", "999 B", "1.5 kB", "12.3 MB"],
      ["0.3 ms", "12 ms", "999 ms", "4.2 s", "1 min 1 s", "1 h", "1 d 1 h", "–"],
      ["write deadline", "none left", "0x123456…7890", "0x1"],
    ]);
  },
};
