"""Settings from the environment: formats of lists, and one-line errors that name the variable."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import Settings, unknown_variables

pytestmark = pytest.mark.usefixtures("_restore_logging")

THREE = ("127.0.0.1", "localhost", "[::1]")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a.example,b.example", ("a.example", "b.example")),
        (" a.example , b.example ,", ("a.example", "b.example")),
        ("vestibule", ("vestibule",)),
        ('["127.0.0.1", "localhost", "[::1]"]', THREE),
        ("127.0.0.1,localhost,[::1]", THREE),
        ("[::1],localhost", ("[::1]", "localhost")),
        ("::1", ("[::1]",)),
        ("[0:0:0:0:0:0:0:1]", ("[::1]",)),
        ("10.1.2.3", ("10.1.2.3",)),
        ("my_service.example.", ("my_service.example.",)),
    ],
)
def test_a_list_is_separated_by_commas_or_is_json(
    text: str, hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_ALLOWED_HOSTS", text)
    assert Settings().allowed_hosts == hosts


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("[]", ()),
        ("https://a.example,http://b.example:8080", ("https://a.example", "http://b.example:8080")),
        ('["https://a.example"]', ("https://a.example",)),
    ],
)
def test_allowed_origins_are_parsed(text: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_ALLOWED_ORIGINS", text)
    assert Settings().allowed_origins == origins


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("", ()),
        ("postgresql://a.example/v", ("postgresql://a.example/v",)),
        (
            "postgresql://u:secret@a.example,b.example/v , postgres://c.example/v",
            ("postgresql://u:secret@a.example,b.example/v", "postgres://c.example/v"),
        ),
    ],
)
def test_urls_of_databases_are_separated_and_never_shown(
    text: str, urls: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().database_url() is None
    monkeypatch.setenv("VESTIBULE_DATABASE_STANDBYS", text)
    monkeypatch.setenv("VESTIBULE_DATABASE_READERS", text)
    monkeypatch.setenv("VESTIBULE_DATABASE", "postgresql://u:secret@a.example/v")
    settings = Settings()
    assert settings.database_url() == "postgresql://u:secret@a.example/v"
    for listed in (settings.database_standbys, settings.database_readers):
        assert tuple(url.get_secret_value() for url in listed) == urls
    assert "secret" not in f"{settings!r} {settings.model_dump()}"


INVALID = {
    "DATABASE": ["sqlite:///secret", "host=secret", "", "postgresql://u:sec ret@[::1/v"],
    "DATABASE_READERS": ["secret"],
    "DATABASE_STANDBYS": ["secret", "postgresql://a.example/v,postgresql://[::1/secret"],
    "ALLOWED_HOSTS": ["", "[]", "*", "*.example.org", "https://a.org", "a.org:8000", '["a.org", "b.org"', "[1, 2]"],
    "ALLOWED_ORIGINS": ["*", "example.org", "https://example.org/page"],
    "PORT": ["tcp://10.0.0.1:8000", "", "70000"],
    "WORKERS": ["0"],
    "DEADLINE_S": ["soon"],
    "BACKUP_DAYS": ["-1", "nan", "1e9"],
    "UPKEEP_S": ["inf", "1e10"],
    "STATE": [""],
    "WEIGHTS": [""],
    "REQUIRE_KEYS": ["perhaps"],
    "RUNTIME": ["tensorrt"],
    "ROOT_PATH": ["vision", "https://example.org/vision", "//evil.example", "/a/../b", "/a b", "/a?b"],
    "ENCRYPTION_KEY": ["short"],
    "ENCRYPTION_KEY_FILE": ["/nowhere/key"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(f"VESTIBULE_{name}", value) for name, values in INVALID.items() for value in values]
)
@pytest.mark.parametrize("command", [["serve"], ["health"], ["models"], ["keys", "list"], ["gallery", "list"]])
def test_an_error_is_one_line_that_names_the_variable(command: list[str], name: str, value: str) -> None:
    outcome = CliRunner().invoke(cli, command, env={name: value})
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith(f"vestibule: {name}: ")
    assert len(outcome.stderr.splitlines()) == 1
    assert type(outcome.exception) is SystemExit


def test_settings_are_read_without_torch() -> None:
    """A container's health check reads them, and has 5 s."""
    code = "import sys; from app.cli import main; main.read_settings(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"VESTIBULE_PORT": "x", "VESTIBULE_ALLOWED_HOSTS": "*"}
    stderr = CliRunner().invoke(cli, ["models"], env=env).stderr
    assert "VESTIBULE_PORT: " in stderr
    assert "VESTIBULE_ALLOWED_HOSTS: '*' is not a host" in stderr


@pytest.mark.parametrize("field", ["CLASSIFIER", "DETECTOR", "EMBEDDER", "GENERATOR", "DENOISER", "AUTOENCODER"])
@pytest.mark.parametrize("model", ["no-such-model", "judge-mnist"])
def test_a_missing_default_model_or_one_of_another_task_is_an_error(field: str, model: str, tmp_path: Path) -> None:
    name = "denoiser-mnist" if field == "CLASSIFIER" else model
    env = {f"VESTIBULE_DEFAULT_{field}": name, "VESTIBULE_STATE": str(tmp_path)}
    outcome = CliRunner().invoke(cli, ["serve", "--port", "0"], env=env)
    assert outcome.exit_code == 1
    assert outcome.stderr.splitlines()[-1].startswith(f"vestibule: VESTIBULE_DEFAULT_{field}: '{name}' is not a model")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_ends_the_startup_before_models_load(workers: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        env = {"VESTIBULE_STATE": str(tmp_path)}
        outcome = CliRunner().invoke(cli, ["serve", "--port", port, "--workers", workers], env=env)
    assert outcome.exit_code == 1
    message = f"vestibule: VESTIBULE_PORT (or --port): cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert outcome.stderr.splitlines()[-1] == message
    assert "model_loaded" not in outcome.output


@pytest.mark.parametrize("host", ["127.0.0.256", "a..b", "http://localhost", "192.0.2.1"])
def test_an_invalid_host_is_an_error(host: str, tmp_path: Path) -> None:
    env = {"VESTIBULE_HOST": host, "VESTIBULE_ALLOW_PUBLIC": "true", "VESTIBULE_STATE": str(tmp_path)}
    outcome = CliRunner().invoke(cli, ["serve", "--port", "0"], env=env)
    assert outcome.exit_code == 1
    assert outcome.stderr.splitlines()[-1].startswith("vestibule: VESTIBULE_HOST (or --host): cannot listen on ")


def test_unknown_variables_are_listed() -> None:
    environment = {
        "VESTIBULE_ALOWED_HOSTS": "a",
        "VESTIBULE_ALLOWED_HOSTS": "a",
        "VESTIBULE_URL": "http://a",
        "VESTIBULE_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    assert unknown_variables(environment) == ["VESTIBULE_ALOWED_HOSTS", "VESTIBULE_SERVICE_HOST"]
