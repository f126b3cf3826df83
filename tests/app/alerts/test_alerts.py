"""Alerts through HTTP: rules, their alerts, the event stream, and the delivery by the running service."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.alerts import stream as stream_module
from app.alerts.webhooks import key_of, signature
from app.main import create_app
from app.settings import Settings
from tests.app.alerts.receiver import Receiver
from tests.app.conftest import until
from tests.app.embedder import random_embedder
from tests.app.threaded import running_server
from vestibule_client import NEVER, AsyncClient, Client, Conflict, NotFound, Overloaded, Unprocessable

PROBLEM = "urn:vestibule:problem:"
SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()


class House:
    """A served application, with a receiver of webhooks in its event loop's process."""

    def __init__(self, app: FastAPI, url: str, hook: Receiver):
        self.app = app
        self.url = url
        self.hook = hook
        self.client = Client(url)

    def see(self, subject: str | None = "grace", camera: str = "door") -> str:
        now = datetime.now(UTC)
        return self.client.add_sighting("doors", camera, now, now, 3, subject_id=subject, probability=0.9).id

    def rule(self, **more: Any) -> Any:
        return self.client.create_alert_rule("doors", "Door", "match", **{"cooldown_s": 0, **more})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    weights, state = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("state")
    random_embedder(weights)
    settings = Settings(
        weights=weights,
        state=state,
        default_classifier="lenet5-mnist",
        max_alert_streams=3,
        alert_private_targets="127.0.0.0/8",
    )
    app = create_app(settings)
    loop, ready, hook = asyncio.new_event_loop(), threading.Event(), Receiver()

    async def receive() -> None:
        server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
        hook.port = server.sockets[0].getsockname()[1]
        ready.set()
        await asyncio.Event().wait()

    receiving = threading.Thread(target=lambda: loop.run_until_complete(receive()), daemon=True)
    receiving.start()
    ready.wait()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    with running_server(server) as (_, port):
        house = House(app, f"http://127.0.0.1:{port}", hook)
        house.client.create_collection("doors")
        house.client.put_subject("doors", "grace", name="Grace", metadata={"level": 1})
        yield house
        house.client.close()
        app.state.is_stopping = True  # as the command does on SIGTERM: streams end


@pytest.fixture
def house(served: House) -> Iterator[House]:
    served.hook.requests.clear()
    served.hook.answer = lambda request: 204
    yield served
    for rule in served.client.alert_rules(limit=1000).data:
        served.client.delete_alert_rule(rule.id)


def test_a_rule_is_stored_and_its_secrets_are_shown_once(house: House) -> None:
    schedule = {
        "time_zone": "Europe/Vienna",
        "periods": [{"weekdays": ["sat", "mon"], "start": "22:00", "end": "06:00"}],
    }
    targets: list[dict[str, Any]] = [
        {"kind": "webhook", "url": "https://hooks.invalid/a"},
        {"kind": "webhook", "url": "https://hooks.invalid/b", "secret": SECRET},
        {"kind": "mqtt", "url": "mqtts://broker.invalid", "username": "u", "secret": "password", "discovery": True},
    ]
    where = {"level": {"in": [1, 2]}, "site": "north"}
    stored = house.rule(where=where, cameras=["door"], schedule=schedule, with_name=True, targets=targets)
    assert list(stored.secrets) == [stored.targets[0].id]  # only the new one
    assert len(key_of(stored.secrets[stored.targets[0].id])) == 32
    listed = house.client.alert_rule(stored.id)
    assert house.client.alert_rules().data == [listed]
    assert listed.where == {"level": {"in": [1, 2]}, "site": {"in": ["north"]}}
    assert listed.schedule == {
        "time_zone": "Europe/Vienna",
        "periods": [{"weekdays": ["mon", "sat"], "start": "22:00", "end": "06:00"}],
    }
    assert (listed.collection, listed.cameras, listed.cooldown_s, listed.with_name) == ("doors", ["door"], 0, True)
    for path in ("/alerts/rules", f"/alerts/rules/{stored.id}"):
        text = httpx.get(house.url + path).text
        assert "whsec_" not in text
        assert "password" not in text
    changed = house.client.replace_alert_rule(
        stored.id, "Other", "match", targets=[targets[0], {"kind": "webhook", "url": "https://hooks.invalid/c"}]
    )
    assert changed.targets[0].id == stored.targets[0].id
    assert list(changed.secrets) == [changed.targets[1].id]  # the other one keeps its secret
    assert (changed.name, changed.where, changed.created_at) == ("Other", None, stored.created_at)
    assert house.client.delete_alert_rule(stored.id).name == "Other"
    with pytest.raises(NotFound):
        house.client.alert_rule(stored.id)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"targets": [{"kind": "webhook", "url": "https://10.0.0.1/"}]}, "is not public"),
        ({"targets": [{"kind": "webhook", "url": "https://169.254.169.254/latest"}]}, "is not public"),
        ({"targets": [{"kind": "webhook", "url": "http://8.8.8.8/"}]}, "over TLS only"),
        ({"targets": [{"kind": "mqtt", "url": "mqtts://u:p@8.8.8.8"}]}, "may not contain a user"),
        ({"targets": [{"kind": "webhook", "url": "https://a.invalid", "secret": "whsec_short"}]}, "24 to 64 bytes"),
        ({"targets": [{"kind": "webhook", "url": "https://a.invalid", "topic": "x"}]}, "are of MQTT"),
        ({"targets": [{"kind": "mqtt", "url": "mqtts://a.invalid", "topic": "a/#"}]}, "topic"),
        ({"targets": [{"kind": "webhook", "url": "https://a.invalid"}] * 2}, "the same URL"),
        ({"schedule": {"time_zone": "Nowhere", "periods": [{"weekdays": ["mon"]}]}}, "is not a time zone"),
        ({"schedule": {"time_zone": "UTC", "periods": [{"weekdays": ["mon"], "start": "24:00"}]}}, "start"),
        ({"schedule": {"time_zone": "UTC", "periods": [{"weekdays": ["mon"], "start": "9:00"}]}}, "start"),
        ({"cameras": ["a camera"]}, "cameras"),
        ({"cooldown_s": 1e9}, "cooldown_s"),
        ({"trigger": "unknown", "where": {"level": 1}}, "no metadata"),
    ],
)
def test_invalid_rules_are_refused(house: House, change: dict[str, Any], why: str) -> None:
    body = {"collection": "doors", "name": "Door", "trigger": "match", **change}
    response = httpx.post(f"{house.url}/alerts/rules", json=body)
    assert response.status_code == 422
    assert why in response.text
    assert house.client.alert_rules().data == []


