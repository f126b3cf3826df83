"""API keys as they are kept: what is on the disk, what other processes see, the command line, the audit log."""

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

from app.auth.keys import FOLDER, Keys
from app.cli.main import cli
from app.settings import PROJECT
from index.errors import ConflictError, InvalidError, NotFoundError
from tests.fences import Shell, run_all

NOW = 1_700_000_000.0
SECRET = re.compile(r"vst_[\w-]{43}")

Command = Callable[..., Any]  # the outcome: exit_code, stdout, stderr


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Iterator[Keys]:
    made = Keys(tmp_path / FOLDER, clock)
    yield made
    made.close()


@pytest.fixture
def vestibule(tmp_path: Path) -> Command:
    return lambda *words: CliRunner().invoke(cli, ["keys", *words], env={"VESTIBULE_STATE": str(tmp_path)})


def test_a_key_is_random_and_only_its_hash_is_kept(keys: Keys, tmp_path: Path) -> None:
    made = [keys.create("somebody", ["infer"]) for _ in range(3)]
    assert len({secret for _, secret in made} | {key.id for key, _ in made}) == 6
    for key, secret in made:
        assert SECRET.fullmatch(secret)
        assert keys.holder(secret) == key
        assert keys.known()[hashlib.sha256(secret.encode()).digest()] == key
    assert keys.holder("vst_" + "A" * 43) is None
    keys.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ledger.db", "audit.log"}
    for path in files:
        for _, secret in made:
            assert secret.encode() not in path.read_bytes()
            assert secret[4:].encode() not in path.read_bytes()
    assert b"somebody" not in (tmp_path / FOLDER / "audit.log").read_bytes()


def test_a_key_holds_until_its_time_is_over_or_it_is_revoked(keys: Keys, clock: Clock) -> None:
    made, secret = keys.create("short", ["infer", "enrol"], expires_at=NOW + 10)
    assert made.scopes == {"infer", "enrol"}
    clock.now = NOW + 9.9
    assert keys.holder(secret) == made
    clock.now = NOW + 10
    assert keys.holder(secret) is None
    other, secret = keys.create("other", ["admin"])
    keys.revoke(other.id)
    assert keys.holder(secret) is None
    assert [key.revoked_at for key in keys.all()] == [None, NOW + 10]
    with pytest.raises(ConflictError, match="revoked already"):
        keys.revoke(other.id)
    with pytest.raises(NotFoundError, match="no key"):
        keys.revoke("nobody")


def test_what_another_process_does_is_seen_at_once(keys: Keys, tmp_path: Path) -> None:
    assert keys.known() == {}
    assert not (tmp_path / FOLDER).exists()  # who only looks makes nothing
    program = (
        "import sys; from pathlib import Path; from app.auth.keys import Keys; keys = Keys(Path(sys.argv[1]))\n"
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
        key = keys.holder(first)
        assert key is not None
        assert keys.holder(second) is not None
        ask(key.id)
        assert keys.holder(first) is None
        assert keys.holder(second) is not None
        other.stdin.close()


def test_what_was_done_is_in_a_log_of_its_own(keys: Keys, clock: Clock) -> None:
    made, _ = keys.create("one", ["admin"])
    clock.now += 1
    keys.note_reload("984aaaa7b057", made.id)
    keys.note_reload(None, None)
    keys.revoke(made.id)
    entries, _ = keys.audit.read()
    told = [(entry.act.action, entry.act.of, entry.act.actor) for entry in entries]
    assert sorted(told, key=str) == sorted(
        [
            ("create_key", made.id, None),
            ("reload", "984aaaa7b057", made.id),
            ("reload", None, None),
            ("revoke_key", made.id, None),
        ],
        key=str,
    )
    assert told[0][0] == "create_key"
    assert keys.audit.verify() is None
    with pytest.raises(InvalidError, match="not a name"):
        keys.note_reload("a model's name", None)


def test_by_hand(vestibule: Command, tmp_path: Path) -> None:
    assert "does not require one" in vestibule("list").stdout
    made = vestibule(
        "create", "a kiosk", "--scope", "enrol", "--scope", "infer", "--days", "30", "--rate-per-minute", "60"
    )
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert SECRET.fullmatch(secret)
    assert "not shown again" in made.stderr
    kept = Keys(tmp_path / FOLDER)
    key = kept.holder(secret)
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
    assert kept.holder(secret) is None
    kept.close()
    assert f"{key.id}  enrol,infer        revoked 20" in vestibule("list").stdout
    told = {row["name"]: row for row in json.loads(vestibule("list", "--json").stdout)}
    assert [told[name]["holds"] for name in ("a kiosk", "for ever", "over")] == [False, True, False]
    assert told["a kiosk"]["scopes"] == ["enrol", "infer"]
    assert told["a kiosk"]["revoked_at"].endswith("+00:00")
    done = vestibule("audit").stdout
    assert re.findall(r"\w+_key (\w+)", done).count(key.id) == 2
    assert len(done.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", "x", "--scope", "everything"], "unknown scope everything; there are infer, enrol, admin"),
        (["create", "", "--scope", "infer"], "expected a name"),
        (["create", "a\nb", "--scope", "infer"], "expected a name"),
        (["create", "x" * 65, "--scope", "infer"], "expected a name"),
        (["revoke", "nobody"], "there is no key nobody"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(vestibule: Command, words: list[str], told: str) -> None:
    outcome = vestibule(*words)
    assert outcome.exit_code == 1
    assert told in outcome.stderr
    assert "Traceback" not in outcome.output


def test_a_key_without_a_scope_is_none(vestibule: Command) -> None:
    assert vestibule("create", "x").exit_code == 2


def test_a_log_that_was_changed_a_ledger_that_is_none_and_settings_that_are_wrong(
    vestibule: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vestibule("create", "x", "--scope", "infer")
    log = tmp_path / FOLDER / "audit.log"
    log.write_bytes(log.read_bytes().replace(b"create_key", b"revoke_key"))
    outcome = vestibule("audit")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "entry 1: it was changed" in outcome.stderr
    for path in (tmp_path / FOLDER).glob("ledger.db*"):
        path.unlink()
    (tmp_path / FOLDER / "ledger.db").write_bytes(b"no database" * 1000)
    outcome = vestibule("list")
    assert outcome.exit_code == 1
    assert "the keys: " in outcome.stderr
    monkeypatch.setenv("VESTIBULE_PORT", "-1")
    assert "VESTIBULE_PORT: " in vestibule("list").stderr


def test_the_page_s_commands_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
