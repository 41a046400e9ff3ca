// What is printed in the end: a row for each library, a column for each scenario, and under it what failed, and how.

import { readFileSync } from "node:fs";
import { pinned } from "./support.mjs";

/** alloy is Rust: its tests are in tests/alloy, and scripts/test passes on what `cargo test` said. */
const ALLOY = {
  heads: ["heads_come_in_order"],
  logs: ["logs_are_those_that_the_node_has"],
  pending: ["pending_transactions_come_as_hashes_and_in_full", "a_transaction_sent_after_the_answer_is_not_missed"],
  unsubscribe: ["what_was_unsubscribed_is_silent_and_the_rest_goes_on"],
  reorg: ["a_reorg_is_told_in_full"],
  calls: ["calls_are_answered_as_by_the_node"],
};

export class Table {
  #rows = new Map();
  #below = [];
  #counts = {};

  constructor(columns) {
    this.columns = columns;
  }

  #row({ name }) {
    if (!this.#rows.has(name)) this.#rows.set(name, { title: name, cells: {}, own: [] });
    return this.#rows.get(name);
  }

  name(library, version) {
    if (version) this.#row(library).title = `${library.name} ${version}`;
  }

  add(library, scenario, cell, why) {
    const row = this.#row(library);
    if (this.columns.includes(scenario)) row.cells[scenario] = cell;
    else if (cell !== "skip") row.own.push(cell);
    if (why) this.#below.push(`FAIL ${row.title}, ${scenario}: ${why}`);
    this.#counts[cell] = this.count(cell) + 1;
  }

  leaveOut(library, reason) {
    const { title, cells } = this.#row(library);
    for (const column of this.columns) cells[column] = "skip";
    this.#below.push(`skip ${title}: ${reason}`);
  }

  /** Not a scenario failed, but all of it. */
  broke(message) {
    this.#below.push(`FAIL ${message}`);
    this.#counts.FAIL = this.count("FAIL") + 1;
  }

  /** These tests are counted where they ran, by scripts/test. */
  addAlloy(log) {
    if (!log) {
      this.#below.push("alloy: `cargo test --test alloy`, and its row here by `make test`");
      return;
    }
    const results = new Map([...readFileSync(log, "utf8").matchAll(/^test (\w+) \.\.\. (ok|FAILED)/gm)].map(([, ...pair]) => pair));
    const alloy = { name: "alloy" };
    this.name(alloy, pinned("../../Cargo.lock", /name = "alloy-provider"\nversion = "(.*)"/));
    const { cells } = this.#row(alloy);
    for (const [column, tests] of Object.entries(ALLOY)) {
      const all = tests.map((test) => results.get(test));
      if (all.every(Boolean)) cells[column] = all.includes("FAILED") ? "FAIL" : "ok";
    }
    // tungstenite has no extensions.
    cells.deflate = "-";
    this.#below.push("alloy: by `cargo test --test alloy`; what stands empty is not tested there");
  }

  count(cell) {
    return this.#counts[cell] ?? 0;
  }

  print() {
    const own = (cells) => cells.length && (cells.includes("FAIL") ? "FAIL" : `${cells.length} ok`);
    const lines = [["", ...this.columns, "its own"]];
    for (const { title, cells, own: more } of this.#rows.values()) {
      lines.push([title, ...this.columns.map((column) => cells[column] ?? ""), own(more) || ""]);
    }
    const widths = lines[0].map((_, at) => Math.max(...lines.map((line) => line[at].length)));
    console.log();
    for (const line of lines) console.log(line.map((text, at) => text.padEnd(widths[at])).join("  ").trimEnd());
    console.log();
    for (const line of this.#below) console.log(line);
  }
}
