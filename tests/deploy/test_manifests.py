"""deploy/kubernetes against the schemas of Kubernetes, the service's own settings and routes, and each other."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from app.cli.main import cli
from app.observability.metrics import Metrics
from app.operations.routes import router
from app.server.supervisor import SHUTDOWN_GRACE_S
from app.settings import PREFIX, PROJECT, Settings, unknown_variables, variable

FOLDER = PROJECT / "deploy" / "kubernetes"
# The oldest version that knows all fields, and the newest that the validator knows.
VERSIONS = ("1.27", "1.37")

Document = dict[str, Any]


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """A loader that refuses a mapping with the same key twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key is given twice: {keys}"
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def read(path: Path) -> Any:
    """Parse a file. No two places share an object, so that a test can change what an alias repeats in one place."""
    return unshared(yaml.load(path.read_text(encoding="utf-8"), Loader))


def unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


class Manifests:
    """The resources by kind, as the kustomizations list them. There is one of each kind."""

    def __init__(self) -> None:
        files = [
            folder.parent / name
            for folder in sorted(FOLDER.rglob("kustomization.yaml"))
            for name in read(folder)["resources"]
        ]
        documents = [read(path) for path in files]
        self.by_kind: dict[str, Document] = {document["kind"]: document for document in documents}
        assert len(self.by_kind) == len(documents)

    def __getitem__(self, kind: str) -> Any:
        return self.by_kind[kind]

    @property
    def pods(self) -> dict[str, Document]:
        """The pods' `spec` and `metadata`, by the kind that starts them."""
        return {kind: self[kind]["spec"]["template"] for kind in ("Deployment", "Job")}

    @property
    def container(self) -> Document:
        """The service's container."""
        (container,) = self.pods["Deployment"]["spec"]["containers"]
        return container  # type: ignore[no-any-return]


def labels(pod: Document) -> dict[str, str]:
    return pod["metadata"]["labels"]  # type: ignore[no-any-return]


def matches(selector: dict[str, str], pod: Document) -> bool:
    return bool(selector) and selector.items() <= labels(pod).items()


def environment(pod: Document) -> dict[str, Any]:
    """The variables of the pod's only container: the text, or the source of the value."""
    (container,) = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


Check = Callable[[Manifests], None]


def check_schemas(manifests: Manifests) -> None:
    for version in VERSIONS:
        for document in manifests.by_kind.values():
            assert kubernetes_validate.validate(document, version, strict=True) == version


def check_selectors(manifests: Manifests) -> None:
    server, migration = manifests.pods["Deployment"], manifests.pods["Job"]
    constraints = server["spec"]["topologySpreadConstraints"]
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in constraints),
    ]
    for selector in selectors:
        assert matches(selector, server)
        assert not matches(selector, migration)  # it would get requests
    policy = manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert matches(policy, server)
    assert matches(policy, migration)


