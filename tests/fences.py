"""The commands that a page of docs/ prints, and a small shell that runs them in this process.

A process for each command would begin by importing torch, which takes longer than the commands do.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.cli.main import cli
from app.main import create_app
from app.settings import Settings
from tests.examples import blocks


def commands(page: Path) -> list[str]:
    """The lines of the page's `sh` blocks in their order, but of those that a comment says are not run, and why."""
    printed = [f"{block.code}\n" for block in blocks(page) if block.language == "sh" and not block.skipped]
    lines = "".join(printed).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


class Shell:
    """Runs commands as a terminal would; `vestibule serve` goes on in the background, and `curl` asks it."""

    def __init__(self, more: Callable[[str], list[str]] = lambda command: []):
        """`more` are options that a command gets beyond those it is printed with."""
        self._more = more
        self._open = ExitStack()
        self._service: TestClient | None = None

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, line: str) -> str:
        """What the command printed; curl's is the body. One that fails is an AssertionError, as is an HTTP error."""
        words = [os.path.expandvars(os.path.expanduser(word)) for word in shlex.split(line, comments=True)]
        given = {}
        while "=" in words[0]:
            name, _, given[name] = words.pop(0).partition("=")
        words += self._more(line)
        if words[0] == "curl":
            return self._curl(words[1:])
        if words[0] == ".venv/bin/vestibule":
            if words[1:] == ["serve"]:
                app = create_app(Settings())
                client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
                self._service = self._open.enter_context(client)
                return ""
            return _typed(cli, words[1:], given)
        if words[:2] == [".venv/bin/python", "-m"]:
            return _typed(importlib.import_module(words[2]).cli, words[3:], given)
        done = subprocess.run(words, env=os.environ | given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout

    def _curl(self, words: list[str]) -> str:
        assert self._service is not None, "nothing serves yet"
        method, files = "GET", []
        rest = iter(words)
        for word in rest:
            if word == "-X":
                method = next(rest)
            elif word == "-F":
                method = "POST"
                files.append(_part(next(rest)))
            else:
                url = word
        response = self._service.request(method, url, files=files or None)
        assert response.is_success, response.text
        return str(response.text)


def _part(field: str) -> tuple[str, bytes]:
    name, _, path = field.partition("=@")
    return name, Path(path).read_bytes()


def _typed(application: Any, words: list[str], environment: dict[str, str]) -> str:
    done = CliRunner().invoke(application, words, env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def run_all(page: Path, shell: Shell) -> Iterator[tuple[str, str]]:
    """Each command of the page with what it printed, one after the other."""
    for line in commands(page):
        yield line, shell.run(line)
