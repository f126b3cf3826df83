"""The stream of alerts as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import ValidationError

from vestibule_client.alert_answers import AlertEvent
from vestibule_client.call import translated
from vestibule_client.errors import NotReady, Overloaded, TimedOut, UnexpectedAnswer, Unreachable, read_problem
from vestibule_client.retries import retry_after

PATH = "/alerts/stream"
RECONNECT_S = 2.0
# The service sends something at least every 15 s.
SILENCE_S = 60.0
# After these the stream is opened again.
_PASSING = (Unreachable, TimedOut, NotReady, Overloaded)


@dataclass
class EventReader:
    """Reads the events of a stream line by line, over several connections. `last_id`: of the last event."""

    last_id: str | None = None
    _data: list[str] = field(default_factory=list)

    def request(self, collection: str | None) -> dict[str, Any]:
        """Return the arguments of a request that continues behind the last event."""
        self._data = []  # of an event that was cut off
        return {
            "method": "GET",
            "url": PATH,
            "params": {} if collection is None else {"collection": collection},
            "headers": {"accept": "text/event-stream"} | ({"last-event-id": self.last_id} if self.last_id else {}),
            "timeout": SILENCE_S,
        }

    def read(self, line: str) -> AlertEvent | None:
        """Return the event that ends with this line, None if none does.

        Raises:
            UnexpectedAnswer: the event cannot be read.
        """
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self.last_id = value
        elif name == "data":
            self._data.append(value)
        if line or not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        try:
            return AlertEvent.model_validate_json(data)
        except ValidationError as error:
            raise UnexpectedAnswer(f"{PATH}: unexpected event: {error}") from error


def read_stream(http: httpx.Client, collection: str | None, last_id: str | None) -> Generator[AlertEvent, None, None]:
    """Yield the events of the stream, over one connection after the other; see `Client.alert_events`."""
    reader = EventReader(last_id)
    while True:
        try:
            with translated(http.base_url), http.stream(**reader.request(collection)) as response:
                if not response.is_success:
                    raise _refusal(response, response.read())
                for line in response.iter_lines():
                    if (event := reader.read(line)) is not None:
                        yield event
        except _PASSING:
            if reader.last_id is None:  # it was never connected
                raise
        time.sleep(RECONNECT_S)


async def read_stream_async(
    http: httpx.AsyncClient, collection: str | None, last_id: str | None
) -> AsyncGenerator[AlertEvent, None]:
    """Yield the events of the stream; see `read_stream`."""
    reader = EventReader(last_id)
    while True:
        try:
            with translated(http.base_url):
                async with http.stream(**reader.request(collection)) as response:
                    if not response.is_success:
                        raise _refusal(response, await response.aread())
                    async for line in response.aiter_lines():
                        if (event := reader.read(line)) is not None:
                            yield event
        except _PASSING:
            if reader.last_id is None:  # it was never connected
                raise
        await asyncio.sleep(RECONNECT_S)


def _refusal(response: httpx.Response, content: bytes) -> Exception:
    request_id = response.headers.get("x-request-id")
    return read_problem(response.status_code, content).error(request_id, retry_after(response))
