"""How much of a request's body is read: bytes of one request and of all, and what its JSON may hold."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.scopes import Guarded, Routes
from app.errors import BadRequest, BodyTooLarge, Overloaded, UnsupportedMediaType, VestibuleError, error_response
from app.middleware.body_timeout import Arrival
from app.observability.metrics import Metrics

# Bytes of a body that is parsed whole, in the event loop.
SMALL_BODY = 2**20
# Of such a body, if it is JSON. 350,000 empty lists take 0.65 s to parse, 110,000 unknown keys 0.33 s to report. A
# subject's metadata may have 16 KiB, all of them brackets and colons.
MOST_CONTAINERS, MOST_KEYS = 20_000, 20_000
# Bytes a second. Where bodies take all the memory they may, one that comes more slowly gives way.
BUSY_RATE = 2**20
# Bytes that are inflated in one step.
PIECE = 2**18
# zlib's window sizes, which also say which header it expects.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def reads_its_own_body(found: Guarded | None) -> bool:
    """Whether the route's endpoint reads the body itself, and so describes it to OpenAPI by itself.

    The framework reads any other's whole and parses it in the event loop.
    """
    extra = getattr(found.route, "openapi_extra", None) if found else None
    return "requestBody" in (extra or {})


class BodyBudget:
    """Bytes that all bodies of this process may hold until their requests are answered.

    A quarter is left to bodies of at most SMALL_BODY bytes, so that large bodies do not keep small ones out. Not less
    than two of the largest bodies, whatever `limit` says.
    """

    def __init__(self, limit: int, largest: int, metrics: Metrics):
        self._limit = max(limit, 2 * largest)
        self._metrics = metrics
        self._held = 0
        self._arriving: dict[Arrival, None] = {}

    def has_room(self, count: int, size: int) -> bool:
        """Whether `count` bytes more fit, of a body that has `size` bytes with them."""
        return self._held + count <= (self._limit if size <= SMALL_BODY else self._limit * 3 // 4)

    def begin(self, arrival: Arrival | None) -> None:
        """Bytes of this body will be taken."""
        if arrival is not None:
            self._arriving[arrival] = None

    def take(self, count: int, size: int) -> None:
        """Hold `count` bytes more of a body that has `size` bytes with them.

        Raises:
            Overloaded: they do not fit.
        """
        if not self.has_room(count, size):
            raise self.refusal()
        self._held += count

    def end(self, arrival: Arrival | None, size: int) -> None:
        """Give back all bytes of a body."""
        self._held -= size
        if arrival is not None:
            self._arriving.pop(arrival, None)

    def refusal(self) -> Overloaded:
        """The error for a body that does not fit. The slowest body that still arrives is given up for the next one."""
        self._metrics.shed.labels("body-bytes", "").inc()
        arriving = [arrival for arrival in self._arriving if arrival.is_slower_than(BUSY_RATE)]
        if arriving:
            self._metrics.shed.labels("slow-body", "").inc()
            min(arriving, key=lambda arrival: arrival.rate).give_way()
        return Overloaded("the bodies of other requests take all the memory they may", {"Retry-After": "1"})


class BodyLimit:
    """Pure ASGI. Counts the bytes of a body as they come, undoes its content encoding, and refuses what is too much.

    413 at the headers where they say it, else as soon as the body passes a limit, whatever the application makes of a
    body that ends there. `scope["state"]["arrival"]` is the body's, see `Patience`.
    """

    def __init__(self, app: ASGIApp, routes: Routes, limit: int, budget: BodyBudget):
        self.app = app
        self._routes = routes
        self._limit = limit
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        in_pieces = reads_its_own_body(self._routes.find(scope))
        limit = self._limit if in_pieces else min(SMALL_BODY, self._limit)
        try:
            encoding = self._judge(scope, limit)
        except VestibuleError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        reading = _Reading(receive, limit, None if in_pieces else _Structure(), self._budget)
        arrival: Arrival | None = scope.get("state", {}).get("arrival")

        async def told(message: Message) -> None:
            if reading.error is None:
                await send(message)

        self._budget.begin(arrival)
        try:
            with suppress(VestibuleError):  # only `reading` raises one, past an application that answers all its own
                await self.app(scope, reading.inflated(encoding) if encoding else reading.counted, told)
            if reading.error is not None:
                await error_response(scope["path"], reading.error)(scope, receive, send)
        finally:
            self._budget.end(arrival, reading.size)

    def _judge(self, scope: Scope, limit: int) -> str | None:
        """The content encoding that must be undone, if there is one. It is not among the headers afterwards.

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
            detail = f"the content encoding {encoding[:64]!r} is not read; send gzip, deflate or the body as it is"
            raise UnsupportedMediaType(detail, {"Accept-Encoding": "gzip, deflate"})
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-encoding"]
        return encoding


