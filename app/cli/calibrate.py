"""`vestibule gallery calibrate`: fit a collection's thresholds to photos from the site's own cameras."""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.batch_client import ImageFile, find_images
from app.cli.client import ApiKey, Url, connected
from app.cli.terminal import fail, progress_bar, replace_unprintable

if TYPE_CHECKING:
    from vestibule_client import Client
    from vestibule_client.gallery_answers import CalibrationInfo, CollectionDetail, RateChange


@dataclass(frozen=True)
class PersonPhoto:
    """A photo, and the name of its person's folder; of a photo that lies in no such folder, its own path."""

    image: ImageFile
    person: str


def calibrate(
    collection: Annotated[str, typer.Argument(help="The collection to calibrate.", show_default=False)],
    *,
    strangers: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            show_default=False,
            help="Photos of people who are not enrolled: a folder for each person, or photos of unknown people.",
        ),
    ],
    mated: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            show_default=False,
            help="Further photos of enrolled people: a folder for each, named by the subject's id.",
        ),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            show_default=False,
            help="A CSV file whose first column is the name of a stranger's folder or photo; the report has the errors"
            " by each value of the other columns.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Fit a collection's thresholds to its site, and print the error rates before and after.

    The photos are enrolled in collections of their own, which are erased at the end.
    """
    fields = _read_metadata(metadata)
    photos, is_sorted = _photos(strangers)
    if not photos:
        fail(f"no images found in {strangers}")
    of_enrolled, mated_sorted = _photos(mated) if mated else ([], True)
    if not mated_sorted:
        fail(f"{mated}: expected a folder for each enrolled person, named by the subject's id")
    with connected(url, api_key) as client:
        target = client.collection(collection)
        names = {photo.person: f"person-{number}" for number, photo in enumerate(photos)}  # ids may have fewer letters
        with (
            _enrolled(client, target, photos, names, fields) as temporary,
            _enrolled(client, target, of_enrolled, {}, {}) as own,
        ):
            calibration = client.calibrate(collection, temporary, mated=own or None, compare_strangers=is_sorted)
    typer.echo(calibration.model_dump_json(indent=2) if as_json else describe(collection, calibration))


def calibrations(
    collection: Annotated[str, typer.Argument(show_default=False)],
    use: Annotated[
        str | None,
        typer.Option(help="Use this calibration from now on; `own`: that of the embedder.", show_default=False),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the calibrations of a collection, or use an earlier one."""
    with connected(url, api_key) as client:
        if use is not None:
            client.use_calibration(collection, None if use == "own" else use)
        after: int | None = 0
        while after is not None:
            page = client.calibrations(collection, after=after)
            for row in page.data:
                state = "in use" if row.in_use else ""
                typer.echo(
                    f"{row.version:>4}  {row.id}  {row.created_at:%Y-%m-%d %H:%M}  {row.report.people:>7,} people"
                    f"  {row.fingerprint}  {state}".rstrip()
                )
            after = page.next


def _read_metadata(path: Path | None) -> dict[str, dict[str, Any]]:
    """Return the values of each row by the header, by the row's first column."""
    if path is None:
        return {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        fail(f"{path}: expected a header and rows of as many columns")
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def _photos(folder: Path) -> tuple[list[PersonPhoto], bool]:
    """Return the photos in the folder, and whether they are sorted by people: each in a folder of its person."""
    skipped: list[Path] = []
    images = list(find_images([folder], skipped))
    for path in skipped:
        typer.echo(f"vestibule: skipped {replace_unprintable(str(path))}: not an image", err=True)
    is_sorted = all(len(image.relative.parts) > 1 for image in images)
    return [
        PersonPhoto(image, image.relative.parts[0] if is_sorted else image.relative.as_posix()) for image in images
    ], is_sorted


@contextmanager
def _enrolled(
    client: Client,
    target: CollectionDetail,
    photos: list[PersonPhoto],
    ids: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Enrol photos in a temporary collection of the target's pipeline, and yield its name; "" without photos.

    `ids`: of subjects by person, where they are not the person's own name. `metadata`: by person.
    """
    from vestibule_client import Problem

    if not photos:
        yield ""
        return
    name = f"calibration-{secrets.token_hex(8)}"
    client.create_collection(name, embedder=target.embedder, encrypted=target.encrypted)
    try:
        for person in {photo.person for photo in photos} & metadata.keys():
            client.put_subject(name, ids.get(person, person), metadata=metadata[person])
        with progress_bar(len(photos)) as show_progress:
            for number, photo in enumerate(photos, 1):
                try:
                    client.enrol(name, ids.get(photo.person, photo.person), photo.image.path, quality_gate=False)
                except Problem as error:
                    if error.status >= 500 or error.status in {401, 403}:
                        raise
                    typer.echo(f"vestibule: skipped {replace_unprintable(str(photo.image.path))}: {error}", err=True)
                show_progress(number)
        yield name
    finally:
        client.erase_collection(name)


def describe(collection: str, calibration: CalibrationInfo) -> str:
    """Return the report as a table."""
    report = calibration.report
    lines = [
        f"{collection}: calibration {calibration.version} ({calibration.id}) is in use",
        f"{report.people:,} strangers, {report.photos:,} photos, {report.comparisons:,} comparisons;"
        f" {report.mated:,} mated",
        f"{'rate':6}{'requested':>11}  {'before (95 % interval)':34}after",
    ]
    for name, changes in (("FMR", report.fmr), ("FPIR", report.fpir), ("FNIR", report.fnir)):
        lines += [f"{name:6}{change.requested:>11g}  {_before(change):34}{_after(change)}" for change in changes]
    lines += [
        f"FMR 0.01, {json.dumps({group.field: group.value})}: {group.before:.5f},"
        f" {'-' if group.after is None else f'{group.after:.5f}'} after; {group.people:,} people"
        for group in report.groups
    ]
    return "\n".join(lines)


def _before(change: RateChange) -> str:
    return f"{change.before:.5f} ({change.before_low:.5f} to {change.before_high:.5f})"


def _after(change: RateChange) -> str:
    if change.after is None:
        return "too few strangers for half of them"
    return f"{change.after:.5f} ({change.after_low:.5f} to {change.after_high:.5f})"
