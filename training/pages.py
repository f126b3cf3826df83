"""Documents of which a part is written by a program: what stands between two markers; all else is a person's."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint import write_atomically
from training.errors import DataError


def markers(name: str) -> tuple[str, str]:
    """Where the part of that name begins and ends; invisible where Markdown is rendered."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of that name in place of what was there; without them, at its end.

    Raises:
        DataError: the page has one marker, or the second before the first.
    """
    begin, end = markers(name)
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if bool(found_begin) != bool(found_end) or (not found_begin and end in page):
        raise DataError(f"{begin} and {end} must both be there, in this order, or neither")
    if not found_begin:
        before, after = f"{page.rstrip()}\n\n", "\n"
    return f"{before}{begin}\n{text}\n{end}{after}"


def put(path: Path, name: str, text: str, *, heading: str) -> None:
    """`replaced` in a file; where there is none, in a new one with that heading.

    Raises:
        DataError: see `replaced`; the file is as it was.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else f"# {heading}\n"
    try:
        write_atomically(path, replaced(page, name, text).encode())
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
