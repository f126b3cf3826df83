"""The PostgreSQL storage engine: a gallery in a database, and everything that works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from psycopg import sql

from index.engine.repeater import Repeater
from index.errors import GalleryError
from index.postgres import verify
from index.postgres.alerts.alerts import PostgresAlertOutbox, PostgresAlertRules, PostgresAlerts, store_alerts
from index.postgres.calibration.calibrations import PostgresCalibrations
from index.postgres.curation.curation import PostgresCuration
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.jobs import PostgresJobQueue, PostgresJobWorker
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.readers import Readers
from index.postgres.reembedding import PostgresReembeddings, PostgresReembeddingWorker
from index.postgres.search import PostgresSearches
from index.postgres.sightings.sightings import PostgresSightings
from index.postgres.store import wal_files
from index.postgres.store.database import Database, scalar
from index.postgres.transfer.transfer import PostgresTransfer

CHECK_S = 5.0  # seconds between two checks of the database

_ASYNCHRONOUS = """
SELECT EXISTS (SELECT FROM pg_stat_replication) AND (
    current_setting('synchronous_standby_names') = '' OR current_setting('synchronous_commit') IN ('off', 'local')
)
"""


class PostgresStorage:
    """A `Storage` in a database; see `index.protocol`.

    `standbys`: addresses; see `PostgresMaintenance`. `readers`: those of standbys that also answer searches.

    Raises:
        GalleryError, TooNewError, UnavailableError: see `Database`.
    """

    def __init__(self, database: Database, standbys: Sequence[str] = (), readers: Sequence[str] = ()):
        self._database = database
        self._readers = Readers(database, readers)
        self.gallery = PostgresGallery(database)
        self.alert_rules = PostgresAlertRules(self.gallery)
        self.alerts = PostgresAlerts(self.gallery)
        self.alert_outbox = PostgresAlertOutbox(self.gallery)
        self.searches = PostgresSearches(self.gallery, self._readers)
        self.feedback = PostgresFeedback(self.gallery)
        self.curation = PostgresCuration(self.gallery)
        self.sightings = PostgresSightings(self.gallery, [store_alerts])
        self.calibrations = PostgresCalibrations(self.gallery)
        self.jobs = PostgresJobQueue(self.gallery)
        self.job_worker = PostgresJobWorker(self.gallery)
        self.reembeddings = PostgresReembeddings(self.gallery)
        self.reembedding_worker = PostgresReembeddingWorker(self.gallery)
        self.maintenance = PostgresMaintenance(self.gallery, list(dict.fromkeys((*standbys, *readers))))
        self.transfer = PostgresTransfer(self.gallery)
        self._problems: list[str] = []
        self._checks = Repeater("database-check", CHECK_S, self.check)

    @classmethod
    def open(
        cls,
        url: str,
        standbys: Sequence[str] = (),
        readers: Sequence[str] = (),
        *,
        clock: Callable[[], float] | None = None,
    ) -> PostgresStorage:
        """Open the database at this address, and create or migrate its schema. `clock`: for tests."""
        return cls(Database(url, clock), standbys, readers)

    def stored_bytes(self) -> int:
        """Return the size of the database with its indexes."""
        with self._database.snapshot() as db:
            return int(scalar(db, sql.SQL("SELECT pg_database_size(current_database())")))

    def find_faults(self) -> Iterator[str]:
        """See `index.postgres.verify`."""
        return verify.find_faults(self.gallery, self.transfer)

    def warnings(self) -> list[str]:
        """Return warnings about an asynchronous standby, readers, and what prevents erasures from being finished."""
        with self._database.snapshot() as db:
            is_asynchronous, obstacles = scalar(db, sql.SQL(_ASYNCHRONOUS)), wal_files.obstacles(db)
        warnings = []
        if is_asynchronous:
            warnings.append(
                "the standby is asynchronous: if it replaces a failed server, acknowledged changes are lost and erased"
                " data can be back; set synchronous_standby_names and synchronous_commit"
            )
        if obstacles:
            warnings.append(f"erasures cannot be finished on the database: run {'; '.join(obstacles)}")
        return warnings + self._readers.check()

    def problems(self) -> list[str]:
        """Return what was wrong with the database and the readers at the last check."""
        return self._problems

    def check(self) -> None:
        """Check the database and the readers, and update `problems`."""
        readers = self._readers.check()
        try:
            with self._database.snapshot() as db:
                refuses = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'"
                read_only = scalar(db, sql.SQL(refuses))
            refusal = "the database is read-only: enrolling and erasing fail until it accepts changes"
            self._problems = [refusal] * read_only + readers
        except GalleryError as error:
            self._problems = [f"the gallery is not available: {error}", *readers]

    def close(self) -> None:
        """Write the queued events of searches and close all connections. No other thread may use the storage any more.

        Raises:
            UnavailableError: the events could not be written.
        """
        self._checks.close()
        self._readers.close()
        try:
            self.gallery.audit.flush()
        finally:
            self._database.close()
