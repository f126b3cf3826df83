"""`vestibule gallery`: commands of an operator on this machine's gallery, whether the service runs or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client import ApiKey, Url, connected
from app.cli.terminal import fail, prepare_state_folder, progress_bar, read_settings, report_state_errors

if TYPE_CHECKING:
    from app.settings import Settings
    from index.administration import LocalGallery

_POLL_S = 0.5  # seconds between two requests for the progress of a re-embedding

gallery_cli = typer.Typer(
    name="gallery", help="The gallery: list, export, import, verify, repair, back up.", no_args_is_help=True
)


@gallery_cli.command("list")
def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; sizes in bytes.")] = False,
) -> None:
    """List the collections with their size, embedder and kind of search."""
    from index import administration

    with _open_gallery() as gallery:
        rows = [
            {
                "name": collection.name,
                "embedder": collection.embedder,
                "fingerprint": collection.fingerprint,
                "dimensions": collection.dimensions,
                "encrypted": collection.encrypted,
                **gallery.usage(collection.name).__dict__,
            }
            for collection in gallery.collections(limit=-1)
        ]
        size = administration.ledger_bytes(gallery)
    if as_json:
        typer.echo(json.dumps({"ledger_bytes": size, "collections": rows}, indent=2))
        return
    for row in rows:
        search = "exact" if row["exact"] else "indexed"
        typer.echo(
            f"{row['name']:24} {row['subjects']:>10,} subjects {row['faces']:>12,} faces  {search:7}"
            f" {_megabytes(row['file_bytes'])} of files  {row['embedder']} {row['fingerprint']} x{row['dimensions']}"
            f"{'  encrypted' if row['encrypted'] else ''}"
        )
    typer.echo(f"{len(rows)} collections; the ledger has {_megabytes(size)}")


@gallery_cli.command("export")
def export_parquet(
    collection: str,
    file: Annotated[Path, typer.Argument(help="A new .parquet file. It contains biometric data: protect it.")],
) -> None:
    """Export a collection to a Parquet file, one row per face."""
    from index import administration

    with _open_gallery() as gallery:
        count = administration.export_collection(gallery, collection, file)
    typer.echo(f"wrote {count:,} faces to {file}")


@gallery_cli.command("import")
def import_parquet(
    file: Annotated[Path, typer.Argument(help="A file written by `export`.")],
    collection: Annotated[
        str | None, typer.Option(help="The collection's name; by default its name at export.")
    ] = None,
) -> None:
    """Enrol the faces of a Parquet file. It can be run again after a crash: no face is enrolled twice."""
    from index import administration

    with _open_gallery(new=True) as gallery:
        done = administration.import_collection(gallery, file, collection)
    typer.echo(f"enrolled {done.enrolled:,} faces in {done.collection}; {done.present:,} were already enrolled")
    if done.expired:
        typer.echo(f"skipped {done.expired:,} faces of expired subjects")


@gallery_cli.command()
def verify() -> None:
    """Check the whole gallery for damage; the exit status is 1 if there is any."""
    from index import administration

    count = 0
    with _open_gallery() as gallery:
        for count, fault in enumerate(administration.find_faults(gallery), 1):  # noqa: B007  the last number is the count
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
    with _open_gallery() as gallery:
        for count, clash in enumerate(administration.clashes(gallery), 1):  # noqa: B007  the count
            name = clash.collection if clash.key is None else clash.key
            kind = "a collection" if clash.key is None else f"a subject of {clash.collection!r}"
            typer.echo(f"{kind}: {name!r}, in ASCII {name!a}; its NFC form {normalised(name)!a} is another's name")
    typer.echo(f"{count} names clash")


@gallery_cli.command()
def compact() -> None:
    """Run the background work now and return free space to the disk; enrolments and erasures wait meanwhile."""
    from index import administration

    with _open_gallery() as gallery:
        done = administration.compact(gallery)
    typer.echo(f"{done.before:,} bytes before, {done.after:,} after")
    if not done.emptied:
        typer.echo("the ledger's log has open readers; the service truncates it when they finish")


@gallery_cli.command()
def rebuild(collection: Annotated[str | None, typer.Argument(help="The collection; by default all.")] = None) -> None:
    """Delete segments and inverted files and rebuild them from the ledger."""
    from index import administration

    with _open_gallery() as gallery:
        names = administration.rebuild(gallery, collection)
    typer.echo(f"rebuilt: {', '.join(names) or 'nothing, there are no collections'}")


@gallery_cli.command()
def rekey(
    file: Annotated[Path, typer.Argument(help="The new key, 32 bytes in base64; the settings name the old one.")],
) -> None:
    """Wrap the keys of all encrypted collections with a new operator key; then restart the service with it."""
    from app.settings import read_key
    from index import administration

    with _open_gallery() as gallery:
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

    with _open_gallery() as gallery:
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
        done = administration.restore(_gallery_folder(read_settings(), new=True), folder)
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


@contextmanager
def _open_gallery(*, new: bool = False) -> Iterator[LocalGallery]:
    """Open the gallery; `new`: create it if it is missing, else that is an error."""
    from index import administration
    from index.errors import NotFoundError

    with report_state_errors():
        settings = read_settings()
        folder = _gallery_folder(settings, new=new)
        if not new and not folder.is_dir():
            raise NotFoundError(f"there is no gallery in {folder}")
        with administration.open_gallery(folder, key=settings.operator_key()) as gallery:
            yield gallery


def _gallery_folder(settings: Settings, *, new: bool) -> Path:
    """Return the folder of the embedded gallery; end with an error if the gallery is in a database."""
    if settings.database is not None:
        fail(
            "VESTIBULE_DATABASE is set, and this command works on a gallery in a folder: back up and copy the database"
            " with PostgreSQL's own tools, or unset the variable for the gallery in the state folder"
        )
    return prepare_state_folder(settings, new=new) / "gallery"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
