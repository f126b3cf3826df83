"""The watcher against a running service: people in view become one sighting each, also through outages and stops."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from PIL import Image
from typer.testing import CliRunner

from app.auth.keys import ApiKeys, Scope
from app.cli.main import cli
from app.main import create_app
from app.settings import PROJECT, Settings
from app.watch import delivery
from app.watch.delivery import PERMANENT
from app.watch.events import Events
from app.watch.recognition import Recognition
from app.watch.settings import WatchSettings
from app.watch.sighting_queue import SightingQueue
from app.watch.source import reader
from app.watch.source.recordings import FrameFolder
from app.watch.watcher import CameraWatcher
from index.factory import open_keys
from tests.app.threaded import serving_app, serving_here
from vestibule_client import NEVER, AsyncClient, Client, NotFound, Unprocessable, Unreachable

EXAMPLES = PROJECT / "examples"
# A client that never gives up while tests share the processor.
TIMEOUT_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def _capture_service_logs() -> Iterator[None]:
    """The service runs in this process; keep its log out of the commands' output."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames at ten per second: the astronaut walks to the right, and the admiral to the left."""
    folder = tmp_path_factory.mktemp("walk")
    with Image.open(EXAMPLES / "astronaut.jpg") as image:
        astronaut = image.convert("RGB").crop((150, 0, 310, 200)).resize((128, 160))
    with Image.open(EXAMPLES / "hopper.jpg") as image:
        hopper = image.convert("RGB").resize((128, 128))
    for index in range(8):
        frame = Image.new("RGB", (640, 360), (110, 120, 130))
        frame.paste(astronaut, (40 + 12 * index, 100))
        frame.paste(hopper, (440 - 12 * index, 120))
        frame.save(folder / f"{index}.png")
    return folder


@pytest.fixture
def collection(live: str) -> Iterator[str]:
    """A collection that knows the astronaut."""
    name = f"watch-{secrets.token_hex(4)}"
    with Client(live, timeout=TIMEOUT_S) as client:
        client.create_collection(name)
        client.enrol(name, "astronaut", EXAMPLES / "astronaut.jpg")
        yield name
        client.erase_collection(name)


@pytest.fixture
def vestibule(live: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("VESTIBULE_URL", live)
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "state"))
    return lambda *arguments: CliRunner().invoke(cli, ["watch", *(str(argument) for argument in arguments)])


def events_of(text: str, kind: str) -> list[dict[str, Any]]:
    return [event for line in text.splitlines() if (event := json.loads(line))["event"] == kind]


def test_each_person_is_one_sighting_and_only_the_enrolled_one_is_named(
    vestibule: Callable[..., Any], live: str, walk: Path, collection: str
) -> None:
    done = vestibule(walk, "--camera", "door", "--collection", collection, "--timeout", TIMEOUT_S, "--keep-shot")
    assert done.exit_code == 0, done.output
    assert len(events_of(done.stdout, "passage")) == 2
    answers = events_of(done.stdout, "answer")
    assert {answer.get("subject") for answer in answers} == {"astronaut", None}
    stored = {event.get("subject"): event for event in events_of(done.stdout, "sighting")}
    assert set(stored) == {"astronaut", None}
    assert stored["astronaut"]["frames"] == stored[None]["frames"] == 8
    assert stored["astronaut"]["probability"] > 0.9
    (summary,) = events_of(done.stdout, "summary")
    assert (summary["read"], summary["processed"], summary["stored"], summary["pending"]) == (8, 8, 2, 0)
    assert summary["frame_latency"]["p50_ms"] > 0
    with Client(live, timeout=TIMEOUT_S) as client:
        sightings = client.sightings(collection).data
        assert {(sighting.camera, sighting.subject_id, sighting.frames) for sighting in sightings} == {
            ("door", "astronaut", 8),
            ("door", None, 8),
        }
        for sighting in sightings:
            assert (sighting.fpir, sighting.has_crop) == (0.01, True)
            assert (sighting.ended_at - sighting.started_at).total_seconds() <= 0.71


def test_the_first_answer_comes_before_the_last_frame(
    vestibule: Callable[..., Any], walk: Path, collection: str, tmp_path: Path
) -> None:
    """The walk three times over: the answer is printed while the person is in view."""
    longer = tmp_path / "longer"
    longer.mkdir()
    for index in range(24):
        step = index % 16
        source = walk / f"{min(step, 15 - step)}.png"
        (longer / f"{index:02}.png").write_bytes(source.read_bytes())
    done = vestibule(longer, "--camera", "door", "--collection", collection, "--timeout", TIMEOUT_S)
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert kinds.index("answer") < kinds.index("sighting")
    assert kinds.count("sighting") == 2


