"""What all benchmarks share: pages of docs/ agree with the kept results, CSV files, requests without proxies."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer

from app.settings import PROJECT
from benchmarks.experiments import face_losses, gan_collapse, ideas
from benchmarks.gallery import fusion, passages
from benchmarks.gallery import peers as gallery_peers
from benchmarks.gallery.group import Row
from benchmarks.models import denoising
from benchmarks.models.verify_over_http import server_timing
from benchmarks.proxies import uses_proxies
from benchmarks.serving import faults
from benchmarks.serving import peers as serving_peers
from benchmarks.tables import merge, read, write
from tests.benchmarks.conftest import invoke
from training.evaluation.markdown import markers

SENDING = {"Client", "AsyncClient", "get", "post", "put", "patch", "delete", "head", "options", "request", "stream"}


@pytest.mark.parametrize(
    ("page", "reports"),
    [
        ("face-losses.md", {face_losses: ["report"]}),
        ("ideas.md", {ideas: ["plot"]}),
        ("identification.md", {fusion: ["report"], passages: ["report"]}),
        ("gallery-peers.md", {gallery_peers: ["report"]}),
        ("serving.md", {serving_peers: ["report", "--page"], faults: ["report", "--page"]}),
    ],
)
def test_pages_are_written_from_the_results(
    page: str, reports: dict[ModuleType, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, path = (PROJECT / "docs" / page).read_text(), tmp_path / page
    path.write_text(re.sub(r"(<!-- (\S+):begin -->\n).*?(<!-- \2:end -->)", r"\1\3", expected, flags=re.DOTALL))
    assert path.read_text() != expected
    for module, arguments in reports.items():
        for name, place in (("PAGE", path), ("PICTURES", tmp_path), ("PICTURE", tmp_path / "plot.png")):
            monkeypatch.setattr(module, name, place, raising=False)
        result = invoke(module.cli, *arguments, *([path] if "--page" in arguments else []))
        assert result.exit_code == 0, result.output
    assert path.read_text() == expected
    plots = list(tmp_path.rglob("*.png"))
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert len(plots) == {"face-losses.md": 1, "ideas.md": 5, "serving.md": 1}.get(page, 0)


def test_the_table_of_denoisers_is_written_from_the_results() -> None:
    page = (PROJECT / "docs/denoising.md").read_text()
    begin, end = markers("denoising")
    assert denoising.table(read(denoising.RESULTS)) in page[page.index(begin) : page.index(end)]


def test_the_results_show_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan_collapse, "PICTURE", tmp_path / "plot.png")
    with pytest.raises(typer.Exit) as ended:
        gan_collapse.main(draw_only=True)
    assert ended.value.exit_code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.csv"
    assert read(path) == []
    write(path, ["loss", "active"], [{"loss": "a, b", "active": 0.5}])
    assert path.read_bytes() == b'loss,active\n"a, b",0.5\n'
    with pytest.raises(ValueError, match="b"):
        write(path, ["a"], [{"a": 2, "b": 3}])
    assert read(path) == [{"loss": "a, b", "active": "0.5"}]


def test_rows_replace_those_of_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    merge(path, [Row("a", 10, status="old"), Row("b", 10), Row("a", 20)], ("engine", "vectors"))
    merge(path, [Row("a", 10, recall_1=0.5)], ("engine", "vectors"))
    rows = [(row["engine"], row["vectors"], row["status"], row["recall_1"]) for row in read(path)]
    assert rows == [("b", "10", "ok", ""), ("a", "20", "ok", ""), ("a", "10", "ok", "0.5")]


@pytest.mark.parametrize("parse", [server_timing, serving_peers.server_timing])
def test_server_timing_is_parsed(parse: Callable[[str], dict[str, float]]) -> None:
    assert parse("decode;dur=1.25, queue;dur=0.00, total;dur=31.0") == {"decode": 1.25, "queue": 0, "total": 31}


@pytest.mark.parametrize("folder", ["benchmarks", "tests/soak"])
def test_every_http_client_says_whether_it_uses_proxies(folder: str) -> None:
    calls = [
        (f"{path.name}:{node.lineno}", any(option.arg == "trust_env" for option in node.keywords))
        for path in sorted((PROJECT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "httpx"
        and node.func.attr in SENDING
    ]
    assert len(calls) > 2
    assert [place for place, says in calls if not says] == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000/models", False),
        ("http://[::1]:8000", False),
        ("https://example.org", True),
        ("http://10.0.0.7:8000", True),
    ],
)
def test_only_other_machines_are_reached_by_proxies(url: str, expected: bool) -> None:
    assert uses_proxies(url) is expected
    assert uses_proxies("https://example.com", url) is expected
