"""Checks the dashboard and the alert rules: `make monitoring`, and with `live` against real servers: `make monitoring-live`.

Without servers: the dashboard is what dashboard.py writes; each metric exists with its labels and their values, by the
tables of docs/operations.md, which are generated from the source; no metric is missing; each alert has a section in the
documents, and unit tests of both outcomes.

With servers (PROMETHEUS, PROXY_BIN): a devnet, headwater before it under load, and a Prometheus that scrapes it. Each
query of the dashboard and each rule is then asked of that Prometheus, and must be answered with data.
"""

import importlib.util
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

DEPLOY = pathlib.Path(__file__).parent.parent
OPERATIONS = DEPLOY.parent / "docs" / "operations.md"
DASHBOARD = DEPLOY / "grafana" / "headwater.json"
RULES = DEPLOY / "prometheus" / "alerts.yml"
RULES_TESTS = DEPLOY / "prometheus" / "alerts_test.yml"

# Labels that Prometheus adds to each series.
SCRAPED = {"job", "instance"}


def rows(text):
    """The cells of each row of tables in Markdown."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def known_metrics():
    """Labels by metric, and the metric's type, as documented."""
    table = OPERATIONS.read_text().split("<!-- metrics -->")[1].split("<!-- end of metrics -->")[0]
    metrics = {}
    for name, kind, labels, *_ in itertools.islice(rows(table), 2, None):
        labels = set(re.findall(r"`(\w+)`", labels))
        name = "headwater_" + name.strip("`")
        if kind == "histogram":
            metrics[name + "_bucket"] = labels | {"le"}
            metrics[name + "_count"] = metrics[name + "_sum"] = labels
        else:
            metrics[name] = labels
    return metrics


