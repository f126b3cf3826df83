"""`vestibule watch`: watch a camera."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.batch_client import report_client_errors
from app.cli.client import ApiKey, Url
from app.cli.terminal import fail, print_line, replace_unprintable

if TYPE_CHECKING:
    from app.watch.settings import WatchSettings
    from app.watch.sighting_queue import SightingQueue
    from app.watch.source.frames import Source
    from vestibule_client import AsyncClient

watch_cli = typer.Typer()


SourceArgument = Annotated[
    str,
    typer.Argument(
        envvar="VESTIBULE_SOURCE",
        help="rtsp://... or http://..., a webcam (0, /dev/video0), a video file, an animated image, or a folder of"
        " frames. Prefer the environment variable for an address with a password.",
        show_default=False,
    ),
]
MinFace = Annotated[
    float | None,
    typer.Option(
        min=8, help="The side in pixels of the smallest face; by default as /faces/detect.", show_default=False
    ),
]
Realtime = Annotated[
    bool, typer.Option("--realtime", help="Play a recording at its own rate, and drop frames as from a camera.")
]
QueueFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder for sightings that are not stored yet; by default watch/CAMERA in VESTIBULE_STATE.",
        show_default=False,
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds until a request is abandoned, which bounds the latency.")
]
Where = Annotated[str | None, typer.Option(help="Search only subjects of this metadata, as JSON.", show_default=False)]


@watch_cli.command()
def watch(  # noqa: PLR0913  options of a command
    source: SourceArgument,
    *,
    camera: Annotated[str, typer.Option(help="The camera's name: letters, digits, - and _.", show_default=False)],
    collection: Annotated[str, typer.Option(help="The collection to search.", show_default=False)],
    where: Where = None,
    fpir: Annotated[float, typer.Option(help="Accepted false positive identification rate per passage.")] = 0.01,
    fps: Annotated[float, typer.Option(min=0.1, max=60, help="The most frames per second to process.")] = 10.0,
    min_face: MinFace = None,
    folder_fps: Annotated[float, typer.Option(min=0.1, max=60, help="Frames per second of a folder.")] = 10.0,
    realtime: Realtime = False,
    keep_shot: Annotated[bool, typer.Option("--keep-shot", help="Store the best shot with each sighting.")] = False,
    queue: QueueFolder = None,
    timeout: Timeout = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON also on a terminal.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Watch a camera: follow faces, search for them while in view, and store one sighting per passage.

    Prints a line for each event: JSON, or text on a terminal. SIGTERM or Ctrl-C ends the passages in view and stores
    them.
    """
    from app.watch.settings import WatchSettings
    from app.watch.sighting_queue import QueueError, SightingQueue
    from app.watch.source.frames import SourceError
    from app.watch.source.selection import open_source
    from vestibule_client import NEVER, AsyncClient

    try:
        settings = WatchSettings(camera, collection, _conditions(where), fpir, fps, min_face, keep_shot)
    except ValueError as error:
        fail(str(error))
    folder = queue or Path(os.environ.get("VESTIBULE_STATE", "state")) / "watch" / settings.camera
    try:
        frames = open_source(source, folder_fps=folder_fps, realtime=realtime)
        with report_client_errors(), SightingQueue(folder) as opened:
            # The watcher repeats requests itself, or leaves them out where the frame is out of date.
            client = AsyncClient(url, api_key=api_key, timeout=timeout, retries=NEVER)
            asyncio.run(_watch(frames, opened, settings, client, as_json=as_json or not sys.stdout.isatty()))
    except (QueueError, SourceError) as error:
        fail(str(error))


async def _watch(
    source: Source,
    queue: SightingQueue,
    settings: WatchSettings,
    client: AsyncClient,
    *,
    as_json: bool,
) -> None:
    """Watch until the source ends or a signal stops it.

    Raises:
        VestibuleError: at the start, the collection does not exist or the key is not accepted. SourceError.
    """
    from app.watch.events import Events
    from app.watch.recognition import Recognition
    from app.watch.watcher import CameraWatcher

    events = Events(settings.camera, lambda line: print_line(replace_unprintable(line)), as_json=as_json)
    async with client:
        watcher = CameraWatcher(source, Recognition(client, settings), queue, events, fps=settings.fps)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, watcher.stop)
        await watcher.wait_for_service()
        await watcher.run()


def _conditions(where: str | None) -> dict[str, Any] | None:
    if where is None:
        return None
    try:
        conditions = json.loads(where)
    except ValueError as error:
        fail(f"--where: not JSON: {error}")
    if not isinstance(conditions, dict):
        fail("--where: expected a JSON object")
    return conditions
