"""Compare what clients and operators rely on between two commits: a refactoring must change none of it.

    python -m benchmarks.contract 3efbd78 HEAD

For each commit: the OpenAPI document without its descriptions and summaries, the options of every command, the problem
types, the metrics with their labels, and the settings with their defaults. The differences are printed as a unified
diff; the exit status is 1 if there is one. Commits are checked out into temporary worktrees and run with this
interpreter. (Formats on disk, audit actions among them, are held by the golden files of tests/golden.)
"""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

# Runs in the worktree of either commit, whose modules have different names.
DUMP = r"""
import importlib, json, sys, tempfile
from pathlib import Path

def first(*names):
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute) if attribute else importlib.import_module(module)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {names} exists")

def plain(node):
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()
                if not (key in ("description", "summary") and isinstance(value, str))}
    return [plain(item) for item in node] if isinstance(node, list) else node

import click, typer
from app.main import create_app
settings = importlib.import_module("app.settings")
errors = importlib.import_module("app.errors")
with tempfile.TemporaryDirectory() as folder:
    app = create_app(settings.Settings(state=Path(folder), default_classifier="vgg-cifar10"))
    document = plain(app.openapi())
    metrics = sorted((m.name, m.type) for m in app.state.metrics.registry.collect())
    labels = sorted((type(c).__name__, c._name, list(c._labelnames))
                    for c in set(app.state.metrics.registry._names_to_collectors.values()) if hasattr(c, "_labelnames"))

def options(command):
    found = {}
    for parameter in command.params:
        name = "/".join([*parameter.opts, *parameter.secondary_opts])
        found[name] = [str(getattr(parameter, "type", "")), parameter.required, str(parameter.default)]
    for name, child in getattr(command, "commands", {}).items():
        found[f"command {name}"] = options(child)
    return found

def subclasses(base):
    return {base} | {deep for child in base.__subclasses__() for deep in subclasses(child)}

cli = first("app.cli.main:cli", "app.cli:cli")
print(json.dumps({
    "openapi": document,
    "commands": options(typer.main.get_command(cli)),
    "problems": sorted((e.type, e.status, e.title) for e in subclasses(errors.VestibuleError)),
    "metrics": metrics,
    "labels": labels,
    "settings": {name: str(field.default) for name, field in settings.Settings.model_fields.items()},
}, indent=1, sort_keys=True, default=str))
"""


def dump(commit: str) -> list[str]:
    """Return the contract of a commit as lines of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(PROJECT)]
        subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(tree), commit], check=True)
        try:
            environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'clients/python'}"}
            command = [sys.executable, "-W", "ignore", "-c", DUMP]
            text = subprocess.run(
                command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    return json.dumps(json.loads(text.replace(str(tree), "<tree>")), indent=1, sort_keys=True).splitlines()


def main() -> int:
    """Print the differences of the two commits that are named on the command line."""
    before, after = sys.argv[1:]
    lines = list(difflib.unified_diff(dump(before), dump(after), before, after, lineterm="", n=4))
    print("\n".join(lines) or f"{before} and {after}: the same contract")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
