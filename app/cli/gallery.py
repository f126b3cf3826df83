"""`vestibule gallery`: what an operator does with the gallery on this machine, while the service runs or not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.batch_client import Asking
from app.cli.client import ApiKey, Url, connected
from app.cli.terminal import fail, failing, progress, read_settings, state_of

if TYPE_CHECKING:
    from index.embedded.gallery import EmbeddedGallery
    from vestibule_client import Client

_POLL_S = 0.5  # between two questions how far a re-embedding is

gallery_cli = typer.Typer(name="gallery", help="The gallery: list, move, check, repair, back up.", no_args_is_help=True)


@gallery_cli.command("list")
def list_collections(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; sizes in bytes.")] = False,
) -> None:
    """List the collections: what they hold and how they are searched."""
    with _opened() as gallery:
        rows = [
            {
                "name": found.name,
                "embedder": found.embedder,
                "fingerprint": found.fingerprint,
                "dimensions": found.dimensions,
                "encrypted": found.encrypted,
                **gallery.usage(found.name).__dict__,
            }
            for found in gallery.collections(limit=-1)
        ]
        ledger = gallery.ledger.path
        size = sum(path.stat().st_size for path in ledger.parent.glob(f"{ledger.name}*"))
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
    file: Annotated[Path, typer.Argument(help="A new .parquet file. It holds faces: keep it as you keep those.")],
) -> None:
    """Write a collection to a parquet file, one row a face."""
    from index.embedded.admin.parquet import export_collection

    with _opened() as gallery:
        count = export_collection(gallery, collection, file)
    typer.echo(f"{count:,} faces are in {file}")


@gallery_cli.command("import")
def import_parquet(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    collection: Annotated[str | None, typer.Option(help="Its name here; by default the name it had.")] = None,
) -> None:
    """Enrol the faces of a parquet file; run it again after a crash, no face is enrolled twice."""
    from index.embedded.admin.parquet import import_collection

    with _opened(new=True) as gallery:
        done = import_collection(gallery, file, collection)
    typer.echo(f"{done.enrolled:,} faces enrolled in {done.collection}; {done.present:,} were there already")
    if done.expired:
        typer.echo(f"{done.expired:,} faces were left out: their subjects have expired")


@gallery_cli.command()
def verify() -> None:
    """Read everything and compare it; the exit status is 1 if something is not what was written."""
    from index.embedded.admin.verify import find_faults

    count = 0
    with _opened() as gallery:
        for count, fault in enumerate(find_faults(gallery), 1):  # noqa: B007  the last number is how many there were
            typer.echo(fault)
    if count:
        raise typer.Exit(1)
    typer.echo("all is as it was written")


@gallery_cli.command()
def clashes() -> None:
    """List subjects and collections whose names differ from another's only in their Unicode form.

    DELETE of either subject erases both. A collection is dropped alone.
    """
    from index.embedded.audit import id_normalisation
    from index.unicode_forms import normalised

    count = 0
    with _opened() as gallery:
        for count, clash in enumerate(id_normalisation.clashes(gallery.ledger.reader()), 1):  # noqa: B007  the last number
            name = clash.collection if clash.key is None else clash.key
            what = "a collection" if clash.key is None else f"a subject of {clash.collection!r}"
            typer.echo(
                f"{what}: {name!r}, in ASCII {name!a}, is {normalised(name)!a} in Unicode form C, which another has"
            )
    typer.echo(f"{count} names clash")


@gallery_cli.command()
def compact() -> None:
    """Do the background work now and give free space back; nobody can enrol or erase meanwhile."""
    from index.embedded.admin import repair as upkeep

    with _opened() as gallery:
        done = upkeep.compact(gallery)
    typer.echo(f"{done.before:,} bytes before, {done.after:,} after")
    if not done.emptied:
        typer.echo("the ledger's log is still read by others; the service empties it as soon as it can")


@gallery_cli.command()
def rebuild(collection: Annotated[str | None, typer.Argument(help="By default all.")] = None) -> None:
    """Throw segments and inverted files away and make them anew from the ledger."""
    from index.embedded.admin import repair as upkeep

    with _opened() as gallery:
        names = upkeep.rebuild(gallery, collection)
    typer.echo(f"made anew: {', '.join(names) or 'nothing, there is no collection'}")


@gallery_cli.command()
def rekey(
    file: Annotated[Path, typer.Argument(help="The new key, 32 bytes in base64; the old one is in the settings.")],
) -> None:
    """Let another operator's key wrap the keys of all encrypted collections; then start the service with that one."""
    from app.settings import read_key
    from index.embedded.admin import repair as upkeep

    with _opened() as gallery:
        new = read_key(file)
        count = upkeep.rekey(gallery, new)
    typer.echo(
        f"of {count} collections the keys are wrapped by {new.id} now: start the service anew, with"
        f" VESTIBULE_ENCRYPTION_KEY_FILE={file}; backups from before need the old key"
    )


