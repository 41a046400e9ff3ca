"""Checks the systemd units: `make systemd`.

systemd-analyze reads the units and scores their exposure. Where libseccomp is at hand, headwater (PROXY_BIN) then runs as a
systemd would run it: inherited sockets, a notification socket with a watchdog, and the unit's own filter of system calls,
under which any other call kills the process here.
"""

import ctypes
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request

UNITS = pathlib.Path(__file__).parent.parent / "systemd"
SERVICE = UNITS / "headwater.service"

# systemd's scale from 0 (confined) to 10 (exposed); 1.2 with systemd 252. It cannot know the nodes' addresses (0.2), and
# clients and nodes are reached over the network of the host (0.5).
EXPOSURE = 1.5


def analyze(*words):
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False)


def units():
    """What systemd finds wrong with the units, whose programs it wants to find, too."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for program in ("usr/bin/headwater", "bin/kill"):
            path = root / program
            path.parent.mkdir(parents=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)
        system = root / "etc/systemd/system"
        system.mkdir(parents=True)
        for unit in UNITS.iterdir():
            (system / unit.name).write_bytes(unit.read_bytes())
        for unit in sorted(system.iterdir()):
            verdict = analyze("verify", f"--root={root}", "--man=no", "--recursive-errors=no", unit)
            if verdict.returncode or verdict.stderr:
                yield f"{unit.name}: {verdict.stderr.strip()}"
    verdict = analyze("security", "--offline=true", f"--threshold={round(EXPOSURE * 10)}", SERVICE)
    print(verdict.stdout.strip().splitlines()[-1])
    if verdict.returncode:
        yield f"{SERVICE.name}: the exposure is above {EXPOSURE}"


def named(group):
    """The system calls of a group such as @system-service."""
    listed = analyze("syscall-filter", group).stdout
    calls = set()
    for word in re.findall(r"^    ([@\w-]+)$", listed, re.M):
        calls |= named(word) if word.startswith("@") else {word}
    return calls


def allowed():
    """The system calls that the unit allows: each line adds to those before, or with ~ takes away. systemd itself adds the default."""
    calls = named("@default")
    for line in re.findall(r"^SystemCallFilter=(.*)$", SERVICE.read_text(), re.M):
        words = set()
        for word in line.lstrip("~").split():
            words |= named(word) if word.startswith("@") else {word}
        calls = calls - words if line.startswith("~") else calls | words
    return calls


def confine(calls):
    """Loads a filter into this process that ends it at any other call. `execve` starts the program afterwards."""
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    kill_process, allow = 0x80000000, 0x7FFF0000
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(kill_process)))
    for name in calls:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Below zero: a call of other processors or of newer kernels.
        if number >= 0 and seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(allow), number, 0, None):
            raise OSError(f"no rule for {name}")
    if seccomp.seccomp_load(context):
        raise OSError("the filter was not loaded")


def run(binary):
    """What goes wrong when headwater runs as the unit says."""
    calls = allowed()
    if not {"read", "accept4", "execve"} <= calls or "reboot" in calls:
        yield f"the groups of system calls were not read: {len(calls)} calls"
        return
    with tempfile.TemporaryDirectory() as folder:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.settimeout(30)
        manager.bind(f"{folder}/notify")
        config = pathlib.Path(folder, "headwater.toml")
        # Neither address is on this machine: only the inherited sockets serve.
        config.write_text('listen = "192.0.2.1:1"\nadmin = "192.0.2.1:2"\n[log]\nfilter = "warn"\n')
        ports = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2)]
        clients, admin = (port.getsockname()[1] for port in ports)
        log = open(f"{folder}/log", "w+")
        child = os.fork()
        if child == 0:
            try:
                os.dup2(log.fileno(), 2)
                # Above the numbers that the program expects, so that neither is overwritten.
                held = [os.dup2(port.fileno(), 23 + at) for at, port in enumerate(ports)]
                for at, port in enumerate(held):
                    os.dup2(port, 3 + at, inheritable=True)
                os.environ.update(
                    LISTEN_FDS="2", LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET=f"{folder}/notify", WATCHDOG_USEC="1000000",
                    WATCHDOG_PID=str(os.getpid()),
                )
                confine(calls)
                os.execv(binary, [binary, "--config", str(config)])
            finally:
                os._exit(1)

        def heard():
            return manager.recv(4096).decode()

        try:
            if "READY=1" not in heard():
                yield "READY=1 was not the first notification"
            for _ in range(3):
                if heard() != "WATCHDOG=1":
                    yield "the watchdog was not served"
            # A WebSocket client and calls over the demo chain: as many paths as are quick to take.
            load = [binary, "bench", f"ws://127.0.0.1:{clients}", "--clients", "20", "--duration", "3s"]
            if subprocess.run(load, capture_output=True, check=False).returncode:
                yield "the load failed"
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_gasPrice", "params": []}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{clients}", body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                if "result" not in json.load(answer):
                    yield "a call was not answered"
            for page in ("metrics", "status", "ready"):
                urllib.request.urlopen(f"http://127.0.0.1:{admin}/{page}", timeout=10).close()
            os.kill(child, signal.SIGHUP)
            os.kill(child, signal.SIGTERM)
            while "STOPPING=1" not in heard():
                pass
        except OSError as why:
            yield f"headwater did not do as systemd expects: {why}"
            os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        if os.waitstatus_to_exitcode(status):
            yield f"headwater ended with {os.waitstatus_to_exitcode(status)} (-31: a system call that the unit forbids): {log.read()}"


def main():
    problems = list(units())
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        print("systemd: libseccomp not found, so the filter of system calls is not tried")
    else:
        problems += run(os.environ["PROXY_BIN"])
    print("\n".join(f"systemd: {problem}" for problem in problems) or "systemd: ok")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
