"""What replicas share besides the gallery: API keys, reloads of models, and quotas."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from index.postgres.keys import PostgresKeys
from index.postgres.quotas import PostgresQuotas
from index.postgres.store.database import Connection, SharedDatabase


class PostgresReloads:
    """See `index.protocol.Reloads`."""

    def __init__(self, shared: SharedDatabase):
        self._shared = shared

    def tokens(self) -> Mapping[str, str]:
        """See `Reloads`."""
        with self._shared.get().snapshot() as db:
            return {row[0]: row[1] for row in db.execute("SELECT model, token FROM reloads")}

    def announce(self, model: str, token: str) -> None:
        """See `Reloads`."""

        def write(db: Connection) -> None:
            statement = "INSERT INTO reloads VALUES (%s, %s) ON CONFLICT (model) DO UPDATE SET token = excluded.token"
            db.execute(statement, (model, token))

        self._shared.get().write(write)


class PostgresServiceState:
    """The state in the database at `url`; see `index.protocol.ServiceState`. `clock`: see `Database`."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None):
        self._shared = SharedDatabase(url, clock)
        self.keys = PostgresKeys(self._shared)
        self.reloads = PostgresReloads(self._shared)
        self.quotas = PostgresQuotas(self._shared)

    def close(self) -> None:
        """See `ServiceState`."""
        self.quotas.close()
        self.keys.close()
        self._shared.close()
