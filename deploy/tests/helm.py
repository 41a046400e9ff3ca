"""Checks the Helm chart: `make helm`; UPDATE=1 writes the golden files anew.

helm lints it and renders the cases in deploy/helm/cases; what comes out is the golden file, valid by the schemas of
Kubernetes and consistent in itself (selectors, ports, references, settings); values that make no sense are refused. Where
PROXY_BIN is set, headwater checks each configuration in the manifests.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import jsonschema
import kubernetes_validate
import yaml

DEPLOY = pathlib.Path(__file__).parent.parent
CHART = DEPLOY / "helm" / "headwater"
CASES = DEPLOY / "helm" / "cases"
GOLDEN = {"plain": DEPLOY / "kubernetes" / "headwater.yaml", "full": DEPLOY / "helm" / "golden" / "full.yaml"}
SCHEMA = json.loads((DEPLOY.parent / "config" / "headwater.schema.json").read_text())

# The oldest and the newest version that the manifests must be valid for.
KUBERNETES = ("1.30", "1.35")

# Kinds of the Prometheus operator, which Kubernetes' schemas do not have, with the fields that it requires.
CUSTOM = {"ServiceMonitor": {"selector", "endpoints"}, "PrometheusRule": {"groups"}}

PLAIN_HEADER = """\
# headwater without Helm: kubectl create namespace headwater && kubectl -n headwater apply -f headwater.yaml
# Rendered from the chart in deploy/helm with deploy/helm/cases/plain.yaml (make helm UPDATE=1); set HEADWATER_UPSTREAM.
"""

# Variables that are parts of the values of others.
INTERPOLATED = {"EDGE_KEY"}

# Values, each with a word of helm's refusal.
REFUSED = (
    ("replicas=0", "replicas"),
    ("replicas=two", "replicas"),
    ("replica=2", "replica"),
    ("upstreams={node:8546}", "upstreams"),
    ("service.type=External", "service"),
    ("image.digest=sha256:1", "digest"),
    ("drain.graceSeconds=0", "graceSeconds"),
    ("roots.enabled=true", "roots.enabled needs nodes"),
    ("roots.enabled=true,upstreams={ws://node:8546}", "roots.edgeKey"),
    ("ingress.enabled=true", "ingress.host"),
)


def helm(*words):
    return subprocess.run([os.environ["HELM"], *map(str, words)], capture_output=True, text=True, check=False)


def render(*words):
    return helm("template", "headwater", CHART, "--namespace", "headwater", "--kube-version", f"{KUBERNETES[0]}.0", *words)


def variables():
    """The variables of all settings, by the schema of the configuration."""
    for section, own in SCHEMA["properties"].items():
        yield f"HEADWATER_{section.upper()}"
        for name in own.get("properties", {}):
            yield f"HEADWATER_{section.upper()}_{name.upper()}"


def pods(objects):
    return [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]


def within(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def problems_of(objects):
    known = set(variables())
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    if len(names) != len(objects):
        yield "two objects of one kind have the same name"
    labels = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in pods(objects)}
    for one in objects:
        kind, name, spec = one["kind"], one["metadata"]["name"], one.get("spec", {})
        where = f"{kind} {name}"
        if kind in CUSTOM:
            if missing := CUSTOM[kind] - spec.keys():
                yield f"{where}: lacks {', '.join(missing)}"
        else:
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(one, version, strict=True)
                except kubernetes_validate.ValidationError as why:
                    yield f"{where}, Kubernetes {version}: {why}"
        if kind in ("Deployment", "StatefulSet"):
            if not within(spec["selector"]["matchLabels"], labels[name]):
                yield f"{where}: its selector does not match its pods"
            pod = spec["template"]["spec"]
            container = pod["containers"][0]
            volumes, mounts = [volume["name"] for volume in pod["volumes"]], [mount["name"] for mount in container["volumeMounts"]]
            if sorted(volumes) != sorted(mounts):
                yield f"{where}: volumes {volumes} are mounted as {mounts}"
            for volume in pod["volumes"]:
                if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in names:
                    yield f"{where}: there is no ConfigMap {volume['configMap']['name']}"
            for variable in container["env"]:
                if variable["name"] not in known | INTERPOLATED:
                    yield f"{where}: {variable['name']} is no setting"
                path = pathlib.PurePosixPath(variable.get("value", ""))
                if path.is_absolute() and not any(path.is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"]):
                    yield f"{where}: {variable['name']} is a file that is not mounted"
            grace = [int(own["value"][:-1]) for own in container["env"] if own["name"] == "HEADWATER_SHUTDOWN_GRACE"]
            delay = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            if not grace or pod["terminationGracePeriodSeconds"] <= grace[0] + delay:
                yield f"{where}: the pod is killed before the drain is over"
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if container[probe]["httpGet"]["port"] not in ports:
                    yield f"{where}: {probe} asks a port that does not exist"
        if kind == "Service":
            if not any(within(spec["selector"], own) for own in labels.values()):
                yield f"{where}: selects no pod"
        if kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec["selector" if kind == "PodDisruptionBudget" else "podSelector"]["matchLabels"]
            if not any(within(selector, own) for own in labels.values()):
                yield f"{where}: selects no pod"
        if kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if (target["kind"], target["name"]) not in names:
                yield f"{where}: its target does not exist"
            if "replicas" in next(own["spec"] for own in pods(objects) if own["metadata"]["name"] == target["name"]):
                yield f"{where}: the target sets replicas, too"
        if kind == "ServiceMonitor":
            services = [own for own in objects if own["kind"] == "Service" and within(spec["selector"]["matchLabels"], own["metadata"]["labels"])]
            if len(services) != 1 or spec["endpoints"][0]["port"] not in [port["name"] for port in services[0]["spec"]["ports"]]:
                yield f"{where}: selects {len(services)} services, or a port that they lack"
        if kind == "Ingress":
            backend = spec["rules"][0]["http"]["paths"][0]["backend"]["service"]
            if ("Service", backend["name"]) not in names:
                yield f"{where}: its service does not exist"
        if kind == "ConfigMap" and "headwater.toml" in one["data"]:
            text = one["data"]["headwater.toml"]
            try:
                jsonschema.validate(tomllib.loads(text), SCHEMA)
            except (tomllib.TOMLDecodeError, jsonschema.ValidationError) as why:
                yield f"{where}: headwater.toml: {why}"
            if binary := os.environ.get("PROXY_BIN"):
                with tempfile.NamedTemporaryFile("w") as file:
                    file.write(text)
                    file.flush()
                    checked = subprocess.run([binary, "check-config", "--config", file.name], capture_output=True, text=True, check=False)
                if checked.returncode:
                    yield f"{where}: {checked.stderr.strip()}"


def check():
    linted = helm("lint", "--strict", CHART)
    if linted.returncode:
        yield linted.stdout
    for case, golden in GOLDEN.items():
        rendered = render("--values", CASES / f"{case}.yaml")
        if rendered.returncode:
            yield f"case {case}: {rendered.stderr}"
            continue
        text = (PLAIN_HEADER if case == "plain" else "") + rendered.stdout
        if os.environ.get("UPDATE"):
            golden.write_text(text)
        elif not golden.exists() or golden.read_text() != text:
            yield f"case {case}: {golden.relative_to(DEPLOY)} differs: make helm UPDATE=1, and see the difference"
        objects = [one for one in yaml.safe_load_all(text) if one]
        print(f"case {case}: {len(objects)} objects")
        yield from (f"case {case}, {problem}" for problem in problems_of(objects))
    # Too long for a golden file: the same text as in deploy/grafana.
    rendered = render("--set", "dashboard.enabled=true")
    maps = [one for one in yaml.safe_load_all(rendered.stdout) if one and one["kind"] == "ConfigMap"]
    shown = [one["data"]["headwater.json"] for one in maps if "headwater.json" in one["data"]]
    if [json.loads(text) for text in shown] != [json.loads((DEPLOY / "grafana" / "headwater.json").read_text())]:
        yield "the dashboard's ConfigMap is not deploy/grafana/headwater.json"
    for values, word in REFUSED:
        refused = render("--set", values)
        if not refused.returncode or word not in refused.stderr:
            yield f"{values}: not refused with a word of {word}: {refused.stderr}"


if __name__ == "__main__":
    found = list(check())
    print("\n".join(f"helm: {problem}" for problem in found) or "helm: ok")
    sys.exit(bool(found))
