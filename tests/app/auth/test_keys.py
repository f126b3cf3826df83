"""API keys: files, several processes, the `vestibule keys` commands, the audit log."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.auth.keys import FOLDER, ApiKeys
from app.cli.main import cli
from app.settings import PROJECT
from index.errors import ConflictError, InvalidError, NotFoundError
from tests.app.conftest import Clock
from tests.fences import Shell, run_all

SECRET = re.compile(r"vst_[\w-]{43}")

Command = Callable[..., Any]  # the outcome: exit_code, stdout, stderr


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Iterator[ApiKeys]:
    keys = ApiKeys(tmp_path / FOLDER, clock)
    yield keys
    keys.close()


@pytest.fixture
def vestibule(tmp_path: Path) -> Command:
    return lambda *words: CliRunner().invoke(cli, ["keys", *words], env={"VESTIBULE_STATE": str(tmp_path)})


def test_a_key_is_random_and_only_its_hash_is_stored(keys: ApiKeys, tmp_path: Path) -> None:
    created = [keys.create("somebody", ["infer"]) for _ in range(3)]
    assert len({secret for _, secret in created} | {key.id for key, _ in created}) == 6
    for key, secret in created:
        assert SECRET.fullmatch(secret)
        assert keys.find_valid(secret) == key
        assert keys.by_hash()[hashlib.sha256(secret.encode()).digest()] == key
    assert keys.find_valid("vst_" + "A" * 43) is None
    keys.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ledger.db", "audit.log"}
    for path in files:
        for _, secret in created:
            assert secret.encode() not in path.read_bytes()
            assert secret[4:].encode() not in path.read_bytes()
    assert b"somebody" not in (tmp_path / FOLDER / "audit.log").read_bytes()


def test_a_key_is_valid_until_it_expires_or_is_revoked(keys: ApiKeys, clock: Clock) -> None:
    start = clock.now
    key, secret = keys.create("short", ["infer", "enrol"], expires_at=start + 10)
    assert key.scopes == {"infer", "enrol"}
    clock.now = start + 9.9
    assert keys.find_valid(secret) == key
    clock.now = start + 10
    assert keys.find_valid(secret) is None
    other, secret = keys.create("other", ["admin"])
    keys.revoke(other.id)
    assert keys.find_valid(secret) is None
    assert [key.revoked_at for key in keys.all()] == [None, start + 10]
    with pytest.raises(ConflictError, match="revoked already"):
        keys.revoke(other.id)
    with pytest.raises(NotFoundError, match="no key"):
        keys.revoke("nobody")


def test_changes_by_another_process_are_seen_at_once(keys: ApiKeys, tmp_path: Path) -> None:
    assert keys.by_hash() == {}
    assert not (tmp_path / FOLDER).exists()  # reading creates nothing
    program = (
        "import sys; from pathlib import Path; from app.auth.keys import ApiKeys; keys = ApiKeys(Path(sys.argv[1]))\n"
        "for line in sys.stdin:\n"
        "    print(keys.create('a', ['infer'])[1] if line == 'create\\n' else keys.revoke(line.strip()), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / FOLDER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def ask(line: str) -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            print(line, file=other.stdin, flush=True)
            return other.stdout.readline().strip()

        first, second = ask("create"), ask("create")
        key = keys.find_valid(first)
        assert key is not None
        assert keys.find_valid(second) is not None
        ask(key.id)
        assert keys.find_valid(first) is None
        assert keys.find_valid(second) is not None
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


def test_commands_create_list_and_revoke_keys(vestibule: Command, tmp_path: Path) -> None:
    assert "does not require one" in vestibule("list").stdout
    outcome = vestibule(
        "create", "a kiosk", "--scope", "enrol", "--scope", "infer", "--days", "30", "--rate-per-minute", "60"
    )
    assert outcome.exit_code == 0
    secret = outcome.stdout.strip()
    assert SECRET.fullmatch(secret)
    assert "not shown again" in outcome.stderr
    keys = ApiKeys(tmp_path / FOLDER)
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
    assert keys.find_valid(secret) is None
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
        (["create", "x", "--scope", "everything"], "unknown scope everything; there are infer, enrol, admin"),
        (["create", "", "--scope", "infer"], "expected a name"),
        (["create", "a\nb", "--scope", "infer"], "expected a name"),
        (["create", "x" * 65, "--scope", "infer"], "expected a name"),
        (["revoke", "nobody"], "there is no key nobody"),
    ],
)
def test_an_invalid_command_is_a_one_line_error(vestibule: Command, words: list[str], message: str) -> None:
    outcome = vestibule(*words)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert "Traceback" not in outcome.output


def test_a_changed_log_a_damaged_ledger_and_invalid_settings_are_errors(
    vestibule: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vestibule("create", "x", "--scope", "infer")
    log = tmp_path / FOLDER / "audit.log"
    log.write_bytes(log.read_bytes().replace(b"create_key", b"revoke_key"))
    outcome = vestibule("audit")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "entry 1: the hash does not match" in outcome.stderr
    for path in (tmp_path / FOLDER).glob("ledger.db*"):
        path.unlink()
    (tmp_path / FOLDER / "ledger.db").write_bytes(b"no database" * 1000)
    outcome = vestibule("list")
    assert outcome.exit_code == 1
    assert f"{FOLDER}/ledger.db: " in outcome.stderr
    monkeypatch.setenv("VESTIBULE_PORT", "-1")
    assert "VESTIBULE_PORT: " in vestibule("list").stderr


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