class FailingTransport(httpx.AsyncHTTPTransport):
    """A transport that fails for requests of one path, `failures` times."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = ""
        self.failures = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == self.failing and self.failures:
            self.failures -= 1
            raise httpx.ConnectError("the network is down")
        return await super().handle_async_request(request)


class Camera:
    """A watcher in this process whose requests can be made to fail; `lines` are its events."""

    def __init__(self, url: str, folder: Path, collection: str, queue: SightingQueue) -> None:
        self.transport = FailingTransport()
        self.lines: list[str] = []
        self.client = AsyncClient(url, timeout=TIMEOUT_S, retries=NEVER, transport=self.transport)
        self.recognition = Recognition(self.client, WatchSettings("door", collection))
        events = Events("door", self.lines.append, as_json=True)
        self.watcher = CameraWatcher(FrameFolder(folder), self.recognition, queue, events, fps=10)

    async def run(self) -> None:
        async with self.client:
            await self.watcher.run()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events_of("\n".join(self.lines), kind)


@pytest.fixture
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(reader, "LONGEST_WAIT_S", 0.02)


@pytest.mark.usefixtures("_fast_retries")
@pytest.mark.parametrize("path", ["/faces/detect", "/search", "/sightings"])
def test_an_outage_delays_sightings_and_loses_none(
    live: str, walk: Path, collection: str, tmp_path: Path, path: str
) -> None:
    with SightingQueue(tmp_path / "queue") as queue:
        camera = Camera(live, walk, collection, queue)
        camera.transport.failing, camera.transport.failures = path, 5
        asyncio.run(camera.run())
        assert camera.transport.failures == 0
        assert {event.get("subject") for event in camera.events("sighting")} == {"astronaut", None}
        assert len(queue) == 0
    with Client(live, timeout=TIMEOUT_S) as client:
        assert len(client.sightings(collection).data) == 2


@pytest.mark.usefixtures("_fast_retries")
def test_sightings_of_a_stopped_watcher_are_sent_by_the_next_one_once(
    live: str, walk: Path, collection: str, tmp_path: Path
) -> None:
    """The first watcher's sightings are stored, but it never learns of it: the second sends them again, in vain."""
    folder = tmp_path / "queue"
    with SightingQueue(folder) as queue:
        camera = Camera(live, walk, collection, queue)
        real = camera.recognition.store

        async def store_and_lose_the_answer(sighting: Any) -> str:
            await real(sighting)
            camera.watcher.stop()
            raise Unreachable("the connection was lost")

        camera.recognition.store = store_and_lose_the_answer  # type: ignore[method-assign]
        asyncio.run(camera.run())
        assert len(queue) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (64, 64)).save(empty / "0.png")
    with SightingQueue(folder) as queue:
        camera = Camera(live, empty, collection, queue)
        asyncio.run(camera.run())
        reported = {event["sighting"] for event in camera.events("sighting")}
        assert len(queue) == 0
    with Client(live, timeout=TIMEOUT_S) as client:
        assert {sighting.id for sighting in client.sightings(collection).data} == reported
    assert len(reported) == 2


@pytest.mark.usefixtures("_fast_retries")
def test_a_sighting_that_the_service_refuses_is_reported_and_dropped(
    live: str, walk: Path, collection: str, tmp_path: Path
) -> None:
    assert {NotFound, Unprocessable} <= set(PERMANENT)
    with SightingQueue(tmp_path / "queue") as queue:
        camera = Camera(live, walk, collection, queue)
        camera.recognition._settings = WatchSettings("door", "no-such-collection")
        asyncio.run(camera.run())
        assert len(camera.events("sighting_refused")) == 2
        assert (camera.watcher.metrics.counts.refused, len(queue)) == (2, 0)


