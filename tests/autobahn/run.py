"""Runs Autobahn's fuzzing client against an echo server: run.py WSTEST ECHO REPORTS [quick].

Prints how the cases ended that are not simply OK, and closes with a count of all. Fails where a case failed. What we do not
offer (windows smaller than ours) is counted as unimplemented.
"""

import collections
import json
import pathlib
import subprocess
import sys

# Messages of up to 16 MiB and thousands of them: minutes.
LONG = ["9.*", "12.*", "13.*"]

# Autobahn's words, for the frames and for how the connection was closed.
GOOD = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"]


def main(wstest, echo, reports, length="whole"):
    reports = pathlib.Path(reports)
    reports.mkdir(parents=True, exist_ok=True)
    spec = reports / "spec.json"
    index = reports / "index.json"
    index.unlink(missing_ok=True)
    server = subprocess.Popen([echo], stdout=subprocess.PIPE, text=True)
    try:
        url = "ws://127.0.0.1:%d" % int(server.stdout.readline())
        spec.write_text(
            json.dumps(
                {
                    "outdir": str(reports),
                    "servers": [{"agent": "headwater", "url": url}],
                    "cases": ["*"],
                    "exclude-cases": LONG if length == "quick" else [],
                    "exclude-agent-cases": {},
                }
            )
        )
        with open(reports / "log.txt", "w") as log:
            command = [wstest, "--mode", "fuzzingclient", "--spec", str(spec)]
            subprocess.run(command, stdout=log, stderr=log, check=True)
    finally:
        server.kill()
    cases = json.loads(index.read_text())["headwater"]
    counts = collections.Counter()
    told = collections.defaultdict(list)
    for name in sorted(cases, key=lambda name: [int(part) for part in name.split(".")]):
        ends = cases[name]["behavior"], cases[name]["behaviorClose"]
        counts["FAILED" if set(ends).difference(GOOD) else ends[0]] += 1
        if ends != ("OK", "OK"):
            told[name.rpartition(".")[0], ends].append(name)
    for (_, ends), names in told.items():
        print("%s, close %s: %s" % (*ends, " ".join(names)))
    failed = counts.pop("FAILED", 0)
    print("%d cases: " % len(cases) + ", ".join("%d %s" % (counts[word], word) for word in GOOD if counts[word]))
    print("%d passed, %d failed; the report: %s" % (len(cases) - failed, failed, reports / "index.html"))
    sys.exit(1 if failed or not cases else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
