"""`vestibule gallery calibrate` and `calibrations` against a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from app.cli.calibrate import describe
from app.cli.main import cli
from app.settings import PROJECT
from models.site_calibration import MIN_STRANGERS
from tests.app.face_pictures import grace_hopper
from tests.conftest import photo
from vestibule_client import Client
from vestibule_client.gallery_answers import CalibrationInfo

Command = Callable[..., Any]

RATE = {
    "requested": 0.01,
    "comparisons": 2000,
    "before": 0.0304,
    "before_low": 0.02,
    "before_high": 0.04,
    "after": 0.0105,
    "after_low": 0.008,
    "after_high": 0.013,
}


@pytest.fixture(scope="module", autouse=True)
def _capture_service_logs() -> Iterator[None]:
    """The service runs in this process; keep its log out of the commands' output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def vestibule(live: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Run a command; the service has the empty collection `site`."""
    monkeypatch.setenv("VESTIBULE_URL", live)
    with Client(live) as client:
        client.create_collection("site")
        yield lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert [row.name for row in client.collections().data if row.name.startswith("calibration-")] == []
        client.erase_collection("site")


def test_too_few_strangers_are_refused_and_nothing_stays(vestibule: Command, tmp_path: Path) -> None:
    for name in ("anne", "bob"):
        (tmp_path / name).mkdir()
    (tmp_path / "anne" / "1.jpg").write_bytes((PROJECT / "examples" / "astronaut.jpg").read_bytes())
    (tmp_path / "bob" / "1.jpg").write_bytes((PROJECT / "examples" / "coffee.jpg").read_bytes())
    (tmp_path / "notes.txt").write_text("text")
    result = vestibule("gallery", "calibrate", "site", "--strangers", tmp_path)
    assert result.exit_code == 1
    assert "1 people who are not enrolled are too few" in result.stderr
    assert "skipped" in result.stderr
    assert "notes.txt" in result.stderr
    assert "coffee" not in result.stdout
    listed = vestibule("gallery", "calibrations", "site")
    assert (listed.exit_code, listed.stdout) == (0, "")


def test_wrong_folders_and_metadata_are_refused(vestibule: Command, tmp_path: Path) -> None:
    empty, flat = tmp_path / "empty", tmp_path / "flat"
    empty.mkdir()
    flat.mkdir()
    (flat / "1.jpg").write_bytes((PROJECT / "examples" / "astronaut.jpg").read_bytes())
    table = tmp_path / "fields.csv"
    table.write_text("person,camera\nanne\n")
    for arguments, message in (
        (("--strangers", empty), "no images found"),
        (("--strangers", flat, "--mated", flat), "expected a folder for each enrolled person"),
        (("--strangers", flat, "--metadata", table), "rows of as many columns"),
    ):
        result = vestibule("gallery", "calibrate", "site", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr


@pytest.mark.slow
def test_a_site_is_calibrated(vestibule: Command, tmp_path: Path) -> None:
    faces = [photo("astronaut").crop((110, 0, 350, 240)), grace_hopper().crop((100, 40, 420, 400)).resize((240, 270))]
    lines = ["person,camera"]
    for number in range(MIN_STRANGERS):
        person = tmp_path / "strangers" / f"person {number}"
        person.mkdir(parents=True)
        face = faces[number % 2].filter(ImageFilter.GaussianBlur(number / 20))
        canvas = Image.new("RGB", (300, 300), (90, 110, 120))
        canvas.paste(face, (number % 30, number // 2))
        canvas.save(person / "1.png")
        lines.append(f"person {number},{'north' if number % 3 else 'south'}")
    table = tmp_path / "fields.csv"
    table.write_text("\n".join(lines))
    result = vestibule("gallery", "calibrate", "site", "--strangers", tmp_path / "strangers", "--metadata", table)
    assert result.exit_code == 0, result.stderr
    assert "calibration 1" in result.stdout
    assert '{"camera": "south"}' in result.stdout
    listed = vestibule("gallery", "calibrations", "site", "--use", "own")
    assert "in use" not in listed.stdout
    token = listed.stdout.split()[1]
    assert "in use" in vestibule("gallery", "calibrations", "site", "--use", token).stdout


def test_a_report_is_a_table() -> None:
    info = CalibrationInfo.model_validate(
        {
            "id": "abc",
            "version": 3,
            "fingerprint": "one:1",
            "created_at": datetime(2030, 1, 1, tzinfo=UTC),
            "in_use": True,
            "report": {
                "people": 60,
                "photos": 240,
                "comparisons": 2000,
                "mated": 0,
                "fmr": [RATE],
                "fpir": [{**RATE, "after": None, "after_low": None, "after_high": None}],
                "fnir": [],
                "groups": [
                    {
                        "field": "camera",
                        "value": "north",
                        "people": 30,
                        "comparisons": 900,
                        "before": 0.02,
                        "after": None,
                    }
                ],
            },
        }
    )
    lines = describe("site", info).splitlines()
    assert lines[0] == "site: calibration 3 (abc) is in use"
    assert " ".join(lines[3].split()) == "FMR 0.01 0.03040 (0.02000 to 0.04000) 0.01050 (0.00800 to 0.01300)"
    assert "too few strangers" in lines[4]
    assert lines[5] == 'FMR 0.01, {"camera": "north"}: 0.02000, - after; 30 people'
