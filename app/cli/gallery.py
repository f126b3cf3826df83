"""`vestibule gallery`: commands of an operator on the gallery, whether the service runs or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.calibrate import calibrate, calibrations
from app.cli.client import ApiKey, Url, connected
from app.cli.terminal import fail, prepare_state_folder, progress_bar, read_settings, report_state_errors

if TYPE_CHECKING:
    from app.settings import Settings
    from index.administration import LocalGallery
    from index.operator_key import OperatorKey
    from index.protocol import Storage

_BACK_UP_DATABASE = "use pg_basebackup or pg_dump"
_NOUNS = {"subjects": "subjects", "faces": "faces", "feedback": "rejected faces"}
_POLL_S = 0.5  # seconds between two requests for the progress of a re-embedding

gallery_cli = typer.Typer(
    name="gallery", help="The gallery: list, export, import, verify, repair, back up.", no_args_is_help=True
)


@gallery_cli.command("list")
def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; sizes in bytes.")] = False,
) -> None:
    """List the collections with their size, embedder and kind of search."""
    with _open_storage() as (storage, _):
        rows = [
            {
                "name": collection.name,
                "embedder": collection.embedder,
                "fingerprint": collection.fingerprint,
                "dimensions": collection.dimensions,
                "encrypted": collection.encrypted,
                **storage.gallery.usage(collection.name).__dict__,
            }
            for collection in storage.gallery.collections(limit=-1)
        ]
        size = storage.stored_bytes()
    place = "ledger" if read_settings().database is None else "database"
    if as_json:
        typer.echo(json.dumps({f"{place}_bytes": size, "collections": rows}, indent=2))
        return
    for row in rows:
        search = "exact" if row["exact"] else "indexed"
        typer.echo(
            f"{row['name']:24} {row['subjects']:>10,} subjects {row['faces']:>12,} faces  {search:7}"
            f" {_megabytes(row['file_bytes'])} of files  {row['embedder']} {row['fingerprint']} x{row['dimensions']}"
            f"{'  encrypted' if row['encrypted'] else ''}"
        )
    typer.echo(f"{len(rows)} collections; the {place} has {_megabytes(size)}")


@gallery_cli.command("export")
def export_parquet(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="COLLECTION FILE | FOLDER",
            help="A collection and a new .parquet file; with --all a new or empty folder. Both contain biometric data.",
        ),
    ],
    everything: Annotated[bool, typer.Option("--all", help="Export the whole gallery to a folder.")] = False,
) -> None:
    """Export the faces of a collection to a Parquet file, one row per face; or the whole gallery to a folder."""
    from index.transfer.collection_file import export_collection
    from index.transfer.gallery_folder import export_gallery

    if len(paths) != (1 if everything else 2):
        fail("expected a collection and a file, or a folder and --all")
    with _open_storage() as (storage, key):
        if not everything:
            count = export_collection(storage.transfer, paths[0], Path(paths[1]), key)
            typer.echo(f"wrote {count:,} faces to {paths[1]}")
            return
        manifest = export_gallery(storage.transfer, Path(paths[0]), key)
    typer.echo(
        f"wrote {manifest.count('subjects'):,} subjects, {manifest.count('faces'):,} faces and"
        f" {manifest.count('feedback'):,} rejected faces of {len(manifest.collections):,} collections, and"
        f" {manifest.rows['receipts']:,} receipts to {paths[0]}"
    )
    for kind, count in manifest.left_behind.items():
        typer.echo(f"not exported: {count:,} {kind}", err=True)
    if manifest.unfinished_receipts:
        typer.echo(
            f"{manifest.unfinished_receipts:,} erasures are not finished: files of this gallery still have erased data",
            err=True,
        )


@gallery_cli.command("import")
def import_parquet(
    path: Annotated[Path, typer.Argument(help="A file, or with --all a folder, that `export` wrote.")],
    collection: Annotated[
        str | None, typer.Option(help="The collection's name; by default its name at export.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Import a whole gallery from a folder.")] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="With --all: a collection to leave out; repeat it for several.")
    ] = None,
    searches: Annotated[
        int, typer.Option(min=0, help="With --all: how many searches to compare with the export.")
    ] = 1000,
) -> None:
    """Enrol the faces of a file; or import a whole gallery into new collections, and compare it with its export.

    Both can be run again after a crash. A file enrols no face twice, but also what was erased since its export; a
    whole gallery is never loaded twice, so that what was erased after the import does not come back.
    """
    from index.transfer.collection_file import import_collection

    if path.is_dir() and not everything:
        fail(f"{path} is a folder: import it with --all")
    if everything and collection is not None:
        fail("--collection is for a file: a whole gallery keeps the names of its collections")
    with _open_storage(new=True) as (storage, key):
        if everything:
            _import_gallery(storage, path, key, without or [], searches)
            return
        done = import_collection(storage.transfer, path, collection, key)
    typer.echo(f"enrolled {done.enrolled:,} faces in {done.collection}; {done.present:,} were already enrolled")
    if done.expired:
        typer.echo(f"skipped {done.expired:,} faces of expired subjects")


def _import_gallery(
    storage: Storage, folder: Path, key: OperatorKey | None, without: Sequence[str], searches: int
) -> None:
    """Import the whole gallery in the folder, and end with an error if it differs from its export afterwards."""
    from index.transfer.comparison import compare_gallery
    from index.transfer.gallery_folder import import_gallery

    done = import_gallery(storage.transfer, folder, key, without)
    for name, parts in done.collections.items():
        if parts is None:
            typer.echo(f"{name} was dropped after it was imported, and is not imported again")
            continue
        loaded = ", ".join(f"{part.new:,} {_NOUNS[kind]}" for kind, part in parts.items())
        left_out = sum(part.rows - part.before - part.new for part in parts.values())
        typer.echo(f"{name}: {loaded}" + (f"; left out {left_out:,} of expired or erased subjects" if left_out else ""))
    typer.echo(f"{done.receipts.new:,} receipts")
    if not done.is_new:
        typer.echo("all of this export was imported before: nothing has changed")
    result = compare_gallery(storage, folder, done.manifest, key, without=without, searches=searches)
    for difference in result.differences:
        typer.echo(f"vestibule: {difference}", err=True)
    if result.differences:
        fail("the gallery differs from the export; what was changed in it after the import counts, too")
    typer.echo(f"compared all rows and {result.searches:,} searches with the export: equal")


@gallery_cli.command()
def verify() -> None:
    """Check the whole gallery for damage; the exit status is 1 if there is any.

    In a database: that all rows can be read, the counts and the audit log. `pg_amcheck` checks the files.
    """
    count = 0
    with _open_storage() as (storage, _):
        for count, fault in enumerate(storage.find_faults(), 1):  # noqa: B007  the last number is the count
            typer.echo(fault)
    if count:
        raise typer.Exit(1)
    typer.echo("no faults found")


@gallery_cli.command()
def clashes() -> None:
    """List subjects and collections whose names differ only in their Unicode normalisation form.

    DELETE of either subject erases both; DELETE of a collection erases only that one.
    """
    from index import administration
    from index.validation import normalised

    count = 0
    with _open_gallery("a database stores all ids in Unicode form C, so that none clash") as gallery:
        for count, clash in enumerate(administration.clashes(gallery), 1):  # noqa: B007  the count
            name = clash.collection if clash.key is None else clash.key
            kind = "a collection" if clash.key is None else f"a subject of {clash.collection!r}"
            typer.echo(f"{kind}: {name!r}, in ASCII {name!a}; its NFC form {normalised(name)!a} is another's name")
    typer.echo(f"{count} names clash")


@gallery_cli.command()
def compact() -> None:
    """Run the background work now and return free space to the disk; enrolments and erasures wait meanwhile."""
    from index import administration

    with _open_gallery("run VACUUM FULL in the database, which blocks the service meanwhile") as gallery:
        done = administration.compact(gallery)
    typer.echo(f"{done.before:,} bytes before, {done.after:,} after")
    if not done.emptied:
        typer.echo("the ledger's log has open readers; the service truncates it when they finish")


@gallery_cli.command()
def rebuild(collection: Annotated[str | None, typer.Argument(help="The collection; by default all.")] = None) -> None:
    """Delete segments and inverted files and rebuild them from the ledger."""
    from index import administration

    with _open_gallery("run REINDEX in the database") as gallery:
        names = administration.rebuild(gallery, collection)
    typer.echo(f"rebuilt: {', '.join(names) or 'nothing, there are no collections'}")


@gallery_cli.command()
def rekey(
    file: Annotated[Path, typer.Argument(help="The new key, 32 bytes in base64; the settings name the old one.")],
) -> None:
    """Wrap the keys of all encrypted collections with a new operator key; then restart the service with it."""
    from app.settings import read_key
    from index import administration

    with _open_gallery("a database has no encrypted collections") as gallery:
        new = read_key(file)
        count = administration.rekey(gallery, new)
    typer.echo(
        f"the keys of {count} collections are now wrapped with {new.id}: restart the service with"
        f" VESTIBULE_ENCRYPTION_KEY_FILE={file}; earlier backups need the old key"
    )


@gallery_cli.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder. It will contain biometric data: protect it.")],
) -> None:
    """Copy the ledger's current state; the service may keep running."""
    from index import administration

    with _open_gallery(_BACK_UP_DATABASE) as gallery:
        manifest = administration.back_up(gallery, folder)
    typer.echo(
        f"backed up {manifest.faces:,} faces of {manifest.collections:,} collections to {folder},"
        f" sha256 {manifest.sha256}"
    )


