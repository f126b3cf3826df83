"""Schemathesis over all operations of the OpenAPI document: no 5xx, and no answer that the document does not describe.

    pytest -m slow -s tests/soak/test_schema_fuzz.py --soak-size 500 --soak-seed 1 --soak-results benchmarks/results

The size is the largest number of examples of each operation while fuzzing, and of chains of calls. All phases run:
examples, coverage, fuzzing, stateful. `schema_fuzz_hooks.py` puts real images and names into the cases. Every case has
a key with all scopes, except those that test a missing key.

That all valid data is accepted is not checked: a schema cannot say whether bytes are an image or a name exists. The
deadline is lifted, because a busy machine is no failure. There are no rate limits unless they are set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from app.auth.keys import SCOPES, ApiKeys
from app.settings import PROJECT
from benchmarks import tables
from index.factory import open_keys
from tests.app.server.test_process import serving
from tests.soak.conftest import Soak

# Environment variables of the hooks: the service's address, a key of all scopes, the file to write. Importing the hooks
# registers them, so only schemathesis's process imports them.
URL, KEY, REPORT = "SCHEMA_FUZZ_URL", "SCHEMA_FUZZ_KEY", "SCHEMA_FUZZ_REPORT"
PHASES = ("examples", "coverage", "fuzzing", "stateful")
ANSWERS = ("2xx", "3xx", "4xx", "5xx", "no answer")
FAILED = "failed: "
DEADLINE_S = 3600


def run(url: str, key: str, examples: int, seed: int, report: Path) -> int:
    """Return schemathesis's exit status. The hooks write the report; schemathesis's own files lie beside it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--seed", str(seed)]
    command += ["--max-examples", str(examples), "--phases", ",".join(PHASES), "--checks", "all"]
    command += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--no-color"]
    command += ["--exclude-path", "/alerts/stream"]  # it ends after minutes
    command += ["--request-timeout", str(DEADLINE_S), "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--generation-database", "none", "--max-response-time", str(DEADLINE_S)]
    command += ["--header", f"Authorization: Bearer {key}"]
    hooks = {URL: url, KEY: key, REPORT: str(report), "SCHEMATHESIS_HOOKS": "tests.soak.schema_fuzz_hooks"}
    # requests reads no_proxy before NO_PROXY.
    environment = os.environ | hooks | {"PYTHONPATH": str(PROJECT), "no_proxy": httpx.URL(url).host}
    return subprocess.run(command, env=environment, cwd=report.parent, check=False).returncode


def row(operation: str, counts: Counter[str]) -> dict[str, object]:
    """An operation's cases by phase, its answers, and how often each check failed."""
    failed = {name.removeprefix(FAILED): count for name, count in counts.items() if name.startswith(FAILED)}
    return {
        "operation": operation,
        "cases": sum(counts[phase] for phase in PHASES),
        **{name: counts[name] for name in (*PHASES, *ANSWERS)},
        "failures": sum(failed.values()),
        "failed_checks": "; ".join(f"{name} {count}" for name, count in sorted(failed.items())),
    }


@pytest.mark.slow
def test_the_service_answers_as_its_document_says(soak: Soak, tmp_path: Path) -> None:
    examples, report, state = soak.size or 5, tmp_path / "report.json", tmp_path / "state"
    keys = ApiKeys(open_keys(state))
    _, key = keys.create("fuzz", SCOPES)
    keys.close()
    with serving(VESTIBULE_STATE=str(state), VESTIBULE_DEADLINE_S=str(DEADLINE_S)) as (process, url, _):
        status = run(url, key, examples, soak.seed, report)
        assert process.poll() is None
        document = httpx.get(f"{url}/openapi.json", headers={"authorization": f"Bearer {key}"}, trust_env=False).json()
    counts = {operation: Counter(events) for operation, events in json.loads(report.read_text()).items()}
    rows = [row(operation, counts[operation]) for operation in sorted(counts)]
    total = row("all", sum(counts.values(), Counter()))
    tables.write(soak.results / "schema_fuzz.csv", list(total), [*rows, total])
    print(f"{len(rows)} operations:", ", ".join(f"{name} {value}" for name, value in total.items()))
    assert len(rows) == sum(len(methods) for methods in document["paths"].values())
    assert (status, total["5xx"], total["no answer"], total["failures"]) == (0, 0, 0, 0)
    assert sum(counts[operation]["fuzzing"] for operation in counts) >= len(rows)
