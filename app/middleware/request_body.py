"""Limits on reading a request's body: its time, its bytes, the bytes of all bodies, and the size of its JSON."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    Overloaded,
    UnsupportedMediaType,
    VestibuleError,
    error_response,
)
from app.middleware.disconnect import is_without_body
from app.observability.metrics import Metrics

# No body is slow before this: a lost packet is sent again after 0.2 s.
GRACE_S = 0.3
# Bytes of a body that is parsed whole, in the event loop.
SMALL_BODY = 2**20
# Limits of such a body if it is JSON. 350,000 empty lists take 0.65 s to parse, 110,000 unknown keys 0.33 s to report.
# A subject's metadata may have 16 KiB, all of them brackets and colons.
MOST_CONTAINERS, MOST_KEYS = 20_000, 20_000
# Bytes a second. When the body budget is used up, a body that arrives more slowly than this may be aborted.
BUSY_RATE = 2**20
# Bytes that are decompressed in one step.
PIECE = 2**18
# zlib's window sizes, which also say which header it expects.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class BodyArrival:
    """The progress of one body. It may take `allowed_s` seconds, and one second more for each `rate` bytes received."""

    def __init__(self, allowed_s: float, rate: int, clock: Callable[[], float] = time.monotonic):
        self._allowed_s = allowed_s
        self._rate = rate
        self._clock = clock
        self._started: float | None = None
        self._received = 0
        self._timeout: asyncio.Timeout | None = None
        self._aborted = False
        self.is_complete = False

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
        """Whether the body is still arriving, at fewer than `rate` bytes a second."""
        if self._started is None or self.is_complete:
            return False
        return self._received < (self._clock() - self._started - GRACE_S) * rate

    def abort(self) -> None:
        """Stop waiting for the body."""
        self._aborted = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    async def next(self, receive: Receive) -> Message:
        """Return the next part of the body.

        Raises:
            BodyTooSlow: it did not arrive in time, or the body was aborted.
        """
        now = self._clock()
        self._started = now if self._started is None else self._started
        remaining_s = self._started + self._allowed_s + self._received / self._rate - now
        try:
            async with asyncio.timeout(remaining_s) as self._timeout:
                message = await receive()
        except TimeoutError as error:
            minimum = f"at least {self._rate} bytes a second are expected"
            detail = "aborted in favour of other requests" if self._aborted else minimum
            raise BodyTooSlow(detail, {"Connection": "close"}) from error
        finally:
            self._timeout = None
        self._received += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        return message


class BodyTimeout:
    """ASGI middleware. Respond 408 if the body arrives too slowly, however the application handles the exception."""

    def __init__(self, app: ASGIApp, allowed_s: float, rate: int):
        self.app = app
        self._allowed_s = allowed_s
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; `scope["state"]["arrival"]` is the progress of its body."""
        if scope["type"] != "http" or is_without_body(scope):
            await self.app(scope, receive, send)
            return
        arrival = scope["state"]["arrival"] = BodyArrival(self._allowed_s, self._rate)
        timeout: BodyTooSlow | None = None

        async def timed_receive() -> Message:
            nonlocal timeout
            if arrival.is_complete:
                return await receive()
            try:
                return await arrival.next(receive)
            except BodyTooSlow as error:
                timeout = error
                raise

        async def guarded_send(message: Message) -> None:
            if timeout is None:
                await send(message)

        await self.app(scope, timed_receive, guarded_send)
        if timeout is not None:
            await error_response(scope["path"], timeout)(scope, receive, send)


class BodyBudget:
    """Bytes that all bodies of this process may hold until their requests are answered.

    A quarter is reserved for bodies of at most SMALL_BODY bytes, so that large bodies do not keep small ones out. The
    budget is at least two of the largest bodies, whatever `limit` is.
    """

    def __init__(self, limit: int, largest: int, metrics: Metrics):
        self._limit = max(limit, 2 * largest)
        self._metrics = metrics
        self._held = 0
        self._arriving: dict[BodyArrival, None] = {}

    def has_room(self, count: int, size: int) -> bool:
        """Whether `count` more bytes fit, for a body that has `size` bytes including them."""
        return self._held + count <= (self._limit if size <= SMALL_BODY else self._limit * 3 // 4)

    def begin(self, arrival: BodyArrival | None) -> None:
        """Register a body before its first byte is taken."""
        if arrival is not None:
            self._arriving[arrival] = None

    def take(self, count: int, size: int) -> None:
        """Hold `count` more bytes of a body that has `size` bytes including them.

        Raises:
            Overloaded: they do not fit.
        """
        if not self.has_room(count, size):
            raise self.refusal()
        self._held += count

    def end(self, arrival: BodyArrival | None, size: int) -> None:
        """Release all bytes of a body."""
        self._held -= size
        if arrival is not None:
            self._arriving.pop(arrival, None)

    def refusal(self) -> Overloaded:
        """Return the error for a body that does not fit, and abort the slowest arriving body to make room."""
        self._metrics.shed.labels("body-bytes", "").inc()
        slow = [arrival for arrival in self._arriving if arrival.is_slower_than(BUSY_RATE)]
        if slow:
            self._metrics.shed.labels("slow-body", "").inc()
            min(slow, key=lambda arrival: arrival.rate).abort()
        return Overloaded("the bodies of other requests use all the memory reserved for them", {"Retry-After": "1"})


class BodyLimit:
    """ASGI middleware. Count the bytes of a body, decompress it, and refuse what exceeds a limit.

    Respond 413 from the headers if they declare too much, else as soon as the body passes a limit, however the
    application handles the exception.
    """

    def __init__(self, app: ASGIApp, limit: int, budget: BodyBudget):
        self.app = app
        self._limit = limit
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = scope["state"]["route"]
        in_pieces = route is not None and route.reads_own_body
        limit = self._limit if in_pieces else min(SMALL_BODY, self._limit)
        try:
            encoding = self._content_encoding(scope, limit)
        except VestibuleError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        body = _LimitedBody(receive, limit, None if in_pieces else _JsonSize(), self._budget)
        arrival: BodyArrival | None = scope["state"].get("arrival")

        async def guarded_send(message: Message) -> None:
            if body.error is None:
                await send(message)

        self._budget.begin(arrival)
        try:
            with suppress(VestibuleError):  # only `body` raises one that the application does not answer itself
                await self.app(scope, body.decompressed(encoding) if encoding else body.receive, guarded_send)
            if body.error is not None:
                await error_response(scope["path"], body.error)(scope, receive, send)
        finally:
            self._budget.end(arrival, body.size)

    def _content_encoding(self, scope: Scope, limit: int) -> str | None:
        """Check the declared length, and remove and return the content encoding; None if there is none.

        Raises:
            BodyTooLarge, Overloaded, UnsupportedMediaType.
        """
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit)
        if not self._budget.has_room(int(declared), int(declared)):
            raise self._budget.refusal()
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return None
        if encoding not in _ENCODINGS:
            detail = f"the content encoding {encoding[:64]!r} is not supported; send gzip, deflate or no encoding"
            raise UnsupportedMediaType(detail, {"Accept-Encoding": "gzip, deflate"})
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-encoding"]
        return encoding


