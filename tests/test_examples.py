"""Every example of the documents is run as it is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog

from app.settings import PROJECT
from tests.examples import Block, Session, blocks

PAGES = (
    "README.md",
    "clients/python/README.md",
    "docs/alerts.md",
    "docs/cameras.md",
    "docs/client.md",
    "docs/curation.md",
    "docs/dependencies.md",
    "docs/gallery.md",
    "docs/generate.md",
    "docs/identification.md",
    "docs/importing.md",
    "docs/operating.md",
    "docs/protocols.md",
    "docs/rejection.md",
    "docs/scaling.md",
    "docs/sightings.md",
    "docs/weights.md",
)
# Examples that need a state folder of their own, and the tests that run them.
RUN_ELSEWHERE = {
    "docs/backup-and-upgrade.md": "tests/app/gallery/test_backup_and_upgrade.py",
    "docs/security.md": "tests/app/auth/test_keys.py",
    "docs/training-your-own.md": "tests/training/test_training_your_own.py",
}


@pytest.fixture(scope="module")
def models(live: str) -> set[str]:
    return {model["name"] for model in httpx.get(f"{live}/models").json()["data"]}


@pytest.fixture
def _no_alerts_remain(live: str) -> Iterator[None]:
    """An alert that cannot be delivered would be tried again, and logged, during the tests of other modules."""
    yield
    for rule in httpx.get(f"{live}/alerts/rules").json()["data"]:
        httpx.delete(f"{live}/alerts/rules/{rule['id']}").raise_for_status()


@pytest.fixture(autouse=True)
def _only_what_examples_print() -> Iterator[None]:
    """The service is in this process, and its log would go where the examples print."""
    with structlog.testing.capture_logs():
        yield


@pytest.mark.usefixtures("_no_alerts_remain")
@pytest.mark.parametrize("name", PAGES)
def test_a_page(name: str, live: str, models: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_URL", live)
    session = Session(tmp_path, live, models)
    for block in blocks(PROJECT / name):
        session.run(block)


def test_no_page_with_examples_is_left_out() -> None:
    for path in (PROJECT / "docs").rglob("*.md"):
        name = path.relative_to(PROJECT).as_posix()
        if name in RUN_ELSEWHERE:
            assert path.name in (PROJECT / RUN_ELSEWHERE[name]).read_text()
        elif name not in PAGES:
            assert [str(block) for block in blocks(path) if block.language in ("sh", "bash", "python")] == []


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_blocks_are_found_with_their_markers(tmp_path: Path) -> None:
    text = """# A page

```sh
one
two
```

<!-- not run: it takes a day -->
```python
three
```
<!-- needs: vae-faces wgan-faces -->

```sh
```
```json
{}
```
"""
    path = page(tmp_path, text)
    assert blocks(path) == [
        Block(path, 3, "sh", "one\ntwo"),
        Block(path, 9, "python", "three", "it takes a day"),
        Block(path, 14, "sh", "", needs=("vae-faces", "wgan-faces")),
        Block(path, 16, "json", "{}"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run -->\n```sh\n```",
        "<!-- not run: -->\n```sh\n```",
        "<!-- needs: -->\n```sh\n```",
        "<!-- not run: why -->\nNo block.\n\n```sh\n```",
        "```sh\nnever closed",
    ],
)
def test_a_marker_needs_a_reason_and_a_block(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:\d: "):
        blocks(page(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nfalse | cat\n```",
        "```sh\ncurl http://127.0.0.1:8000/models/nobody\ntrue\n```",
        '```sh\ncurl http://localhost:8000/health/live\n```\n```json\n{"status": "ready"}\n```',
        '```sh\ncurl http://127.0.0.1:8000/health/live\n```\n```json\n{"mood": ..., "status": "live"}\n```',
        "```sh\necho 1.5 of it\n```\n```text\n1.6 of it\n```",
        "```sh\necho one two\n```\n```text\none\n```",
        "```python\nassert False\n```",
    ],
)
def test_an_example_can_fail(text: str, live: str, tmp_path: Path) -> None:
    session = Session(tmp_path, live, {"lenet5-mnist"})
    *before, last = blocks(page(tmp_path, text))
    for block in before:
        session.run(block)
    with pytest.raises((AssertionError, ValueError)):
        session.run(last)
