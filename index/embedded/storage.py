"""The embedded storage engine: a gallery in a folder, and everything that works on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from index.embedded.admin import verify
from index.embedded.alerts.alerts import AlertOutbox, AlertRules, Alerts, store_alerts
from index.embedded.audit.id_normalisation import count_clashes
from index.embedded.calibration.calibrations import Calibrations
from index.embedded.curation.curation import Curation
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches
from index.embedded.sightings.sightings import Sightings
from index.embedded.tasks.bulk_enrolment import BulkEnrolmentWorker, JobQueue
from index.embedded.tasks.maintenance import Maintenance
from index.embedded.tasks.reembedding import Reembeddings, ReembeddingWorker
from index.embedded.transfer.transfer import EmbeddedTransfer
from index.operator_key import OperatorKey

FULL_DISK_S = 60.0  # how long the disk counts as full after a write failed
MIN_FREE_BYTES = 2**20  # with less free space the disk counts as full even if no write failed


class EmbeddedStorage:
    """A `Storage` in a folder; see `index.protocol`.

    Raises:
        GalleryError, CorruptError: see `EmbeddedGallery`.
    """

    def __init__(self, folder: Path, *, key: OperatorKey | None = None):
        self.gallery = EmbeddedGallery(folder, key=key)
        self.alert_rules = AlertRules(self.gallery)
        self.alerts = Alerts(self.gallery)
        self.alert_outbox = AlertOutbox(self.gallery)
        self.searches = Searches(self.gallery)
        self.feedback = Feedback(self.gallery)
        self.curation = Curation(self.gallery)
        self.sightings = Sightings(self.gallery, [store_alerts])
        self.calibrations = Calibrations(self.gallery)
        self.jobs = JobQueue(self.gallery)
        self.job_worker = BulkEnrolmentWorker(self.gallery)
        self.reembeddings = Reembeddings(self.gallery)
        self.reembedding_worker = ReembeddingWorker(self.gallery)
        self.maintenance = Maintenance(self.gallery)
        self.transfer = EmbeddedTransfer(self.gallery)

    def stored_bytes(self) -> int:
        """Return the size of the ledger with its write-ahead log."""
        path = self.gallery.ledger.path
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

    def find_faults(self) -> Iterator[str]:
        """See `index.embedded.admin.verify`."""
        return verify.find_faults(self.gallery)

    def warnings(self) -> list[str]:
        """Return a warning about subjects whose ids clash, if there are any."""
        count = count_clashes(self.gallery.ledger.reader())
        if not count:
            return []
        return [f"{count} subjects have the id of another in Unicode form C; listed by `vestibule gallery clashes`"]

    def problems(self) -> list[str]:
        """Return whether the disk is full, or the folder cannot be read."""
        full_at = self.gallery.ledger.full_at
        try:
            free = shutil.disk_usage(self.gallery.files).free
        except OSError as error:
            return [f"the folder of the gallery cannot be read: {error.strerror}"]
        if free < MIN_FREE_BYTES or (full_at is not None and time.monotonic() - full_at < FULL_DISK_S):
            return ["the disk is full: enrolling and erasing fail (507); free some space for the state folder"]
        return []

    def close(self) -> None:
        """Close all files. No other thread may use the storage any more."""
        self.gallery.close()