@gallery_cli.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="New or empty. It will hold faces: keep it as you keep those.")],
) -> None:
    """Copy the ledger as it is now; the service may go on."""
    from index.embedded.admin.backup import back_up

    with _opened() as gallery:
        made = back_up(gallery, folder)
    typer.echo(f"{made.faces:,} faces of {made.collections:,} collections are in {folder}, sha256 {made.sha256}")


@gallery_cli.command()
def restore(folder: Annotated[Path, typer.Argument(help="What `backup` wrote.")]) -> None:
    """Put a backup in place of the ledger, and erase again what was erased since; the service must be stopped."""
    from index.embedded.admin.backup import restore as put_back

    with failing("the ledger"):
        done = put_back(state_of(read_settings(), new=True) / "gallery", folder)
    made = datetime.fromtimestamp(done.manifest.created_at, UTC)
    typer.echo(
        f"the ledger is that of {made:%Y-%m-%d %H:%M:%S} UTC; erased again: {done.erased_faces:,} faces,"
        f" {done.erased_subjects:,} subjects, {done.erased_collections:,} collections"
    )
    typer.echo("the ledger that was there before is deleted, and so are its segments and inverted files")
    if not done.remembered:
        typer.echo("nothing here tells what was erased after the backup was made: that is back", err=True)


@gallery_cli.command()
def reembed(
    collection: Annotated[str, typer.Argument(help="Its faces need crops (keep_crops).", show_default=False)],
    embedder: Annotated[str, typer.Argument(help="The model whose vectors it is to hold.", show_default=False)],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Move a collection to another embedder: ask the running service, and wait until it has switched.

    Stopping this command does not stop the re-embedding; the same command shows its progress again.
    """
    from vestibule_client import Conflict, NotFound

    with connected(Asking(url, api_key)) as client:
        try:
            state = client.reembed(collection, embedder=embedder)
        except Conflict:
            if not _is_under_way(client, collection, embedder):
                raise
            state = client.reembedding(collection)
        with progress(state.faces) as advance:
            shown = 0
            while True:
                for _ in range(shown, state.done):
                    advance()
                shown = max(shown, state.done)
                if state.state in {"blocked", "cancelled"}:
                    fail(f"{collection}: the re-embedding is {state.state}: {state.problem or 'by another request'}")
                try:
                    state = client.reembedding(collection)
                except NotFound:  # it is over
                    break
                time.sleep(_POLL_S)
        now = client.collection(collection)
    if now.embedder != embedder:
        fail(f"{collection} still holds vectors of {now.embedder}: the re-embedding was cancelled")
    typer.echo(
        f"{collection} holds vectors of {now.embedder}, {now.fingerprint}; the erasure of the old ones: {state.erasure}"
    )


def _is_under_way(client: Client, collection: str, embedder: str) -> bool:
    """Whether the collection is being moved to this embedder already."""
    running = client.collection(collection).reembedding
    return running is not None and running.embedder == embedder


@contextmanager
def _opened(*, new: bool = False) -> Iterator[EmbeddedGallery]:
    """The gallery, which must be there unless it may be `new`."""
    from index.embedded.gallery import EmbeddedGallery
    from index.errors import NotFoundError

    with failing("the ledger"):
        given = read_settings()
        folder = state_of(given, new=new) / "gallery"
        if not new and not folder.is_dir():
            raise NotFoundError(f"there is no gallery in {folder}")
        gallery = EmbeddedGallery(folder, key=given.operator_key())
        try:
            yield gallery
        finally:
            gallery.close()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