class _JsonSize:
    """Counts the brackets and colons of JSON without parsing it, including those within strings."""

    def __init__(self) -> None:
        self._containers = 0
        self._keys = 0

    def add(self, piece: bytes) -> None:
        """Count those of `piece`. Raise BodyTooLarge if there are too many."""
        self._containers += piece.count(b"[") + piece.count(b"{")
        self._keys += piece.count(b":")
        if self._containers > MOST_CONTAINERS or self._keys > MOST_KEYS:
            raise BodyTooLarge(f"a body may hold {MOST_CONTAINERS} objects and arrays, and {MOST_KEYS} keys")


class _LimitedBody:
    """One body. `size`: the bytes of it that are held; `error`: why it was refused, None if it was not."""

    def __init__(self, receive: Receive, limit: int, json_size: _JsonSize | None, budget: BodyBudget):
        self.size = 0
        self.error: VestibuleError | None = None
        self._receive = receive
        self._limit = limit
        self._json_size = json_size
        self._budget = budget
        self._is_compressed = False

    async def receive(self) -> Message:
        """Return the next message. Raise VestibuleError if it exceeds a limit."""
        message = await self._receive()
        self._count(message.get("body", b""))
        return message

    def decompressed(self, encoding: str) -> Receive:
        """Return a `receive` that decompresses the body."""
        self._is_compressed = True
        pieces = self._decompress(encoding)

        async def receive() -> Message:
            # Once the generator is exhausted the body is complete, and the next message is a disconnect.
            return await anext(pieces, None) or await self._receive()

        return receive

    async def _decompress(self, encoding: str) -> AsyncIterator[Message]:
        decompressor, received, more = zlib.decompressobj(_ENCODINGS[encoding]), 0, True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                yield message
                continue
            more = message.get("more_body", False)
            compressed = message.get("body", b"")
            received += len(compressed)
            if received > self._limit:
                raise self._refuse(_too_large(self._limit))
            piece = b""
            while compressed or len(piece) == PIECE:  # a full piece: the decompressor may hold more
                piece, compressed = self._decompress_piece(decompressor, compressed, encoding)
                yield {"type": "http.request", "body": piece, "more_body": True}
                await asyncio.sleep(0)  # a few compressed bytes may become many pieces
        if received and not decompressor.eof:
            raise self._refuse(BadRequest(f"the body is not one whole {encoding} stream"))
        yield {"type": "http.request", "body": b"", "more_body": False}

    def _decompress_piece(
        self, decompressor: zlib._Decompress, compressed: bytes, encoding: str
    ) -> tuple[bytes, bytes]:
        try:
            piece = decompressor.decompress(compressed, PIECE)
        except zlib.error as error:
            raise self._refuse(BadRequest(f"the body is not {encoding}")) from error
        if decompressor.unused_data:
            raise self._refuse(BadRequest(f"the body is not one whole {encoding} stream"))
        self._count(piece)
        return piece, decompressor.unconsumed_tail

    def _count(self, piece: bytes) -> None:
        size = self.size + len(piece)
        try:
            if size > self._limit:
                raise _too_large(self._limit, is_compressed=self._is_compressed)
            if self._json_size is not None:
                self._json_size.add(piece)
            self._budget.take(len(piece), size)
        except VestibuleError as error:
            raise self._refuse(error) from error
        self.size = size

    def _refuse(self, error: VestibuleError) -> VestibuleError:
        self.error = error
        return error


def _too_large(limit: int, *, is_compressed: bool = False) -> BodyTooLarge:
    suffix = ", and this body has more once it is decompressed" * is_compressed
    return BodyTooLarge(f"a request body may have {limit} bytes{suffix}")
