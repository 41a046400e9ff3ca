// Makes Emitter.json out of Emitter.sol. The tests only need the JSON, so the compiler is no dependency of theirs:
//   npm install --no-save solc@0.8.30 && node contract/compile.mjs
import { readFileSync, writeFileSync } from "node:fs";
import solc from "solc";

const here = (name) => new URL(name, import.meta.url);
const output = JSON.parse(
  solc.compile(
    JSON.stringify({
      language: "Solidity",
      sources: { "Emitter.sol": { content: readFileSync(here("Emitter.sol"), "utf8") } },
      settings: {
        // An old target, so that the bytecode runs on any node; no metadata hash, so that it is the same everywhere.
        evmVersion: "paris",
        optimizer: { enabled: true },
        metadata: { bytecodeHash: "none" },
        outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
      },
    }),
  ),
);
if (!output.contracts) throw new Error(JSON.stringify(output.errors, null, 2));
const { abi, evm } = output.contracts["Emitter.sol"].Emitter;
const artefact = {
  source: "Emitter.sol",
  compiler: solc.version(),
  command: "npm install --no-save solc@0.8.30 && node contract/compile.mjs",
  bytecode: `0x${evm.bytecode.object}`,
  abi,
};
writeFileSync(here("Emitter.json"), `${JSON.stringify(artefact, null, 2)}\n`);
