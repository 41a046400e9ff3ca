// Python's `websockets`, bare.

import path from "node:path";
import { here, pipVersion, pythonBinary } from "../support.mjs";
import { driver } from "./raw.mjs";
import { pipe } from "./remote.mjs";

export const name = "websockets (Python)";
export const version = pipVersion("websockets");
export const deflate = true;

export async function connect({ ws }) {
  const client = await pipe("websockets", pythonBinary(), [path.join(here, "libraries/pipe.py"), "websockets", ws]);
  return { ...driver(client), back: () => client.open() };
}
