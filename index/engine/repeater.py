"""Background work that is repeated until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Repeater:
    """A thread that calls `work`, and again `period_s` seconds after each call has ended.

    An error does not end it: `work` itself must record that it failed, if that matters to others.
    """

    def __init__(self, name: str, period_s: float, work: Callable[[], object]):
        self._period_s = period_s
        self._work = work
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the running call, and end the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            try:
                self._work()
            except Exception:  # noqa: BLE001, S112  the database may be back in the next round
                continue
