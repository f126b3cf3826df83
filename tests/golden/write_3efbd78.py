"""Write the golden files in tests/golden/3efbd78: everything that commit 3efbd78 stores on disk, with its responses.

The files were written once and are never written again: they prove that later versions read the files of that commit.
The script documents their content. It runs with the code of that commit, not with the current code:

    git worktree add --detach ../old 3efbd78
    make -C ../old install                      # converts the detector's weights
    cd ../old
    export PYTHONPATH=. VESTIBULE_RUNTIME=torch WRITE=../new/tests/golden/write_3efbd78.py
    for part in gallery state keys run; do python $WRITE $part ../new/tests/golden/3efbd78; done

`gallery`: the gallery of a killed process, a backup and Parquet exports of it (index/). `state`: a state folder of the
service, filled over HTTP (app/). `keys`: a store of API keys. `run`: an interrupted training run. Folders are tar
archives, so that a test can only open a copy. Each `.json` contains inputs and the responses of 3efbd78.

The photos are scikit-image's portrait of Eileen Collins and matplotlib's of Grace Hopper, both in the public domain.
The cat and the cup are scikit-image's, CC0.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

KEY = b"k" * 32  # the operator's
NOW = 1_750_000_000.0
DIMENSIONS, NEW_DIMENSIONS = 16, 8
PAIRS = (("open", False), ("sealed", True))


def pack(folder: Path, archive: Path) -> None:
    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uname = member.gname = ""
        member.uid = member.gid = 0
        return member

    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder), recursive=False, filter=anonymous)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON with a line for each key."""
    lines = [f"{json.dumps(key)}: {json.dumps(content[key], sort_keys=True)}" for key in sorted(content)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def text_of(vector: Any) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def unit(count: int, dimensions: int, seed: int) -> Any:
    numbers = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


# --- the gallery -----------------------------------------------------------------------------------------------------


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def crop(number: int) -> bytes:
    return b"crop %d" % number


def fill(gallery: Any, name: str, *, encrypted: bool) -> None:
    from index.feedback import Feedback
    from index.records import NewFace

    gallery.create(name, "face-embedder", "f1", DIMENSIONS, encrypted=encrypted, keep_crops=True)
    vectors = unit(45, DIMENSIONS, 0)
    for first in range(0, 45, 15):
        faces = [NewFace(f"p{n % 5}", vectors[n], {"n": n} if n % 2 else {}, crop(n)) for n in range(first, first + 15)]
        gallery.enrol(name, faces, "f1", actor="a-key")
    gallery.put_subject(name, "p0", name="Zoë", metadata={"level": 2, "in": True, "note": "ä"}, expires_at=5e9)
    gallery.put_subject(name, "p1", metadata={"level": 2.5, "in": False})
    gallery.put_subject(name, "p2", metadata={"level": 2})
    gallery.enrol(name, [NewFace("brief", unit(1, DIMENSIONS, 5)[0], {}, crop(100))], "f1")
    gallery.put_subject(name, "brief", expires_at=NOW + 600)
    gallery.put_subject(name, "nobody yet", name="No Face")
    feedback = Feedback(gallery)
    feedback.add(name, "p2", unit(2, DIMENSIONS, 6), [crop(200), None], "f1")
    (wrong,) = feedback.add(name, "p1", unit(1, DIMENSIONS, 7), None, "f1")
    feedback.remove(name, "p1", wrong.token)


def send_jobs(gallery: Any, names: list[str]) -> dict[str, dict[str, str]]:
    """Send four jobs to each collection: done, three of eight items enrolled, queued, and half received."""
    from index.job_records import Found, Item, Outcome, Properties
    from index.jobs import Jobs, Worker
    from index.records import NewFace

    jobs, vectors = Jobs(gallery), unit(16, DIMENSIONS, 1)

    def send(name: str, numbers: range, subject: str) -> Any:
        job = jobs.begin(name, {"max_faces": 1, "quality_gate": True, "fingerprint": "f1"})
        properties = Properties(f"Called {subject}", {"level": 9}, 5e9)
        sent = [
            Item(n - numbers[0], subject, "vector", vectors[n].tobytes(), None if n % 2 else properties)
            for n in numbers
        ]
        jobs.append(job, [*sent, Outcome(len(sent), "failed", {"problem": {"status": 400, "detail": "no image"}})])
        return job

    def begin(name: str, numbers: range, subject: str, count: int) -> tuple[Any, Any]:
        """Send a job and enrol the first `count` of its items; the worker and the job."""
        worker = Worker(gallery)  # a new one for each job, since a worker may claim its own job again
        sent = jobs.ready(send(name, numbers, subject))
        job = worker.claim()
        if job is None or job.token != sent.token:
            raise RuntimeError("another job was claimed")
        results = [
            Found(
                item,
                Outcome(item.number, "enrolled"),
                [NewFace(item.subject, np.frombuffer(item.data, "<f4"), {}, crop(300 + item.number))],
            )
            for item in worker.pending(job, 1)[:count]
        ]
        if not worker.enrol(job, results, "f1"):
            raise RuntimeError("the job belongs to another worker")
        return worker, job

    tokens: dict[str, dict[str, str]] = {name: {} for name in names}
    for name in names:
        worker, done = begin(name, range(2), f"{name} j0", 2)
        worker.finish(done, "done")
        tokens[name]["done"] = done.token
    for name in names:
        tokens[name]["half"] = begin(name, range(2, 10), f"{name} j1", 3)[1].token
    for name in names:
        tokens[name]["waiting"] = jobs.ready(send(name, range(10, 13), f"{name} j2")).token
        tokens[name]["receiving"] = send(name, range(13, 16), f"{name} j3").token
    return tokens


def begin_reembedding(gallery: Any, name: str) -> str:
    """Start a re-embedding with half of the new vectors staged, and one of feedback."""
    from index.reembedding import FIRST, Reembeddings, Worker

    begun = Reembeddings(gallery).begin(name, "better", "f2", NEW_DIMENSIONS, actor="a-key").reembedding
    worker = Worker(gallery)
    if not worker.claim(begun):
        raise RuntimeError("the collection is another's")
    vectors = unit(64, NEW_DIMENSIONS, 2)
    for items in (worker.pending(begun, FIRST, 1), worker.pending(begun, 0, 20)):
        worker.stage(begun, {face.id: vectors[number_of(face.crop)] for face in items})
    return str(begun.token)


def number_of(kept: bytes) -> int:
    """The index of the new vector of a crop."""
    return int(kept.split()[1]) % 64


def answers(gallery: Any, name: str) -> dict[str, Any]:
    """The responses of 3efbd78 about the collection."""
    from index import records
    from index.search import compare, search

    queries = unit(4, DIMENSIONS, 3)

    def as_lists(results: Any) -> list[Any]:
        return [[[m.subject.key, m.face, m.similarity] for m in matches] for matches in results]

    wheres: list[Any] = [None, {"level": [2]}, {"in": [True]}, {"note": ["ä", "x"]}]
    collection = gallery.collection(name)
    subjects = gallery.subjects(name)
    faces = [(s, face) for s in subjects for face in gallery.faces(name, s.key)]
    with gallery.ledger.snapshot() as db:
        rows = records.rows_after(db, collection.id, collection.dimensions, 0)
    stored = dict(zip(rows.faces.tolist(), map(text_of, rows.vectors), strict=True))
    return {
        "collection": {**collection.__dict__},
        "subjects": [s.__dict__ for s in subjects],
        "faces": [
            {**face.__dict__, "crop": gallery.crop(name, face.token).decode(), "vector": stored[face.id]}
            for _, face in faces
        ],
        "queries": [text_of(query) for query in queries],
        "search": {
            f"{fusion} {json.dumps(where)}": as_lists(search(gallery, name, queries, 4, fusion=fusion, where=where))
            for fusion in ("best", "mean")
            for where in wheres
        },
        "compare": [
            [match.similarity if match else None, denied]
            for match, denied in (
                compare(gallery, name, "p2", vector) for vector in [*queries, *unit(2, DIMENSIONS, 6)]
            )
        ],
        "exact": gallery.usage(name).exact,
    }


def move(gallery: Any, name: str) -> None:
    """A re-embedded collection, which lost its feedback without a crop."""
    from index.feedback import Feedback
    from index.records import NewFace
    from index.reembedding import FIRST, Reembeddings, Worker

    gallery.create(name, "face-embedder", "f1", DIMENSIONS, keep_crops=True)
    gallery.enrol(name, [NewFace(f"p{n}", unit(2, DIMENSIONS, 8)[n], {}, crop(n)) for n in range(2)], "f1")
    Feedback(gallery).add(name, "p1", unit(1, DIMENSIONS, 7), None, "f1")
    begun = Reembeddings(gallery).begin(name, "better", "f2", NEW_DIMENSIONS, actor="a-key").reembedding
    worker = Worker(gallery)
    worker.claim(begun)
    vectors = unit(64, NEW_DIMENSIONS, 2)
    worker.stage(begun, {face.id: vectors[number_of(face.crop)] for face in worker.pending(begun, FIRST, 10)})
    if worker.switch(begun) != 0:
        raise RuntimeError("vectors are missing")


def begin_gallery(folder: Path, out: Path, clock: Clock) -> None:
    """Fill the gallery, back it up and restore the backup, before anything is erased."""
    from index.backup import back_up, restore
    from index.gallery import EmbeddedGallery
    from index.records import NewFace
    from index.sealing import OperatorKey

    gallery = EmbeddedGallery(folder, key=OperatorKey(KEY), clock=clock)
    for name, encrypted in PAIRS:
        fill(gallery, name, encrypted=encrypted)
        fill(gallery, f"{name}-anew", encrypted=encrypted)
    gallery.create("dropped", "face-embedder", "f1", DIMENSIONS)
    gallery.enrol("dropped", [NewFace("someone", unit(1, DIMENSIONS, 8)[0])], "f1")
    gallery.note_search("open", [gallery.subject("open", "p0"), gallery.subject("open", "p3")], actor="a-key")
    backup = Path(tempfile.mkdtemp()) / "backup"
    back_up(gallery, backup)
    pack(backup, out / "backup.tar.xz")
    gallery.close()
    restore(folder, backup, clock=clock, gap=lambda: 1000)


def go_on(gallery: Any, out: Path, clock: Clock) -> dict[str, Any]:
    """Build segments and inverted files, erase, export, and start jobs that stay unfinished."""
    from index.maintenance import Limits, Maintenance
    from index.transfer import export_collection

    maintenance = Maintenance(gallery, Limits(segment=8, exact_below=16, growth=2.0))  # it keeps its lease
    clock.now += 1
    maintenance.run()
    erased = [gallery.drop("dropped", actor="a-key")]
    erased += [gallery.remove_subject(name, "p4", actor="a-key") for name, _ in PAIRS]
    move(gallery, "moved")
    clock.now += 1
    maintenance.run()
    expected: dict[str, Any] = {"receipts": {"erased": [gallery.receipt(receipt.token).__dict__ for receipt in erased]}}
    for name, _ in PAIRS:
        path = out / f"{name}.parquet"
        path.unlink(missing_ok=True)
        export_collection(gallery, name, path)
        expected[f"{name}.parquet"] = answers(gallery, name)["faces"]
        expected[f"{name}-anew reembedding"] = begin_reembedding(gallery, f"{name}-anew")
    expected["jobs"] = send_jobs(gallery, [name for name, _ in PAIRS])
    return expected


def write_gallery(out: Path) -> None:
    from index.gallery import EmbeddedGallery
    from index.records import NewFace
    from index.sealing import OperatorKey

    folder, clock = Path(tempfile.mkdtemp()) / "gallery", Clock()
    begin_gallery(folder, out, clock)
    gallery = EmbeddedGallery(folder, key=OperatorKey(KEY), clock=clock)
    expected = {"now": NOW, **go_on(gallery, out, clock)}
    gallery.close()

    # A killed process leaves a write-ahead log, acts that are not in the audit log, and unfinished erasures.
    gallery = EmbeddedGallery(folder, key=OperatorKey(KEY), clock=clock)
    entries, _ = gallery.audit.read(limit=1000)
    expected["entries"] = [[entry.sequence, entry.hash, entry.act.__dict__] for entry in entries]
    clock.now += 1
    expected["receipts"]["scrubbing"] = []
    for name, _ in PAIRS:
        gallery.enrol(name, [NewFace("last", unit(1, DIMENSIONS, 9)[0], {}, crop(400))], "f1", actor="b-key")
        (face, *_) = gallery.faces(name, "p3")
        receipt = gallery.remove_faces(name, [face.token], actor="b-key")
        expected["receipts"]["scrubbing"].append(receipt.__dict__)
    for name, _ in PAIRS:
        expected |= {each: answers(gallery, each) for each in (name, f"{name}-anew")}
    expected["removals"] = [list(removal.__dict__.values()) for removal in gallery.tombstones.read()[1]]
    write_json(out / "gallery.json", expected)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    (copy / "ledger.db-shm").unlink()  # SQLite creates it again from the log
    pack(copy, out / "gallery.tar.xz")
    os._exit(0)


# --- the service's state ----------------------------------------------------------------------------------------------


def photos() -> dict[str, Any]:
    import skimage.data
    from matplotlib import cbook
    from PIL import Image, ImageEnhance

    eileen = Image.fromarray(skimage.data.astronaut())
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        grace = file.convert("RGB")
    cat, cup = Image.fromarray(skimage.data.chelsea()), Image.fromarray(skimage.data.coffee())
    return {
        "eileen": eileen,
        "eileen again": ImageEnhance.Brightness(eileen.rotate(6)).enhance(1.2),
        "grace": grace,
        "eileen query": eileen.rotate(-8).crop((100, 0, 356, 256)).resize((224, 224)),
        "grace query": grace.rotate(5).crop((106, 40, 406, 340)).resize((224, 224)),
        "cat": cat,
        "cup": cup,
        "cat query": cat.crop((30, 20, 420, 290)).resize((128, 89)),
        "cup query": cup.crop((40, 20, 560, 390)).resize((128, 91)),
    }


def encoded(image: Any, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def checked(response: Any) -> Any:
    if response.status_code >= 300:
        raise RuntimeError(response.text)
    return response.json()


PEOPLE = (("eileen", "eileen"), ("eileen", "eileen again"), ("grace", "grace"))
THINGS = (("cat", "cat"), ("cup", "cup"))


def fill_collection(client: Any, name: str, pictures: dict[str, Any], **options: Any) -> None:
    checked(client.put(f"/collections/{name}", json=options))
    enrolled = THINGS if "embedder" in options else PEOPLE
    for subject, picture in enrolled:
        url = f"/collections/{name}/subjects/{subject}/faces"
        enrolment = checked(client.post(url, content=encoded(pictures[picture]), headers={"content-type": "image/png"}))
        if len(enrolment["indexed"]) != 1:
            raise RuntimeError(f"{picture}: {enrolment}")
    properties = {"name": "The first one", "metadata": {"site": "north"}, "expires_at": "2100-01-01T00:00:00Z"}
    checked(client.put(f"/collections/{name}/subjects/{enrolled[0][0]}", json=properties))


def collection_answers(client: Any, name: str, queries: dict[str, bytes]) -> dict[str, Any]:
    jpeg = {"content-type": "image/jpeg"}
    responses = {
        "collection": checked(client.get(f"/collections/{name}")),
        "subjects": checked(client.get(f"/collections/{name}/subjects"))["data"],
        "faces": {},
        "feedback": {},
        "queries": {},
    }
    calibrated = responses["collection"]["embedder"] == "face-embedder"
    for subject in ("eileen", "grace") if calibrated else ("cat", "cup"):
        photo = queries[subject]
        for kind in ("faces", "feedback"):
            responses[kind][subject] = checked(client.get(f"/collections/{name}/subjects/{subject}/{kind}"))["data"]
        params = {"collection": name, "fpir": "0.1", "where": '{"site": "north"}'}
        results = {
            "search": client.post("/search", params={"collection": name, "fpir": "0.1"}, content=photo, headers=jpeg),
            "search where": client.post("/search", params=params, content=photo, headers=jpeg),
        }
        if calibrated:
            for claimed in ("eileen", "grace"):
                url = f"/collections/{name}/subjects/{claimed}/verify"
                results[f"verify {claimed}"] = client.post(url, params={"fmr": 0.01}, content=photo, headers=jpeg)
        responses["queries"][subject] = {key: checked(value) for key, value in results.items()}
    return responses


def write_state(out: Path) -> None:
    from fastapi.testclient import TestClient

    from app.main import create_app
    from app.settings import Settings
    from index.jobs import Worker

    Worker.claim = lambda self: None  # type: ignore[method-assign]  # bulk jobs wait
    pictures = photos()
    queries = {
        subject: encoded(pictures[f"{subject} query"], "JPEG", quality=85)
        for subject in ("eileen", "grace", "cat", "cup")
    }
    for subject, photo in queries.items():
        (out / f"{subject}.jpg").write_bytes(photo)
    state = Path(tempfile.mkdtemp()) / "state"
    settings = Settings(state=state, upkeep_s=0.1, encryption_key=base64.b64encode(KEY).decode())  # type: ignore[arg-type]
    expected: dict[str, Any] = {"key": base64.b64encode(KEY).decode(), "collections": {}, "jobs": {}}
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        names = []
        for sealed in (False, True):
            for crops in (False, True):
                names.append(f"{'sealed' if sealed else 'open'}-{'crops' if crops else 'bare'}")
                fill_collection(client, names[-1], pictures, keep_crops=crops, encrypted=sealed)
                url = f"/collections/{names[-1]}/subjects/grace/feedback"
                checked(client.post(url, content=queries["eileen"], headers={"content-type": "image/jpeg"}))
        for sealed in (False, True):
            names.append(f"{'sealed' if sealed else 'open'}-pictures")
            fill_collection(client, names[-1], pictures, embedder="vgg-cifar10", encrypted=sealed)
        for sealed in (False, True):
            name = f"{'sealed' if sealed else 'open'}-job"
            checked(client.put(f"/collections/{name}", json={"keep_crops": True, "encrypted": sealed}))
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("eileen/1.jpg", encoded(pictures["eileen"].crop((120, 0, 320, 200)), "JPEG"))
                archive.writestr("grace/1.jpg", queries["grace"])
                archive.writestr("nobody/1.jpg", b"not an image")
            sent = client.post(
                f"/collections/{name}/faces:bulk",
                content=buffer.getvalue(),
                headers={"content-type": "application/zip"},
            )
            expected["jobs"][name] = checked(sent)
        # A finished erasure.
        url = "/collections/open-crops/subjects/gone"
        content = encoded(pictures["grace"])
        checked(client.post(f"{url}/faces", content=content, headers={"content-type": "image/png"}))
        receipt = checked(client.delete(url))
        while checked(client.get(f"/erasures/{receipt['id']}"))["status"] != "erased":
            time.sleep(0.1)
        expected["erasure"] = checked(client.get(f"/erasures/{receipt['id']}"))
        for name in names:
            expected["collections"][name] = collection_answers(client, name, queries)
    shutil.rmtree(state / "compiled", ignore_errors=True)  # a cache
    write_json(out / "state.json", expected)
    pack(state, out / "state.tar.xz")


def write_keys(out: Path) -> None:
    from app.keys import Keys

    now = [NOW]
    folder = Path(tempfile.mkdtemp()) / "keys"
    keys = Keys(folder, lambda: now[0])
    created = {
        "admin": keys.create("the operator's", ["infer", "enrol", "admin"], rate_per_minute=600, concurrency=8),
        "infer": keys.create("the door", ["infer"], expires_at=NOW + 3.2e9),
        "expired": keys.create("a visitor", ["enrol"], expires_at=NOW + 10),
        "revoked": keys.create("a thief", ["infer", "enrol"]),
    }
    now[0] += 1
    keys.revoke(created["revoked"][0].id)
    keys.note_reload("0123456789ab", created["admin"][0].id)
    stored = {key.id: {**key.__dict__, "scopes": sorted(key.scopes)} for key in keys.all()}
    entries, _ = keys.audit.read()
    write_json(
        out / "keys.json",
        {
            "secrets": {name: secret for name, (_, secret) in created.items()},
            "keys": {name: stored[key.id] for name, (key, _) in created.items()},
            "entries": [[entry.sequence, entry.hash, {**entry.act.__dict__}] for entry in entries],
        },
    )
    keys.close()
    pack(folder, out / "keys.tar.xz")


# --- a training run ---------------------------------------------------------------------------------------------------

RECIPE = """
name = "strokes"
description = "Strokes"
seed = 3

[model]
architecture = "resnet20"
config = { depths = [1, 1], widths = [4, 8], dropout = 0.1 }

[data]
name = "strokes"
validation = 15

[preprocess]
mode = "L"
size = [16, 16]
mean = [33.3]
std = [78.6]

[augment]
rotate = 5
translate = 0.05

[train]
epochs = 4
batch_size = 5
optimizer = "adamw"
lr = 0.01
weight_decay = 0.01
warmup_epochs = 1
ema = 0.9
checkpoint_steps = 4

[card]
data = "strokes"
source = "a test"
license = "Apache-2.0"
"""
STOP_AT = 25  # of 36 steps; the last checkpoint is of step 24, in the third epoch


def write_strokes(folder: Path) -> None:
    """Write sixty images of a stroke in three classes, as `<split>/<class>/<image>`."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(60):
        pixels = np.zeros((16, 16), np.uint8)
        place, along = int(random.integers(3, 13)), np.arange(2, 14)
        kind = ("across", "down", "slanted")[number % 3]
        rows, columns = {"across": (place, along), "down": (along, place), "slanted": (along, along)}[kind]
        pixels[rows, columns] = int(random.integers(150, 256))
        path = folder / "train" / kind / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_run(out: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    write_strokes(folder / "data" / "strokes")
    (folder / "recipe.toml").write_text(RECIPE)
    environment = {
        **os.environ,
        "VESTIBULE_DATASETS": str(folder / "data"),
        "VESTIBULE_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    script = [sys.executable, "-c", _TRAIN, str(folder / "recipe.toml")]
    subprocess.run([*script, "0", "--run", "whole"], env=environment, check=True)
    if subprocess.run([*script, str(STOP_AT)], env=environment, check=False).returncode != 9:
        raise RuntimeError("it was not interrupted")
    shutil.rmtree(folder / "runs" / "cache")
    (folder / "runs" / "strokes" / "curves.png").unlink(missing_ok=True)
    whole = folder / "runs" / "whole"
    shutil.copy(whole / "export" / "strokes" / "model.safetensors", out / "run.safetensors")
    history = json.loads((whole / "history.json").read_text())
    card = json.loads((whole / "export" / "strokes" / "card.json").read_text())
    write_json(out / "run.json", {"history": history, "best_epoch": card["training"]["best_epoch"]})
    shutil.rmtree(whole)
    for number, path in enumerate(sorted((folder / "runs" / "strokes" / "tensorboard").iterdir())):
        path.rename(path.with_name(f"events.out.tfevents.{NOW:.0f}.host.{number}.0"))  # without the machine's name
    pack(folder, out / "run.tar.xz")


_TRAIN = """
import os, sys
from training import classify, loop
step, stop = loop._step, int(sys.argv.pop(2))
def counted(task, progress, *rest):
    if stop and progress.step == stop:
        os._exit(9)
    step(task, progress, *rest)
loop._step = counted
classify.cli()
"""


if __name__ == "__main__":
    _, part, to = sys.argv
    {"gallery": write_gallery, "state": write_state, "keys": write_keys, "run": write_run}[part](Path(to))