class _Structure:
    """Count the brackets and colons of JSON without parsing it; those within strings count, too."""

    def __init__(self) -> None:
        self._containers = 0
        self._keys = 0

    def count(self, piece: bytes) -> None:
        """Raise BodyTooLarge where there are more than may be."""
        self._containers += piece.count(b"[") + piece.count(b"{")
        self._keys += piece.count(b":")
        if self._containers > MOST_CONTAINERS or self._keys > MOST_KEYS:
            raise BodyTooLarge(f"a body may hold {MOST_CONTAINERS} objects and arrays, and {MOST_KEYS} keys")


class _Reading:
    """One body. `size`: the bytes of it that are held; `error`: why no more of it is read."""

    def __init__(self, receive: Receive, limit: int, structure: _Structure | None, budget: BodyBudget):
        self.size = 0
        self.error: VestibuleError | None = None
        self._receive = receive
        self._limit = limit
        self._structure = structure
        self._budget = budget
        self._is_packed = False

    async def counted(self) -> Message:
        """The next message, where it is within all limits."""
        message = await self._receive()
        self._count(message.get("body", b""))
        return message

    def inflated(self, encoding: str) -> Receive:
        """A `receive` for a body that is sent in this encoding."""
        self._is_packed = True
        pieces = self._inflate(encoding)

        async def receive() -> Message:
            # A generator that is exhausted has answered the whole body; what comes then is a disconnect.
            return await anext(pieces, None) or await self._receive()

        return receive

    async def _inflate(self, encoding: str) -> AsyncIterator[Message]:
        inflater, sent, more = zlib.decompressobj(_ENCODINGS[encoding]), 0, True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                yield message
                continue
            more = message.get("more_body", False)
            packed = message.get("body", b"")
            sent += len(packed)
            if sent > self._limit:
                raise self._refuse(_too_large(self._limit))
            piece = b""
            while packed or len(piece) == PIECE:  # as much as was asked for: there may be more
                piece, packed = self._inflate_piece(inflater, packed, encoding)
                yield {"type": "http.request", "body": piece, "more_body": True}
                await asyncio.sleep(0)  # a few bytes may become very many
        if sent and not inflater.eof:
            raise self._refuse(BadRequest(f"the body is not one whole {encoding} stream"))
        yield {"type": "http.request", "body": b"", "more_body": False}

    def _inflate_piece(self, inflater: zlib._Decompress, packed: bytes, encoding: str) -> tuple[bytes, bytes]:
        try:
            piece = inflater.decompress(packed, PIECE)
        except zlib.error as error:
            raise self._refuse(BadRequest(f"the body is not {encoding}")) from error
        if inflater.unused_data:
            raise self._refuse(BadRequest(f"the body is not one whole {encoding} stream"))
        self._count(piece)
        return piece, inflater.unconsumed_tail

    def _count(self, piece: bytes) -> None:
        size = self.size + len(piece)
        try:
            if size > self._limit:
                raise _too_large(self._limit, is_packed=self._is_packed)
            if self._structure is not None:
                self._structure.count(piece)
            self._budget.take(len(piece), size)
        except VestibuleError as error:
            raise self._refuse(error) from error
        self.size = size

    def _refuse(self, error: VestibuleError) -> VestibuleError:
        self.error = error
        return error


def _too_large(limit: int, *, is_packed: bool = False) -> BodyTooLarge:
    return BodyTooLarge(f"a request may have {limit} bytes{', and this one has more when it is unpacked' * is_packed}")
