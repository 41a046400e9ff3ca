"""Checks what a release is made of.

`make release-check`: the version, the change log, the workflow and the packages' files agree; with a tag, for that tag.
`make packages`: a .deb and, where rpm is at hand, a .rpm are taken apart: the binary runs, the units are valid, the configuration
is accepted and kept on upgrades.
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
MANIFEST = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
VERSION = MANIFEST["version"]
WORKFLOW = ROOT / ".github/workflows/release.yml"


def script(name):
    """A script without an ending, as a module."""
    path = str(ROOT / "scripts" / name)
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def installed():
    """Source and destination of each file, by the kind of package."""
    deb = MANIFEST["metadata"]["deb"]
    files = {source: destination for source, destination, _ in deb["assets"]}
    files[deb["license-file"][0]] = "usr/share/doc/headwater/copyright"
    yield "deb", files
    yield "rpm", {asset["source"]: asset["dest"].lstrip("/") for asset in MANIFEST["metadata"]["generate-rpm"]["assets"]}


def check(tag):
    for kind, files in installed():
        for source in files:
            if not source.startswith("target/") and not (ROOT / source).is_file():
                yield f"{kind}: {source} does not exist"
    (_, deb), (_, rpm) = installed()
    if deb.keys() != rpm.keys():
        yield f"the packages differ in {deb.keys() ^ rpm.keys()}"
    exec_start = re.search(r"^ExecStart=(\S+) --config (\S+)$", (ROOT / "deploy/systemd/headwater.service").read_text(), re.M)
    for path in exec_start.groups():
        for kind, files in installed():
            if not any(path.lstrip("/") in (destination, destination + pathlib.PurePath(source).name) for source, destination in files.items()):
                yield f"{kind}: headwater.service needs {path}, which the package does not have"
    chart = yaml.safe_load((ROOT / "deploy/helm/headwater/Chart.yaml").read_text())
    if chart["appVersion"] != VERSION:
        yield f"Chart.yaml: appVersion is {chart['appVersion']}, Cargo.toml's version {VERSION}"
    # The next release's changes are below Unreleased until it is tagged.
    section = script("release-notes").section
    changes = (ROOT / "CHANGELOG.md").read_text()
    if tag and tag != f"v{VERSION}":
        yield f"the tag is {tag}, Cargo.toml's version {VERSION}"
    if not section(VERSION if tag else "Unreleased", changes):
        yield f"CHANGELOG.md has no section [{VERSION if tag else 'Unreleased'}] with a change in it"
    sample = "## [Unreleased]\n\n## [1.2.3] - 2026-01-02\n\n### Added\n\n- x\n\n## [1.2.2]\n\n- y\n\n[1.2.2]: z\n"
    found = [section(version, sample) for version in ("1.2.3", "1.2.2", "1.2", "Unreleased")]
    assert found == ["### Added\n\n- x", "- y", "", ""], found
    workflow = yaml.safe_load(WORKFLOW.read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, job in workflow["jobs"].items():
        needs = job.get("needs", [])
        for need in [needs] if isinstance(needs, str) else needs:
            if need not in workflow["jobs"]:
                yield f"release.yml: {name} needs {need}, which does not exist"
        for step in job["steps"]:
            for target in re.findall(r"^\s*make ([a-z-]+)", step.get("run", ""), re.M):
                if target not in targets:
                    yield f"release.yml: there is no make {target}"
            for path in re.findall(r"\bscripts/[a-z-]+", step.get("run", "")):
                if not os.access(ROOT / path, os.X_OK):
                    yield f"release.yml: {path} cannot be run"


def taken_apart(package, folder):
    """Unpacks a package; returns the files that an upgrade leaves alone, or None where the tool is missing."""
    if package.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        control = subprocess.run(["dpkg-deb", "-I", package, "conffiles"], capture_output=True, text=True, check=True)
        return control.stdout.split()
    try:
        kept = subprocess.run(["rpm", "-qp", "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]", package], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return None
    # Its exit code is 1 even where all went well (rpm 4.18); cpio notices an archive that is cut off.
    archive = subprocess.run(["rpm2cpio", package], capture_output=True, check=False).stdout
    subprocess.run(["cpio", "--extract", "--make-directories", "--quiet"], input=archive, cwd=folder, check=True)
    # c: configuration, n: not replaced.
    return [line.split()[1] for line in kept.stdout.splitlines() if line.split()[0] == "cn"]


def in_root(root, package):
    """The commands that install, remove and (a .deb) purge a package in a folder of its own; no script of it has to run there."""
    if package.suffix == ".deb":
        dpkg = ["dpkg", f"--root={root}", "--force-not-root", "--log=/dev/null"]
        return [*dpkg, "--install", package], [*dpkg, "--remove", "headwater"], [*dpkg, "--purge", "headwater"]
    rpm = ["rpm", "--root", root, "--dbpath", "/var/lib/rpm"]
    return [*rpm, "--install", "--ignorearch", "--ignoreos", package], [*rpm, "--erase", "headwater"], None


def installed_and_removed(package, folder):
    """What is wrong after an installation, and after a removal that must leave a changed configuration alone."""
    root = pathlib.Path(folder)
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    (root / "var/lib/dpkg/status").touch()
    config = root / "etc/headwater/headwater.toml"
    own = lambda: sorted(str(path.relative_to(root)) for path in root.rglob("*") if "headwater" in path.name and "var/lib" not in str(path))

    def run(command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [f"{package.name}: {command[0]}: {done.stderr.strip() or done.stdout.strip()}"] if done.returncode else []

    install, remove, purge = in_root(root, package)
    yield from run(install)
    if not (root / "usr/bin/headwater").is_file() or not config.is_file():
        yield f"{package.name}: installed are only {own()}"
        return
    config.write_text(config.read_text() + "# changed\n")
    yield from run(remove)
    kept = "etc/headwater/headwater.toml" + ("" if purge else ".rpmsave")
    if own() != ["etc/headwater", kept]:
        yield f"{package.name}: removed, it leaves {own()}"
    if purge:
        yield from run(purge)
        if own():
            yield f"{package.name}: purged, it leaves {own()}"


def try_out(package):
    with tempfile.TemporaryDirectory() as folder:
        # rpm changes its root, which takes rights.
        if package.suffix == ".deb" or os.geteuid() == 0 and shutil.which("rpm"):
            found = list(installed_and_removed(package, folder))
            yield from found
            print(f"{package.name}: {'not ' if found else ''}installed and removed")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        kept = taken_apart(package, root)
        if kept is None:
            print(f"{package.name}: rpm not found, so it is not taken apart")
            return
        if kept != ["/etc/headwater/headwater.toml"]:
            yield f"{package.name}: an upgrade leaves alone: {kept}"
        files = dict(installed())[package.suffix.lstrip(".")]
        for source, destination in files.items():
            path = root / destination
            path = path / pathlib.PurePath(source).name if destination.endswith("/") else path
            if not path.is_file():
                yield f"{package.name}: {path.relative_to(root)} is missing"
        binary = root / "usr/bin/headwater"
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()
        if said != f"headwater {VERSION}":
            yield f"{package.name}: the binary says {said!r}"
        checked = subprocess.run([binary, "check-config", "--config", root / "etc/headwater/headwater.toml"], capture_output=True, text=True, check=False)
        if checked.returncode:
            yield f"{package.name}: {checked.stderr.strip()}"
        for program in ("bin/kill",):
            path = root / program
            path.parent.mkdir(exist_ok=True)
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)
        for unit in ("headwater.service", "headwater.socket"):
            command = ["systemd-analyze", "verify", f"--root={root}", "--man=no", "--recursive-errors=no", root / "usr/lib/systemd/system" / unit]
            try:
                verdict = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                break
            if verdict.returncode or verdict.stderr:
                yield f"{package.name}: {unit}: {verdict.stderr.strip()}"
        print(f"{package.name}: {package.stat().st_size >> 20} MiB, {len(files)} files")


if __name__ == "__main__":
    packages = [pathlib.Path(word) for word in sys.argv[1:]]
    found = [problem for package in packages for problem in try_out(package)] if packages else list(check(os.environ.get("TAG")))
    print("\n".join(f"release: {problem}" for problem in found) or "release: ok")
    sys.exit(bool(found))
