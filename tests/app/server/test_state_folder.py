"""The state folder: private to its user, and checked before models load."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.server.state_folder import prepare
from app.settings import PROJECT
from tests.app.server.test_process import serving

pytestmark = pytest.mark.usefixtures("_restore_logging")

NOBODY = 65534


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Set an open umask, and restore the old one after the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the permission bits of the folder and of everything below it."""
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


def test_files_of_the_service_are_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving(VESTIBULE_STATE=str(state), VESTIBULE_RUNTIME="torch"):
        files = modes(state)
    assert (state / "gallery" / "ledger.db").exists()
    assert {path: oct(mode) for path, mode in files.items() if mode & 0o077} == {}


def test_files_of_commands_are_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outcome = CliRunner().invoke(cli, ["keys", "create", "k", "--scope", "infer"], env={"VESTIBULE_STATE": str(state)})
    assert outcome.exit_code == 0
    assert (state / "keys" / "ledger.db").exists()
    assert {path: oct(mode) for path, mode in modes(state).items() if mode & 0o077} == {}


@pytest.mark.parametrize(("mode", "warned"), [(0o755, True), (0o750, True), (0o701, True), (0o700, False)])
def test_a_folder_that_other_users_can_read_is_a_warning(tmp_path: Path, mode: int, warned: bool) -> None:
    tmp_path.chmod(mode)
    warning = prepare(tmp_path)
    assert (warning is not None) == warned
    if warning:
        assert str(tmp_path) in warning
        assert f"{mode:04o}" in warning
    listed = CliRunner().invoke(cli, ["keys", "list"], env={"VESTIBULE_STATE": str(tmp_path)})
    assert listed.exit_code == 0
    assert ("other users may read" in listed.stderr) == warned


def test_a_read_only_command_creates_no_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for command in (["keys", "list"], ["gallery", "list"]):
        CliRunner().invoke(cli, command, env={"VESTIBULE_STATE": str(state)})
    assert not state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_without_write_permission_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    # In a process of its own: the user id is that of all threads, also of those of a service that a fixture holds.
    prepare_as_nobody = f"""
import os, pathlib
from app.server.state_folder import prepare
os.seteuid({NOBODY})
prepare(pathlib.Path({str(tmp_path)!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", prepare_as_nobody], check=False, cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    error = f"ConfigurationError: VESTIBULE_STATE: no file can be created in {tmp_path}: Permission denied"
    assert done.stderr.splitlines()[-1].endswith(error), done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["serve", "--port", "0"],
        ["serve", "--port", "0", "--workers", "2"],
        ["keys", "create", "k", "--scope", "infer"],
        ["gallery", "restore", "nowhere"],
    ],
)
@pytest.mark.parametrize("state", ["/proc/vestibule", "FILE/state"])
def test_an_unwritable_folder_is_a_one_line_error_that_names_the_variable(
    command: list[str], state: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    outcome = CliRunner().invoke(cli, command, env={"VESTIBULE_STATE": state.replace("FILE", str(tmp_path / "file"))})
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr.splitlines()[-1].startswith("vestibule: VESTIBULE_STATE: no file can be created in ")
    assert "model_loaded" not in outcome.stderr


def test_an_unreadable_ledger_ends_the_process_before_models_load(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "ledger.db").write_bytes(b"no database " * 1000)
    environment = os.environ | {"VESTIBULE_STATE": str(tmp_path), "VESTIBULE_RUNTIME": "torch"}
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"]
    done = subprocess.run(
        command, check=False, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3  # uvicorn's status for a failed startup
    assert "file is not a database" in done.stderr
    assert "model_loaded" not in done.stderr
