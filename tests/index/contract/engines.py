"""Galleries of both storage engines, for tests that hold for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from index.embedded.alerts import alerts as embedded_alerts
from index.embedded.calibration.calibrations import Calibrations as EmbeddedCalibrations
from index.embedded.curation.curation import Curation as EmbeddedCuration
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.query.feedback import Feedback as EmbeddedFeedback
from index.embedded.query.search import Searches as EmbeddedSearches
from index.embedded.sightings.sightings import Sightings as EmbeddedSightings
from index.embedded.tasks.reembedding import Reembeddings as EmbeddedReembeddings
from index.embedded.tasks.reembedding import ReembeddingWorker as EmbeddedReembeddingWorker
from index.postgres import hnsw
from index.postgres.alerts import alerts as postgres_alerts
from index.postgres.calibration.calibrations import PostgresCalibrations
from index.postgres.curation.curation import PostgresCuration
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.reembedding import PostgresReembeddings, PostgresReembeddingWorker
from index.postgres.search import PostgresSearches
from index.postgres.sightings.sightings import PostgresSightings
from index.postgres.store.database import Database
from index.protocol import (
    AlertOutbox,
    AlertRules,
    Alerts,
    AuditLog,
    Calibrations,
    Curation,
    Feedback,
    Gallery,
    Reembeddings,
    ReembeddingWorker,
    Searches,
    Sightings,
)
from tests.index.people import Clock, maintain


@dataclass
class Engine:
    """`index`: build the approximate index of a collection, which has at least 16 faces.

    `maintain`: run a round of maintenance. `audit`: the audit log.
    """

    name: str
    gallery: Gallery
    searches: Searches
    feedback: Feedback
    curation: Curation
    calibrations: Calibrations
    reembeddings: Reembeddings
    new_worker: Callable[[], ReembeddingWorker]
    index: Callable[[str], None]
    sightings: Sightings
    alert_rules: AlertRules
    alerts: Alerts
    new_outbox: Callable[[], AlertOutbox]
    maintain: Callable[[], object]
    audit: AuditLog


def _embedded(folder: Path, clock: Clock) -> Iterator[Engine]:
    # Searches probe the whole inverted file.
    with closing(EmbeddedGallery(folder, tuning=SearchTuning(1000, 1000), clock=clock)) as gallery:
        yield Engine(
            "embedded",
            gallery,
            EmbeddedSearches(gallery),
            EmbeddedFeedback(gallery),
            EmbeddedCuration(gallery),
            EmbeddedCalibrations(gallery),
            EmbeddedReembeddings(gallery),
            partial(EmbeddedReembeddingWorker, gallery),
            lambda collection: maintain(gallery),
            EmbeddedSightings(gallery, [embedded_alerts.store_alerts]),
            embedded_alerts.AlertRules(gallery),
            embedded_alerts.Alerts(gallery),
            partial(embedded_alerts.AlertOutbox, gallery),
            partial(maintain, gallery),
            gallery.audit,
        )


def _postgres(url: str, clock: Clock) -> Iterator[Engine]:
    with closing(Database(url, clock)) as database:
        gallery = PostgresGallery(database)
        yield Engine(
            "postgres",
            gallery,
            PostgresSearches(gallery),
            PostgresFeedback(gallery),
            PostgresCuration(gallery),
            PostgresCalibrations(gallery),
            PostgresReembeddings(gallery),
            partial(PostgresReembeddingWorker, gallery),
            lambda collection: hnsw.update(database, gallery.collection(collection), 16),
            PostgresSightings(gallery, [postgres_alerts.store_alerts]),
            postgres_alerts.PostgresAlertRules(gallery),
            postgres_alerts.PostgresAlerts(gallery),
            partial(postgres_alerts.PostgresAlertOutbox, gallery),
            PostgresMaintenance(gallery).run,
            gallery.audit,
        )


@pytest.fixture(params=["embedded", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Engine]:
    if request.param == "embedded":
        yield from _embedded(tmp_path / "gallery", clock)
    else:
        yield from _postgres(request.getfixturevalue("database_url"), clock)
