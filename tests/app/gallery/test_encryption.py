"""The operator's key: where it comes from, what is told of it, and another in its place."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import Settings, read_key
from index.embedded.encryption.aead import OperatorKey
from index.embedded.gallery import EmbeddedGallery
from tests.index.people import enrol


def text(key: bytes) -> str:
    return base64.b64encode(key).decode()


OLD, NEW = b"a secret that is 32 bytes long..", b"another one, of as many bytes..."


def test_the_key_comes_from_the_environment_or_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().operator_key() is None
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", text(OLD))
    settings = Settings()
    key = settings.operator_key()
    assert key is not None
    assert key.id == OperatorKey(OLD).id
    assert text(OLD) not in repr(settings)
    (tmp_path / "key").write_text(text(NEW) + "\n")
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ValidationError, match="given twice") as refused:
        Settings()
    assert text(OLD) not in str(refused.value)
    monkeypatch.delenv("VESTIBULE_ENCRYPTION_KEY")
    key = Settings().operator_key()
    assert key is not None
    assert key.id == OperatorKey(NEW).id


@pytest.mark.parametrize("content", [None, b"", b"c2hvcnQ=", b"\xff\xfe", text(OLD)[:-2].encode()])
def test_what_is_no_key_ends_the_start_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    outcome = CliRunner().invoke(cli, ["serve"])
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert f"the encryption key in {tmp_path / 'key'}: " in line


def test_rekey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = EmbeddedGallery(tmp_path / "gallery", key=OperatorKey(OLD))
    gallery.create("doors", "face-embedder", "f1", 4, encrypted=True)
    enrol(gallery, "doors", 5)
    gallery.close()
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path))
    (tmp_path / "new").write_text(text(NEW))
    run = CliRunner()
    refused = run.invoke(cli, ["gallery", "rekey", str(tmp_path / "new")])
    assert refused.exit_code == 1
    assert f"needs the operator's key {OperatorKey(OLD).id}, and none is given" in refused.stderr
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", text(OLD))
    done = run.invoke(cli, ["gallery", "rekey", str(tmp_path / "new")])
    assert done.exit_code == 0
    assert f"the keys of 1 collections are now wrapped with {OperatorKey(NEW).id}" in done.stdout
    assert run.invoke(cli, ["gallery", "rekey", str(tmp_path / "none")]).exit_code == 1
    assert run.invoke(cli, ["gallery", "verify"]).exit_code == 1
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", text(NEW))
    assert run.invoke(cli, ["gallery", "verify"]).exit_code == 0
    assert run.invoke(cli, ["gallery", "list"]).stdout.splitlines()[0].endswith("encrypted")


def test_byte_order_mark_of_an_editor_is_not_part_of_a_key(tmp_path: Path) -> None:
    text = base64.b64encode(bytes(range(32)))
    for name, data in (("plain", text), ("marked", b"\xef\xbb\xbf" + text + b"\r\n")):
        (tmp_path / name).write_bytes(data)
    assert read_key(tmp_path / "marked").id == read_key(tmp_path / "plain").id
