"""Documents of which a part is written by a program: what stands between two markers; all else is a person's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.checkpoint import write_atomically
from training.core.errors import DataError


def markers(name: str) -> tuple[str, str]:
    """Where the part of that name begins and ends; invisible where Markdown is rendered."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of that name in place of what was there.

    Raises:
        DataError: the page does not have both markers, in their order.
    """
    begin, end = markers(name)
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise DataError(f"the page has no {begin} with {end} after it")
    return f"{before}{begin}\n{text}\n{end}{after}"


def put(path: Path, name: str, text: str, *, heading: str) -> None:
    """`replaced` in a file; one without markers gets them at its end, and where there is none, one with that heading.

    Raises:
        DataError: the file has one marker, or the second before the first; it is as it was.
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
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