def test_sightings_older_than_a_day_are_dropped(
    live: str, walk: Path, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LONGEST_PENDING_S", -1.0)
    with SightingQueue(tmp_path / "queue") as queue:
        camera = Camera(live, walk, collection, queue)
        asyncio.run(camera.run())
        assert len(camera.events("sightings_lost")) == camera.watcher.metrics.counts.lost == 2


def test_a_full_disk_loses_sightings_and_not_the_watcher(
    live: str, walk: Path, collection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SightingQueue(tmp_path / "queue") as queue:

        def fail(_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(queue, "add", fail)
        camera = Camera(live, walk, collection, queue)
        asyncio.run(camera.run())
    assert [event["detail"] for event in camera.events("sightings_lost")] == ["No space left on device"] * 2


def test_sigterm_stores_the_people_in_view(live: str, walk: Path, collection: str, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for index in range(1200):
        (many / f"{index:04}.png").hardlink_to(walk / "3.png")
    watcher = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "watch", str(many), "--camera", "door", "--collection", collection,
         "--realtime", "--timeout", str(TIMEOUT_S), "--queue", str(tmp_path / "queue")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "VESTIBULE_URL": live}, cwd=PROJECT,
    )  # fmt: skip
    with watcher as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if '"answer"' in line and '"match"' in line:
                process.send_signal(signal.SIGTERM)
                break
        lines += process.stdout.read().splitlines()
        assert process.wait(TIMEOUT_S) == 0
    text = "\n".join(line.strip() for line in lines)
    stored, (summary,) = events_of(text, "sighting"), events_of(text, "summary")[-1:]
    # On a slow machine a sighting may be stored only at the next start.
    assert len(stored) + summary["pending"] == 2
    assert summary["read"] < 1200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.gif"], "no such file or folder"),
        (["ftp://camera/"], "the scheme of a stream is one of"),
        (["{walk}", "--camera", "front door"], "1 to 64 letters"),
        (["{walk}", "--fpir", "0"], "above 0 and below 1"),
        (["{walk}", "--where", "{"], "--where: not JSON"),
        (["{walk}", "--where", "[]"], "--where: expected a JSON object"),
        (["{walk}", "--collection", "nobody"], "nobody"),
    ],
)
def test_errors_are_one_line(
    vestibule: Callable[..., Any], walk: Path, collection: str, arguments: list[str], message: str
) -> None:
    given = [argument.replace("{walk}", str(walk)) for argument in arguments]
    options = [] if "--camera" in given else ["--camera", "door"]
    options += [] if "--collection" in given else ["--collection", collection]
    done = vestibule(*given, *options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@dataclass(frozen=True)
class SecuredState:
    """A state folder with API keys and a collection `people` that knows the astronaut, and the port of its service."""

    settings: Settings
    port: int
    keys: dict[str, str]

    def serving(self) -> AbstractContextManager[str]:
        """Start the service for the length of a `with` statement."""
        return serving_app(create_app(self.settings), port=self.port)

    def command(self, walk: Path, key: str) -> list[str]:
        """The arguments of `vestibule watch` on this service."""
        return [str(walk), "--camera", "door", "--collection", "people", "--timeout", str(TIMEOUT_S),
                "--url", f"http://127.0.0.1:{self.port}", "--key", self.keys[key]]  # fmt: skip


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> SecuredState:
    state = tmp_path_factory.mktemp("secured")
    keys = ApiKeys(open_keys(state))
    scopes: dict[str, tuple[Scope, ...]] = {
        "camera": ("infer", "observe"), "infer only": ("infer",), "observe only": ("observe",), "enrol": ("enrol",)
    }  # fmt: skip
    texts = {name: keys.create(name, granted)[1] for name, granted in scopes.items()}
    keys.close()
    settings = Settings(state=state)
    with serving_here(settings) as url, Client(url, api_key=texts["enrol"], timeout=TIMEOUT_S) as client:
        client.create_collection("people")
        client.enrol("people", "astronaut", EXAMPLES / "astronaut.jpg")
        port = int(url.rpartition(":")[2])
    return SecuredState(settings, port, {**texts, "wrong": "vst_" + "A" * 43})


def test_a_watcher_that_starts_before_the_service_waits_for_it(
    secured: SecuredState, walk: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "app.cli.main", "watch", *secured.command(walk, "camera")]
    command += ["--queue", str(tmp_path / "queue")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdout is not None
        failed = [json.loads(process.stdout.readline()) for _ in range(2)]
        with secured.serving():
            rest = process.stdout.read()
            assert process.wait(TIMEOUT_S) == 0
    assert [event["event"] for event in failed] == ["service_failed"] * 2
    assert "no service responds at" in failed[0]["detail"]
    assert 0.25 <= failed[0]["wait_s"] <= 0.5 <= failed[1]["wait_s"] <= 1
    kinds = [json.loads(line)["event"] for line in rest.splitlines()]
    assert kinds.index("service_recovered") < kinds.index("passage")
    assert {event.get("subject") for event in events_of(rest, "sighting")} == {"astronaut", None}


def test_a_refused_watcher_ends_at_once(vestibule: Callable[..., Any], secured: SecuredState, walk: Path) -> None:
    with secured.serving():
        for key, message in {
            "wrong": "API key",
            "infer only": "observe",
            "observe only": "infer",
        }.items():
            done = vestibule(*secured.command(walk, key))
            assert (done.exit_code, done.stdout) == (1, "")
            assert message in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1


def test_a_stop_ends_the_wait_for_the_service(walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_WAIT_S", TIMEOUT_S)
    monkeypatch.setattr(reader, "LONGEST_WAIT_S", TIMEOUT_S)

    async def start_and_stop() -> None:
        waiting = asyncio.create_task(camera.watcher.wait_for_service())
        asyncio.get_running_loop().call_later(0.5, camera.watcher.stop)
        await asyncio.wait_for(waiting, TIMEOUT_S / 4)
        await camera.run()

    with SightingQueue(tmp_path / "queue") as queue:
        camera = Camera("http://127.0.0.1:9", walk, "people", queue)
        asyncio.run(start_and_stop())
    assert len(camera.events("service_failed")) == 1
    (summary,) = camera.events("summary")
    assert summary["read"] == 0


def test_the_watcher_does_not_import_torch() -> None:
    code = "import sys, app.watch.watcher, app.watch.source.selection, app.cli.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "False"


def test_events_for_people_are_text() -> None:
    lines: list[str] = []
    events = Events("door", lines.append, as_json=False)
    events.report("sighting", passage="ab", status="match", subject="anna", name=None, probability=0.98765)
    assert lines[0].endswith("door: sighting match anna, passage ab, probability 0.988")
