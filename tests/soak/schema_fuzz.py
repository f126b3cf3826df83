"""Schemathesis over the whole OpenAPI document of a service: no 5xx, and no answer that the document does not tell of.

`python -m tests.soak.schema_fuzz` starts a service of its own, with an empty state in a temporary folder, runs all
phases (examples, coverage, fuzzing, stateful) over all operations, none left out, prints what schemathesis found,
writes benchmarks/results/schema_fuzz.csv, and ends with 1 where anything failed or fewer cases were run than asked for.
tests/soak/schema_fuzz_hooks.py puts real pictures and names into the cases.

The service asks for keys, and every case has one with all scopes but those that are to be refused for want of it.

Not checked: that all valid data is accepted. That bytes are a picture, or that a name is known, is nothing a schema
can say. The deadline is lifted, so that a busy machine is no failure; there are no rate limits unless they are set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import httpx
import typer

from app.auth.keys import FOLDER as KEYS_FOLDER
from app.auth.keys import SCOPES, ApiKeys
from app.settings import PROJECT
from benchmarks import tables
from benchmarks.proxies import uses_proxies
from tests.app.server.test_process import serving
from tests.soak.schema_fuzz_hooks import KEY, REPORT, URL

RESULTS = Path("benchmarks/results/schema_fuzz.csv")
PHASES = ("examples", "coverage", "fuzzing", "stateful")
ANSWERS = ("2xx", "3xx", "4xx", "5xx", "no answer")
FAILED = "failed: "
DEADLINE_S = 3600


def run(url: str, key: str, examples: int, seed: int, report: Path) -> int:
    """Schemathesis's exit status; the hooks write the report, and what it keeps for itself lies beside that."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--seed", str(seed)]
    command += ["--max-examples", str(examples), "--phases", ",".join(PHASES), "--checks", "all"]
    command += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--no-color"]
    command += ["--request-timeout", str(DEADLINE_S), "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--generation-database", "none", "--max-response-time", str(DEADLINE_S)]
    command += ["--header", f"Authorization: Bearer {key}"]
    told = {URL: url, KEY: key, REPORT: str(report), "SCHEMATHESIS_HOOKS": "tests.soak.schema_fuzz_hooks"}
    environment = os.environ | told | {"PYTHONPATH": str(PROJECT)}
    if not uses_proxies(url):
        environment["no_proxy"] = httpx.URL(url).host  # of both spellings, requests reads this one first
    return subprocess.run(command, env=environment, cwd=report.parent, check=False).returncode


def row(operation: str, counts: Counter[str]) -> dict[str, object]:
    """What happened to an operation: cases by phase, answers, and which checks failed how often."""
    failed = {name.removeprefix(FAILED): count for name, count in counts.items() if name.startswith(FAILED)}
    return {
        "operation": operation,
        "cases": sum(counts[phase] for phase in PHASES),
        **{name: counts[name] for name in (*PHASES, *ANSWERS)},
        "failures": sum(failed.values()),
        "failed_checks": "; ".join(f"{name} {count}" for name, count in sorted(failed.items())),
    }


def main(
    cases: Annotated[int, typer.Option(help="As many at least, or it counts as failed.")] = 20_000,
    examples: Annotated[int, typer.Option(help="Of each operation while fuzzing, and chains of calls, at most.")] = 500,
    seed: Annotated[int, typer.Option(help="Of what is made up.")] = 1,
    results: Annotated[Path, typer.Option(help="The file to write.")] = RESULTS,
) -> None:
    """Run it once."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # Choosing a runtime for every model takes minutes, and changes nothing that is looked at here.
        state = Path(folder) / "state"
        settings = {"VESTIBULE_STATE": str(state), "VESTIBULE_RUNTIME": "torch"}
        keys = ApiKeys(state / KEYS_FOLDER)
        _, key = keys.create("fuzz", SCOPES)
        keys.close()
        with serving(**settings, VESTIBULE_DEADLINE_S=str(DEADLINE_S)) as (process, url, _):
            status = run(url, key, examples, seed, report)
            alive = process.poll() is None
        counts = {operation: Counter(found) for operation, found in json.loads(report.read_text()).items()}
    rows = [row(operation, counts[operation]) for operation in sorted(counts)]
    total = row("all", sum(counts.values(), Counter()))
    tables.write(results, list(total), [*rows, total])
    print(f"{len(rows)} operations:", ", ".join(f"{name} {value}" for name, value in total.items()))
    good = status == 0 and alive and int(str(total["cases"])) >= cases and not total["5xx"] and not total["no answer"]
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
