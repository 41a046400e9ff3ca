// Pages of the browser, with everything that they complain of.

import { launch } from "../libraries/browser.mjs";

let browser;

export const WIDE = { viewport: { width: 1360, height: 900 } };
export const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true };

/** Opens the page at this address. `complaints` are errors of the console and of the page, and breaches of its policy. */
export async function open(url, options = {}) {
  browser ??= await launch();
  const context = await browser.newContext({ colorScheme: "light", locale: "en-GB", timezoneId: "UTC", ...WIDE, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.complaints = [];
  page.framesSent = 0;
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) page.complaints.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => page.complaints.push(`thrown: ${error.stack}`));
  page.on("websocket", (socket) => socket.on("framesent", () => page.framesSent++));
  await page.exposeFunction("breach", (text) => page.complaints.push(`policy: ${text}`));
  await page.addInitScript(() =>
    document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) =>
      globalThis.breach(`${violatedDirective} ${blockedURI} ${sample}`)));
  await page.goto(url);
  return page;
}

export const connected = (page) => page.locator("#state", { hasText: /^connected$/ }).waitFor();

export async function end() {
  await browser?.close();
}
