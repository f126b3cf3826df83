"""The operator's key: how it is configured and replaced."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import Settings
from index.embedded.gallery import EmbeddedGallery
from index.operator_key import OperatorKey
from tests.app.gallery.helpers import base64_text
from tests.index.people import enrol

OLD, NEW = b"a secret that is 32 bytes long..", b"another one, of as many bytes..."


def test_the_key_is_read_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().operator_key() is None
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", base64_text(OLD))
    settings = Settings()
    key = settings.operator_key()
    assert key is not None
    assert key.id == OperatorKey(OLD).id
    assert base64_text(OLD) not in repr(settings)
    # With the byte order mark and the line end of an editor.
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + base64.b64encode(NEW) + b"\r\n")
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ValidationError, match="given twice") as refused:
        Settings()
    assert base64_text(OLD) not in str(refused.value)
    monkeypatch.delenv("VESTIBULE_ENCRYPTION_KEY")
    key = Settings().operator_key()
    assert key is not None
    assert key.id == OperatorKey(NEW).id


@pytest.mark.parametrize("content", [None, b"", b"c2hvcnQ=", b"\xff\xfe", base64_text(OLD)[:-2].encode()])
def test_an_invalid_key_ends_the_startup_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    result = CliRunner().invoke(cli, ["serve"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"the encryption key in {tmp_path / 'key'}: " in line


def test_rekey_replaces_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = EmbeddedGallery(tmp_path / "gallery", key=OperatorKey(OLD))
    gallery.create("doors", "face-embedder", "f1", 4, encrypted=True)
    enrol(gallery, "doors", 5)
    gallery.close()
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path))
    (tmp_path / "new").write_text(base64_text(NEW))
    rekey = ["gallery", "rekey", str(tmp_path / "new")]
    runner = CliRunner()
    refused = runner.invoke(cli, rekey)
    assert (refused.exit_code, OperatorKey(OLD).id in refused.stderr) == (1, True)
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", base64_text(OLD))
    result = runner.invoke(cli, rekey)
    assert (result.exit_code, OperatorKey(NEW).id in result.stdout) == (0, True)
    assert runner.invoke(cli, ["gallery", "verify"]).exit_code == 1
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", base64_text(NEW))
    assert runner.invoke(cli, ["gallery", "verify"]).exit_code == 0
    assert runner.invoke(cli, ["gallery", "list"]).stdout.splitlines()[0].endswith("encrypted")
