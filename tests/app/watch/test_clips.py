"""Three real clips: sightings equal people, each once; the enrolled are recognised, others stay unknown.

The clips are "Intel IoT DevKit sample videos" (CC BY 4.0). Who is in them, judged by looking at the frames:

- walking-and-pause: on the left a woman with long dark hair in a dark blouse without sleeves; in the middle a bald man
  with a beard and glasses; on the right a woman with fair hair and glasses.
- head-pose: on the left a woman with long dark hair in a blouse without sleeves, who is the woman on the left of
  walking-and-pause; on the right a man with short dark hair in a blue shirt.
- walking: a woman with dark hair in a white dress; a man with fair hair, glasses and a patterned waistcoat.

So one person appears in two clips, and seven appearances are of six people.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from vestibule_client import Client

WALKING, PAUSE, HEADS = (
    "face-demographics-walking",
    "face-demographics-walking-and-pause",
    "head-pose-face-detection-female-and-male",
)
LONG_HAIR, BALD = "long-hair", "bald"
# Subject, clip, and the part of its first frame (left, top, right, bottom) with the face.
ENROLLED = [
    (LONG_HAIR, PAUSE, (80, 60, 160, 180)),
    (LONG_HAIR, HEADS, (40, 30, 180, 190)),
    (BALD, PAUSE, (180, 60, 270, 160)),
]
# The subjects of the sightings of each clip; None for people who are not enrolled.
SIGHTINGS: dict[str, Counter[str | None]] = {
    WALKING: Counter({None: 2}),
    PAUSE: Counter({LONG_HAIR: 1, BALD: 1, None: 1}),
    HEADS: Counter({LONG_HAIR: 1, None: 1}),
}
TIMEOUT_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _capture_service_logs() -> Iterator[None]:
    """The service runs in this process; keep its log out of the commands' output."""
    with structlog.testing.capture_logs():
        yield


def first_frame(path: Path, box: tuple[int, int, int, int]) -> bytes:
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").crop(box).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.data
def test_real_clips(
    live: str, datasets: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = datasets("videos")
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path))
    with Client(live, timeout=TIMEOUT_S) as client:
        client.create_collection("clips")
        for subject, clip, box in ENROLLED:
            answer = client.enrol("clips", subject, first_frame(videos / f"{clip}.gif", box), quality_gate=False)
            assert len(answer.indexed) == 1
        for clip, expected in SIGHTINGS.items():
            done = CliRunner().invoke(
                cli,
                ["watch", str(videos / f"{clip}.gif"), "--camera", clip, "--collection", "clips", "--url", live,
                 "--fps", "4", "--timeout", str(TIMEOUT_S)],
            )  # fmt: skip
            assert done.exit_code == 0, done.output
            events = [json.loads(line) for line in done.stdout.splitlines()]
            assert sum(event["event"] == "passage" for event in events) == expected.total()
            sightings = client.sightings("clips", camera=clip).data
            assert Counter(sighting.subject_id for sighting in sightings) == expected, done.stdout
        client.erase_collection("clips")
