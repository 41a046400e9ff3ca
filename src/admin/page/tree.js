// Places of blocks in a tree: a column for each number, the canonical chain in the first lane, dropped branches below it.

/**
 * Lays out blocks, each after its parent. Returns the numbers of the columns, how many lanes there are, and for each block
 * its column, lane and parent (if that is among the blocks).
 */
export function layout(blocks) {
  const numbers = [...new Set(blocks.map(({ number }) => number))].sort((a, b) => a - b);
  const columns = new Map(numbers.map((number, at) => [number, at]));
  const taken = new Set();
  const places = new Map();
  for (const block of blocks) {
    const column = columns.get(block.number);
    const parent = places.get(block.parent);
    let lane = 0;
    if (block.dropped) {
      // A branch stays in its lane as long as that is free.
      lane = parent?.lane || 1;
      while (taken.has(`${column}/${lane}`)) lane++;
    }
    taken.add(`${column}/${lane}`);
    places.set(block.hash, { block, column, lane, parent: parent ?? null });
  }
  const all = [...places.values()];
  return { numbers, lanes: 1 + Math.max(0, ...all.map(({ lane }) => lane)), places: all };
}
