"""Checks the compose files: `make compose`.

Services, networks, configs and secrets that are named exist, variables are settings, and the configurations in them are
valid; a tree's edges list its roots. Where PROXY_BIN is set, headwater checks each configuration, and where docker has
compose, that reads the files too.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
SCHEMA = json.loads((ROOT / "config" / "headwater.schema.json").read_text())
BASE = ROOT / "config" / "compose.yaml"
OVERLAYS = (ROOT / "deploy" / "compose.yaml", ROOT / "deploy" / "compose-tree.yaml")

VALUES = {
    "EDGE_KEY": "hw_key",
    "EDGE_KEY_HASH": "sha256:" + 64 * "0",
    "FLEET_SECRET": 64 * "0",
    "GRAFANA_PASSWORD": "a password",
}


def interpolated(text):
    """Replaces ${NAME}, ${NAME:-default} and ${NAME:?words}; a name without a value or a default is an error."""

    def value(match):
        name, default = match[1], match[2]
        if name in VALUES:
            return VALUES[name]
        if default is None or not default.startswith(":-"):
            raise KeyError(name)
        return default[2:]

    return re.sub(r"\$\{([A-Z_0-9]+)(:[-?][^}]*)?\}", value, text)


def settings():
    for section, own in SCHEMA["properties"].items():
        yield f"HEADWATER_{section.upper()}"
        for name in own.get("properties", {}):
            yield f"HEADWATER_{section.upper()}_{name.upper()}"


def problems_of(base, overlay, where):
    both = {part: {**(base.get(part) or {}), **(overlay.get(part) or {})} for part in ("services", "networks", "configs", "secrets", "volumes")}
    known = set(settings())
    for name, own in (overlay.get("services") or {}).items():
        for network in own.get("networks", []):
            if network not in both["networks"]:
                yield f"{where}, {name}: there is no network {network}"
        for config in own.get("configs", []):
            if config["source"] not in both["configs"]:
                yield f"{where}, {name}: there is no config {config['source']}"
        for secret in own.get("secrets", []):
            if secret not in both["secrets"]:
                yield f"{where}, {name}: there is no secret {secret}"
        environment = own.get("environment", {})
        for variable, value in environment.items():
            if variable.startswith("HEADWATER_") and variable not in known:
                yield f"{where}, {name}: {variable} is no setting"
            if value.startswith("/run/secrets/") and value.removeprefix("/run/secrets/") not in own.get("secrets", []):
                yield f"{where}, {name}: {variable} is a file that is not mounted"
            for host in re.findall(r"ws://([a-z0-9-]+)", value):
                # The node's name is an alias of either node's service.
                if host != "node" and host not in both["services"]:
                    yield f"{where}, {name}: {variable} names {host}, which is no service"
    for name, own in (overlay.get("configs") or {}).items():
        if "[keys" not in own["content"]:
            continue
        try:
            jsonschema.validate(tomllib.loads(own["content"]), SCHEMA)
        except (tomllib.TOMLDecodeError, jsonschema.ValidationError) as why:
            yield f"{where}, config {name}: {why}"
        if binary := os.environ.get("PROXY_BIN"):
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(own["content"])
                file.flush()
                checked = subprocess.run([binary, "check-config", "--config", file.name], capture_output=True, text=True, check=False)
            if checked.returncode:
                yield f"{where}, config {name}: {checked.stderr.strip()}"


def by_docker(overlay):
    if not shutil.which("docker"):
        return
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        return
    words = ["docker", "compose", "-f", BASE, "-f", overlay, "--profile", "tree", "config", "--quiet"]
    read = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **VALUES})
    if read.returncode:
        yield f"{overlay.name}: {read.stderr.strip()}"


def check():
    base = yaml.safe_load(interpolated(BASE.read_text()))
    yield from problems_of({}, base, BASE.name)
    for path in OVERLAYS:
        overlay = yaml.safe_load(interpolated(path.read_text()))
        yield from problems_of(base, overlay, path.name)
        yield from by_docker(path)
    services = overlay["services"]
    roots, edges = ([name for name in services if name.startswith(role)] for role in ("root-", "edge-"))
    if (len(roots), len(edges)) != (2, 3):
        yield f"the tree has {roots} and {edges}"
    for edge in edges:
        upstreams = services[edge]["environment"]["HEADWATER_UPSTREAM"]
        if [f"ws://{root}:9546/{VALUES['EDGE_KEY']}" for root in roots] != upstreams.split(","):
            yield f"{edge} does not list the roots: {upstreams}"


if __name__ == "__main__":
    found = list(check())
    print("\n".join(f"compose: {problem}" for problem in found) or "compose: ok")
    sys.exit(bool(found))
