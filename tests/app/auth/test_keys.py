"""API keys in files and in a database: several processes, the `vestibule keys` commands, the audit log."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.auth.keys import ApiKeys
from app.cli.main import cli
from app.settings import PROJECT
from index.embedded.keys import EmbeddedKeys
from index.errors import ConflictError, InvalidError, NotFoundError
from index.factory import KEYS_FOLDER, open_keys
from index.postgres.keys import PostgresKeys
from index.postgres.service_state import PostgresServiceState
from index.protocol import KeyStore
from tests.app.conftest import Clock, until
from tests.fences import Shell, run_all

SECRET = re.compile(r"vst_[\w-]{43}")

Command = Callable[..., Any]  # the outcome: exit_code, stdout, stderr


@pytest.fixture(params=["embedded", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[KeyStore]:
    if request.param == "embedded":
        with closing(EmbeddedKeys(tmp_path / KEYS_FOLDER, clock)) as embedded:
            yield embedded
    else:
        with closing(PostgresServiceState(request.getfixturevalue("database_url"), clock)) as state:
            yield state.keys


@pytest.fixture
def keys(store: KeyStore) -> ApiKeys:
    return ApiKeys(store)


@pytest.fixture
def embedded(tmp_path: Path, clock: Clock) -> Iterator[ApiKeys]:
    with closing(ApiKeys(EmbeddedKeys(tmp_path / KEYS_FOLDER, clock))) as keys:
        yield keys


@pytest.fixture(params=["embedded", "postgres"])
def vestibule(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """The command, with keys in a folder or in a database."""
    environment = {"VESTIBULE_STATE": str(tmp_path)}
    if request.param == "postgres":
        environment["VESTIBULE_DATABASE"] = request.getfixturevalue("database_url")
    return command(environment)


def command(environment: dict[str, str]) -> Command:
    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["keys", *words], env=environment)

    return run


def set_clock(store: KeyStore, clock: Clock, now: float) -> None:
    """Set the time; a database's is read again only twice a second."""
    clock.now = now
    if isinstance(store, PostgresKeys):
        store.refresh()


def test_a_key_is_random_and_only_its_hash_is_stored(embedded: ApiKeys, tmp_path: Path) -> None:
    created = [embedded.create("somebody", ["infer"]) for _ in range(3)]
    assert len({secret for _, secret in created} | {key.id for key, _ in created}) == 6
    for key, secret in created:
        assert SECRET.fullmatch(secret)
        assert embedded.find_valid(secret) == key
        assert embedded.by_hash()[hashlib.sha256(secret.encode()).digest()] == key
    assert embedded.find_valid("vst_" + "A" * 43) is None
    embedded.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ledger.db", "audit.log"}
    for path in files:
        for _, secret in created:
            assert secret.encode() not in path.read_bytes()
            assert secret[4:].encode() not in path.read_bytes()
    assert b"somebody" not in (tmp_path / KEYS_FOLDER / "audit.log").read_bytes()


def test_a_key_is_valid_until_it_expires_or_is_revoked(store: KeyStore, keys: ApiKeys, clock: Clock) -> None:
    start = clock.now
    key, secret = keys.create("short", ["infer", "enrol"], expires_at=start + 10)
    assert key.scopes == {"infer", "enrol"}
    set_clock(store, clock, start + 9.9)
    assert keys.find_valid(secret) == key
    set_clock(store, clock, start + 10)
    assert keys.find_valid(secret) is None
    other, secret = keys.create("other", ["admin"])
    keys.revoke(other.id)
    assert keys.find_valid(secret) is None
    assert [key.revoked_at for key in keys.all()] == [None, start + 10]
    with pytest.raises(ConflictError, match="revoked already"):
        keys.revoke(other.id)
    with pytest.raises(NotFoundError, match="no key"):
        keys.revoke("nobody")