@gallery_cli.command()
def restore(folder: Annotated[Path, typer.Argument(help="A folder written by `backup`.")]) -> None:
    """Replace the ledger by a backup and repeat the erasures since then; the service must be stopped."""
    from index import administration

    with report_state_errors():
        done = administration.restore(_gallery_folder(read_settings(), _BACK_UP_DATABASE, new=True), folder)
    created_at = datetime.fromtimestamp(done.manifest.created_at, UTC)
    typer.echo(
        f"restored the ledger of {created_at:%Y-%m-%d %H:%M:%S} UTC; erased again: {done.erased_faces:,} faces,"
        f" {done.erased_subjects:,} subjects, {done.erased_collections:,} collections"
    )
    typer.echo("deleted the previous ledger, its segments and its inverted files")
    if not done.remembered:
        typer.echo("there is no record of erasures since the backup: faces erased since then are restored", err=True)


@gallery_cli.command()
def reembed(
    collection: Annotated[str, typer.Argument(help="A collection with stored crops (keep_crops).", show_default=False)],
    embedder: Annotated[str, typer.Argument(help="The new embedder.", show_default=False)],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let the running service re-embed a collection with another embedder, and wait until it has switched.

    Stopping this command does not stop the re-embedding; running it again shows the progress.
    """
    from vestibule_client import Conflict, NotFound

    with connected(url, api_key) as client:
        try:
            state = client.reembed(collection, embedder=embedder)
        except Conflict:
            running = client.collection(collection).reembedding
            if running is None or running.embedder != embedder:
                raise
            state = client.reembedding(collection)
        with progress_bar(state.faces) as show_progress:
            while True:
                show_progress(state.done)
                if state.state in {"blocked", "cancelled"}:
                    fail(f"{collection}: the re-embedding is {state.state}: {state.problem or 'by another request'}")
                try:
                    state = client.reembedding(collection)
                except NotFound:  # it has ended
                    break
                time.sleep(_POLL_S)
        now = client.collection(collection)
    if now.embedder != embedder:
        fail(f"{collection} still has vectors of {now.embedder}: the re-embedding was cancelled")
    typer.echo(
        f"{collection} has vectors of {now.embedder}, {now.fingerprint}; erasure of the old vectors: {state.erasure}"
    )


gallery_cli.command()(calibrate)
gallery_cli.command()(calibrations)


@contextmanager
def _open_storage(*, new: bool = False) -> Iterator[tuple[Storage, OperatorKey | None]]:
    """Open the storage in the database or in the state folder; yield it with the operator's key.

    `new`: create the folder if it is missing, else that is an error.
    """
    from index import administration

    with report_state_errors():
        settings = read_settings()
        url, key = settings.database_url(), settings.operator_key()
        folder = settings.state if url else _existing_folder(settings, new=new)
        with administration.open_storage(folder, key=key, database=url) as storage:
            yield storage, key


@contextmanager
def _open_gallery(instead: str) -> Iterator[LocalGallery]:
    """Open the gallery in the state folder. `instead`: what to do if the gallery is in a database."""
    from index import administration

    with report_state_errors():
        settings = read_settings()
        folder = _gallery_folder(settings, instead, new=False)
        with administration.open_gallery(folder, key=settings.operator_key()) as gallery:
            yield gallery


def _gallery_folder(settings: Settings, instead: str, *, new: bool) -> Path:
    """Return the folder of the embedded gallery; end with an error if the gallery is in a database."""
    if settings.database is not None:
        fail(f"VESTIBULE_DATABASE is set, and this command is for a gallery in the state folder: {instead}")
    return _existing_folder(settings, new=new)


def _existing_folder(settings: Settings, *, new: bool) -> Path:
    """Return the folder of the embedded gallery; `new`: it may be missing.

    Raises:
        NotFoundError: it is missing. ConfigurationError: it cannot be written.
    """
    from index.errors import NotFoundError

    folder = prepare_state_folder(settings, new=new) / "gallery"
    if not new and not folder.is_dir():
        raise NotFoundError(f"there is no gallery in {folder}")
    return folder


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
