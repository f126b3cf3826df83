"""CSV files of results: each is replaced whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.checkpoint import write_atomically


def write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Replace the file; every row has just these columns.

    Raises:
        ValueError: a row has another column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def read(path: Path) -> list[dict[str, str]]:
    """The rows as they stand there; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def machine() -> str:
    """The processor and the memory."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model or platform.machine()}, {memory:.0f} GiB"


def merge(path: Path, rows: Iterable[Any], key: Sequence[str]) -> None:
    """Write rows, of one dataclass, in place of those in the file that have the same key."""
    new = [{name: "" if value is None else str(value) for name, value in asdict(row).items()} for row in rows]
    keys = {tuple(row[name] for name in key) for row in new}
    columns = list(new[0])
    old = [{name: row.get(name, "") for name in columns} for row in read(path)]
    write(path, columns, [*(row for row in old if tuple(row[name] for name in key) not in keys), *new])
