"""CSV files of results: each is replaced whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

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
