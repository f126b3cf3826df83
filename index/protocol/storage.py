"""An open storage engine, and its maintenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from index.protocol.alerts import AlertOutbox, AlertRules, Alerts
from index.protocol.calibrations import Calibrations
from index.protocol.curation import Curation
from index.protocol.gallery import Feedback, Gallery, Searches
from index.protocol.jobs import JobQueue, JobWorker
from index.protocol.reembedding import Reembeddings, ReembeddingWorker
from index.protocol.sightings import Sightings
from index.protocol.transfer import Transfer


class Maintenance(Protocol):
    """Background work on a gallery: it finishes erasures, erases expired subjects and keeps searches fast."""

    def run(self) -> bool:
        """Run one round. Return False where another process does maintenance.

        A step that fails, because of a damaged row for example, does not prevent the others.

        Raises:
            MaintenanceError: some steps failed.
        """
        ...

    def release(self) -> None:
        """Let another process do maintenance."""
        ...


class Storage(Protocol):
    """An open storage engine. Use it from any thread."""

    @property
    def gallery(self) -> Gallery:
        """Collections, subjects, faces and receipts."""
        ...

    @property
    def alert_rules(self) -> AlertRules:
        """The rules of alerts."""
        ...

    @property
    def alerts(self) -> Alerts:
        """The alerts that the rules caused."""
        ...

    @property
    def alert_outbox(self) -> AlertOutbox:
        """The pending deliveries of alerts, for this process."""
        ...

    @property
    def searches(self) -> Searches:
        """Searches of the gallery."""
        ...

    @property
    def feedback(self) -> Feedback:
        """Feedback on the gallery's subjects."""
        ...

    @property
    def curation(self) -> Curation:
        """Merges and moves of the gallery's subjects and faces."""
        ...

    @property
    def sightings(self) -> Sightings:
        """The sightings of the gallery's collections."""
        ...

    @property
    def calibrations(self) -> Calibrations:
        """Calibrations of collections on site."""
        ...

    @property
    def jobs(self) -> JobQueue:
        """The queue of bulk jobs."""
        ...

    @property
    def job_worker(self) -> JobWorker:
        """A worker for bulk jobs, of this process."""
        ...

    @property
    def reembeddings(self) -> Reembeddings:
        """The requested re-embeddings."""
        ...

    @property
    def reembedding_worker(self) -> ReembeddingWorker:
        """A worker for re-embeddings, of this process."""
        ...

    @property
    def maintenance(self) -> Maintenance:
        """The maintenance."""
        ...

    @property
    def transfer(self) -> Transfer:
        """Exports and imports of the whole gallery."""
        ...

    def stored_bytes(self) -> int:
        """Return the size of what the storage has on the disk, without indexes that it can rebuild."""
        ...

    def find_faults(self) -> Iterator[str]:
        """Check everything for damage, and yield a message for each fault as soon as it is found."""
        ...

    def warnings(self) -> list[str]:
        """Return what an operator should know at startup, one sentence each."""
        ...

    def problems(self) -> list[str]:
        """Return why the storage is degraded now, such as a full disk. Names no contents of the gallery.

        Does not wait: the event loop calls it.
        """
        ...

    def close(self) -> None:
        """Close all files and connections. No other thread may use the storage any more."""
        ...