def check_scaling(manifests: Manifests) -> None:
    deployment, scaler = manifests["Deployment"], manifests["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # it would undo the autoscaler's decision
    # One replica is evicted at a time, and one remains.
    assert scaler["minReplicas"] > manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    (metric,) = (entry["pods"]["metric"]["name"] for entry in scaler["metrics"])
    assert metric in {family.name for family in Metrics().registry.collect() if family.type == "gauge"}
    (rule,) = read(PROJECT / "deploy" / "prometheus-adapter.yml")["rules"]
    assert rule["name"]["as"] == metric == rule["seriesQuery"].partition("{")[0]
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def check_ports(manifests: Manifests) -> None:
    (port,) = manifests.container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    assert f"EXPOSE {port['containerPort']}\n" in (PROJECT / "Dockerfile").read_text()
    (service,) = manifests["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    ((ingress,),) = (rule["ports"] for rule in manifests["NetworkPolicy"]["spec"]["ingress"])
    assert ingress["port"] == port["containerPort"]
    probes = {name: manifests.container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    for probe in probes.values():
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == port["name"]
    # A replica that is not ready yet, or whose database is away, must not be restarted.
    assert probes["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert probes["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def check_egress(manifests: Manifests) -> None:
    spec = manifests["NetworkPolicy"]["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    allowed = {(port["port"], "to" in rule) for rule in spec["egress"] for port in rule["ports"]}
    assert allowed == {(5432, False), (53, True)}  # PostgreSQL anywhere, names in the cluster


def check_settings(manifests: Manifests) -> None:
    for pod in manifests.pods.values():
        variables = environment(pod)
        assert unknown_variables(variables) == []
        literals = {name: value for name, value in variables.items() if isinstance(value, str)}
        with mock.patch.dict(
            os.environ, {name: value.replace("$(POD_IP)", "10.1.2.3") for name, value in literals.items()}
        ):
            settings = Settings()
        assert settings.model_fields_set >= {
            name.removeprefix(PREFIX).lower() for name in literals if name.startswith(PREFIX)
        }
    assert environment(manifests.pods["Deployment"])["VESTIBULE_REQUIRE_KEYS"] == "true"  # it listens beyond loopback


def check_database(manifests: Manifests) -> None:
    """The URL and the authority's certificate come from one Secret, in the server as in the migration."""
    server, migration = manifests.pods["Deployment"], manifests.pods["Job"]
    names = (variable("database"), "PGSSLMODE", "PGSSLROOTCERT")
    source, mode, certificate = (environment(server)[name] for name in names)
    assert [environment(migration)[name] for name in names] == [source, mode, certificate]
    assert mode == "verify-full"
    for name in ("database_standbys", "database_readers"):
        servers = environment(server)[variable(name)]["secretKeyRef"]
        assert (servers["name"], servers["optional"]) == (source["secretKeyRef"]["name"], True)
    for pod in (server, migration):
        (container,), volumes = pod["spec"]["containers"], pod["spec"]["volumes"]
        (volume,) = (volume for volume in volumes if "secret" in volume)
        assert volume["secret"]["secretName"] == source["secretKeyRef"]["name"]
        # libpq refuses a client key that others may read.
        assert volume["secret"]["defaultMode"] == 0o440
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
        assert Path(certificate).parent == Path(mount["mountPath"])


def check_hardening(manifests: Manifests) -> None:
    user = int(re.findall(r"useradd --uid (\d+)", (PROJECT / "Dockerfile").read_text())[0])
    for pod in manifests.pods.values():
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not spec["enableServiceLinks"]
        assert not spec["automountServiceAccountToken"]
        writable = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
        folders = {Path(mount["mountPath"]) for mount in container["volumeMounts"] if mount["name"] in writable}
        assert Path("/tmp") in folders
        assert folders & set(Path(environment(pod)[variable("state")]).parents)
        assert "memory" in container["resources"]["limits"]


def check_commands(manifests: Manifests) -> None:
    """The migration runs a command of the CLI; the server runs the image's own."""
    assert not {"command", "args"} & set(manifests.container)
    (container,) = manifests.pods["Job"]["spec"]["containers"]
    program, *words = container["args"]
    command: Any = get_command(cli)
    assert (program, "command" in container) == (command.name, False)
    for word in words:
        command = command.commands[word]


def check_images(manifests: Manifests) -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for pod in manifests.pods.values() for container in pod["spec"]["containers"]}
    assert images == {f"vestibule:{version}"}  # the tag of this version, without a registry's host


def check_grace(manifests: Manifests) -> None:
    pod = manifests.pods["Deployment"]
    delay = float(environment(pod)[variable("stop_delay_s")])
    assert delay >= manifests.container["readinessProbe"]["periodSeconds"]
    drain = Settings.model_fields["drain_s"].default
    assert pod["spec"]["terminationGracePeriodSeconds"] > delay + drain + SHUTDOWN_GRACE_S


CHECKS = (
    check_schemas,
    check_selectors,
    check_scaling,
    check_ports,
    check_egress,
    check_settings,
    check_database,
    check_hardening,
    check_commands,
    check_images,
    check_grace,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_manifests(check: Check) -> None:
    check(Manifests())


def test_every_file_is_in_a_kustomization() -> None:
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        kustomization = read(folder / "kustomization.yaml")
        assert set(kustomization) == {"apiVersion", "kind", "resources"}
        assert kustomization["kind"] == "Kustomization"
        assert sorted(kustomization["resources"]) == sorted(
            path.name for path in folder.iterdir() if path.name != "kustomization.yaml"
        )
    assert not [path for path in FOLDER.iterdir() if path.is_file()]


MISTAKES: dict[str, tuple[Check, Callable[[Manifests], object]]] = {
    "an unknown field": (check_schemas, lambda m: m.container.update(readinessProb={})),
    "a wrong type": (check_schemas, lambda m: m["PodDisruptionBudget"]["spec"].update(maxUnavailable=[1])),
    "a selector of other pods": (
        check_selectors,
        lambda m: m["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].update(tier="web"),
    ),
    "a Service that selects the migration": (
        check_selectors,
        lambda m: m["Service"]["spec"]["selector"].pop("app.kubernetes.io/component"),
    ),
    "pods without a policy": (check_selectors, lambda m: labels(m.pods["Job"]).pop("app.kubernetes.io/name")),
    "an autoscaler of another Deployment": (
        check_scaling,
        lambda m: m["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"].update(name="vestibul"),
    ),
    "a metric that does not exist": (
        check_scaling,
        lambda m: m["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"].update(name="vestibule_queue"),
    ),
    "a path without a route": (check_ports, lambda m: m.container["startupProbe"]["httpGet"].update(path="/ready")),
    "a port without a name": (check_ports, lambda m: m["Service"]["spec"]["ports"][0].update(targetPort="web")),
    "more egress": (check_egress, lambda m: m["NetworkPolicy"]["spec"]["egress"].append({"ports": [{"port": 443}]})),
    "a variable that is no setting": (
        check_settings,
        lambda m: m.container["env"].append({"name": "VESTIBULE_DRAIN", "value": "9"}),
    ),
    "a value that is refused": (
        check_settings,
        lambda m: m.container["env"].append({"name": "VESTIBULE_DRAIN_S", "value": "soon"}),
    ),
    "a Secret of another name": (
        check_database,
        lambda m: m.pods["Job"]["spec"]["volumes"][1]["secret"].update(secretName="database"),
    ),
    "a state folder that is read-only": (
        check_hardening,
        lambda m: m.container["volumeMounts"][0].update(mountPath="/data"),
    ),
    "a command that does not exist": (
        check_commands,
        lambda m: m.pods["Job"]["spec"]["containers"][0].update(args=["vestibule", "migrate"]),
    ),
    "an unpinned image": (check_images, lambda m: m.container.update(image="vestibule:latest")),
    "a short grace period": (
        check_grace,
        lambda m: m.pods["Deployment"]["spec"].update(terminationGracePeriodSeconds=30),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str) -> None:
    check, change = MISTAKES[mistake]
    manifests = Manifests()
    change(manifests)
    with pytest.raises((AssertionError, KeyError, kubernetes_validate.ValidationError, ValueError)):
        check(manifests)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("spec: {a: 1, a: 2}")
    with pytest.raises(AssertionError, match="given twice"):
        read(tmp_path / "twice.yaml")
