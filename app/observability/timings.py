"""The stages of one request, for its `Server-Timing` header."""

from __future__ import annotations


class Timings:
    """The stages of one request, in seconds, for `Server-Timing`. Of pictures side by side the slowest counts.

    What is in none of them is `app`: the framework, and turns of the event loop that others had first.
    """

    def __init__(self) -> None:
        self._stages: dict[str, float] = {}

    def record(self, stage: str, seconds: float) -> None:
        """Note that `stage` took so long."""
        self._stages[stage] = max(seconds, self._stages.get(stage, 0.0))

    def header(self, total: float) -> str:
        """The header's value; durations in milliseconds."""
        rest = max(0.0, total - sum(self._stages.values()))
        stages = {**self._stages, "app": rest, "total": total}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())
