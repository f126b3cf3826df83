"""Each request records its own timings, in the tasks that it starts, too."""

from __future__ import annotations

import asyncio

from app.observability import timings


async def request(seconds: float) -> str:
    recorded = timings.start()
    await asyncio.gather(*(stage(seconds * share) for share in (1, 0.5)))
    return timings.header(recorded, seconds)


async def stage(seconds: float) -> None:
    await asyncio.sleep(0)  # the other request goes on meanwhile
    timings.record("decode", seconds)


def test_concurrent_requests_record_the_longest_of_their_own_tasks() -> None:
    async def both() -> list[str]:
        return list(await asyncio.gather(request(1.0), request(2.0)))

    headers = asyncio.run(both())
    assert headers == [f"decode;dur={ms}.00, app;dur=0.00, total;dur={ms}.00" for ms in (1000, 2000)]
