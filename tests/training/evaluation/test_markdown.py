"""Generated parts of Markdown pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.core.errors import DataError
from training.evaluation.markdown import markers, put, replaced

BEGIN, END = markers("table")


def test_page_without_markers_is_extended(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    put(path, "table", "one", heading="The zoo")
    assert path.read_text() == f"# The zoo\n\n{BEGIN}\none\n{END}\n"
    path.write_text("mine\n")
    put(path, "table", "one", heading="The zoo")
    put(path, "table", "two", heading="The zoo")
    assert path.read_text() == f"mine\n\n{BEGIN}\ntwo\n{END}\n"


def test_text_outside_the_markers_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    put(path, "table", "one", heading="A")
    put(path, "other", "two", heading="A")
    page = path.read_text()
    assert replaced(page, "table", "three") == page.replace("one", "three")
    with pytest.raises(DataError, match="third:begin"):
        replaced(page, "third", "three")


@pytest.mark.parametrize("text", [BEGIN, END, f"{END} {BEGIN}"])
def test_broken_markers_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(DataError, match=r"page\.md: .*table:begin"):
        put(path, "table", "one", heading="The zoo")
    assert path.read_text() == text
