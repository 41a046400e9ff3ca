"""Checks the JSON Schema of the configuration: `make schema`.

The example and the files below are judged by the schema and by `headwater check-config` (PROXY_BIN): what the schema refuses,
headwater refuses, and what the schema can know, both refuse.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import jsonschema

CONFIG = pathlib.Path(__file__).parent.parent.parent / "config"

GOOD = (
    "",
    'upstream = "ws://127.0.0.1:8546"',
    'upstream = ["ws://a:1", { address = "wss://b", archive = true, methods = ["*"], calls = "spare" }]',
    'upstream = { address = "wss://b" }',
    '[node]\nrequest_timeout = "1m 30s"\nlanes = 1',
    "[cache]\nmax_bytes = 1048576",
    '[cache]\nmax_bytes = "1.5 GiB"',
    '[cache]\nmax_bytes = "10kb"',
    '[history]\nverify = "receipts"',
    '[server]\norigins = "*"',
    "[methods.weights]\neth_call = 7",
    '[plans.partner]\nmax_batch = 7\negress_bytes_per_second = "1 MiB"',
    '[keys.alice]\nhash = "sha256:' + 64 * "0" + '"\naddresses = ["10.0.0.0/8"]',
    '[auth]\naccept = ["bearer", "query"]',
)

BAD = (
    'lisen = "127.0.0.1:1"',
    "listen = 9546",
    "[limits]\nmax_conections = 5",
    "[limits]\nmax_batch = 0",
    '[limits]\nmax_batch = "many"',
    "[limits]\nmax_batch = 1.5",
    "[limits]\nmax_batch = -1",
    '[node]\nrequest_timeout = "soon"',
    "[node]\nrequest_timeout = 5",
    '[node]\nrequest_timeout = "5 parsecs"',
    "[node]\nlanes = 3",
    '[cache]\nmax_bytes = "much"',
    '[history]\nverify = "sometimes"',
    '[log]\nformat = "xml"',
    '[calls]\nhedge = "yes"',
    '[auth]\naccept = ["smoke"]',
    "[methods.weights]\neth_call = -1",
    "[plans.partner]\nmax_connections = 5",
    '[plans.partner]\nmax_batch = "x"',
    '[keys.alice]\nplan = "partner"',
    '[keys.alice]\nhash = "x"\nowner = "y"',
    "upstream = { archive = true }",
    'upstream = { address = "ws://a", archive = "yes" }',
)


def main():
    schema = json.loads((CONFIG / "headwater.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    problems = []

    def judge(text):
        refused = [error.message for error in validator.iter_errors(tomllib.loads(text))]
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(text)
            file.flush()
            checked = subprocess.run(
                [os.environ["PROXY_BIN"], "check-config", "--config", file.name], capture_output=True, text=True, check=False, env={}
            )
        return refused, checked.stderr.strip() if checked.returncode else ""

    example = (CONFIG / "example.toml").read_text()
    if not example.startswith(f"#:schema {schema['$id']}\n"):
        problems.append("config/example.toml does not name the schema in its first line")
    for text in (example, *GOOD):
        refused, error = judge(text)
        if refused or error:
            problems.append(f"{text[:60]!r} is refused: by the schema {refused}, by headwater {error!r}")
    for text in BAD:
        refused, error = judge(text)
        if not refused or not error:
            problems.append(f"{text!r} is accepted: by {'headwater' if refused else 'the schema'}")
    leaves = [own for section in schema["properties"].values() for own in (section.get("properties") or {"": section}).values()]
    problems += [f"no description: {own}" for own in leaves if not own.get("description")]
    print(f"{len(leaves)} settings, {len(GOOD) + 1} good files, {len(BAD)} bad files")
    print("\n".join(f"schema: {problem}" for problem in problems) or "schema: ok")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
