// gorilla/websocket, bare.

import { goVersion } from "../support.mjs";
import { binary } from "./go.mjs";
import { driver } from "./raw.mjs";
import { pipe } from "./remote.mjs";

export { missing } from "./go.mjs";

export const name = "gorilla/websocket (Go)";
export const version = goVersion("gorilla/websocket");
export const deflate = true;

// It offers compression only when told to.
export async function connect({ ws }, { deflate } = {}) {
  return driver(await pipe("gorilla", binary, ["gorilla", ws, deflate ? "deflate" : "plain"]));
}
