// wscat: a line typed is a message sent, and a message that comes is a line shown.

import { createRequire } from "node:module";
import { Child, npmVersion, until } from "../support.mjs";
import { Tap } from "../tap.mjs";
import { RawClient, driver } from "./raw.mjs";

export const name = "wscat";
export const version = npmVersion("wscat");
export const deflate = true;

const program = createRequire(import.meta.url).resolve("wscat/bin/wscat");

export async function connect({ ws }) {
  // It does not say when it is connected unless to a terminal, and forgets what is typed before: the tap knows.
  const tap = await Tap.start(ws);
  const child = new Child("wscat", process.execPath, [program, "--connect", tap.ws]);
  child.process.stdin.on("error", () => {});
  const client = new RawClient();
  let rest = "";
  child.process.stdout.on("data", (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) client.receive(line.replace(/^(> )+/, ""));
  });
  client.socket = {
    send: (text) => child.process.stdin.write(`${text}\n`),
    terminate: () => child.stop().finally(() => tap.stop()),
  };
  await until("wscat to connect", () => tap.upgrades[0]?.got.head ?? child.end);
  // Should it have been asked a moment too early after all, it is asked again.
  const ask = () => client.call("eth_chainId", []);
  await ask().catch(ask);
  return driver(client);
}