def test_what_does_not_exist_is_not_found(house: House) -> None:
    for call in (
        lambda: house.client.create_alert_rule("nowhere", "Door", "match"),
        lambda: house.client.replace_alert_rule("x", "Door", "match"),
        lambda: house.client.delete_alert_rule("x"),
        lambda: house.client.alert("x"),
        lambda: house.client.resend_alert("x"),
    ):
        with pytest.raises(NotFound):
            call()


def test_an_alert_is_delivered_and_listed(house: House) -> None:
    rule = house.rule(targets=[{"kind": "webhook", "url": house.hook.url, "secret": SECRET}])
    sighting = house.see()
    house.see(None)  # causes none
    until(lambda: len(house.hook.requests) == 1)
    request = house.hook.requests[0]
    until(lambda: [row.state for row in house.client.alerts().data] == ["delivered"])
    (alert,) = house.client.alerts().data
    assert house.client.alert(alert.id) == alert
    assert (alert.rule, alert.sighting, alert.subject, alert.camera) == (rule.id, sighting, "grace", "door")
    assert [(delivery.target, delivery.attempts) for delivery in alert.deliveries] == [(rule.targets[0].id, 0)]
    assert request.headers["webhook-id"] == alert.id
    timestamp = int(request.headers["webhook-timestamp"])
    assert abs(timestamp - time.time()) < 300
    assert request.headers["webhook-signature"] == signature(SECRET, alert.id, timestamp, request.body)
    content = json.loads(request.body)
    assert (content["type"], content["data"]["sighting"]) == ("alert.match", sighting)
    assert "Grace" not in request.body.decode()


def test_a_dead_alert_is_listed_and_sent_again(house: House) -> None:
    house.hook.answer = lambda request: 410
    house.rule(targets=[{"kind": "webhook", "url": house.hook.url}])
    house.see()
    until(lambda: len(house.client.alerts(state="dead").data) == 1)
    (dead,) = house.client.alerts(state="dead").data
    assert (dead.deliveries[0].state, dead.deliveries[0].problem) == ("dead", "the receiver answered 410 Gone")
    house.hook.answer = lambda request: 200
    assert house.client.resend_alert(dead.id).state == "pending"
    until(lambda: house.client.alert(dead.id).state == "delivered")
    assert house.hook.ids == [dead.id, dead.id]
    with pytest.raises(Conflict, match="is dead"):
        house.client.resend_alert(dead.id)
    assert house.client.alerts(state="dead").data == []


def test_alerts_are_listed_in_pages(house: House) -> None:
    house.rule()
    stored = [house.see() for _ in range(5)]
    first = house.client.alerts(limit=3)
    assert first.next is not None
    rest = house.client.alerts(after=first.next, limit=3)
    assert [alert.sighting for alert in first.data + rest.data] == stored
    assert rest.next is None
    newest = house.client.alerts(limit=2, newest_first=True)
    assert [alert.sighting for alert in newest.data] == stored[:2:-1]
    with pytest.raises(Unprocessable):
        house.client.alerts(state="lost")  # type: ignore[arg-type]


