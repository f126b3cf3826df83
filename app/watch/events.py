"""Report the watcher's events: one line for each, as JSON or for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

# Fields that the line for people shows first, in this order; the others follow with their names.
LEADING = ("status", "subject", "name")


class Events:
    """Reports events of a camera by `write`, one line each; safe for use by several threads."""

    def __init__(self, camera: str, write: Callable[[str], None], *, as_json: bool) -> None:
        self._camera = camera
        self._as_json = as_json
        self._write = write

    def report(self, event: str, **fields: Any) -> None:
        """Report an event; fields that are None are left out."""
        now = datetime.now(UTC)
        present = {key: value for key, value in fields.items() if value is not None}
        if self._as_json:
            time = now.isoformat(timespec="milliseconds")
            self._write(json.dumps({"time": time, "event": event, "camera": self._camera, **present}))
        else:
            self._write(f"{now.astimezone():%H:%M:%S} {self._camera}: {_describe(event, present)}")


def _describe(event: str, fields: Mapping[str, Any]) -> str:
    """Return an event as text."""
    leading = [str(fields[key]) for key in LEADING if key in fields]
    others = [f"{key} {_value(value)}" for key, value in fields.items() if key not in LEADING]
    return ", ".join([" ".join([event.replace("_", " "), *leading]), *others])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
