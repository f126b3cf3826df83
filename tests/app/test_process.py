"""The service as a process of its own: what it prints, how it stops, what the command line says."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from app.cli import cli
from tests.app import bad_inputs


@contextmanager
def serving(**environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`vestibule serve` on a free port: the process, its address, the lines it printed so far."""
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    lines: list[str] = []
    ready: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "ready on http" in line:
                ready.put(line.split()[-1])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, ready.get(timeout=60), lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_it_says_what_to_try_and_that_works() -> None:
    with serving() as (process, address, lines):
        deadline = time.monotonic() + 10
        while not any("docs:" in line for line in lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        attempt = next(line.split("try:")[1].strip() for line in lines if "try:" in line)
        assert attempt.startswith("curl -F file=@")
        picture = Path(attempt.split("@")[1].split()[0])
        url = attempt.split("'")[1]
        assert url.startswith(address)
        assert bad_inputs.is_espresso(httpx.post(url, files={"file": picture.read_bytes()}))
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_sigterm_lets_the_request_under_way_finish() -> None:
    with serving() as (process, address, _):
        half, rest = bad_inputs.coffee()[:1000], bad_inputs.coffee()[1000:]
        told = threading.Event()

        def slow_body() -> Iterator[bytes]:
            yield half
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            told.set()
            yield rest

        response = httpx.post(address + "/classify", content=slow_body(), headers=bad_inputs.JPEG, timeout=20)
        assert told.is_set()
        assert bad_inputs.is_espresso(response)
        process.wait(20)
        with pytest.raises(httpx.ConnectError):
            httpx.get(address + "/health/live")


def test_it_does_not_listen_beyond_loopback_without_being_told() -> None:
    result = CliRunner().invoke(cli, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "refusing to listen on 0.0.0.0" in result.output


def test_missing_weights_are_told_of_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert result.exit_code == 1
    assert "make install" in result.output
    assert "Traceback" not in result.output


def test_models_lists_what_is_there_and_what_is_refused(tmp_path: Path) -> None:
    assert "lenet5-mnist" in CliRunner().invoke(cli, ["models"]).output
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    result = CliRunner().invoke(cli, ["models"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert "broken: refused" in result.output


def test_importing_from_nowhere_is_a_clear_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["import", "somewhere:else"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert result.exit_code == 1
    assert "vestibule:" in result.output
