"""The profile `cluster` of docker-compose.yml and deploy/haproxy agree with each other and with the service."""

from __future__ import annotations

import os
import re
from typing import Any
from unittest import mock

import pytest
import yaml

from app.operations.routes import router
from app.server.supervisor import SHUTDOWN_GRACE_S
from app.settings import PROJECT, Settings, unknown_variables

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "mb": 2**20, "gb": 2**30, "": 1.0}


def quantity(text: str) -> float:
    """Seconds, or bytes."""
    match = re.fullmatch(r"(\d+)([a-z]*)", text.lower())
    assert match, text
    return int(match[1]) * UNITS[match[2]]


def compose() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "docker-compose.yml").read_text())  # type: ignore[no-any-return]


def cluster() -> dict[str, Any]:
    """The services of the profile, by name."""
    services = compose()["services"].items()
    return {name: service for name, service in services if "cluster" in service["profiles"]}


def settings_of(service: dict[str, Any]) -> Settings:
    with mock.patch.dict(os.environ, service["environment"], clear=True):
        return Settings()


def sections() -> dict[str, list[list[str]]]:
    """The directives of HAProxy's configuration as words, by the first line of their section."""
    parsed: dict[str, list[list[str]]] = {}
    for line in (PROJECT / "deploy" / "haproxy" / "haproxy.cfg").read_text().splitlines():
        words = line.partition("#")[0].split()
        if words and not line.startswith(" "):
            assert line not in parsed
            parsed[line] = []
        elif words:
            [*parsed.values()][-1].append(words)
    return parsed


def values(section: str, *directive: str) -> list[list[str]]:
    """What follows these words in all directives of a section that begin with them."""
    return [words[len(directive) :] for words in sections()[section] if tuple(words[: len(directive)]) == directive]


def default(text: str) -> str:
    """The address that HAProxy uses if the variable is not set."""
    match = re.fullmatch(r'"\$\{[A-Z_0-9]+-([\w.:-]+)\}"', text)
    assert match, text
    return match[1]


def test_the_profile_starts_two_equal_replicas_a_balancer_and_a_database() -> None:
    services = cluster()
    assert set(services) == {"replica-1", "replica-2", "haproxy", "postgres"}
    assert services["replica-1"] == services["replica-2"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert set(service.get("depends_on", {})) <= set(services)
        assert all(mapping.startswith("127.0.0.1:") for mapping in service.get("ports", []))
        for source, *_ in (volume.split(":") for volume in service.get("volumes", [])):
            assert (PROJECT / source).exists() if source.startswith(".") else source in compose()["volumes"]
    # The replicas have no volume, and only the balancer is reached from outside: on the port of the other profiles.
    assert [name for name, service in services.items() if "ports" in service] == ["haproxy"]
    assert [name for name, service in services.items() if "volumes" in service] == ["haproxy", "postgres"]
    assert set(compose()["services"]["vestibule"]["ports"]) < set(services["haproxy"]["ports"])


def test_replicas_get_valid_settings_and_time_to_stop() -> None:
    service = cluster()["replica-1"]
    assert unknown_variables(service["environment"]) == []
    settings = settings_of(service)
    grace = quantity(service["stop_grace_period"])
    assert grace > settings.stop_delay_s + settings.drain_s + SHUTDOWN_GRACE_S
    (check,) = values("backend replicas", "default-server", "check")
    noticed = quantity(check[check.index("inter") + 1]) * int(check[check.index("fall") + 1])
    assert settings.stop_delay_s > 2 * noticed


def test_the_database_has_the_required_version() -> None:
    service = cluster()["postgres"]
    match = re.fullmatch(r"pgvector/pgvector:(\d+)\.(\d+)\.(\d+)-pg(\d+)", service["image"])
    assert match
    assert tuple(map(int, match.groups()))[:3] >= (0, 8, 6)
    assert int(match[4]) >= 18
    options = dict(word.split("=") for word in service["command"] if "=" in word)
    assert options["wal_recycle"] == "off"
    assert quantity(service["shm_size"]) > 4 * 2**30  # the largest build of an index
    url = cluster()["replica-1"]["environment"]["VESTIBULE_DATABASE"]
    user = service["environment"]["POSTGRES_USER"]
    assert url == f"postgresql://{user}@postgres/{service['environment']['POSTGRES_DB']}"


def test_haproxy_balances_over_the_replicas_that_are_ready() -> None:
    backend = "backend replicas"
    assert values("frontend clients", "default_backend") == [["replicas"]]
    assert values(backend, "balance") == [["leastconn"]]
    port = Settings.model_fields["port"].default
    replicas = [name for name in cluster() if name.startswith("replica")]
    servers = {name: default(address) for name, address in values(backend, "server")}
    assert servers == {name: f"{name}:{port}" for name in replicas}
    (probe,) = values(backend, "http-check", "send")
    assert probe[:4] == ["meth", "GET", "uri", "/health/ready"]
    assert probe[3] in {route.path for route in router.routes}  # type: ignore[attr-defined]


def test_haproxy_sends_no_request_twice() -> None:
    assert values("defaults", "retry-on") == [["conn-failure"]]
    assert values("defaults", "option", "redispatch") == [["1"]]
    # A connection for each request: an idle one may be closed while a request is on its way.
    assert values("defaults", "option", "http-server-close") == [[]]
    for section, directives in sections().items():
        names = [words[0] for words in directives]
        assert "http-reuse" not in names
        assert "retry-on" not in names or section == "defaults"


def test_haproxy_waits_longer_than_the_service() -> None:
    timeouts = {name: quantity(value) for name, value in values("defaults", "timeout")}
    settings = settings_of(cluster()["replica-1"])
    longest = max(settings.deadline_s, settings.body_timeout_s, settings.answer_timeout_s)
    assert min(timeouts["client"], timeouts["server"]) > longest
    assert timeouts["http-request"] >= settings.head_timeout_s


@pytest.mark.parametrize(
    ("section", "variable"), [("clients", "VESTIBULE_ADDRESS"), ("statistics", "STATISTICS_ADDRESS")]
)
def test_haproxy_listens_on_loopback_unless_a_container_publishes_its_port(section: str, variable: str) -> None:
    ((address,),) = values(f"frontend {section}", "bind")
    host, _, port = default(address).partition(":")
    assert host == "127.0.0.1"
    service = cluster()["haproxy"]
    assert service["environment"][variable] == f"0.0.0.0:{port}"
    assert f"127.0.0.1:{port}:{port}" in service["ports"]
