"""`vestibule enrol DIR` against a running service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from app.cli.batch_client import ImageFile
from app.cli.folders import subject_of
from app.cli.main import cli
from app.settings import PROJECT
from vestibule_client import Client

EXAMPLES = PROJECT / "examples"


@pytest.fixture(scope="module", autouse=True)
def _capture_service_logs() -> Iterator[None]:
    """The service runs in this process; keep its log out of the commands' output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two photos in a subject's folder, one without a face, one that is damaged; a photo named by its subject."""
    root = tmp_path / "people"
    (root / "astronaut" / "old").mkdir(parents=True)
    (root / "astronaut" / "1.jpg").write_bytes((EXAMPLES / "astronaut.jpg").read_bytes())
    with Image.open(EXAMPLES / "astronaut.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "astronaut" / "old" / "2.png")
    (root / "astronaut" / "coffee.jpg").write_bytes((EXAMPLES / "coffee.jpg").read_bytes())
    (root / "astronaut" / "damaged.jpg").write_bytes(b"no image")
    (root / "hopper.jpg").write_bytes((EXAMPLES / "hopper.jpg").read_bytes())
    (root / "notes.txt").write_text("text")
    return root


@pytest.fixture
def enrol(live: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setenv("VESTIBULE_URL", live)
    with Client(live) as client:
        client.create_collection("folder")
        yield lambda *arguments: CliRunner().invoke(cli, ["enrol", *map(str, arguments), "--collection", "folder"])
        client.erase_collection("folder")


def test_photos_are_enrolled_once_and_skipped_files_are_listed(
    enrol: Callable[..., Any], people: Path, live: str
) -> None:
    first = enrol(people)
    assert first.exit_code == 1
    assert f"skipped {people / 'notes.txt'}" in first.stderr
    assert "2 of 5 photos were not enrolled" in first.stderr
    coffee, damaged, total = first.stdout.splitlines()
    assert coffee.startswith(f"{people / 'astronaut' / 'coffee.jpg'}: ")
    assert "face" in coffee
    assert damaged.startswith(f"{people / 'astronaut' / 'damaged.jpg'}: failed: ")
    assert total == "enrolled 3 of 5 photos of 2 subjects"
    records = [json.loads(line) for line in enrol(people, "--json").stdout.splitlines()]
    assert [record["subject"] for record in records] == ["hopper"] + ["astronaut"] * 4
    assert sum(len(record.get("indexed", [])) for record in records) == 3
    with Client(live) as client:
        subjects = {subject.id: subject.faces for subject in client.subjects("folder").data}
    assert subjects == {"astronaut": 2, "hopper": 1}


def test_a_face_of_low_quality_is_skipped_with_the_reason(enrol: Callable[..., Any], tmp_path: Path) -> None:
    with Image.open(EXAMPLES / "hopper.jpg") as image:
        image.convert("RGB").point(lambda value: value // 6).save(tmp_path / "dark.png")
    done = enrol(tmp_path)
    assert done.stdout.splitlines()[0] == f"{tmp_path / 'dark.png'}: skipped: LOW_BRIGHTNESS"
    assert enrol(tmp_path, "--no-quality-gate").exit_code == 0


def test_a_missing_collection_or_an_empty_folder_is_one_error(
    live: str, tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_URL", live)
    done = CliRunner().invoke(cli, ["enrol", str(people), "--collection", "nobody"])
    assert done.exit_code == 1
    assert "nobody" in done.stderr.splitlines()[-1]
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(cli, ["enrol", str(tmp_path / "empty"), "--collection", "nobody"])
    assert (done.exit_code, done.stderr) == (1, f"vestibule: no images found in {tmp_path / 'empty'}\n")


def test_the_subject_is_the_first_folder_or_the_name_of_the_file() -> None:
    paths = {"anna/2024/1.jpg": "anna", "anna/1.jpg": "anna", "bob.smith.jpg": "bob.smith"}
    assert {path: subject_of(ImageFile(Path("/x") / path, Path(path))) for path in paths} == paths


def test_faces_are_grouped_by_person(live: str, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_URL", live)
    with Image.open(EXAMPLES / "astronaut.jpg") as image:
        image.crop((100, 0, 360, 260)).save(people / "astronaut" / "3.png")
    into = tmp_path / "groups"
    done = CliRunner().invoke(cli, ["group", str(people), "--json", "--into", str(into)])
    assert done.exit_code == 0, done.output
    *groups, single = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{Path(face["file"]).name for face in group["faces"]} for group in groups] == [{"1.jpg", "2.png", "3.png"}]
    assert [Path(face["file"]).name for face in single["faces"]] == ["hopper.jpg"]
    assert "coffee.jpg: no face was found" in done.stderr
    assert "damaged.jpg: failed" in done.stderr
    written = [path.relative_to(into) for path in into.rglob("*.jpg")]
    assert {path.parent.name for path in written} == {"group-0001"}
    assert {path.stem.partition("-")[2] for path in written} == {"1", "2", "3"}
    again = CliRunner().invoke(cli, ["group", str(people), "--into", str(into)])
    assert (again.exit_code, again.stderr) == (1, f"vestibule: {into} already exists\n")
    text = CliRunner().invoke(cli, ["group", str(people)])
    assert text.stdout.startswith("group-0001  3 faces  ")
    assert "in no group  1 faces  " in text.stdout


def test_a_folder_without_faces_cannot_be_grouped(live: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_URL", live)
    (tmp_path / "coffee.jpg").write_bytes((EXAMPLES / "coffee.jpg").read_bytes())
    done = CliRunner().invoke(cli, ["group", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "vestibule: 0 faces; from 1 to 5000 can be grouped"