def test_the_stream_continues_behind_the_last_event(house: House) -> None:
    house.rule(with_name=True)
    first = house.see()
    assert first
    with Client(house.url) as client:
        events = client.alert_events(last_id="0")
        assert next(events).data.sighting == first
        second = house.see()
        event = next(events)
        assert (event.data.sighting, event.type, event.data.name) == (second, "alert.match", "Grace")
        events.close()
    with httpx.stream("GET", f"{house.url}/alerts/stream", headers={"last-event-id": "0"}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        ids = []
        for line in response.iter_lines():
            if line.startswith("id: "):
                ids.append(int(line[4:]))
            if len(ids) == 3:
                break
    assert ids[0] == 0
    with httpx.stream("GET", f"{house.url}/alerts/stream", headers={"last-event-id": str(ids[1])}) as response:
        data = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert json.loads(data[6:])["data"]["sighting"] == second


def test_a_new_stream_has_only_new_alerts_of_its_collection(house: House) -> None:
    house.rule()
    house.see()

    async def scenario() -> tuple[str, str]:
        async with AsyncClient(house.url) as client:
            events = client.alert_events("doors")
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.to_thread(until, lambda: house.app.state.alerts.streams._open == 1)
            await asyncio.sleep(0.2)  # until the position is read
            sighting = await asyncio.to_thread(house.see)
            event = await waiting
            await events.aclose()
            return sighting, event.data.sighting

    expected, received = asyncio.run(scenario())
    assert received == expected
    until(lambda: house.app.state.alerts.streams._open == 0)


def test_streams_are_bounded_and_freed_when_the_client_disconnects(house: House) -> None:
    streams = house.app.state.alerts.streams
    until(lambda: streams._open == 0)
    responses = []
    with httpx.Client(base_url=house.url) as client:
        for _ in range(3):
            response = client.send(client.build_request("GET", "/alerts/stream"), stream=True)
            lines = response.iter_lines()
            next(lines)
            responses.append((response, lines))  # an iterator that is deleted closes its response
        with Client(house.url, retries=NEVER) as other, pytest.raises(Overloaded):
            other.send(_stream_call())
        assert house.app.state.metrics.registry.get_sample_value("vestibule_requests_in_flight") == 0
        for response, _ in responses:
            response.close()
    until(lambda: streams._open == 0)


def test_head_of_a_stream_is_answered_at_once_and_holds_none(house: House) -> None:
    streams = house.app.state.alerts.streams
    with httpx.Client(base_url=house.url) as client:
        for _ in range(4):  # one more than may be open
            response = client.head("/alerts/stream")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            until(lambda: streams._open == 0)


def _stream_call() -> Any:
    from vestibule_client.alert_answers import AlertPage
    from vestibule_client.call import Call

    return Call("GET", "/alerts/stream", AlertPage)


def test_a_silent_stream_has_comments(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.05)
    with httpx.stream("GET", f"{house.url}/alerts/stream") as response:
        comments = (line for line in response.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(3)] == [": connected", ": keep-alive", ": keep-alive"]


def test_a_stream_ends_after_a_while_and_when_the_service_stops(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "STREAM_S", 0.0)
    with httpx.stream("GET", f"{house.url}/alerts/stream") as response:
        assert (
            response.read() == b"retry: 2000\nid: %d\n: connected\n\n" % house.app.state.alerts._alerts.last_position()
        )
    monkeypatch.undo()
    with httpx.stream("GET", f"{house.url}/alerts/stream") as response:
        lines = response.iter_lines()
        next(lines)
        house.app.state.is_stopping = True
        try:
            rest = [*lines]  # ends
        finally:
            house.app.state.is_stopping = False
    assert ": connected" in rest


def test_an_invalid_position_is_refused(house: House) -> None:
    for value in ("x", "-1", "1" * 30):
        response = httpx.get(f"{house.url}/alerts/stream", headers={"last-event-id": value})
        assert response.status_code == 422
        assert response.json()["type"] == f"{PROBLEM}invalid-parameters"


def test_alerts_of_an_erased_subject_are_not_sent(house: House) -> None:
    house.client.put_subject("doors", "ada")
    house.hook.answer = lambda request: 503
    house.rule(targets=[{"kind": "webhook", "url": house.hook.url}])
    house.see("ada")
    until(lambda: len(house.hook.requests) > 0)
    house.client.erase_subject("doors", "ada")
    assert house.client.alerts().data == []
    house.hook.answer = lambda request: 204
    kept = house.see()
    until(lambda: json.loads(house.hook.requests[-1].body)["data"]["sighting"] == kept)
