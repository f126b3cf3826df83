"""The clients: every call of the modules `*calls` as a blocking method or a coroutine."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from pydantic import BaseModel

from vestibule_client import alert_calls, calls, gallery_calls, sighting_calls
from vestibule_client.alert_answers import AlertEvent
from vestibule_client.alert_stream import read_stream, read_stream_async
from vestibule_client.call import Call, translated
from vestibule_client.files import File
from vestibule_client.retries import WHEN_BUSY, Retries

DEFAULT_URL = "http://127.0.0.1:8000"
# Below the server's idle timeout of five seconds, so that it does not close a connection during a request.
_LIMITS = httpx.Limits(keepalive_expiry=3)

P = ParamSpec("P")
T = TypeVar("T", bound=BaseModel | File)
Sent = TypeVar("Sent")


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return _named(method, build)


def _awaitable(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(*args, **kwargs))

    return _named(method, build)


def _named(method: Callable[P, Sent], build: Callable[..., Any]) -> Callable[P, Sent]:
    """`method` with the name, docstring and parameters of `build`, after `self`."""
    signature = inspect.signature(build)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    named = wraps(build)(method)
    named.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[self_parameter, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return named


class Client:
    """A client of the service at `url`, by default VESTIBULE_URL or 127.0.0.1:8000; `api_key` by VESTIBULE_API_KEY.

    `timeout` in seconds applies separately to connecting, sending and receiving. A busy service is asked again as
    `retries` defines; `vestibule_client.retries.NEVER` turns that off. Every call may raise a `VestibuleError`. Use the
    client in a `with` statement, or `close` it. Proxies are those of HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; a
    service on loopback is contacted directly.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = WHEN_BUSY,
        transport: httpx.BaseTransport | None = None,
    ):
        with _configured():
            self._http = httpx.Client(**_options(url, api_key, timeout), transport=transport)
        self._retries = retries

    def send(self, call: Call[T]) -> T:
        """Send a call, again while the service is busy, and return the response.

        Raises:
            VestibuleError.
        """
        request = self._http.build_request(**call.request())
        attempt = 0
        while True:
            with translated(self._http.base_url):
                response = self._http.send(request)
            wait = self._retries.wait(response, attempt)
            if wait is None:
                return call.read(response)
            time.sleep(wait)
            attempt += 1

    def alert_events(
        self, collection: str | None = None, *, last_id: str | None = None
    ) -> Generator[AlertEvent, None, None]:
        """Yield alerts as they happen, of one collection or of all, until the iterator is closed.

        A connection that ends is opened again, and continues behind the last event. `last_id`: the id of the last event
        that the caller has.

        Raises:
            VestibuleError: the service refuses the stream, or cannot be reached at first.
        """
        return read_stream(self._http, collection, last_id)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client, which is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    classify = _blocking(calls.classify)
    classify_sequence = _blocking(calls.classify_sequence)
    detect = _blocking(calls.detect)
    embed = _blocking(calls.embed)
    verify = _blocking(calls.verify)
    verify_embeddings = _blocking(calls.verify_embeddings)
    generate = _blocking(calls.generate)
    generate_each = _blocking(calls.generate_each)
    decode = _blocking(calls.decode)
    decode_each = _blocking(calls.decode_each)
    interpolate = _blocking(calls.interpolate)
    denoise = _blocking(calls.denoise)
    reconstruct = _blocking(calls.reconstruct)
    encode = _blocking(calls.encode)
    models = _blocking(calls.models)
    model = _blocking(calls.model)
    reload = _blocking(calls.reload)
    live = _blocking(calls.live)
    ready = _blocking(calls.ready)
    search = _blocking(gallery_calls.search)
    search_embeddings = _blocking(gallery_calls.search_embeddings)
    search_faces = _blocking(gallery_calls.search_faces)
    search_passage = _blocking(gallery_calls.search_passage)
    collections = _blocking(gallery_calls.collections)
    collection = _blocking(gallery_calls.collection)
    create_collection = _blocking(gallery_calls.create_collection)
    erase_collection = _blocking(gallery_calls.erase_collection)
    subjects = _blocking(gallery_calls.subjects)
    subject = _blocking(gallery_calls.subject)
    put_subject = _blocking(gallery_calls.put_subject)
    erase_subject = _blocking(gallery_calls.erase_subject)
    enrol = _blocking(gallery_calls.enrol)
    faces = _blocking(gallery_calls.faces)
    face_crop = _blocking(gallery_calls.face_crop)
    move_faces = _blocking(gallery_calls.move_faces)
    merge_subjects = _blocking(gallery_calls.merge_subjects)
    merges = _blocking(gallery_calls.merges)
    undo_merge = _blocking(gallery_calls.undo_merge)
    duplicates = _blocking(gallery_calls.duplicates)
    cluster_embeddings = _blocking(gallery_calls.cluster_embeddings)
    erase_face = _blocking(gallery_calls.erase_face)
    erasure = _blocking(gallery_calls.erasure)
    verify_subject = _blocking(gallery_calls.verify_subject)
    verify_passage = _blocking(gallery_calls.verify_passage)
    deny = _blocking(gallery_calls.deny)
    denials = _blocking(gallery_calls.denials)
    take_back = _blocking(gallery_calls.take_back)
    enrol_zip = _blocking(gallery_calls.enrol_zip)
    enrol_lines = _blocking(gallery_calls.enrol_lines)
    jobs = _blocking(gallery_calls.jobs)
    job = _blocking(gallery_calls.job)
    job_items = _blocking(gallery_calls.job_items)
    cancel_job = _blocking(gallery_calls.cancel_job)
    reembed = _blocking(gallery_calls.reembed)
    reembedding = _blocking(gallery_calls.reembedding)
    cancel_reembedding = _blocking(gallery_calls.cancel_reembedding)
    add_sighting = _blocking(sighting_calls.add_sighting)
    sightings = _blocking(sighting_calls.sightings)
    sighting = _blocking(sighting_calls.sighting)
    sighting_crop = _blocking(sighting_calls.sighting_crop)
    erase_sighting = _blocking(sighting_calls.erase_sighting)
    sighting_settings = _blocking(sighting_calls.sighting_settings)
    put_sighting_settings = _blocking(sighting_calls.put_sighting_settings)
    calibrate = _blocking(gallery_calls.calibrate)
    calibrations = _blocking(gallery_calls.calibrations)
    calibration = _blocking(gallery_calls.calibration)
    calibration_in_use = _blocking(gallery_calls.calibration_in_use)
    use_calibration = _blocking(gallery_calls.use_calibration)
    create_alert_rule = _blocking(alert_calls.create_alert_rule)
    replace_alert_rule = _blocking(alert_calls.replace_alert_rule)
    alert_rules = _blocking(alert_calls.alert_rules)
    alert_rule = _blocking(alert_calls.alert_rule)
    delete_alert_rule = _blocking(alert_calls.delete_alert_rule)
    alerts = _blocking(alert_calls.alerts)
    alert = _blocking(alert_calls.alert)
    resend_alert = _blocking(alert_calls.resend_alert)


