"""Manifests: JSON files with a checksum, which describe the other files of a folder and are written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from index.errors import CorruptError, TooNewError

MANIFEST_FILE = "manifest.json"


def dump_manifest(content: dict[str, Any]) -> str:
    """Return the content with its checksum as JSON."""
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"checksum": checksum}, indent=2) + "\n"


def read_manifest(folder: Path, kind: str, version: int) -> dict[str, Any]:
    """Return the content of the folder's manifest without its checksum. `kind`: of the folder, such as "a backup".

    Raises:
        CorruptError: it is missing or damaged. TooNewError: its version is later than `version`.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        if isinstance(content["version"], int) and content["version"] > version:
            raise TooNewError(f"{path} has version {content['version']}; this program reads up to version {version}")
        del content["checksum"]
    except FileNotFoundError as error:
        raise CorruptError(f"{folder} is not {kind}, or an incomplete one: {path.name} is missing") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"{path} is damaged") from error
    if dump_manifest(content) != text:
        raise CorruptError(f"{path} is damaged")
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
