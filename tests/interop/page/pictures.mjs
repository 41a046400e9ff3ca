// The pictures of the documentation: a chain with reorgs, a failover, a slow client and refusals, on the page.

import { writeFileSync } from "node:fs";
import path from "node:path";
import { same, sleep, until } from "../support.mjs";
import { PHONE, connected, open } from "./browser.mjs";
import { figure } from "./panels.mjs";
import { reduce } from "./png.mjs";
import { Scene, transfers } from "./scene.mjs";

/** Largest picture, in bytes. */
const LARGEST = 150_000;

const LINES = "[limits]\nrequests_per_second = 20\nrequest_burst = 60\nmax_batch = 10\n";

export async function takePictures(folder) {
  const scene = await Scene.start({ size: ["--transactions", "60", "--logs", "6"], lines: LINES });
  await scene.mine(30);
  const names = ["indexer", "wallet", "explorer", "alerts"];
  for (let at = 0; at < 28; at++) {
    const kinds = [["newHeads"], ...(at % 3 ? [transfers] : []), ...(at % 5 ? [] : [["newPendingTransactions"]])];
    await scene.client(kinds, at % 4 ? names[at % 3] : undefined);
  }
  const pages = {
    "page-light": await open(scene.proxy.admin, { colorScheme: "light" }),
    "page-dark": await open(scene.proxy.admin, { colorScheme: "dark" }),
    "page-phone": await open(scene.proxy.admin, PHONE),
  };
  const blank = await open("about:blank");
  for (const page of Object.values(pages)) {
    await connected(page);
    await page.click("#try button[type=submit]");
  }
  // The first is closed meanwhile, and the second one is there at the end.
  await scene.slow("backfill");
  const asking = await scene.client([], "alerts");
  for (let second = 0; second < 45; second++) {
    if (second % 14 === 5) await scene.reorg(2, 3);
    else if (second % 14 === 10) await scene.reorg(1, 2);
    else await scene.mine();
    if (second % 4 === 1) {
      const busy = second === 29 ? 150 : 20;
      for (let id = 0; id < busy; id++) asking.send(JSON.stringify({ jsonrpc: "2.0", id, method: "eth_getBlockByNumber", params: ["latest", false] }));
    }
    if (second === 32) await scene.slow("backfill");
    if (second === 34) scene.nodes[0].child.process.kill("SIGKILL");
    await sleep(1_000);
  }
  await until("a slow client", async () => (await figure(pages["page-light"], "Queued"))[1] === "1 slow client");
  for (const page of Object.values(pages)) await page.click("#clients button:text('Refresh')");
  await scene.mine();
  await sleep(1_500);
  const pictures = [];
  for (const [name, page] of Object.entries(pages)) {
    await page.evaluate(() => scrollTo(0, 0));
    const clip = { x: 0, y: 0, width: page.viewportSize().width, height: page.viewportSize().width > 400 ? 1_500 : 1_640 };
    pictures.push([path.join(folder, `${name}.png`), await page.screenshot({ fullPage: true, clip })]);
    same("complaints of the page", page.complaints, []);
  }
  await scene.stop();
  for (const [file, picture] of pictures) {
    const small = await reduce(blank, picture);
    console.log(`${file}: ${small.length} bytes`);
    same(`${file} is small`, small.length <= LARGEST, true);
    writeFileSync(file, small);
  }
}
