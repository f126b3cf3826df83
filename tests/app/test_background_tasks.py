"""Background tasks go on after a temporary failure."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.background_tasks import lease_renewal
from tests.app.async_test import until

if TYPE_CHECKING:
    pass


def test_a_lease_is_renewed_after_a_failed_attempt() -> None:
    attempts: list[int] = []

    async def renew() -> bool:
        attempts.append(0)
        if len(attempts) == 1:
            raise OSError("the disk is full")
        return True

    async def scenario() -> None:
        async with lease_renewal(renew, 0.001):
            await until(lambda: len(attempts) > 2)

    asyncio.run(scenario())