# A selector such as headwater_closes_total{reason=~"a|b"}, or a string, in which nothing is a metric.
SELECTOR = re.compile(r'(?P<name>\b(?:headwater_\w+|up)\b)(?:\{(?P<matchers>[^}]*)\})?|"[^"]*"')
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def problems_of(expr, metrics, documented):
    """What a query takes for granted and headwater does not have."""
    used, matched = set(), []
    for found in SELECTOR.finditer(expr):
        name = found["name"]
        if name is None or name == "up":
            continue
        if name not in metrics:
            yield f"{name} does not exist"
            continue
        used |= metrics[name]
        for label, value in MATCHER.findall(found["matchers"] or ""):
            matched.append((name, label, value))
    for name, label, value in matched:
        if label in SCRAPED:
            continue
        if label not in metrics[name]:
            yield f"{name} has no label {label}"
        for word in value.split("|"):
            if f"`{word}`" not in documented:
                yield f"docs/operations.md does not have {label}={word} of {name}"
    for labels in GROUPING.findall(expr):
        for label in filter(None, re.split(r"[,\s]+", labels)):
            if label not in used | SCRAPED:
                yield f"no metric of the query has the label {label}"


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    """Each query with the place where it stands."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"dashboard, {panel['title']}", target["expr"], target["legendFormat"]
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"], " ".join(str(text) for text in rule["annotations"].values())


def check():
    problems = []
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana" / "dashboard.py")
    dashboard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dashboard)
    if dashboard.text() != DASHBOARD.read_text():
        problems.append("headwater.json is not what dashboard.py writes: python3 deploy/grafana/dashboard.py")

    metrics, documented = known_metrics(), OPERATIONS.read_text()
    assert len(metrics) > 40, "the table of metrics is read"
    for place, expr, words in queries():
        problems += [f"{place}: {problem}" for problem in problems_of(expr, metrics, documented)]
        kept = GROUPING.findall(expr)
        for label in re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", words):
            grouped = any(label in group for group in kept)
            of_metric = any(label in metrics.get(found["name"], ()) for found in SELECTOR.finditer(expr))
            if not (grouped or (not re.search(r"\bby\b", expr) and (label in SCRAPED or of_metric))):
                problems.append(f"{place}: the words name {label}, which the query drops")

    shown = " ".join(expr for place, expr, _ in queries() if place.startswith("dashboard"))
    for name in metrics:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if not re.search(rf"\b{base}(_bucket)?\b", shown):
            problems.append(f"the dashboard does not show {name}")

    cells = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            if cells.setdefault(cell, panel["title"]) != panel["title"] or cell[0] > 23:
                problems.append(f"dashboard: {panel['title']} lies on {cells[cell]}, or beyond the edge")
                break
        if panel["type"] != "row" and not panel["description"]:
            problems.append(f"dashboard: {panel['title']} has no description")

    # Paths of a second compose file count from the first one's folder.
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and not (DEPLOY.parent / "config" / source).is_file():
                problems.append(f"compose.yaml: {name} mounts {source}, which does not exist")
    scraping = yaml.safe_load(compose["configs"]["prometheus"]["content"])["scrape_configs"][0]
    if scraping["static_configs"][0]["targets"][0].split(":")[0] != compose["services"]["headwater"]["environment"]["HEADWATER_ADMIN_HOSTS"]:
        problems.append("compose.yaml: headwater does not admit the name by which Prometheus asks")

    headings = {line.lstrip("# ").lower() for line in documented.splitlines() if line.startswith("#")}
    outcomes = {}
    for test in yaml.safe_load(RULES_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            outcomes.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    for rule in rules():
        name, annotations = rule["alert"], rule["annotations"]
        if annotations.get("runbook_url", "").partition("#")[2] != name.lower() or name.lower() not in headings:
            problems.append(f"alert {name}: docs/operations.md has no heading of this name, or runbook_url does not lead to it")
        if outcomes.get(name) != {True, False}:
            problems.append(f"alert {name}: a unit test in which it fires, or one in which it does not, is missing")
        if rule["labels"].get("severity") not in ("critical", "warning"):
            problems.append(f"alert {name}: its severity is neither critical nor warning")
    return problems


# Queries that a healthy run leaves without data, by a part of the query: the first event creates the series.
SILENT = {
    "headwater_wrong_blooms_total": "devnet's blooms are right",
    "headwater_log_retries_total": "devnet answers each call about logs",
    "headwater_rerouted_calls_total": "no call is sent again",
    "headwater_contents_awaited_seconds": "set once a subscriber waits",
    "headwater_session_claims_total": "no client of a session returns",
    "headwater_packed_answer_bytes_total": "no client accepts compressed answers",
    "headwater_access_log_dropped_total": "no access log is written",
    "headwater_spans_dropped_total": "no spans are exported",
    "headwater_webhook_": "there is no webhook",
    "headwater_fleet_reports_total": "quotas are not shared",
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def call(url, method, *params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def eventually(words, condition, seconds=60):
    """A bounded wait; `condition` may fail with an error of the network."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, ValueError) as why:
            last = why
        time.sleep(0.1)
    raise SystemExit(f"{pathlib.Path(sys.argv[0]).stem}: after {seconds} s still not: {words} ({last})")


