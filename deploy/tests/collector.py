"""Checks the export of spans with OpenTelemetry's own collector: `make collector` (COLLECTOR, PROXY_BIN).

For OTLP over HTTP and over gRPC: a devnet, a relay before it that keeps the `traceparent` of each call, headwater, and a collector
that writes what it receives to a file. The spans of a request's way and of a block's way are then read from that file.
"""

import contextlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request

from monitoring import Servers, call, eventually, free_port

BINARY, COLLECTOR = os.environ["PROXY_BIN"], os.environ["COLLECTOR"]
PARENT = "00f067aa0ba902b7"
TRACED, UNTRACED, STRANGERS = "4bf92f3577b34da6a3ce929d0e0e4736", "5" * 32, "6" * 32
# Kinds of OTLP: within the program, as a server, as a client.
INTERNAL, SERVER, CLIENT = 1, 2, 3


class Relays(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Connections end with headwater and the node."""


class Relay(http.server.BaseHTTPRequestHandler):
    """Passes calls to the node and keeps their `traceparent`."""

    protocol_version = "HTTP/1.1"
    node, seen = None, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.headers.get("traceparent"), body))
        request = urllib.request.Request(self.node, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def is_open(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


def attributes(of):
    return {own["key"]: next(iter(own["value"].values()), None) for own in of.get("attributes", [])}


def spans(file):
    """All spans that the collector has written; the last line may be under way."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    for line in lines:
        for resource in json.loads(line)["resourceSpans"]:
            of = attributes(resource["resource"])
            assert of["service.name"] == "headwater" and of["service.version"], of
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


def of_alice():
    """A key, and the lines for the configuration."""
    made = subprocess.run([BINARY, "key", "alice"], capture_output=True, text=True, check=True).stdout
    words = made.split()
    key = next(word for word in words if word.startswith("hw_"))
    return key, "[keys.alice]\nhash = " + next(word for word in words if word.startswith('"sha256:')) + "\n"


def post(url, trace, flag, key=None):
    """Sends a call that is forwarded, with a caller's context."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_syncing","params":[]}'
    headers = {"content-type": "application/json", "traceparent": f"00-{trace}-{PARENT}-{flag}"}
    headers |= {"x-api-key": key} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        assert json.load(answer)["result"] is False


def check(protocol):
    problems = []
    with tempfile.TemporaryDirectory() as name, Servers(pathlib.Path(name)) as servers, contextlib.ExitStack() as ends:
        folder = pathlib.Path(name)
        node, listen, admin, grpc, plain = (free_port() for _ in range(5))
        servers.start("devnet", BINARY, "devnet", "--listen", f"127.0.0.1:{node}", "--block-time", "300ms")
        Relay.node, Relay.seen = f"http://127.0.0.1:{node}", []
        eventually("the devnet answers", lambda: call(Relay.node, "eth_chainId"))
        relay = Relays(("127.0.0.1", 0), Relay)
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        ends.callback(relay.server_close)
        ends.callback(relay.shutdown)

        file = folder / "spans.json"
        config = folder / "collector.yaml"
        config.write_text(json.dumps({
            "receivers": {"otlp": {"protocols": {
                "grpc": {"endpoint": f"127.0.0.1:{grpc}"}, "http": {"endpoint": f"127.0.0.1:{plain}"},
            }}},
            "exporters": {"file": {"path": str(file), "flush_interval": "200ms"}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
            },
        }))
        collector = servers.start("collector", COLLECTOR, "--config", config)
        for port in (grpc, plain):
            eventually("the collector listens", lambda: collector.poll() is not None or is_open(port))
        if collector.poll() is not None:
            return [f"{protocol}: the collector ended: " + (folder / "collector.log").read_text()[-500:]]
        key, settings = of_alice()
        config = folder / "headwater.toml"
        config.write_text(
            f'upstream = "http://127.0.0.1:{relay.server_port}"\nlisten = "127.0.0.1:{listen}"\nadmin = "127.0.0.1:{admin}"\n'
            '[node]\npoll_interval = "200ms"\n'
            f'[tracing]\nendpoint = "http://127.0.0.1:{plain if protocol == "http" else grpc}"\nprotocol = "{protocol}"\nsample = 1.0\n'
            + settings
        )
        proxy = servers.start("headwater", BINARY, "--config", config)
        url = f"http://127.0.0.1:{listen}"
        eventually("headwater is ready", lambda: urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=5))

        # A subscriber, so that blocks have a way to a socket: over WebSocket, and so a handshake and a call.
        tail = servers.start("tail", BINARY, "tail", f"ws://127.0.0.1:{listen}", "heads", "logs", "--no-retry")
        post(url, TRACED, "01", key)
        post(url, UNTRACED, "00", key)
        post(url, STRANGERS, "01")

        def written(name, of=None, **wanted):
            for span in spans(file):
                own = attributes(span)
                is_part = of is None or (span["traceId"], span.get("parentSpanId")) == (of["traceId"], of["spanId"])
                if span["name"] == name and is_part and all(own.get(key.replace("__", ".")) == value for key, value in wanted.items()):
                    yield span

        def first(name, of=None, **wanted):
            eventually(f"the collector has a span {name} of {of and of['name']}", lambda: any(written(name, of, **wanted)))
            span = next(written(name, of, **wanted))
            if not 0 < int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]):
                problems.append(f"times of {span}")
            is_served = name in ("http", "handshake") or name == "call" and not span.get("parentSpanId")
            if span["kind"] != (SERVER if is_served else CLIENT if name == "upstream" else INTERNAL):
                problems.append(f"kind of {span}")
            return span

        # A request's way, in the caller's trace, and on to the node.
        eventually("the caller's trace", lambda: any(span["traceId"] == TRACED for span in written("http")))
        request = next(span for span in written("http") if span["traceId"] == TRACED)
        if request["parentSpanId"] != PARENT:
            problems.append(f"parent of {request}")
        of_call = first("call", request, rpc__method="eth_syncing", headwater__account="key alice", headwater__answered_by="node")
        first("write", request)
        first("policy", of_call)
        first("cache", of_call)
        upstream = first("upstream", of_call)
        expected = f"00-{TRACED}-{upstream['spanId']}-01"
        if [context for context, body in Relay.seen if b"eth_syncing" in body].count(expected) != 1:
            problems.append(f"the node did not get {expected} once: {[context for context, body in Relay.seen if b'eth_syncing' in body]}")

        # A call over WebSocket has a trace of its own; one in a batch has no write.
        first("handshake")
        first("policy", first("call", rpc__method="eth_subscribe", headwater__answered_by="headwater"))
        roots = lambda: [span for span in written("call") if not span.get("parentSpanId")]
        eventually("a call over WebSocket that was written", lambda: any(first("write", call) for call in roots() if any(written("write", call))))

        # A block's way to the sockets: the first one that has reached them.
        def delivered():
            for block in written("block"):
                if any(written("last_socket", block)) and any(written("logs", block)):
                    return block

        eventually("a block with logs has reached the sockets", delivered)
        block = delivered()
        if not {"headwater.block.number", "headwater.block.hash"} <= attributes(block).keys():
            problems.append(f"attributes of {block}")
        parts = [first(name, block) for name in ("publish", "match", "first_socket", "last_socket")]
        starts = [int(part["startTimeUnixNano"]) for part in parts]
        if starts != sorted(starts):
            problems.append(f"order of {parts}")
        logs = first("logs", block)
        for name in ("fetch", "match", "first_socket", "last_socket"):
            first(name, logs)

        if tail.poll() is not None:
            problems.append("tail ended: " + (folder / "tail.log").read_text()[-500:])

        # What was not to be traced, and the loss of spans: after the end, when everything has been exported.
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as answer:
            lost = [line for line in answer.read().decode().splitlines() if line.startswith("headwater_spans_dropped_total{")]
        problems += [f"lost: {line}" for line in lost if not line.endswith(" 0")]
        proxy.terminate()
        proxy.wait(30)
        all_spans = list(spans(file))
        problems += [f"{span['name']} in a trace that was not to be recorded" for span in all_spans if span["traceId"] in (UNTRACED, STRANGERS)]
        if key in file.read_text():
            problems.append("the key is exported")
        blocks = sum(span["name"] == "block" for span in all_spans)
        print(f"{protocol}: the collector wrote {len(all_spans)} spans, {blocks} of them blocks")
        if problems:
            for log in sorted(folder.glob("*.log")):
                print(f"--- {log.name}\n" + log.read_text()[-2000:], file=sys.stderr)
    return [f"{protocol}: {problem}" for problem in problems]


if __name__ == "__main__":
    version = subprocess.run([COLLECTOR, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(version)
    found = check("http") + check("grpc")
    print("\n".join(f"collector: {problem}" for problem in found) or "collector: ok")
    sys.exit(bool(found))
