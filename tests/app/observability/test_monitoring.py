"""Grafana's queries name metrics that exist, and the files of Compose agree with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from app.observability.metrics import Metrics
from app.settings import PROJECT, Settings

DEPLOY = PROJECT / "deploy"
# A metric of the service or of its process in a query.
METRIC = re.compile(r"\b(?:vestibule|process)_\w+")


def exposed() -> set[str]:
    """Return the names of all series in /metrics."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    families = list(Metrics().registry.collect())
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, [""])}


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "vestibule.json").read_text())
    return content


def queried() -> set[str]:
    """Return the metrics in all queries of the dashboard and in its variable for the model."""
    board = dashboard()
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"]]
    assert all(METRIC.search(query) for query in queries)
    return {name for query in queries for name in METRIC.findall(query)}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_every_metric_of_the_dashboard_exists_and_is_queried_from_the_provisioned_source() -> None:
    assert queried() <= exposed()
    (source,) = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    targets = [target for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    assert {target["datasource"]["uid"] for target in targets} == {source["uid"]}


def test_the_dashboard_shows_every_metric() -> None:
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in queried()}
    assert {family.name for family in Metrics().registry.collect() if family.name.startswith("vestibule")} <= families


def test_compose_agrees_with_the_files_of_prometheus_and_grafana() -> None:
    services = read(PROJECT / "docker-compose.yml")["services"]
    for name in ("prometheus", "grafana"):
        service = services[name]
        assert service["profiles"] == ["monitoring"]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (PROJECT / source).exists(), volume
    ((target,),) = [
        config["targets"] for config in read(DEPLOY / "prometheus.yml")["scrape_configs"][0]["static_configs"]
    ]
    host, port = target.split(":")
    assert host in services
    assert any(mapping.endswith(f":{port}") for mapping in services[host]["ports"])
    # Prometheus sends this name as Host.
    assert host in Settings(allowed_hosts=services[host]["environment"]["VESTIBULE_ALLOWED_HOSTS"]).allowed_hosts
    url = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]["url"]
    assert url.split("/")[-1].split(":")[0] in services


def started(*profiles: str) -> set[str]:
    """Return the services that `docker compose up` starts with these profiles; without any, with those of .env."""
    default = dict(line.split("=") for line in (PROJECT / ".env").read_text().splitlines() if not line.startswith("#"))
    active = set(profiles or default["COMPOSE_PROFILES"].split(","))
    services = read(PROJECT / "docker-compose.yml")["services"]
    return {
        name for name, service in services.items() if not service.get("profiles") or active & set(service["profiles"])
    }


def test_each_compose_profile_starts_one_service() -> None:
    assert started() == started("cpu") == {"vestibule"}
    assert started("gpu") == {"vestibule-gpu"}
    assert started("cpu", "monitoring") == {"vestibule", "prometheus", "grafana"}
    assert started("gpu", "monitoring") == {"vestibule-gpu", "prometheus", "grafana"}
    services = read(PROJECT / "docker-compose.yml")["services"]
    cpu, gpu = services["vestibule"], services["vestibule-gpu"]
    assert cpu["ports"] == gpu["ports"]  # so only one of them can start
    assert cpu["volumes"] == gpu["volumes"]
    assert gpu["networks"]["default"]["aliases"] == ["vestibule"]  # the name that Prometheus uses
