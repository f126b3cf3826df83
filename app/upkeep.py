"""The gallery's background work, in a thread of this process, for as long as the service runs."""

from __future__ import annotations

import threading

import apsw
import structlog

from index.errors import GalleryError
from index.gallery import EmbeddedGallery
from index.maintenance import Maintenance

log = structlog.get_logger()


class Upkeep:
    """A round of maintenance every `interval_s` seconds; of several processes one does the work."""

    def __init__(self, gallery: EmbeddedGallery, interval_s: float):
        self._maintenance = Maintenance(gallery)
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """The first round begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the round under way, then let another process do it."""
        self._stopping.set()
        self._thread.join()
        self._maintenance.release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._maintenance.run()
            except (GalleryError, apsw.Error, OSError) as error:
                # A full disk, a locked ledger, a damaged file: what is stored is safe, and the next round tries again.
                log.error("upkeep_failed", error=str(error))
            self._stopping.wait(self._interval_s)
