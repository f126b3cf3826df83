"""Limits on reading a request's body: its time, its bytes, the bytes of all bodies, and the size of its JSON."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import AsyncIterator, Callable

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
from app.settings import Settings

# Seconds within which no body counts as slow: a lost packet is sent again after 0.2 s.
GRACE_S = 0.3
# The most bytes of a body that is parsed as a whole, in the event loop.
SMALL_BODY = 2**20
# Limits of such a body if it is JSON. 350,000 empty lists take 0.65 s to parse, 110,000 unknown keys 0.33 s to report.
# A subject's metadata may have 16 KiB, all of them brackets and colons.
MOST_CONTAINERS, MOST_KEYS = 20_000, 20_000
# Bytes a second. When the body budget is used up, a body that arrives more slowly than this may be aborted.
BUSY_RATE = 2**20
# Bytes that are decompressed in one step.
PIECE = 2**18
# zlib's `wbits`: the window size, plus 16 for a gzip header.
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
    def rate(self) -> float:
        """Bytes a second since the application asked for the body; infinite before that, within the grace period, and
        once the body is complete.
        """
        elapsed = 0.0 if self._started is None or self.is_complete else self._clock() - self._started - GRACE_S
        return self._received / elapsed if elapsed > 0 else math.inf

    @property
    def is_slow(self) -> bool:
        """Whether the client has sent fewer bytes than the minimum rate requires."""
        return self.rate < self._rate

    def abort(self) -> None:
        """Stop waiting for the body."""
        self._aborted = True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    async def next(self, receive: Receive) -> Message:
        """Return the next ASGI message: a part of the body, or a disconnect.

        Raises:
            BodyTooSlow: it did not arrive in time, or the body was aborted.
        """
        if self.is_complete:
            return await receive()
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


class BodyBudget:
    """Memory for all request bodies of this process, in bytes; a body occupies it until its response is sent.

    A quarter is reserved for bodies of at most SMALL_BODY bytes, so that large bodies do not keep small ones out. The
    budget is never less than two of the largest bodies, even if `limit` is.
    """

    def __init__(self, limit: int, largest: int, metrics: Metrics):
        self._limit = max(limit, 2 * largest)
        self._metrics = metrics
        self._held = 0
        self._arriving: dict[BodyArrival, None] = {}

    def begin(self, arrival: BodyArrival) -> None:
        """Register a body before its first byte is counted."""
        self._arriving[arrival] = None

    def check(self, count: int, size: int) -> None:
        """Check that `count` more bytes fit, for a body that has `size` bytes including them.

        Raises:
            Overloaded: they do not fit. The slowest arriving body was aborted to make room.
        """
        if self._held + count <= (self._limit if size <= SMALL_BODY else self._limit * 3 // 4):
            return
        self._metrics.shed.labels("body-bytes", "").inc()
        slowest = min(self._arriving, key=lambda arrival: arrival.rate, default=None)
        if slowest is not None and slowest.rate < BUSY_RATE:
            self._metrics.shed.labels("slow-body", "").inc()
            slowest.abort()
        raise Overloaded("the bodies of other requests use all the memory reserved for them", {"Retry-After": "1"})

    def take(self, count: int, size: int) -> None:
        """Count `count` more bytes of a body as held. See `check` for `size` and the error."""
        self.check(count, size)
        self._held += count

    def end(self, arrival: BodyArrival, size: int) -> None:
        """Release all bytes of a body."""
        self._held -= size
        self._arriving.pop(arrival, None)


class BodyLimit:
    """ASGI middleware. Time a body, count its bytes, decompress it, and refuse it if it exceeds a limit.

    Respond 413 if the headers declare too many bytes, else 408 or 413 as soon as the body passes a limit, even if the
    application catches the exception.
    """

    def __init__(self, app: ASGIApp, settings: Settings, budget: BodyBudget):
        self.app = app
        self._settings = settings
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts; `scope["state"]["arrival"]` is the progress of its body."""
        arrival = BodyArrival(self._settings.body_timeout_s, self._settings.body_bytes_per_s)
        arrival.is_complete = is_without_body(scope)
        scope["state"]["arrival"] = arrival
        route = scope["state"]["route"]
        in_pieces = route is not None and route.reads_own_body
        limit = self._settings.max_body_bytes if in_pieces else min(SMALL_BODY, self._settings.max_body_bytes)
        body = _LimitedBody(receive, arrival, limit, self._budget, is_parsed_whole=not in_pieces)

        async def guarded_send(message: Message) -> None:
            if body.error is None:
                await send(message)

        self._budget.begin(arrival)
        try:
            self._check_head(scope, limit, body)
            await self.app(scope, body.receive, guarded_send)
        except VestibuleError as error:  # from `_check_head`, or from `body.receive` and not caught by the application
            body.error = error
        finally:
            self._budget.end(arrival, body.size)
        if body.error is not None:
            await error_response(scope["path"], body.error)(scope, receive, send)

    def _check_head(self, scope: Scope, limit: int, body: _LimitedBody) -> None:
        """Check the declared length, and remove a content encoding from the headers: `body` decodes it.

        Raises:
            BodyTooLarge, UnsupportedMediaType. Overloaded: if the declared bytes do not fit into the budget.
        """
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit)
        self._budget.check(int(declared), int(declared))
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return
        if encoding not in _ENCODINGS:
            detail = f"the content encoding {encoding[:64]!r} is not supported; send gzip, deflate or no encoding"
            raise UnsupportedMediaType(detail, {"Accept-Encoding": "gzip, deflate"})
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-encoding"]
        body.decompress(encoding)