class Servers:
    """Processes that end with the block, and their logs."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, name, *command):
        log = open(self.folder / f"{name}.log", "w")
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.running.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def live():
    binary, prometheus = os.environ["PROXY_BIN"], os.environ["PROMETHEUS"]
    problems = []
    with tempfile.TemporaryDirectory() as folder, Servers(pathlib.Path(folder)) as servers:
        folder = pathlib.Path(folder)
        node, listen, admin, page = (free_port() for _ in range(4))
        servers.start("devnet", binary, "devnet", "--listen", f"127.0.0.1:{node}", "--block-time", "300ms")
        eventually("the devnet answers", lambda: call(f"http://127.0.0.1:{node}", "eth_chainId"))

        # One devnet by two ways, so that there is something to fail over to.
        config = folder / "headwater.toml"
        config.write_text(
            f'upstream = ["ws://127.0.0.1:{node}", "http://127.0.0.1:{node}"]\n'
            f'listen = "127.0.0.1:{listen}"\nadmin = "127.0.0.1:{admin}"\n'
            '[node]\npoll_interval = "200ms"\nfailback_after = "1s"\n[delivery]\ncompression = "on"\n'
        )
        proxy = servers.start("headwater", binary, "--config", config)
        url, api = f"http://127.0.0.1:{listen}", f"http://127.0.0.1:{admin}/api"
        eventually("headwater is ready", lambda: urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=5))

        settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        settings["rule_files"] = [str(RULES)]
        settings["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{admin}"]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        servers.start(
            "prometheus", prometheus, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{page}", "--log.level=warn",
        )

        def ask(expr):
            address = f"http://127.0.0.1:{page}/api/v1/query?" + urllib.parse.urlencode({"query": expr})
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    return json.load(answer)["data"]["result"]
            except urllib.error.HTTPError as why:
                raise SystemExit(f"monitoring: Prometheus refuses {expr}: {why.read().decode()}") from why

        # Queries get 503 until the storage is open.
        eventually("Prometheus is ready", lambda: urllib.request.urlopen(f"http://127.0.0.1:{page}/-/ready", timeout=5))
        eventually("Prometheus scrapes headwater", lambda: ask('up{job="headwater"} == 1'))

        def active(upstream):
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/status", timeout=5) as answer:
                return json.load(answer)["upstreams"][upstream]["active"]

        # Each kind of event twice, with scrapes between: increase() needs a series that exists before it grows.
        for round in range(2):
            for _ in range(5):
                for method, *params in (
                    ("eth_chainId",), ("eth_blockNumber",), ("eth_getBlockByNumber", "latest", False), ("eth_gasPrice",),
                    ("eth_getBalance", "0x" + "11" * 20, "latest"), ("eth_getLogs", {"fromBlock": "0x1", "toBlock": "0x2"}),
                    ("personal_sign",), ("eth_getBlockByNumber", "0x1", False),
                ):
                    call(url, method, *params)
            bench = servers.start(f"bench{round}", binary, "bench", f"ws://127.0.0.1:{listen}", "--clients", "20", "--kind", "newHeads",
                                  "--kind", "logs", "--duration", "4s", "--compress")
            servers.start(f"tail{round}", binary, "tail", f"ws://127.0.0.1:{listen}", "heads", "pending", "--from", "1", "--count", "400")
            call(f"http://127.0.0.1:{node}", "devnet_reorg", 2, 3)
            eventually("the first upstream is active", lambda: active(0))
            call(f"http://127.0.0.1:{node}", "devnet_disconnect")
            eventually("the second upstream took over", lambda: active(1))
            eventually("the first upstream is active again", lambda: active(0))
            for cordon in (True, False):
                answer = call(api, "operator_cordon" if cordon else "operator_uncordon", 0)
                assert answer.get("result") is True, answer
                time.sleep(1)
            proxy.send_signal(signal.SIGHUP)
            if bench.wait(60):
                problems.append(f"the load failed: {(folder / f'bench{round}.log').read_text()}")
            time.sleep(2)

        def expand(expr):
            for name, value in {"$job": "headwater", "$instance": ".*", "$__rate_interval": "1m", "$__range": "1m"}.items():
                expr = expr.replace(name, value)
            return expr

        answered, silent = 0, []
        for panel in panels():
            for target in panel["targets"]:
                result = ask(expand(target["expr"]))
                values = [float(series["value"][1]) for series in result]
                if result and any(value == value for value in values):
                    answered += 1
                    continue
                reasons = [why for part, why in SILENT.items() if part in target["expr"]]
                if reasons:
                    silent.append(f"{panel['title']}: {reasons[0]}")
                else:
                    problems.append(f"dashboard, {panel['title']}: no data for {expand(target['expr'])}")
        address = f"http://127.0.0.1:{page}/api/v1/rules"
        with urllib.request.urlopen(address, timeout=10) as answer:
            evaluated = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
        problems += [f"alert {rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in evaluated if rule["health"] != "ok"]
        firing = [rule["name"] for rule in evaluated if rule["state"] == "firing"]
        problems += [f"alert {name} fires at a healthy headwater" for name in firing]
        if len(evaluated) != len(rules()):
            problems.append(f"Prometheus has {len(evaluated)} of {len(rules())} rules")
        print(f"{answered} queries answered with data, {len(silent)} without by design, {len(evaluated)} rules evaluated")
        for line in silent:
            print(f"  no data: {line}")
        if problems:
            for log in sorted(folder.glob("*.log")):
                print(f"--- {log.name}\n" + log.read_text()[-2000:], file=sys.stderr)
    return problems


if __name__ == "__main__":
    found = live() if sys.argv[1:] == ["live"] else check()
    print("\n".join(f"monitoring: {problem}" for problem in found) or "monitoring: ok")
    sys.exit(bool(found))
