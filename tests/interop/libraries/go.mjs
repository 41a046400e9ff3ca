// What the Go clients share: one binary, which `make test` builds where Go is at hand.

import { existsSync } from "node:fs";
import path from "node:path";
import { here } from "../support.mjs";

export const binary = path.join(here, "go/bin/interop");

export const missing = () => !existsSync(binary) && "no Go client: install Go 1.25 or newer, then `make test` builds it";
