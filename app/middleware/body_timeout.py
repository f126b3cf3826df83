"""Bodies that come slowly: how long a client may take, and who goes first when there is no place for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooSlow, error_response
from app.middleware.disconnect import is_without_body

# So long nobody is slow: a packet may have been lost, and is sent again after a fifth of a second.
GRACE_S = 0.3


class Arrival:
    """A body on its way. `allowed_s`: how long it may take, and a second more for each `rate` bytes that came."""

    def __init__(self, allowed_s: float, rate: int, clock: Callable[[], float] = time.monotonic):
        self._allowed_s = allowed_s
        self._rate = rate
        self._clock = clock
        self._started: float | None = None
        self._received = 0
        self._expected: asyncio.Timeout | None = None
        self._over = False
        self.is_whole = False

    @property
    def is_slow(self) -> bool:
        """Whether the client has sent fewer bytes than the minimum rate requires."""
        return self.is_slower_than(self._rate)

    @property
    def rate(self) -> float:
        """Bytes a second since the application asked for the body, without the grace period."""
        if self._started is None:
            return 0.0
        return self._received / max(self._clock() - self._started - GRACE_S, 1e-9)

    def is_slower_than(self, rate: float) -> bool:
        """Whether the body is still arriving, at fewer bytes a second than these."""
        if self._started is None or self.is_whole:
            return False
        return self._received < (self._clock() - self._started - GRACE_S) * rate

    def give_way(self) -> None:
        """Let the body be waited for no longer."""
        self._over = True
        if self._expected is not None and not self._expected.expired():
            self._expected.reschedule(0.0)

    async def next(self, receive: Receive) -> Message:
        """The next part of the body.

        Raises:
            BodyTooSlow: it did not come in time.
        """
        now = self._clock()
        self._started = now if self._started is None else self._started
        left = self._started + self._allowed_s + self._received / self._rate - now
        try:
            async with asyncio.timeout(left) as self._expected:
                message = await receive()
        except TimeoutError as error:
            told = "others needed its place" if self._over else f"at least {self._rate} bytes a second are expected"
            raise BodyTooSlow(told, {"Connection": "close"}) from error
        finally:
            self._expected = None
        self._received += len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        return message


class Patience:
    """Pure ASGI. Answers 408 to who sends a body too slowly, whatever the application makes of a body that ends."""

    def __init__(self, app: ASGIApp, allowed_s: float, rate: int):
        self.app = app
        self._allowed_s = allowed_s
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; `scope["state"]["arrival"]` is its body's."""
        if scope["type"] != "http" or is_without_body(scope):
            await self.app(scope, receive, send)
            return
        arrival = scope.setdefault("state", {})["arrival"] = Arrival(self._allowed_s, self._rate)
        late: BodyTooSlow | None = None

        async def waited() -> Message:
            nonlocal late
            if arrival.is_whole:
                return await receive()
            try:
                return await arrival.next(receive)
            except BodyTooSlow as error:
                late = error
                raise

        async def told(message: Message) -> None:
            if late is None:
                await send(message)

        await self.app(scope, waited, told)
        if late is not None:
            await error_response(scope["path"], late)(scope, receive, send)
