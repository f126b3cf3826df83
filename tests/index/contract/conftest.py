"""A gallery of each storage engine in turn, for the tests that hold for both."""

from __future__ import annotations

from tests.index.contract.engines import engine

__all__ = ["engine"]
