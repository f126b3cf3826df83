"""Write the generated part of a Markdown page, which is between two markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.checkpoint import write_atomically
from training.core.errors import DataError


def markers(name: str) -> tuple[str, str]:
    """Return the begin and end markers of the part `name`: HTML comments."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with the text between the markers of `name` replaced by `text`.

    Raises:
        DataError: the page does not have both markers in order.
    """
    begin, end = markers(name)
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise DataError(f"the page has no {begin} with {end} after it")
    return f"{before}{begin}\n{text}\n{end}{after}"


def put(path: Path, name: str, text: str, *, heading: str) -> None:
    """Replace the part `name` of a file. Markers are appended if missing; a missing file is created with `heading`.

    Raises:
        DataError: the file has one marker only, or the second before the first; it is unchanged.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else f"# {heading}\n"
    if not any(marker in page for marker in markers(name)):
        page = "\n".join([page.rstrip(), "", *markers(name), ""])
    try:
        page = replaced(page, name, text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    write_atomically(path, page.encode())


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first column left-aligned and the others right-aligned."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
