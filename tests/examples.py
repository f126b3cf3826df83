"""The examples of a Markdown page, run as they are printed, and their answers compared with those that are printed.

A page is one session from the root of a checkout: what a block defines or writes is there for the next ones. Blocks in
`sh` and `python` are run; one in `json` or `text` right after such a block is what that prints. A comment before a
block keeps it from being run, and says why, or runs it only where these models are served:

    <!-- not run: it asks for a GPU -->
    <!-- needs: vae-faces -->
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import PROJECT

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARKER = re.compile(r"^<!-- (not run|needs):\s*(.*?)\s*-->$")
_ADDRESS = re.compile(r"\b(?:127\.0\.0\.1|localhost):8000\b")
_VERSION = re.compile(r"[0-9a-f]{12}")
_STRING = re.compile(r'("(?:[^"\\]|\\.)*")')

# How far a number with a fraction may be from the printed one: it is rounded, and other weights are a little different.
TOLERANCE = 0.02

# What fails must fail the example, although the page does not say `--fail`.
_CURLRC = "fail-with-body\nsilent\nshow-error\n"


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence, from 1."""

    page: Path
    line: int
    language: str
    code: str
    skipped: str = ""
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a marker without a reason, or before no block; a fence that is not closed.
    """
    found: list[Block] = []
    marker: tuple[str, str] | None = None
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, text in lines:
        if text.startswith(("<!-- not run", "<!-- needs")):
            match = _MARKER.match(text)
            if match is None or not match[2]:
                raise ValueError(
                    f"{page}:{number}: expected a reason, as <!-- not run: why --> or <!-- needs: model -->"
                )
            marker = match[1], match[2]
        elif fence := _FENCE.match(text):
            code = []
            for _, inside in lines:
                if inside.rstrip() == "```":
                    break
                code.append(inside)
            else:
                raise ValueError(f"{page}:{number}: the block does not end")
            kind, said = marker or ("", "")
            needs = tuple(said.split()) if kind == "needs" else ()
            found.append(Block(page, number, fence[1], "\n".join(code), said if kind == "not run" else "", needs))
            marker = None
        elif marker and text.strip():
            raise ValueError(f"{page}:{number}: the marker before it is not that of a block")
    return found


class Session:
    """Runs blocks in `folder` against the service at `url`, which serves `models`."""

    def __init__(self, folder: Path, url: str, models: Collection[str]):
        self._folder = folder
        self._url = url
        self._models = models
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed: str | None = None
        (folder / "examples").symlink_to(PROJECT / "examples")
        self._home = folder / ".home"
        self._home.mkdir()
        (self._home / ".curlrc").write_text(_CURLRC)

    def run(self, block: Block) -> None:
        """Run one block, or compare what it shows with what the one before it printed.

        Raises:
            AssertionError: it failed, or shows something else.
        """
        left_out = bool(block.skipped) or not set(block.needs) <= set(self._models)
        if block.language in ("sh", "bash", "python"):
            self._printed = None
            if not left_out:
                run = self._python if block.language == "python" else self._shell
                self._printed = run(block, _ADDRESS.sub(self._url.partition("//")[2], block.code))
        elif block.language in ("json", "text") and self._printed is not None and not left_out:
            disagree = _json_disagreements if block.language == "json" else _text_disagreements
            found = list(disagree(block.code, self._printed))
            assert not found, f"{block} shows something else: {'; '.join(found)}\nprinted: {self._printed}"

    def _shell(self, block: Block, code: str) -> str:
        path = self._home / "session"
        # Variables and functions stay, as they do in a terminal.
        script = f"""set -euo pipefail
set -a
if [ -f {path} ]; then . {path}; fi
{code}
{{ export -p; declare -f; }} > {path}
"""
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=os.environ | self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        # This checkout's own command and packages come first.
        return {
            "HOME": str(self._home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PROJECT}:{PROJECT / 'clients' / 'python'}",
            "VESTIBULE_URL": self._url,
        }

    def _python(self, block: Block, code: str) -> str:
        """In this process, with the page's lines in tracebacks."""
        printed = io.StringIO()
        source = "\n" * block.line + code
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(printed):
            exec(compile(source, str(block.page), "exec"), self._names)
        return printed.getvalue()


def _json_disagreements(shown: str, printed: str) -> Iterator[str]:
    """Why the last document printed is not the one shown, in which `...` stands for more."""
    expected = json.loads("".join(_without_dots(part) for part in _STRING.split(shown)))
    yield from disagreements(expected, _last_document(printed), "")


def _without_dots(part: str) -> str:
    return part if part.startswith('"') else re.sub(r",?\s*\.\.\.", "", part)


def _last_document(printed: str) -> Any:
    decoder = json.JSONDecoder()
    document, rest = None, printed.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        rest = rest[end:].lstrip()
    return document


def disagreements(shown: Any, actual: Any, where: str) -> Iterator[str]:
    """Why an answer is not as shown: what is shown must be there, and may be followed by more."""
    if isinstance(shown, dict) and isinstance(actual, dict):
        for key, value in shown.items():
            if key in actual:
                yield from disagreements(value, actual[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is not there"
    elif isinstance(shown, list) and isinstance(actual, list):
        if len(shown) > len(actual):
            yield f"{where} has {len(actual)}, not {len(shown)}"
        for number, (one, other) in enumerate(zip(shown, actual, strict=False)):
            yield from disagreements(one, other, f"{where}[{number}]")
    elif not _same(shown, actual):
        yield f"{where} is {actual!r}, not {shown!r}"


def _same(shown: Any, actual: Any) -> bool:
    if isinstance(shown, float) and isinstance(actual, int | float):
        return abs(shown - actual) <= TOLERANCE
    if isinstance(shown, str) and isinstance(actual, str):
        versions = bool(_VERSION.fullmatch(shown) and _VERSION.fullmatch(actual))
        return versions or shown == actual or (shown.endswith("...") and actual.startswith(shown[:-3]))
    return type(shown) is type(actual) and bool(shown == actual)


def _text_disagreements(shown: str, printed: str) -> Iterator[str]:
    """Word by word."""
    words, actual = shown.split(), printed.split()
    if len(words) != len(actual):
        yield f"{len(actual)} words, not {len(words)}"
    for word, other in zip(words, actual, strict=False):
        if not _same(_number(word), _number(other)):
            yield f"{other!r}, not {word!r}"


def _number(word: str) -> float | str:
    """A number with a fraction, without what surrounds it; any other word as it is."""
    match = re.fullmatch(r"[(\[]*(-?\d+\.\d+)[)\],;]*", word)
    return float(match[1]) if match else word
