"""Migrations: the ledger's schema as numbered steps. A released step is never changed.

Ids are never reused (AUTOINCREMENT): an id that another process knows as deleted cannot become another row. There is
one writer at a time, so `faces.id` increases in the order of commits, and new faces are those with greater ids.
"""

from __future__ import annotations

import apsw

from index.embedded.store.schema import alerts, calibration, curation, gallery, sightings, transfer
from index.errors import TooNewError

STEPS: tuple[str, ...] = (*gallery.STEPS, curation.STEP, transfer.STEP, sightings.STEP, calibration.STEP, alerts.STEP)


def migrate(connection: apsw.Connection, steps: tuple[str, ...] = STEPS) -> None:
    """Run the `steps` that the database lacks, each in its own transaction.

    Raises:
        TooNewError: it has more steps than these.
    """
    while (version := connection.pragma("user_version")) != len(steps):
        if version > len(steps):
            raise TooNewError(f"the ledger is of version {version}; this program knows {len(steps)}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.pragma("user_version") == version:  # else another process ran the step meanwhile
                connection.execute(steps[version])
                connection.pragma("user_version", version + 1)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
