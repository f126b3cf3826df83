"""docs/: every page is in the table of contents, and links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def links(page: Path) -> list[str]:
    """Targets of the page's Markdown links that are files, without their anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target.partition("#")[0] for target in found if not re.match(r"#|https?:", target)]


def test_every_page_is_in_the_table_of_contents() -> None:
    assert {page.name for page in PAGES} - {"README.md"} <= set(links(DOCS / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_the_picture_of_the_architecture_is_that_of_the_code() -> None:
    script = runpy.run_path(str(DOCS / "draw_architecture.py"))
    assert script["PICTURE"].read_text(encoding="utf-8") == script["draw"](), "make docs"