class AsyncClient:
    """A `Client` whose methods are coroutines, for concurrent calls; use it in an `async with`, or await `aclose`.

    Reading files blocks the event loop; pass their bytes to avoid that.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: Retries = WHEN_BUSY,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        with _configured():
            self._http = httpx.AsyncClient(**_options(url, api_key, timeout), transport=transport)
        self._retries = retries

    async def send(self, call: Call[T]) -> T:
        """Send a call, again while the service is busy, and return the response.

        Raises:
            VestibuleError.
        """
        request = self._http.build_request(**call.request())
        attempt = 0
        while True:
            with translated(self._http.base_url):
                response = await self._http.send(request)
            wait = self._retries.wait(response, attempt)
            if wait is None:
                return call.read(response)
            await asyncio.sleep(wait)
            attempt += 1

    def alert_events(
        self, collection: str | None = None, *, last_id: str | None = None
    ) -> AsyncGenerator[AlertEvent, None]:
        """Yield alerts as they happen; see `Client.alert_events`."""
        return read_stream_async(self._http, collection, last_id)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client, which is closed at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.aclose()

    classify = _awaitable(calls.classify)
    classify_sequence = _awaitable(calls.classify_sequence)
    detect = _awaitable(calls.detect)
    embed = _awaitable(calls.embed)
    verify = _awaitable(calls.verify)
    verify_embeddings = _awaitable(calls.verify_embeddings)
    generate = _awaitable(calls.generate)
    generate_each = _awaitable(calls.generate_each)
    decode = _awaitable(calls.decode)
    decode_each = _awaitable(calls.decode_each)
    interpolate = _awaitable(calls.interpolate)
    denoise = _awaitable(calls.denoise)
    reconstruct = _awaitable(calls.reconstruct)
    encode = _awaitable(calls.encode)
    models = _awaitable(calls.models)
    model = _awaitable(calls.model)
    reload = _awaitable(calls.reload)
    live = _awaitable(calls.live)
    ready = _awaitable(calls.ready)
    search = _awaitable(gallery_calls.search)
    search_embeddings = _awaitable(gallery_calls.search_embeddings)
    search_faces = _awaitable(gallery_calls.search_faces)
    search_passage = _awaitable(gallery_calls.search_passage)
    collections = _awaitable(gallery_calls.collections)
    collection = _awaitable(gallery_calls.collection)
    create_collection = _awaitable(gallery_calls.create_collection)
    erase_collection = _awaitable(gallery_calls.erase_collection)
    subjects = _awaitable(gallery_calls.subjects)
    subject = _awaitable(gallery_calls.subject)
    put_subject = _awaitable(gallery_calls.put_subject)
    erase_subject = _awaitable(gallery_calls.erase_subject)
    enrol = _awaitable(gallery_calls.enrol)
    faces = _awaitable(gallery_calls.faces)
    face_crop = _awaitable(gallery_calls.face_crop)
    move_faces = _awaitable(gallery_calls.move_faces)
    merge_subjects = _awaitable(gallery_calls.merge_subjects)
    merges = _awaitable(gallery_calls.merges)
    undo_merge = _awaitable(gallery_calls.undo_merge)
    duplicates = _awaitable(gallery_calls.duplicates)
    cluster_embeddings = _awaitable(gallery_calls.cluster_embeddings)
    erase_face = _awaitable(gallery_calls.erase_face)
    erasure = _awaitable(gallery_calls.erasure)
    verify_subject = _awaitable(gallery_calls.verify_subject)
    verify_passage = _awaitable(gallery_calls.verify_passage)
    deny = _awaitable(gallery_calls.deny)
    denials = _awaitable(gallery_calls.denials)
    take_back = _awaitable(gallery_calls.take_back)
    enrol_zip = _awaitable(gallery_calls.enrol_zip)
    enrol_lines = _awaitable(gallery_calls.enrol_lines)
    jobs = _awaitable(gallery_calls.jobs)
    job = _awaitable(gallery_calls.job)
    job_items = _awaitable(gallery_calls.job_items)
    cancel_job = _awaitable(gallery_calls.cancel_job)
    reembed = _awaitable(gallery_calls.reembed)
    reembedding = _awaitable(gallery_calls.reembedding)
    cancel_reembedding = _awaitable(gallery_calls.cancel_reembedding)
    add_sighting = _awaitable(sighting_calls.add_sighting)
    sightings = _awaitable(sighting_calls.sightings)
    sighting = _awaitable(sighting_calls.sighting)
    sighting_crop = _awaitable(sighting_calls.sighting_crop)
    erase_sighting = _awaitable(sighting_calls.erase_sighting)
    sighting_settings = _awaitable(sighting_calls.sighting_settings)
    put_sighting_settings = _awaitable(sighting_calls.put_sighting_settings)
    calibrate = _awaitable(gallery_calls.calibrate)
    calibrations = _awaitable(gallery_calls.calibrations)
    calibration = _awaitable(gallery_calls.calibration)
    calibration_in_use = _awaitable(gallery_calls.calibration_in_use)
    use_calibration = _awaitable(gallery_calls.use_calibration)
    create_alert_rule = _awaitable(alert_calls.create_alert_rule)
    replace_alert_rule = _awaitable(alert_calls.replace_alert_rule)
    alert_rules = _awaitable(alert_calls.alert_rules)
    alert_rule = _awaitable(alert_calls.alert_rule)
    delete_alert_rule = _awaitable(alert_calls.delete_alert_rule)
    alerts = _awaitable(alert_calls.alerts)
    alert = _awaitable(alert_calls.alert)
    resend_alert = _awaitable(alert_calls.resend_alert)


def _options(url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
    """The arguments of both httpx clients.

    Raises:
        ValueError: the URL is invalid, or the key cannot be sent in a header.
    """
    address = url or os.environ.get("VESTIBULE_URL") or DEFAULT_URL
    key = (api_key or os.environ.get("VESTIBULE_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            "api_key (or VESTIBULE_API_KEY): the API key has characters that no key has"
        )  # the message must not contain the key
    headers = {"user-agent": f"vestibule-client/{_version()}"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        base_url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ValueError(f"url (or VESTIBULE_URL): {address!r} is not a URL: {error}") from error
    if base_url.scheme not in ("http", "https") or not base_url.host or (base_url.port or 1) > 65535:
        raise ValueError(f"url (or VESTIBULE_URL): {address!r} is not a URL: expected http://... or https://...")
    options = {"base_url": base_url, "headers": headers, "timeout": timeout, "limits": _LIMITS}
    if _is_loopback(base_url.host):
        # A proxy would receive images and keys that need not leave this machine, and would connect to its own loopback.
        options["trust_env"] = False
        if base_url.scheme == "https":
            options["verify"] = httpx.create_ssl_context()  # respects SSL_CERT_FILE
    return options


def _is_loopback(host: str) -> bool:
    """Whether the host is this machine, judged by name or address without a lookup."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 and :: connect to this machine


@contextmanager
def _configured() -> Iterator[None]:
    """Convert errors of proxy variables to ValueError; httpx raises ImportError for SOCKS without socksio."""
    try:
        yield
    except (ImportError, httpx.InvalidURL) as error:
        raise ValueError(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from error


def _version() -> str:
    try:
        return version("vestibule-client")
    except PackageNotFoundError:  # run from a checkout
        return "0"
