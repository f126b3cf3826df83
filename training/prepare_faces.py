"""Convert a folder of people's photos to a data set of aligned faces, on which `training.embed` trains.

`python -m training.prepare_faces ~/photos people --jobs 4` writes VESTIBULE_DATASETS/people: train-00000.parquet and so
on with the columns image {bytes, path}, identity and source, and report.csv with the outcome for each photo. The
layouts of LFW, VGGFace2 and CelebA are recognised (see `training.prepare.face_layouts`). One face of each photo is cut
out, 112x112, detected and aligned as in the service. `--scales whole` detects at the detector's size only, as before
the service had detection scales. A killed run continues from the folder people.parts beside the target.

Scraped collections have wrong labels: in Families in the Wild, of identities with 3 or more photos, about 0.6 % of the
photos are far from their identity in the space of a strong embedder. `--clean weights/face-embedder --distance 0.7`
removes photos farther than that from the median direction of their identity. With a weak embedder or a small distance,
it also removes difficult photos of the right person; report.csv has the distance of each removed photo.

The data set depends on the photos and the versions of the packages, and not on the number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from models.align import QualityThresholds
from models.detection_scale import Scales
from training.core.errors import DataError, exit_on_error
from training.prepare.face_dataset import Summary, assemble, check_target, publish
from training.prepare.face_layouts import Layout, read_collection
from training.prepare.face_parts import begin_parts, examine_all, plan_of, read_parts
from training.prepare.face_photos import Choice, PhotoOptions
from training.prepare.face_selection import SelectionRules, select_photos
from training.recipe.config import check_name, datasets_folder

cli = typer.Typer(add_completion=False)


def prepare_faces(  # noqa: PLR0913
    folder: Path,
    name: str,
    options: PhotoOptions | None = None,
    rules: SelectionRules | None = None,
    *,
    layout: Layout | None = None,
    source: str | None = None,
    jobs: int = 0,
    overwrite: bool = False,
) -> Summary:
    """Write VESTIBULE_DATASETS/<name> from the photos in `folder`.

    `source` (None: `name`) is the prefix of each identity, see `training.datasets.faces`. `jobs` worker processes judge
    the photos, each with one thread; if 0, this process does.

    Raises:
        DatasetNotFoundError, DataError: see `read_collection`, `check_target`, `begin_parts` and `assemble`; an
        embedder
            without a distance, or the reverse.
        CheckpointError: see `weights.read_card`. TrainingError: a process was killed.
    """
    options, rules = options or PhotoOptions(), rules or SelectionRules()
    if (rules.distance is None) != (options.embedder is None):
        raise DataError("cleaning needs an embedder and a distance, both")
    target, source = datasets_folder() / check_name(name), check_name(source or name)
    parts = target.with_name(f"{name}.parts")
    check_target(target, folder, overwrite=overwrite)
    collection = read_collection(folder, layout)
    begin_parts(parts, plan_of(options, folder, collection), overwrite=overwrite)
    paths = examine_all(options, folder, collection.photos, parts, jobs)
    finished = parts / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    identities = (select_photos(photos, rules) for photos in read_parts(paths))
    summary = assemble(finished, identities, collection, source)
    publish(finished, target, parts)
    return summary


def read_limits(changes: Sequence[str]) -> QualityThresholds:
    """Return `QualityThresholds` with changes as `side=24` or `pitch=0.2,0.9`.

    Raises:
        DataError: an unknown limit, or not a number (two for `pitch`).
    """
    values: dict[str, str | list[str]] = {}
    for change in changes:
        name, _, text = change.partition("=")
        values[name] = text.split(",") if "," in text else text
    known = [limit.name for limit in fields(QualityThresholds)]
    if not values.keys() <= {*known}:
        raise DataError(f"--limit {' '.join(changes)}: unknown limit; known: {', '.join(known)}")
    try:
        return TypeAdapter(QualityThresholds).validate_python(values)
    except ValidationError as error:
        raise DataError(f"--limit {' '.join(changes)}: {error.errors()[0]['msg']}") from error


@cli.command()
def main(  # noqa: PLR0913, PLR0917
    folder: Annotated[Path, typer.Argument(help="The photos.")],
    name: Annotated[str, typer.Argument(help="The data set to write under VESTIBULE_DATASETS.")],
    layout: Annotated[
        Literal["auto", "people", "vggface2", "celeba"], typer.Option(help="How the photos are organised.")
    ] = "auto",
    source: Annotated[str | None, typer.Option(help="The prefix of each identity; default: NAME.")] = None,
    detector: Annotated[Path, typer.Option(help="A weights folder.")] = Path("weights/centerface"),
    choice: Annotated[Choice, typer.Option("--choose", help="The face to use if a photo has several.")] = "largest",
    scales: Annotated[
        Scales,
        typer.Option(help="Detect small faces as the service does (min-face), or at the detector's size only (whole)."),
    ] = "min-face",
    limits: Annotated[list[str] | None, typer.Option("--limit", help="As side=24 or yaw=1; repeatable.")] = None,
    min_photos: Annotated[int, typer.Option(min=1, help="People with fewer are left out.")] = 2,
    clean: Annotated[Path | None, typer.Option(help="An embedder's weights folder: remove outliers.")] = None,
    distance: Annotated[
        float | None, typer.Option(min=0, max=2, help="With --clean: the largest allowed 1 - cosine.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes, each with one thread.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set made by this command.")] = False,
) -> None:
    """Detect, select, check and align the face of each photo, and write the data set."""
    with exit_on_error():
        summary = prepare_faces(
            folder,
            name,
            PhotoOptions(detector, choice, read_limits(limits or ()), clean, scales),
            SelectionRules(min_photos, distance),
            layout=None if layout == "auto" else layout,
            source=source,
            jobs=jobs,
            overwrite=overwrite,
        )
    typer.echo(f"{datasets_folder() / name}: {summary}")


if __name__ == "__main__":
    cli()
