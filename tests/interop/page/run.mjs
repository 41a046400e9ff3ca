// The live page of the admin port in headless Chromium, before simulated nodes.
//
//   node page/run.mjs [--only <part of a test's name>] [--pictures <folder>]
//
// --pictures takes the pictures of the documentation.

import { parseArgs } from "node:util";
import { missing } from "../libraries/browser.mjs";
import { stopAll, within } from "../support.mjs";
import { access } from "./access.mjs";
import { acts } from "./acts.mjs";
import { end } from "./browser.mjs";
import { looks } from "./looks.mjs";
import { panels } from "./panels.mjs";
import { takePictures } from "./pictures.mjs";
import { units } from "./units.mjs";

const LIMIT = 120_000;

const { values: options } = parseArgs({ options: { only: { type: "string" }, pictures: { type: "string" } } });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => stopAll().finally(() => process.exit(1)));

const lack = missing();
if (lack) {
  console.log(`the page is not tested: ${lack}`);
  process.exit(0);
}

let [passed, failed] = [0, 0];
try {
  if (options.pictures) await takePictures(options.pictures);
  for (const [name, test] of Object.entries(options.pictures ? {} : { ...units, ...panels, ...acts, ...access, ...looks })) {
    if (options.only && !name.includes(options.only)) continue;
    const begun = Date.now();
    let why = "";
    // What it started ends with it.
    const cleanups = [];
    const after = (cleanup) => cleanups.push(cleanup);
    await within(LIMIT, "the test", Promise.resolve().then(() => test(after))).catch((error) => (why = error.stack ?? String(error)));
    for (const cleanup of cleanups.reverse()) await cleanup().catch((error) => (why ||= `at the end: ${error.stack}`));
    if (why) failed++;
    else passed++;
    console.log(`${why ? "FAIL" : "ok  "}  ${name}  ${Date.now() - begun} ms${why ? `\n${why}` : ""}`);
  }
} finally {
  await end();
  await stopAll();
}
if (!options.pictures) console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