def test_changes_by_another_process_are_seen_at_once(embedded: ApiKeys, tmp_path: Path) -> None:
    assert embedded.by_hash() == {}
    assert not (tmp_path / KEYS_FOLDER).exists()  # reading creates nothing
    program = (
        "import sys; from pathlib import Path\n"
        "from app.auth.keys import ApiKeys; from index.factory import open_keys\n"
        "keys = ApiKeys(open_keys(Path(sys.argv[1])))\n"
        "for line in sys.stdin:\n"
        "    print(keys.create('a', ['infer'])[1] if line == 'create\\n' else keys.revoke(line.strip()), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def ask(line: str) -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            print(line, file=other.stdin, flush=True)
            return other.stdout.readline().strip()

        first, second = ask("create"), ask("create")
        key = embedded.find_valid(first)
        assert key is not None
        assert embedded.find_valid(second) is not None
        ask(key.id)
        assert embedded.find_valid(first) is None
        assert embedded.find_valid(second) is not None
        other.stdin.close()


def test_changes_are_in_an_audit_log(keys: ApiKeys, clock: Clock) -> None:
    key, _ = keys.create("a key", ["admin"])
    clock.now += 1
    keys.note_reload("984aaaa7b057", key.id)
    keys.note_reload(None, None)
    keys.revoke(key.id)
    entries, _ = keys.audit.read()
    acts = [(entry.event.action, entry.event.of, entry.event.actor) for entry in entries]
    assert sorted(acts, key=str) == sorted(
        [
            ("create_key", key.id, None),
            ("reload", "984aaaa7b057", key.id),
            ("reload", None, None),
            ("revoke_key", key.id, None),
        ],
        key=str,
    )
    assert acts[0][0] == "create_key"
    assert keys.audit.verify() is None
    with pytest.raises(InvalidError, match="not a name"):
        keys.note_reload("a model's name", None)


def test_commands_create_list_and_revoke_keys(
    vestibule: Command, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    assert "does not require one" in vestibule("list").stdout
    outcome = vestibule(
        "create", "a kiosk", "--scope", "enrol", "--scope", "infer", "--days", "30", "--rate-per-minute", "60"
    )
    assert outcome.exit_code == 0
    secret = outcome.stdout.strip()
    assert SECRET.fullmatch(secret)
    assert "not shown again" in outcome.stderr
    is_shared = request.node.callspec.params["vestibule"] == "postgres"
    keys = ApiKeys(open_keys(tmp_path, request.getfixturevalue("database_url") if is_shared else None))
    key = keys.find_valid(secret)
    assert key is not None
    assert key.scopes == {"enrol", "infer"}
    assert (key.name, key.rate_per_minute, key.concurrency) == ("a kiosk", 60, None)
    assert key.expires_at == pytest.approx(key.created_at + 30 * 86_400, abs=60)
    vestibule("create", "for ever", "--scope", "admin", "--concurrency", "2")
    vestibule("create", "over", "--scope", "infer", "--days", "0")
    listed = vestibule("list").stdout
    assert secret not in listed
    lines = {line.split()[-1]: line for line in listed.splitlines()}
    assert "enrol,infer" in lines["kiosk"]
    assert " until 20" in lines["kiosk"]
    assert "60/min" in lines["kiosk"]
    assert "until it is revoked" in lines["ever"]
    assert "2 at once" in lines["ever"]
    assert " expired 20" in lines["over"]
    assert vestibule("revoke", key.id).stdout == f"{key.id} is revoked\n"
    until(lambda: keys.find_valid(secret) is None, 5.0)
    keys.close()
    assert f"{key.id}  enrol,infer        revoked 20" in vestibule("list").stdout
    rows = {row["name"]: row for row in json.loads(vestibule("list", "--json").stdout)}
    assert [rows[name]["holds"] for name in ("a kiosk", "for ever", "over")] == [False, True, False]
    assert rows["a kiosk"]["scopes"] == ["enrol", "infer"]
    assert rows["a kiosk"]["revoked_at"].endswith("+00:00")
    audit = vestibule("audit").stdout
    assert re.findall(r"\w+_key (\w+)", audit).count(key.id) == 2
    assert len(audit.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["create", "x", "--scope", "everything"],
            "unknown scope everything; there are infer, enrol, observe, review, admin",
        ),
        (["create", "", "--scope", "infer"], "expected a name"),
        (["create", "a\nb", "--scope", "infer"], "expected a name"),
        (["create", "x" * 65, "--scope", "infer"], "expected a name"),
        (["revoke", "nobody"], "there is no key nobody"),
    ],
)
def test_an_invalid_command_is_a_one_line_error(tmp_path: Path, words: list[str], message: str) -> None:
    outcome = command({"VESTIBULE_STATE": str(tmp_path)})(*words)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert "Traceback" not in outcome.output


def test_a_changed_log_a_damaged_ledger_and_invalid_settings_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vestibule = command({"VESTIBULE_STATE": str(tmp_path)})
    vestibule("create", "x", "--scope", "infer")
    log = tmp_path / KEYS_FOLDER / "audit.log"
    log.write_bytes(log.read_bytes().replace(b"create_key", b"revoke_key"))
    outcome = vestibule("audit")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "entry 1: the hash does not match" in outcome.stderr
    for path in (tmp_path / KEYS_FOLDER).glob("ledger.db*"):
        path.unlink()
    (tmp_path / KEYS_FOLDER / "ledger.db").write_bytes(b"no database" * 1000)
    outcome = vestibule("list")
    assert outcome.exit_code == 1
    assert f"{KEYS_FOLDER}/ledger.db: " in outcome.stderr
    monkeypatch.setenv("VESTIBULE_PORT", "-1")
    assert "VESTIBULE_PORT: " in vestibule("list").stderr


def test_a_database_that_cannot_be_used_is_a_one_line_error_without_its_password(tmp_path: Path) -> None:
    for url, message in (
        ("postgresql://vestibule:secret@127.0.0.1:1/x?connect_timeout=1", "the database cannot be reached"),
        ("postgresql://vestibule:sec ret@[::1/x", "VESTIBULE_DATABASE: the URL is not valid"),
        ("sqlite:///secret", "VESTIBULE_DATABASE: expected a URL as postgresql://"),
    ):
        outcome = command({"VESTIBULE_STATE": str(tmp_path), "VESTIBULE_DATABASE": url})("list")
        assert outcome.exit_code == 1
        assert message in outcome.stderr
        assert "Traceback" not in outcome.output
        assert "secret" not in outcome.output.replace("sec ret", "secret")


def test_the_commands_of_the_security_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path))
    with Shell() as shell:
        kiosk, desk, listed, audit = (text for _, text in run_all(PROJECT / "docs" / "security.md", shell))
    assert SECRET.fullmatch(kiosk.strip())
    assert SECRET.fullmatch(desk.strip())
    assert [line.split("at once")[1].strip() for line in listed.splitlines()] == [
        "kiosk at the north door",
        "front desk",
    ]
    assert [line.split()[2] for line in audit.splitlines()] == ["create_key", "create_key"]
