"""Rounds of maintenance: steps that fail one by one, under a lease that is renewed during long ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from index.engine.repeater import Repeater
from index.errors import ConflictError, LockedError, MaintenanceError

LEASE, LEASE_S = "maintenance", 60.0


class MaintenanceRounds(ABC):
    """Base class of the engines' `Maintenance`."""

    _failures: dict[str, Exception]

    @abstractmethod
    def _flush_audit(self) -> None:
        """Write the audit log. Each process writes its own searches."""

    @abstractmethod
    def _renew_lease(self) -> bool:
        """Take or renew the lease and return True; False while another process holds it."""

    @abstractmethod
    def _work(self) -> None:
        """Do what only the process with the lease does."""

    @contextmanager
    def _round(self) -> Iterator[bool]:
        """Run one round, yield whether this process has the lease, and raise MaintenanceError if steps failed."""
        self._failures = {}
        with self._step("audit log"):
            self._flush_audit()
        has_lease = self._renew_lease()
        if has_lease:
            with self._heartbeat():
                self._work()
        yield has_lease
        if self._failures:
            raise MaintenanceError(self._failures)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Store the first exception of each step, and continue."""
        try:
            yield
        except (ConflictError, LockedError):
            pass  # dropped, re-embedded, locked, or another process has the lease: a later round repeats the step
        except Exception as error:  # noqa: BLE001  of a damaged row or a full disk; `_round` raises it
            self._failures.setdefault(name, error)

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Renew the lease from a thread, so that it does not expire during a long step."""

        def beat() -> None:
            with self._step("lease"):
                self._renew_lease()

        repeater = Repeater("lease", LEASE_S / 4, beat)
        try:
            yield
        finally:
            repeater.close()
