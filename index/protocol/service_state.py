"""What the processes and replicas of the service share besides the gallery: keys, audit log, reloads, quotas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from index.audit_chain import AuditEntry, LogFault, LogHead
from index.types import ApiKey


class AuditLog(Protocol):
    """A log of changes, whose lines form a hash chain (index/audit_chain.py)."""

    def head(self) -> LogHead:
        """Return number and hash of the last line, after all events that were recorded so far."""
        ...

    def read(self, cursor: int = 0, limit: int = 100) -> tuple[list[AuditEntry], int]:
        """Return at most `limit` entries from `cursor` on (0: the first), and the cursor of the next page.

        Raises:
            InvalidError: no entry begins at the cursor. CorruptError: a line is malformed; see `verify`. TooNewError.
        """
        ...

    def verify(self, heads: Iterable[LogHead] = ()) -> LogFault | None:
        """Check the whole log, also against `heads` that were stored elsewhere; return the first fault or None.

        Raises:
            TooNewError.
        """
        ...


class KeyStore(Protocol):
    """API keys, by the hashes of their secrets, and the audit log of changes to keys and models.

    Opened at the first use, and again after `close`. Revoked and expired keys stay in it, so that a service that had
    keys once never becomes open again. All methods raise UnavailableError if the keys cannot be read at present.
    """

    def clock(self) -> float:
        """Return the time by which keys expire, in seconds since 1970."""
        ...

    def version(self) -> int:
        """Return a number that differs after each change by any process. Called for each request."""
        ...

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """Return every key ever created by its hash, oldest first, as of `version` or later."""
        ...

    def insert(self, key: ApiKey, hash: bytes) -> None:
        """Store a new key; this object's next `version` is another."""
        ...

    def revoke(self, key: str) -> None:
        """Revoke the key with this id; this object's next `version` is another.

        Raises:
            NotFoundError. ConflictError: it is revoked already.
        """
        ...

    def record_reload(self, version: str | None, actor: str | None) -> None:
        """Record in the audit log that `version` of a model is now served; None: that the model was removed."""
        ...

    @property
    def audit(self) -> AuditLog:
        """The audit log that has the changes of keys and models; it may have others, too."""
        ...

    def close(self) -> None:
        """Close all files and connections."""
        ...


class Reloads(Protocol):
    """A token for each model that was reloaded, which all processes of the service see."""

    def tokens(self) -> Mapping[str, str]:
        """Return the tokens by model.

        Raises:
            OSError, UnavailableError: they cannot be read at present.
        """
        ...

    def announce(self, model: str, token: str) -> None:
        """Replace the model's token.

        Raises:
            OSError, UnavailableError: it cannot be written at present.
        """
        ...


class Quota(Protocol):
    """Requests of one API key, which all replicas of the service count together."""

    def take(self) -> float:
        """Count a request and return 0, or return the seconds until the next may be allowed. Waits for nothing."""
        ...


class Quotas(Protocol):
    """Quotas of API keys. Use it from one thread."""

    def quota(self, key: str, per_minute: int) -> Quota:
        """Return the quota of the key with this id."""
        ...

    def close(self) -> None:
        """Stop the background work. Quotas that are used later count for this process only."""
        ...


class ServiceState(Protocol):
    """What the processes and replicas of the service share besides the gallery."""

    @property
    def keys(self) -> KeyStore:
        """The API keys."""
        ...

    @property
    def reloads(self) -> Reloads:
        """The reloads of models."""
        ...

    @property
    def quotas(self) -> Quotas | None:
        """The quotas of API keys; None if each process counts for itself."""
        ...

    def close(self) -> None:
        """Close all files and connections."""
        ...
