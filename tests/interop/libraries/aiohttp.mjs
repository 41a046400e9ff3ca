// Python's `aiohttp`, bare.

import path from "node:path";
import { here, pipVersion, pythonBinary } from "../support.mjs";
import { driver } from "./raw.mjs";
import { pipe } from "./remote.mjs";

export const name = "aiohttp (Python)";
export const version = pipVersion("aiohttp");
export const deflate = true;

export async function connect({ ws }, { deflate } = {}) {
  const args = [path.join(here, "libraries/pipe.py"), "aiohttp", ws, ...(deflate ? ["deflate"] : [])];
  return driver(await pipe("aiohttp", pythonBinary(), args));
}