class _LimitedBody:
    """One request body. `size`: how many of its bytes are held; `error`: why it was refused, None if it was not.

    `is_parsed_whole`: limit the number of its brackets and colons, including those within strings.
    """

    def __init__(
        self, receive: Receive, arrival: BodyArrival, limit: int, budget: BodyBudget, *, is_parsed_whole: bool
    ):
        self.size = 0
        self.error: VestibuleError | None = None
        self._receive = receive
        self._arrival = arrival
        self._limit = limit
        self._budget = budget
        self._is_parsed_whole = is_parsed_whole
        self._containers = self._keys = 0
        self._pieces: AsyncIterator[Message] | None = None  # of a compressed body

    def decompress(self, encoding: str) -> None:
        """Let `receive` return the decompressed body."""
        self._pieces = self._decompressed(encoding)

    async def receive(self) -> Message:
        """Return the next message. Raise VestibuleError, also kept as `error`, if it is late or exceeds a limit."""
        try:
            # Once the pieces are exhausted the body is complete, and the next message is a disconnect.
            if self._pieces is not None:
                return await anext(self._pieces, None) or await self._receive()
            message = await self._arrival.next(self._receive)
            self._count(message.get("body", b""))
        except VestibuleError as error:
            self.error = error
            raise
        return message

    async def _decompressed(self, encoding: str) -> AsyncIterator[Message]:
        decompressor, received, more = zlib.decompressobj(_ENCODINGS[encoding]), 0, True
        while more:
            message = await self._arrival.next(self._receive)
            if message["type"] != "http.request":
                yield message
                continue
            more = message.get("more_body", False)
            compressed = message.get("body", b"")
            received += len(compressed)
            if received > self._limit:
                raise _too_large(self._limit)
            piece = b""
            while compressed or len(piece) == PIECE:  # a full piece: the decompressor may hold more
                try:
                    piece = decompressor.decompress(compressed, PIECE)
                except zlib.error as error:
                    raise BadRequest(f"the body is not {encoding}") from error
                if decompressor.unused_data:
                    raise BadRequest(f"the body is not one whole {encoding} stream")
                compressed = decompressor.unconsumed_tail
                self._count(piece)
                yield {"type": "http.request", "body": piece, "more_body": True}
                await asyncio.sleep(0)  # a few compressed bytes may become many pieces
        if received and not decompressor.eof:
            raise BadRequest(f"the body is not one whole {encoding} stream")
        yield {"type": "http.request", "body": b"", "more_body": False}

    def _count(self, piece: bytes) -> None:
        size = self.size + len(piece)
        if size > self._limit:
            raise _too_large(self._limit, is_compressed=self._pieces is not None)
        if self._is_parsed_whole:
            self._containers += piece.count(b"[") + piece.count(b"{")
            self._keys += piece.count(b":")
            if self._containers > MOST_CONTAINERS or self._keys > MOST_KEYS:
                raise BodyTooLarge(f"a body may contain {MOST_CONTAINERS} objects and arrays, and {MOST_KEYS} keys")
        self._budget.take(len(piece), size)
        self.size = size


def _too_large(limit: int, *, is_compressed: bool = False) -> BodyTooLarge:
    suffix = ", and this body has more once it is decompressed" * is_compressed
    return BodyTooLarge(f"a request body may have {limit} bytes{suffix}")
