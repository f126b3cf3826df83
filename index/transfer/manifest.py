"""The manifest of an export of a whole gallery."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index.audit_chain import LogHead
from index.errors import CorruptError
from index.folders import write_atomically
from index.manifests import MANIFEST_FILE, dump_manifest, file_sha256, read_manifest
from index.records import Export, ExportedCollection, ExportPart, Kind
from index.sightings import SightingSettings
from index.types import Calibration, Collection

VERSION = 1


@dataclass(frozen=True)
class ExportManifest:
    """Describes an export. `rows` and `sha256`: the number of rows and the checksum of each part, by its name.

    `unfinished_receipts`: of erasures whose data was still in a file of the gallery; `left_behind`: what an export
    leaves out.
    """

    export: Export
    collections: tuple[ExportedCollection, ...]
    rows: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    unfinished_receipts: int = 0
    left_behind: dict[str, int] = field(default_factory=dict)

    def count(self, kind: Kind) -> int:
        """Return the number of rows of this kind in all collections."""
        return sum(self.rows[ExportPart(self.export, kind, number).name] for number in range(len(self.collections)))


def part_path(folder: Path, name: str) -> Path:
    """Return the path of the file of a part."""
    return folder / f"{name}.parquet"


def write_export(folder: Path, manifest: ExportManifest) -> None:
    """Write the manifest to the folder of the export."""
    content = {"version": VERSION, **asdict(manifest)}
    write_atomically(folder / MANIFEST_FILE, [dump_manifest(content).encode()])


def _read_collection(content: dict[str, Any]) -> ExportedCollection:
    return ExportedCollection(
        Collection(**content["collection"]),
        tuple(Calibration(**calibration) for calibration in content["calibrations"]),
        SightingSettings(**content["sightings"]),
    )


def read_export(folder: Path) -> ExportManifest:
    """Return the manifest of an export, after comparing all files with it.

    Raises:
        CorruptError: the manifest or a file is missing or damaged, or it is the manifest of something else.
        TooNewError.
    """
    content = read_manifest(folder, "an export", VERSION)
    try:
        export = {**content["export"], "head": LogHead(**content["export"]["head"])}
        manifest = ExportManifest(
            Export(**export),
            tuple(map(_read_collection, content["collections"])),
            content["rows"],
            content["sha256"],
            content["unfinished_receipts"],
            content["left_behind"],
        )
    except (KeyError, TypeError) as error:  # such as the manifest of a backup
        raise CorruptError(f"{folder} is not an export of a whole gallery") from error
    for name, checksum in manifest.sha256.items():
        path = part_path(folder, name)
        if not path.is_file():
            raise CorruptError(f"{path} is missing")
        if file_sha256(path) != checksum:
            raise CorruptError(f"{path} is damaged: its SHA-256 is not the manifest's")
    return manifest
