// Headless Chromium, for the rows that live in it: one browser, a page for each connection, served from loopback.

import { existsSync } from "node:fs";
import http from "node:http";
import path from "node:path";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { here } from "../support.mjs";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = [
  ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
  ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
];

export const missing = () =>
  !existsSync(executablePath) && `no ${executablePath}: apt-get install chromium, or set CHROMIUM to one`;

export const launch = () => chromium.launch({ executablePath, args: FLAGS });

let started;

async function start() {
  const entryPoints = [path.join(here, "libraries/page.mjs")];
  const options = { bundle: true, write: false, format: "esm", target: "es2022", logLevel: "error" };
  const { outputFiles } = await build({ entryPoints, ...options });
  const files = {
    "/": ["text/html", '<!doctype html><script type="module" src="/page.js"></script>'],
    "/page.js": ["text/javascript", outputFiles[0].text],
  };
  const server = http.createServer(({ url }, response) => {
    const [type, body] = files[url] ?? ["text/plain", ""];
    response.writeHead(200, { "content-type": type }).end(body);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const browser = await launch();
  // An origin that headwater lets in unless told otherwise: http://127.0.0.1, whatever the port.
  return { server, browser, origin: `http://127.0.0.1:${server.address().port}` };
}

export async function end() {
  const { server, browser } = (await started) ?? {};
  started = undefined;
  await browser?.close();
  server?.close();
}

const running = () => (started ??= start());

export const version = async () => (await running()).browser.version();
export const origin = async () => (await running()).origin;

/** A page that runs page.mjs and tells us what happens there; `run` calls one of its functions. */
export async function openPage(say) {
  const { browser, origin } = await running();
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  await page.exposeFunction("say", say);
  await page.goto(origin);
  await page.waitForFunction(() => globalThis.ready);
  return {
    run: (name, ...args) => page.evaluate(([name, args]) => globalThis[name](...args), [name, args]),
    close: async () => {
      await page.close();
      if (errors.length) throw new Error(`thrown in the page: ${errors.join("; ")}`);
    },
  };
}
